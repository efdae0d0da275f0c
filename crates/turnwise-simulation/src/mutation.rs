/// A scheduler with one thing wrong, to see that a simulation would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// An episode is lost on the way through a snapshot.
    LosesEpisode,
    /// An episode is in a snapshot twice.
    DoublesEpisode,
    /// A finished group is lost on the way through a snapshot.
    LosesGroup,
    /// A finished group is in a snapshot twice.
    DoublesGroup,
    /// Tokens are stamped with weights that the engine does not have yet.
    StampsTooNew,
    /// Log-probabilities change after the draw.
    AltersLogprob,
    /// The bound on staleness is one higher than the settings say.
    TrainsTooOld,
    /// Finished episodes do not release their session.
    KeepsSessions,
    /// Environments stay alive after their episode.
    KeepsEnvironments,
    /// A call of the environment goes on after its deadline.
    OutlivesDeadline,
    /// More episodes run at once than the settings say.
    RunsTooMany,
    /// Something depends on a real clock.
    ReadsTheClock,
}

impl Mutation {
    /// Every one.
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
