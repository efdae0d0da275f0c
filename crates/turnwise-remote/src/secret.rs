//! An API key that stays out of logs and records.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

/// An API key.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// The longest key, in bytes.
const LONGEST: u64 = 16 * 1024;

impl Secret {
    /// Reads a key from a file, without the line breaks and blanks around it.
    ///
    /// # Errors
    /// If the file cannot be read, or holds no key of printable ASCII characters.
    ///
    /// ```
    /// use turnwise_remote::Secret;
    ///
    /// let file = std::env::temp_dir().join("turnwise-secret-example");
    /// std::fs::write(&file, "k-123\n")?;
    /// let key = Secret::from_file(&file)?;
    /// assert_eq!(format!("{key:?}"), "Secret(…)");
    /// # std::fs::remove_file(&file)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError { path: path.to_owned(), source };
        let length = fs::metadata(path).map_err(failed)?.len();
        if length > LONGEST {
            return Err(failed(io::Error::other(format!("{length} bytes are no key"))));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let key = text.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let what = "the file holds no key of printable ASCII characters";
            return Err(failed(io::Error::other(what)));
        }
        Ok(Self(key.to_owned()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// The reason why there is no key.
#[derive(Debug, thiserror::Error)]
#[error("cannot read an API key from {}: {source}", path.display())]
pub struct SecretError {
    path: PathBuf,
    source: io::Error,
}
