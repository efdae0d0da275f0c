use serde::Serialize;

/// A kind of fault in a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The environment returns an error.
    EnvironmentError,
    /// The environment panics.
    EnvironmentPanic,
    /// The environment never answers.
    EnvironmentDead,
    /// The environment answers just within its deadline.
    EnvironmentSlow,
    /// The environment would answer after its deadline.
    EnvironmentLate,
    /// The environment reports a failure.
    EnvironmentFailed,
    /// A reward that is not a number.
    RewardNotANumber,
    /// A reward that is infinite.
    RewardInfinite,
    /// A reward outside the declared range.
    RewardOutOfRange,
    /// An episode that ends without any reward.
    RewardMissing,
    /// An observation of 20 KB, more than any context.
    HugeObservation,
    /// An observation without a message.
    EmptyObservation,
    /// An environment that supports snapshots refuses one.
    SnapshotMissing,
    /// A snapshot with a wrong byte.
    SnapshotCorrupt,
    /// An environment refuses its own snapshot.
    RestoreRefused,
    /// The engine returns an error.
    EngineError,
    /// The engine panics.
    EnginePanic,
    /// The engine never answers.
    EngineDead,
    /// The engine answers just within its deadline.
    EngineSlow,
    /// The engine would answer after its deadline.
    EngineLate,
    /// A log-probability that is not a number.
    LogprobNotANumber,
    /// A log-probability above 0.
    LogprobPositive,
    /// Fewer tokens than the stop reason says.
    TooFewTokens,
    /// No tokens.
    NoTokens,
    /// More tokens than requested.
    TooManyTokens,
    /// A token after the stop token.
    TokensAfterStop,
    /// A token of weights older than one before it.
    VersionBack,
    /// Keys of newer weights than the token's.
    KeysAhead,
    /// The rubric returns an error.
    RubricError,
    /// The rubric panics.
    RubricPanic,
    /// The rubric never answers.
    RubricDead,
    /// One score too few.
    RubricCount,
    /// A score that is not a number.
    RubricNotANumber,
    /// No scores.
    RubricSilent,
    /// A gradient that is not finite.
    GradientNotFinite,
    /// The learner returns an error.
    LearnerError,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 36] = [
        Self::EnvironmentError,
        Self::EnvironmentPanic,
        Self::EnvironmentDead,
        Self::EnvironmentSlow,
        Self::EnvironmentLate,
        Self::EnvironmentFailed,
        Self::RewardNotANumber,
        Self::RewardInfinite,
        Self::RewardOutOfRange,
        Self::RewardMissing,
        Self::HugeObservation,
        Self::EmptyObservation,
        Self::SnapshotMissing,
        Self::SnapshotCorrupt,
        Self::RestoreRefused,
        Self::EngineError,
        Self::EnginePanic,
        Self::EngineDead,
        Self::EngineSlow,
        Self::EngineLate,
        Self::LogprobNotANumber,
        Self::LogprobPositive,
        Self::TooFewTokens,
        Self::NoTokens,
        Self::TooManyTokens,
        Self::TokensAfterStop,
        Self::VersionBack,
        Self::KeysAhead,
        Self::RubricError,
        Self::RubricPanic,
        Self::RubricDead,
        Self::RubricCount,
        Self::RubricNotANumber,
        Self::RubricSilent,
        Self::GradientNotFinite,
        Self::LearnerError,
    ];

    /// Returns the name in reports: the words of the variant, in lower case.
    #[must_use]
    pub fn label(self) -> String {
        let mut label = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !label.is_empty() {
                label.push('_');
            }
            label.extend(letter.to_lowercase());
        }
        label
    }
}
