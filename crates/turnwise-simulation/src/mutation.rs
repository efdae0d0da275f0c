/// A defect in the scheduler, to check that a simulation detects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A snapshot loses an episode.
    LosesEpisode,
    /// A snapshot has an episode twice.
    DoublesEpisode,
    /// A snapshot loses a finished group.
    LosesGroup,
    /// A snapshot has a finished group twice.
    DoublesGroup,
    /// Tokens carry a version that the engine does not have yet.
    StampsTooNew,
    /// Log-probabilities change after sampling.
    AltersLogprob,
    /// The bound on staleness is one higher than the settings say.
    TrainsTooOld,
    /// Finished episodes do not release their session.
    KeepsSessions,
    /// Environments stay alive after their episode.
    KeepsEnvironments,
    /// A call of the environment continues after its deadline.
    OutlivesDeadline,
    /// More episodes run at once than the settings allow.
    RunsTooMany,
    /// A result depends on a real clock.
    ReadsTheClock,
}

impl Mutation {
    /// Every mutation.
    pub const ALL: [Self; 12] = [
        Self::LosesEpisode,
        Self::DoublesEpisode,
        Self::LosesGroup,
        Self::DoublesGroup,
        Self::StampsTooNew,
        Self::AltersLogprob,
        Self::TrainsTooOld,
        Self::KeepsSessions,
        Self::KeepsEnvironments,
        Self::OutlivesDeadline,
        Self::RunsTooMany,
        Self::ReadsTheClock,
    ];
}
