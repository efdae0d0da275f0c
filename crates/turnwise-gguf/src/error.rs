use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use turnwise_candle::ModelError;
use turnwise_training::LearnerError;

/// Why a model cannot be written as GGUF, or run from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// A model that the format or the engine does not have. Says what, and why.
    #[error("support the model: {0}")]
    Unsupported(String),
    /// A file that is no GGUF, or lacks something.
    #[error("parse the model: {0}")]
    Malformed(String),
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
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
        source: io::Error,
    },
    /// Tokens that the model cannot compute: none, too many, one beyond the vocabulary.
    #[error("compute tokens: {0}")]
    BadTokens(String),
    /// A weight, or what is computed from the weights, is NaN or infinite.
    #[error("compute with the model: {0}")]
    NotFinite(String),
    /// The system starts no more threads.
    #[error(
        "start {count} threads of the engine; ask for fewer, or raise the system's limit (`ulimit -u`)"
    )]
    Threads {
        /// How many there should be.
        count: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The weights to export.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The learner to follow.
    #[error(transparent)]
    Learner(#[from] LearnerError),
    /// The tensor library.
    #[error("compute with the model")]
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
