use std::fmt;

/// An invariant of every step of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// `dispatched = trained + dropped + in flight + suspended`, by the scheduler's books and by the witness's.
    Conservation,
    /// An episode trains at most once, and not while it is open.
    TrainedOnce,
    /// No trained token is staler than the run allows.
    Staleness,
    /// Versions along a branch never decrease, and the engine had each of them.
    Versions,
    /// A trained token is the token that the engine sampled, in its place: id, log-probability, version, and the whole
    /// context.
    Tokens,
    /// A trained token has a finite log-probability of at most 0 and an advantage.
    Scored,
    /// Only a valid reward inside the declared range is compared with others.
    Rewards,
    /// A group is compared once, whole, and with no other group.
    Groups,
    /// A request stays inside the limits of its turn and its context.
    Requests,
    /// No call exceeds its deadline by more than a second.
    Deadlines,
    /// No more episodes call environments and engines at once than the settings allow.
    Concurrency,
    /// Open episodes are no more than can be trained before they are too old.
    Admission,
    /// No environment, session or call leaks.
    Leaks,
    /// A snapshot of the run can be taken and restored.
    Restore,
    /// A step ends within the virtual time that its deadlines add up to; once faults have stopped, a run ends.
    Liveness,
    /// Every error of the run is explained by a fault.
    Errors,
    /// No panic leaves the part in which it happened.
    Panics,
    /// One seed run twice gives one trace.
    Determinism,
    /// Under equal weights engine and learner agree on every log-probability.
    Agreement,
}

/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Violation {
    /// The invariant.
    pub invariant: Invariant,
    /// The observation that violates it.
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
