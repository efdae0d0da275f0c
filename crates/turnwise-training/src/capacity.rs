//! How many rollouts staleness admits.

/// Where the rollouts of a run are, in rollouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Optimiser steps that were published since the run began.
    pub version: u64,
    /// Rollouts that were trained on.
    pub accepted: u64,
    /// Rollouts that are running, suspended, waiting to begin, or finished and waiting for the trainer.
    pub outstanding: u64,
}

/// Rollouts that may be started so that none of them is more than `max_staleness` versions old when its turn comes.
///
/// ```text
/// capacity = (η + version + 1) · batch − (accepted + outstanding)        AReaL, arXiv 2505.24298, section 5.1
/// ```
///
/// The formula supposes that every version has consumed a batch. A step here may train fewer (groups without variance,
/// faults), so no more than η + 1 batches are ever outstanding either.
#[must_use]
pub fn capacity(occupancy: &Occupancy, batch: u64, max_staleness: u32) -> u64 {
    let Occupancy { version, accepted, outstanding } = *occupancy;
    let batches = u64::from(max_staleness) + 1;
    let by_version =
        (batches + version).saturating_mul(batch).saturating_sub(accepted + outstanding);
    by_version.min(batches.saturating_mul(batch).saturating_sub(outstanding))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Occupancy, capacity};

    proptest! {
        /// rollouts.md 13.22: never more than the formula, and always something when nothing is outstanding.
        #[test]
        fn admission_is_bounded_by_the_formula_and_makes_progress(
            batch in 1_u64..64,
            max_staleness in 0_u32..5,
            steps in prop::collection::vec((0_u64..400, 0_u64..400), 1..40),
        ) {
            let mut occupancy = Occupancy::default();
            for (started, finished) in steps {
                let room = capacity(&occupancy, batch, max_staleness);
                let total = occupancy.accepted + occupancy.outstanding + room;
                prop_assert!(total <= (u64::from(max_staleness) + occupancy.version + 1) * batch);
                prop_assert!(occupancy.outstanding > 0 || room >= batch);
                occupancy.outstanding += started.min(room);
                // Any part of what is outstanding is trained; a step that trained something is a version.
                let trained = finished.min(occupancy.outstanding);
                occupancy.outstanding -= trained;
                occupancy.accepted += trained;
                occupancy.version += u64::from(trained > 0);
            }
        }
    }

    #[test]
    fn without_staleness_a_version_admits_one_batch() {
        let at = |version, accepted, outstanding| Occupancy { version, accepted, outstanding };
        assert_eq!(capacity(&at(0, 0, 0), 8, 0), 8);
        assert_eq!(capacity(&at(0, 0, 8), 8, 0), 0);
        assert_eq!(capacity(&at(1, 8, 0), 8, 0), 8);
        assert_eq!(capacity(&at(1, 8, 0), 8, 2), 24);
        assert_eq!(capacity(&at(1, 16, 0), 8, 1), 8);
    }
}
