use std::error::Error;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use crate::Device;

/// Why a model cannot be loaded, stored or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A model is not where it was looked for.
    #[error("find the model {}: {help}", model.display())]
    NotFound {
        /// A directory, or a name on the Hugging Face Hub.
        model: PathBuf,
        /// Where it was looked for, and what to do.
        help: String,
    },
    /// A device that is not there, or that this program was not built for.
    #[error("use the device {device}: {reason}")]
    NoDevice {
        /// What was asked for.
        device: Device,
        /// Why it cannot be used, and what to do.
        reason: String,
    },
    /// Settings that do not go together.
    #[error("compute as asked: {0}")]
    Settings(String),
    /// A file or directory cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A file is not what its name says: cut short, not JSON, a name that leaves its directory.
    #[error("parse {}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A model that this crate does not compute. Says what it does.
    #[error("support the model: {0}")]
    Unsupported(String),
    /// Sizes that cannot be a model.
    #[error("use the model's configuration: {0}")]
    BadConfig(String),
    /// Adapters that a model cannot have.
    #[error("adapt the model: {0}")]
    BadAdapter(String),
    /// The tensors of a checkpoint are not those of its configuration.
    #[error("fit the checkpoint {} to its configuration:{}", directory.display(), describe(problems))]
    Mismatch {
        /// The checkpoint.
        directory: PathBuf,
        /// One entry per tensor, with its name and shapes.
        problems: Vec<String>,
    },
    /// A number that is NaN or infinite, in weights or in what is computed from them.
    #[error("{action}: {reason}")]
    NotFinite {
        /// What was attempted.
        action: String,
        /// The tensor with the first such number and its place.
        reason: String,
    },
    /// A token that is not in the vocabulary.
    #[error(
        "score sequence {sequence}: token {id} at position {position} is beyond the vocabulary of {vocab_size}"
    )]
    BadToken {
        /// Which sequence, from 0.
        sequence: usize,
        /// Where in it, from 0.
        position: usize,
        /// The token.
        id: u32,
        /// How many tokens the model knows.
        vocab_size: usize,
    },
    /// More tokens than the model has positions.
    #[error(
        "score sequence {sequence}: {length} tokens are more than the model's {max_positions} positions"
    )]
    TooLong {
        /// Which sequence, from 0.
        sequence: usize,
        /// How many tokens it has.
        length: usize,
        /// How many the model takes.
        max_positions: usize,
    },
    /// The system starts no more threads.
    #[error(
        "start the {count} threads of {purpose}; ask for fewer, or raise the system's limit (`ulimit -u`)"
    )]
    Threads {
        /// How many there should be.
        count: usize,
        /// What they are for.
        purpose: &'static str,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The tensor library.
    #[error("compute with the model")]
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

/// Text from a file as an error repeats it: not more than a hundred characters of it.
pub(crate) fn brief(text: impl fmt::Display) -> String {
    const LONGEST: usize = 100;
    let text = text.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

/// All of them: one after the colon, several on lines of their own.
fn describe(problems: &[String]) -> String {
    match problems {
        [one] => format!(" {one}"),
        several => format!("\n  {}", several.join("\n  ")),
    }
}
