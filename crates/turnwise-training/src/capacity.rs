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
    /// Rollouts of the batch that is being trained on, and not yet published: what is started now comes after it.
    pub in_training: u64,
}

/// Rollouts that may be started so that none of them is more than `max_staleness` versions old when its turn comes.
///
/// ```text
/// capacity = (η + version + 1) · batch − (accepted + in training + outstanding)      AReaL, arXiv 2505.24298, section 5.1
/// ```
///
/// The formula supposes that every version has consumed a batch. A step here may train fewer (groups without variance,
/// faults), so no more than η + 1 batches are ever in training and outstanding either: what is started while a batch trains
/// is trained on one version later at the least, and with η batches before it η + 1 versions later.
#[must_use]
pub fn capacity(occupancy: &Occupancy, batch: u64, max_staleness: u32) -> u64 {
    let Occupancy { version, accepted, outstanding, in_training } = *occupancy;
    let ahead = outstanding + in_training;
    let batches = u64::from(max_staleness) + 1;
    let by_version = (batches + version).saturating_mul(batch).saturating_sub(accepted + ahead);
    by_version.min(batches.saturating_mul(batch).saturating_sub(ahead))
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
        let at = |version, accepted, outstanding| Occupancy {
            version,
            accepted,
            outstanding,
            in_training: 0,
        };
        assert_eq!(capacity(&at(0, 0, 0), 8, 0), 8);
        assert_eq!(capacity(&at(0, 0, 8), 8, 0), 0);
        assert_eq!(capacity(&at(1, 8, 0), 8, 0), 8);
        assert_eq!(capacity(&at(1, 8, 0), 8, 2), 24);
        assert_eq!(capacity(&at(1, 16, 0), 8, 1), 8);
    }

    proptest! {
        /// rollouts.md 13.21: whoever is trained on in the order of starting is never too old, however little each step
        /// trains of its batch.
        #[test]
        fn what_is_trained_in_order_is_never_too_old(
            batch in 1_u64..16,
            max_staleness in 0_u32..5,
            percents in prop::collection::vec(10_u64..100, 1..60),
        ) {
            let mut occupancy = Occupancy::default();
            // The versions that batches were started with, oldest first, one entry for each rollout.
            let mut queue = std::collections::VecDeque::new();
            let start = |occupancy: &mut Occupancy, queue: &mut std::collections::VecDeque<u64>| {
                let room = capacity(occupancy, batch, max_staleness);
                occupancy.outstanding += room;
                queue.extend(std::iter::repeat_n(occupancy.version, room as usize));
            };
            for percent in percents {
                start(&mut occupancy, &mut queue);
                prop_assert!(queue.len() as u64 >= batch, "a step has its batch");
                for version in queue.drain(..batch as usize) {
                    prop_assert!(occupancy.version - version <= u64::from(max_staleness));
                }
                occupancy.outstanding -= batch;
                occupancy.in_training = batch;
                start(&mut occupancy, &mut queue);
                occupancy.in_training = 0;
                occupancy.accepted += percent * batch / 100;
                occupancy.version += 1;
            }
        }
    }
}
