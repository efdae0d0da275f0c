use std::error::Error;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use crate::Device;

/// An error of loading, storing or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The model was not found.
    #[error("cannot find the model {}: {help}", model.display())]
    NotFound {
        /// A directory, or a name on the Hugging Face Hub.
        model: PathBuf,
        /// Where it was searched for, and what to do.
        help: String,
    },
    /// The device does not exist, or this program was built without support for it.
    #[error("cannot use the device {device}: {reason}")]
    NoDevice {
        /// The requested device.
        device: Device,
        /// The reason, and what to do.
        reason: String,
    },
    /// Settings that contradict each other.
    #[error("cannot compute as asked: {0}")]
    Settings(String),
    /// A file or directory that cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A malformed file: cut short, not JSON, or with a name outside its directory.
    #[error("cannot parse {}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// A model that this crate does not support; the text says what it supports.
    #[error("cannot support the model: {0}")]
    Unsupported(String),
    /// Invalid sizes.
    #[error("cannot use the model's configuration: {0}")]
    BadConfig(String),
    /// Adapters that the model cannot have.
    #[error("cannot adapt the model: {0}")]
    BadAdapter(String),
    /// Tensors of a checkpoint that do not match its configuration.
    #[error("cannot fit the checkpoint {} to its configuration:{}", directory.display(), describe(problems))]
    Mismatch {
        /// The checkpoint.
        directory: PathBuf,
        /// One entry per tensor, with its name and shapes.
        problems: Vec<String>,
    },
    /// A number that is NaN or infinite, in weights or in results.
    #[error("cannot {action}: {reason}")]
    NotFinite {
        /// The attempted action.
        action: String,
        /// The tensor with the first such number, and its index.
        reason: String,
    },
    /// A token that is not in the vocabulary.
    #[error(
        "cannot score sequence {sequence}: token {id} at position {position} is beyond the vocabulary of {vocab_size}"
    )]
    BadToken {
        /// The index of the sequence.
        sequence: usize,
        /// The position in the sequence, from 0.
        position: usize,
        /// The token.
        id: u32,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// A sequence with more tokens than the model has positions.
    #[error(
        "cannot score sequence {sequence}: {length} tokens are more than the model's {max_positions} positions"
    )]
    TooLong {
        /// The index of the sequence.
        sequence: usize,
        /// The number of its tokens.
        length: usize,
        /// The number of the model's positions.
        max_positions: usize,
    },
    /// Threads that the system does not start.
    #[error(
        "cannot start the {count} threads of {purpose}; ask for fewer, or raise the system's limit (`ulimit -u`)"
    )]
    Threads {
        /// The requested number of threads.
        count: usize,
        /// Their purpose.
        purpose: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// An error of the tensor library.
    #[error("cannot compute with the model")]
    Compute(#[source] Box<dyn Error + Send + Sync>),
}

impl ModelError {
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Write { path: path.to_owned(), source: source.into() }
    }

    pub(crate) fn threads(
        count: usize,
        purpose: &'static str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let count = if count == 0 { available() } else { count };
        Self::Threads { count, purpose, source: source.into() }
    }

    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), reason: reason.into() }
    }
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(Box::new(error))
    }
}

/// Shortens text from a file to at most a hundred characters.
pub(crate) fn brief(text: impl fmt::Display) -> String {
    const LONGEST: usize = 100;
    let text = text.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

/// Lists problems: a single one after the colon, several on lines of their own.
fn describe(problems: &[String]) -> String {
    match problems {
        [one] => format!(" {one}"),
        several => format!("\n  {}", several.join("\n  ")),
    }
}
