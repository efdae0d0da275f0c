use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::running::Seat;
use crate::Group;

/// What came of advancing episodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Iteration {
    /// The groups that are finished, oldest first.
    pub groups: Vec<Group>,
    /// Episodes that had been suspended before and went on.
    pub resumed: usize,
    /// Episodes that are suspended at the end.
    pub suspended: usize,
    /// Tokens drawn.
    pub n_sampled: u64,
    /// Outcomes of the attempts that ended, by label. One whose verdict grading took back stands under both.
    pub outcomes: BTreeMap<String, u64>,
    /// Members of finished groups that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl Iteration {
    /// Adds what a later iteration brought.
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
    }
}

/// An iteration that was cut short by a stop.
///
/// It goes on later with the same share for each episode, less what each has drawn already, so that a run that was stopped and
/// resumed draws exactly the tokens of one that was not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unfinished {
    /// The tokens that each episode may draw in the iteration.
    pub(super) share: u64,
    /// The tokens that each episode has drawn in it; 0 for one that is missing.
    used: Vec<(Seat, u64)>,
}

impl Unfinished {
    pub(super) fn new(share: u64, used: BTreeMap<Seat, u64>) -> Self {
        Self { share, used: used.into_iter().collect() }
    }

    /// The tokens drawn in the iteration, by seat.
    pub(super) fn used(&self) -> BTreeMap<Seat, u64> {
        self.used.iter().copied().collect()
    }
}
