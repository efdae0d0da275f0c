use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_environment::{Random, derive_seed};

/// The rule that chooses the task of the next group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Curriculum {
    /// Plays all tasks once in every epoch, in a different order each time.
    #[default]
    Epochs,
    /// Like `Epochs`, but skips a task whose last group solved it less often than `low` or more often than `high`,
    /// except with probability `keep`: such groups mostly have no variance and no gradient.
    SuccessRate {
        /// The lower bound, from 0 to 1.
        low: f64,
        /// The upper bound, from `low` to 1.
        high: f64,
        /// Above 0, so that tasks return after the policy has changed.
        keep: f64,
    },
}

/// The position of a run in its tasks, and the tasks' success rates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskQueue {
    /// The next index in the sequence of epochs.
    next: u64,
    /// The share of the last group's scored members that solved the task.
    success: BTreeMap<usize, f64>,
    /// The order of the last requested epoch; recomputed if it is missing.
    #[serde(skip)]
    order: Option<(u64, Vec<usize>)>,
}

impl TaskQueue {
    /// Returns the task of the next group. `seed` must be the run's at every call.
    pub(crate) fn next(&mut self, curriculum: Curriculum, n_tasks: usize, seed: u64) -> usize {
        // The search ends after one epoch: if every task would be skipped, one is played anyway.
        for _ in 1..n_tasks {
            let place = self.next;
            let task = self.take(n_tasks, seed);
            if !self.passes_over(curriculum, task, derive_seed(derive_seed(seed, KEEP), place)) {
                return task;
            }
        }
        self.take(n_tasks, seed)
    }

    /// Records the success rate of a group.
    pub(crate) fn record(&mut self, task: usize, success: f64) {
        self.success.insert(task, success);
    }

    fn take(&mut self, n_tasks: usize, seed: u64) -> usize {
        let (epoch, place) = (self.next / n_tasks as u64, self.next % n_tasks as u64);
        self.next += 1;
        let is_other = self.order.as_ref().is_none_or(|(ordered, _)| *ordered != epoch);
        if is_other {
            let mut order: Vec<usize> = (0..n_tasks).collect();
            Random::new(derive_seed(derive_seed(seed, ORDER), epoch)).shuffle(&mut order);
            self.order = Some((epoch, order));
        }
        self.order.as_ref().map_or(0, |(_, order)| order[place as usize])
    }

    fn passes_over(&self, curriculum: Curriculum, task: usize, seed: u64) -> bool {
        let Curriculum::SuccessRate { low, high, keep } = curriculum else { return false };
        let teaches_little =
            self.success.get(&task).is_some_and(|success| *success < low || *success > high);
        teaches_little && Random::new(seed).uniform() >= keep
    }
}

// Labels of seeds that are derived from the run's seed; the pool uses group numbers, which never reach these.
const ORDER: u64 = u64::MAX;
const KEEP: u64 = u64::MAX - 2;

#[cfg(test)]
mod tests {
    use super::{Curriculum, TaskQueue};

    /// An epoch plays every task once, and every epoch has its own order.
    #[test]
    fn an_epoch_goes_through_all_tasks_once() {
        let mut queue = TaskQueue::default();
        let mut epoch =
            || -> Vec<usize> { (0..9).map(|_| queue.next(Curriculum::Epochs, 9, 7)).collect() };
        let (first, second) = (epoch(), epoch());
        let sorted = |mut tasks: Vec<usize>| {
            tasks.sort_unstable();
            tasks
        };
        assert_ne!(first, second);
        assert_eq!(sorted(first), (0..9).collect::<Vec<_>>());
        assert_eq!(sorted(second), (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_always_or_never_solved_is_played_less_but_not_never() {
        let curriculum = Curriculum::SuccessRate { low: 0.1, high: 0.9, keep: 0.2 };
        let mut queue = TaskQueue::default();
        for (task, success) in [(0, 0.0), (1, 0.5), (2, 1.0), (3, 0.4)] {
            queue.record(task, success);
        }
        let mut played = [0; 4];
        (0..1000).for_each(|_| played[queue.next(curriculum, 4, 3)] += 1);
        assert!(played[0] > 30 && played[2] > 30, "{played:?}");
        assert!(played[1] > 2 * played[0] && played[3] > 2 * played[2], "{played:?}");
    }

    #[test]
    fn where_everything_is_passed_over_something_is_played() {
        let curriculum = Curriculum::SuccessRate { low: 0.1, high: 0.9, keep: 0.0 };
        let mut queue = TaskQueue::default();
        (0..3).for_each(|task| queue.record(task, 1.0));
        assert!((0..30).all(|_| queue.next(curriculum, 3, 1) < 3));
    }

    #[test]
    fn a_queue_from_disk_goes_on_with_the_same_tasks() {
        let mut queue = TaskQueue::default();
        (0..5).for_each(|_| {
            queue.next(Curriculum::Epochs, 7, 2);
        });
        let json = serde_json::to_string(&queue).unwrap();
        let mut again: TaskQueue = serde_json::from_str(&json).unwrap();
        for _ in 0..20 {
            let task = queue.next(Curriculum::Epochs, 7, 2);
            assert_eq!(again.next(Curriculum::Epochs, 7, 2), task);
        }
    }
}
