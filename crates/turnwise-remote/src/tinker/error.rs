//! What can go wrong with a Tinker server.

use crate::fault::{RemoteError, ServerFault};

/// An error of a Tinker server.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TinkerError {
    /// The address cannot be used, or no client can be made.
    #[error(transparent)]
    Address(#[from] RemoteError),
    /// The server cannot be used for training.
    #[error("cannot train on the Tinker server at {url}: {reason}")]
    Unfit {
        /// The server's address.
        url: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// A request failed.
    #[error("cannot {action} on the Tinker server at {url}: {reason}")]
    Failed {
        /// The attempted action, as an imperative.
        action: String,
        /// The server's address.
        url: String,
        /// What the server answered.
        reason: String,
    },
    /// It is not known whether the server did what an earlier request asked for.
    #[error(
        "cannot go on with the model on the Tinker server: {reason}; load the newest checkpoint, which begins a new model \
         with known weights"
    )]
    Lost {
        /// The error of the earlier request.
        reason: String,
    },
    /// A file of a checkpoint or an adapter cannot be used.
    #[error("cannot use {path}: {reason}")]
    BadFile {
        /// The file.
        path: String,
        /// The cause.
        reason: String,
    },
}

impl TinkerError {
    pub(super) fn failed(action: &str, url: &str, fault: &ServerFault) -> Self {
        Self::Failed { action: action.to_owned(), url: url.to_owned(), reason: fault.to_string() }
    }
}
