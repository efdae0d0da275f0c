//! The number of rollouts that staleness admits.

/// The rollouts of a run by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Optimiser steps published since the run began.
    pub version: u64,
    /// Rollouts that were trained on.
    pub accepted: u64,
    /// Rollouts that are running, suspended, waiting to begin, or finished and waiting for the trainer.
    pub outstanding: u64,
    /// Rollouts of the batch that is being trained on; rollouts that start now come after it.
    pub in_training: u64,
}

/// Returns the number of rollouts that may be started so that none is more than `max_staleness` versions old when it is
/// trained on.
///
/// ```text
/// capacity = (η + version + 1) · batch − (accepted + in training + outstanding)      AReaL, arXiv 2505.24298, section 5.1
/// ```
///
/// The formula assumes that every version has consumed a batch. A step here may train on fewer rollouts (groups without
/// variance, faults), so the rollouts in training and outstanding never exceed η + 1 batches either: a rollout that
/// starts while a batch trains is trained on at least one version later, and with η batches before it η + 1 versions
/// later.
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
        /// Rollouts 13.22: never more than the formula, and always more than 0 when nothing is outstanding.
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
                // Any part of the outstanding rollouts is trained on; only a step that trained on some publishes a
                // version.
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
        /// Rollouts 13.21: a rollout that is trained on in the order of starting is never too old, even if each step
        /// trains on little of its batch.
        #[test]
        fn what_is_trained_in_order_is_never_too_old(
            batch in 1_u64..16,
            max_staleness in 0_u32..5,
            percents in prop::collection::vec(10_u64..100, 1..60),
        ) {
            let mut occupancy = Occupancy::default();
            // The versions at which batches were started, oldest first, one entry for each rollout.
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
