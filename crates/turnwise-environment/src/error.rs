use std::error::Error;

/// The kind of a failure, for code that counts failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something broke.
    #[default]
    Failed,
    /// A tool was called, it is unknown whether it acted, and it must not act twice.
    ToolInDoubt,
    /// The caller broke the order of calls: a step after the end, say.
    Protocol,
}

/// An environment that cannot go on: an infrastructure failure, never a verdict on the agent.
///
/// The episode ends as `InfraFault` without a reward. A mistake of the *agent* is answered with an observation instead.
/// Settings from which an environment cannot be made are also reported with this error.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct EnvironmentError {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl EnvironmentError {
    /// Creates an error with a message that says alone what failed: a sentence that begins in lower case and has no full
    /// stop, such as "cannot open `game.db`".
    ///
    /// ```
    /// let error = turnwise_environment::EnvironmentError::new("cannot open the game's database");
    /// assert_eq!(error.to_string(), "cannot open the game's database");
    /// ```
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Failed, message: message.into(), source: None }
    }

    /// Sets the kind.
    ///
    /// ```
    /// use turnwise_environment::{EnvironmentError, ErrorKind};
    ///
    /// let error = EnvironmentError::new("a step was taken after the end").of_kind(ErrorKind::Protocol);
    /// assert_eq!(error.kind(), ErrorKind::Protocol);
    /// ```
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Returns the kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Attaches the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}
