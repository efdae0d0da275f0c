use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{CallKey, LedgerError, LedgerStore, ToolReply};

/// The ledgers of any number of episodes in one append-only file, with one JSON object a line. An entry is on the disk
/// before a method returns; the first entry creates the file.
///
/// A crash can tear the last line. Opening the file removes such a line, because its method had not returned.
pub struct LedgerFile {
    inner: Mutex<Inner>,
}

struct Inner {
    path: PathBuf,
    /// `None` until the first entry.
    file: Option<File>,
    /// The offset of the next line.
    end: u64,
    known: BTreeMap<CallKey, (String, Option<ToolReply>)>,
}

/// One line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Issued { key: CallKey, request: String },
    Settled { key: CallKey, reply: ToolReply },
}

impl LedgerFile {
    /// Opens the ledger at `path`; if there is no file, the first entry creates it.
    ///
    /// # Errors
    /// When the file cannot be read or written, or a line other than the last is not an entry of a ledger.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let mut bytes = Vec::new();
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(at(path)(error).into()),
        };
        if let Some(file) = &mut file {
            file.read_to_end(&mut bytes).map_err(at(path))?;
        }
        // A line is complete once its newline is written; the bytes after the last newline were torn.
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let mut known = BTreeMap::new();
        for (number, line) in bytes[..end].split(|byte| *byte == b'\n').enumerate() {
            if !line.is_empty() {
                let wrong = |reason| LedgerError::Line { line: number + 1, reason };
                let line =
                    serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
                apply(&mut known, line).map_err(wrong)?;
            }
        }
        if let Some(file) = &file {
            file.set_len(end as u64).and_then(|()| file.sync_all()).map_err(at(path))?;
        }
        Ok(Self {
            inner: Mutex::new(Inner { path: path.to_owned(), file, end: end as u64, known }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn append(&mut self, line: Line) -> Result<(), LedgerError> {
        let mut bytes = serde_json::to_vec(&line).map_err(io::Error::other)?;
        bytes.push(b'\n');
        self.write(&bytes).map_err(at(&self.path))?;
        self.end += bytes.len() as u64;
        apply(&mut self.known, line)
            .map_err(|reason| LedgerError::Line { line: self.known.len(), reason })
    }
}

impl Inner {
    /// Writes behind the last complete line, over the remains of a failed write.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(create(&self.path)?),
        };
        file.seek(SeekFrom::Start(self.end))?;
        file.write_all(bytes)?;
        file.set_len(self.end + bytes.len() as u64)?;
        file.sync_data()
    }
}

/// Creates the file. Its name is on the disk once its directory is synchronised.
fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(path)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

/// Adds the file's path to an error.
fn at(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl LedgerStore for LedgerFile {
    fn find(&self, key: &CallKey) -> Option<(String, Option<ToolReply>)> {
        self.inner().known.get(key).cloned()
    }

    fn issued(&self, key: &CallKey, request: &str) -> Result<(), LedgerError> {
        self.inner().append(Line::Issued { key: key.clone(), request: request.to_owned() })
    }

    fn settled(&self, key: &CallKey, reply: &ToolReply) -> Result<(), LedgerError> {
        self.inner().append(Line::Settled { key: key.clone(), reply: reply.clone() })
    }
}

fn apply(
    known: &mut BTreeMap<CallKey, (String, Option<ToolReply>)>,
    line: Line,
) -> Result<(), String> {
    match line {
        Line::Issued { key, request } => {
            known.insert(key, (request, None));
        }
        Line::Settled { key, reply } => match known.get_mut(&key) {
            Some((_, before)) => *before = Some(reply),
            None => return Err(format!("{key} is settled but was never issued")),
        },
    }
    Ok(())
}

impl fmt::Debug for LedgerFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LedgerFile")
            .field("n_calls", &self.inner().known.len())
            .finish_non_exhaustive()
    }
}
