use std::fmt;

/// What must hold at every step of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// `dispatched = trained + dropped + in flight + suspended`, by the scheduler's books and by the world's.
    Conservation,
    /// An episode trains at most once, and not while it is still open.
    TrainedOnce,
    /// No trained token is older than the run allows.
    Staleness,
    /// Versions along a branch never decrease, and each is one the engine had.
    Versions,
    /// A trained token is what the engine drew, where it drew it: id, log-probability, version, and all that stood before.
    Tokens,
    /// A trained token has a finite log-probability of at most 0 and an advantage.
    Scored,
    /// Only a real reward inside the declared range is compared with others.
    Rewards,
    /// A group is compared once, whole, and with nobody else.
    Groups,
    /// A request stays inside the limits of its turn and its context.
    Requests,
    /// No call outlives its deadline by more than a second.
    Deadlines,
    /// No more episodes call environments and engines at once than the settings allow.
    Concurrency,
    /// What is open is no more than can be trained before it is too old.
    Admission,
    /// No environment, session or call is left behind.
    Leaks,
    /// A snapshot of the run can be taken and gone on from.
    Restore,
    /// A step ends within the virtual time its deadlines add up to; once faults have stopped, a run ends.
    Liveness,
    /// The run ends with no error but those that a fault explains.
    Errors,
    /// No panic leaves the part it happened in.
    Panics,
    /// One seed run twice gives one trace.
    Determinism,
    /// Under equal weights engine and learner agree on every log-probability.
    Agreement,
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// What was found.
    pub found: String,
}

impl Violation {
    pub(crate) fn new(invariant: Invariant, found: impl Into<String>) -> Self {
        Self { invariant, found: found.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.invariant, self.found)
    }
}
