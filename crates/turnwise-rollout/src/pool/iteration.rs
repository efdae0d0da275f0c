use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use turnwise_trajectory::{InfraFault, Outcome};

use super::running::Place;
use crate::Group;

/// The results of advancing episodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Iteration {
    /// The finished groups, oldest first.
    pub groups: Vec<Group>,
    /// The number of suspended episodes that continued.
    pub resumed: usize,
    /// The number of episodes that are suspended at the end.
    pub suspended: usize,
    /// The number of sampled tokens.
    pub n_sampled: u64,
    /// Outcomes of the finished attempts, by label. An attempt whose verdict grading changed counts under both labels.
    pub outcomes: BTreeMap<String, u64>,
    /// Members of finished groups that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// The attempts that broke, by the label of their outcome.
    #[serde(default)]
    pub faults: BTreeMap<String, Faults>,
}

/// Faults of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Faults {
    /// The first of them.
    #[serde(flatten)]
    pub first: InfraFault,
    /// The number of attempts that broke so.
    pub n: u64,
}

impl Iteration {
    /// Counts the outcome of a finished attempt.
    pub(super) fn count(&mut self, outcome: &Outcome) {
        let label = outcome.label();
        if let Outcome::InfraFault(fault) = outcome {
            let faults = self.faults.entry(label.clone());
            faults.or_insert_with(|| Faults { first: fault.clone(), n: 0 }).n += 1;
        }
        *self.outcomes.entry(label).or_default() += 1;
    }

    /// Adds the results of a later iteration.
    pub fn absorb(&mut self, later: Self) {
        self.groups.extend(later.groups);
        self.resumed += later.resumed;
        self.suspended = later.suspended;
        self.n_sampled += later.n_sampled;
        for (label, n) in later.outcomes {
            *self.outcomes.entry(label).or_default() += n;
        }
        for (reason, n) in later.dropped {
            *self.dropped.entry(reason).or_default() += n;
        }
        for (label, Faults { first, n }) in later.faults {
            self.faults.entry(label).or_insert(Faults { first, n: 0 }).n += n;
        }
    }
}

/// An iteration that was cut short by a stop.
///
/// It continues later with the same share for each episode, minus the tokens that the episode has already sampled, so
/// that a run that is stopped and resumed samples exactly the tokens of one that is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unfinished {
    /// The number of tokens that each episode may sample in the iteration.
    pub(super) share: u64,
    /// The number of tokens that each episode has sampled in it; 0 for a missing one.
    used: Vec<(Place, u64)>,
}

impl Unfinished {
    pub(super) fn new(share: u64, used: BTreeMap<Place, u64>) -> Self {
        Self { share, used: used.into_iter().collect() }
    }

    /// Returns the number of tokens sampled in the iteration, by place.
    pub(super) fn used(&self) -> BTreeMap<Place, u64> {
        self.used.iter().copied().collect()
    }
}
