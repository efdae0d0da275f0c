use std::collections::BTreeMap;

use crate::Group;

/// What came of advancing episodes.
#[derive(Debug, Default)]
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
