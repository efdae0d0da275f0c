use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use turnwise_candle::ModelError;
use turnwise_training::LearnerError;

/// The reason why a model cannot be written as GGUF, or run from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// A model that the format or the engine does not support. The text says what, and why.
    #[error("cannot support the model: {0}")]
    Unsupported(String),
    /// A file that is not GGUF, or lacks something.
    #[error("cannot parse the model: {0}")]
    Malformed(String),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Tokens that the model cannot compute: none, too many, or one beyond the vocabulary.
    #[error("cannot compute tokens: {0}")]
    BadTokens(String),
    /// A weight, or a number computed from the weights, is NaN or infinite.
    #[error("cannot compute with the model: {0}")]
    NotFinite(String),
    /// The system starts no more threads.
    #[error(
        "cannot start {count} threads of the engine; ask for fewer, or raise the system's limit (`ulimit -u`)"
    )]
    Threads {
        /// The number of requested threads.
        count: usize,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The exported weights are invalid.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The followed learner failed.
    #[error(transparent)]
    Learner(#[from] LearnerError),
    /// The tensor library failed.
    #[error("cannot compute with the model")]
    Compute(#[source] Box<dyn Error + Send + Sync>),
}

impl GgufError {
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }
}

impl From<candle_core::Error> for GgufError {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(Box::new(error))
    }
}
