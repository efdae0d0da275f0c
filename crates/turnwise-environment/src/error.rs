use std::error::Error;

/// An environment that cannot go on: an infrastructure failure, never a verdict on the agent.
///
/// The episode ends as `InfraFault` without a reward. What the *agent* did wrong is answered with an observation instead.
/// Settings that an environment cannot be made from are reported with it too.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct EnvironmentError {
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl EnvironmentError {
    /// An error with a lower-case message that reads after "failed to".
    ///
    /// ```
    /// let error = turnwise_environment::EnvironmentError::new("open the game's database");
    /// assert_eq!(error.to_string(), "open the game's database");
    /// ```
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// The same error with its cause attached.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}
