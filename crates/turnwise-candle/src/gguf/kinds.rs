//! The types of tensors, by the numbers that stand for them in a file.

use std::io::{self, BufRead, Seek};

/// The types that are read.
pub(super) const READ: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";

/// Numbers of types that the tensor library does not know, with their names in `ggml.h`.
const UNKNOWN: [(u32, &str); 22] = [
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// Returns the first tensor of an unknown type, with the name of that type; `None` if there is none, or the file is
/// damaged before it.
pub(super) fn first_unknown(file: &mut (impl BufRead + Seek)) -> Option<(String, &'static str)> {
    Header { file }.first_unknown().ok().flatten()
}

/// A header that is read up to the tensors.
struct Header<'a, R> {
    file: &'a mut R,
}

impl<R: BufRead + Seek> Header<'_, R> {
    fn first_unknown(&mut self) -> io::Result<Option<(String, &'static str)>> {
        self.file.rewind()?;
        let (_, version) = (self.word()?, self.word()?);
        // Version 1 has lengths of another width, and is older than all of these types.
        if version < 2 {
            return Ok(None);
        }
        let (n_tensors, n_keys) = (self.long()?, self.long()?);
        for _ in 0..n_keys {
            self.text()?;
            let kind = self.word()?;
            self.skip(kind)?;
        }
        for _ in 0..n_tensors {
            let name = self.text()?;
            let n_dimensions = self.word()?;
            self.pass(8 * u64::from(n_dimensions))?;
            let kind = self.word()?;
            if let Some((_, unknown)) = UNKNOWN.iter().find(|(number, _)| *number == kind) {
                return Ok(Some((String::from_utf8_lossy(&name).into_owned(), unknown)));
            }
            self.pass(8)?;
        }
        Ok(None)
    }

    /// Passes over a value of a key.
    fn skip(&mut self, kind: u32) -> io::Result<()> {
        const ARRAY: u32 = 9;
        if kind != ARRAY {
            return self.skip_plain(kind, 1);
        }
        let (kind, length) = (self.word()?, self.long()?);
        self.skip_plain(kind, length)
    }

    fn skip_plain(&mut self, kind: u32, length: u64) -> io::Result<()> {
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..length {
                    let length = self.long()?;
                    self.pass(length)?;
                }
                return Ok(());
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        self.pass(length.saturating_mul(width))
    }

    fn text(&mut self) -> io::Result<Vec<u8>> {
        const LONGEST: u64 = 1 << 16;
        let length = self.long()?;
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = vec![0; length as usize];
        self.file.read_exact(&mut text)?;
        Ok(text)
    }

    fn word(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn long(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        self.file.seek_relative(bytes)
    }
}
