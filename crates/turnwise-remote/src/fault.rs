//! What can go wrong with a server.

use std::time::Duration;

use turnwise_trajectory::PolicyVersion;

use crate::Server;

/// The reason why one request to one replica has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum ServerFault {
    /// Nobody answers, or the connection broke.
    #[error("it does not answer: {0}")]
    Unreachable(String),
    /// The server asks to wait.
    #[error("it is busy: {message}")]
    Busy { wait: Option<Duration>, message: String },
    /// The server refuses the request, which no repetition changes.
    #[error("it refuses with status {status}: {message}")]
    Refused { status: u16, message: String },
    /// The server broke while serving the request.
    #[error("it broke: {0}")]
    Broke(String),
    /// The answer is not what was asked for.
    #[error("its answer is wrong: {0}")]
    Wrong(String),
}

/// An error of a remote engine.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RemoteError {
    /// No URL is given, or one that is none.
    #[error("cannot use `{url}` as the address of an engine: {reason}")]
    BadUrl {
        /// The URL as it was given.
        url: String,
        /// The cause.
        reason: String,
    },
    /// No client can be made, for instance because the system has no certificates.
    #[error("cannot make HTTP requests: {0}")]
    Client(String),
    /// A replica cannot be used as it was started.
    #[error("cannot use {server} at {url}: {reason}")]
    Unfit {
        /// The kind of server.
        server: Server,
        /// The replica's address.
        url: String,
        /// What is missing, and how the server is started with it.
        reason: String,
    },
    /// No replica took the new weights.
    #[error("cannot publish {version} to {server}: {reason}")]
    Publish {
        /// The kind of server.
        server: Server,
        /// The version that was to be published.
        version: PolicyVersion,
        /// What the replicas answered.
        reason: String,
    },
}
