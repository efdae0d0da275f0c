//! An append-only file of JSON lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::Value;

use crate::disk::open_plain;

/// JSON values, one on each line. Every line is whole, even if the writing process was killed.
#[derive(Debug)]
pub(crate) struct JsonLines {
    file: File,
}

/// The maximal length of a line, and of the search for the end of the last one.
const WINDOW: u64 = 1 << 26;

impl JsonLines {
    /// Opens or creates a file. Removes a last line that a kill or a full disk cut short; completes one that lacks only
    /// its line break.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut file = open_plain(path, options.create(true).read(true).append(true))?;
        repair(&mut file)?;
        Ok(Self { file })
    }

    /// Appends a line. On failure, removes the part that was written.
    pub(crate) fn append(&mut self, value: &Value) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        // One write for a line, so that a killed process leaves no half line in the middle of a file.
        let written = self.file.write_all(format!("{value}\n").as_bytes());
        if written.is_err() {
            // If this fails too, the next process repairs the file.
            let _ = self.file.set_len(before);
        }
        written
    }
}

fn repair(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(WINDOW);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let torn = &tail[whole..];
    if torn.is_empty() {
        Ok(())
    } else if serde_json::from_slice::<Value>(torn).is_ok_and(|value| value.is_object()) {
        file.write_all(b"\n")
    } else {
        file.set_len(start + whole as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        /// Field 2: wherever the last line was cut, the next one stands on a line of its own, and no whole line is
        /// lost.
        #[test]
        fn a_torn_line_swallows_nothing(n in 0_usize..4, cut in 0_usize..40, text in "\\PC{0,12}") {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("lines.jsonl");
            let value = |number: usize| json!({"number": number, "text": text});
            let lines: Vec<String> = (0..n).map(|number| value(number).to_string() + "\n").collect();
            let mut content = lines.concat();
            let torn = value(n).to_string();
            let cut = cut.min(torn.len());
            content.push_str(&String::from_utf8_lossy(&torn.as_bytes()[..cut]));
            fs::write(&path, &content).expect("it is written");
            let mut lines = JsonLines::open(&path).expect("it is repaired");
            lines.append(&json!({"number": "next"})).expect("it is written");
            let read = fs::read_to_string(&path).expect("it is text");
            let read: Vec<Value> =
                read.lines().map(|line| serde_json::from_str(line).expect("whole")).collect();
            let kept = n + usize::from(cut == torn.len());
            let mut expected: Vec<Value> = (0..kept).map(value).collect();
            expected.push(json!({"number": "next"}));
            prop_assert_eq!(read, expected);
        }
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (elsewhere, link) = (folder.path().join("elsewhere"), folder.path().join("link"));
        fs::write(&elsewhere, "kept").expect("it is written");
        std::os::unix::fs::symlink(&elsewhere, &link).expect("a link");
        let error = JsonLines::open(&link).expect_err("it is refused");
        assert_eq!(error.to_string(), "`link` is a link");
        assert_eq!(fs::read_to_string(&elsewhere).expect("it is read"), "kept");
    }
}
