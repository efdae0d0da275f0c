//! Division of the processors between engine and learner.

use std::num::NonZero;
use std::thread::available_parallelism;

use turnwise_training::RolloutMode;

use crate::config::Config;

/// The numbers of threads; 0 for as many as there are processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Threads {
    pub engine: usize,
    pub learner: usize,
}

impl Threads {
    /// Returns the numbers that the settings give. A number that is left out is all processors, or a share of them if
    /// rollouts overlap with training: with more threads than processors, engine and learner would wait for each other.
    pub(crate) fn divide(config: &Config) -> Self {
        let given = Self { engine: config.engine.threads, learner: config.train.threads };
        match config.rollout.mode {
            RolloutMode::Synchronous => given,
            RolloutMode::Pipelined | RolloutMode::Asynchronous => {
                given.side_by_side(available_parallelism().map_or(1, NonZero::get))
            }
        }
    }

    fn side_by_side(self, processors: usize) -> Self {
        let rest = |taken: usize| processors.saturating_sub(taken).max(1);
        match (self.engine, self.learner) {
            (0, 0) => {
                let engine = (processors / 2).max(1);
                Self { engine, learner: rest(engine) }
            }
            (0, learner) => Self { engine: rest(learner), learner },
            (engine, 0) => Self { engine, learner: rest(engine) },
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_rollouts_and_training_share_the_processors() {
        let shared = |engine, learner, processors| {
            let shared = Threads { engine, learner }.side_by_side(processors);
            (shared.engine, shared.learner)
        };
        assert_eq!(shared(0, 0, 1), (1, 1));
        assert_eq!(shared(0, 0, 2), (1, 1));
        assert_eq!(shared(0, 0, 7), (3, 4));
        assert_eq!(shared(3, 0, 8), (3, 5));
        assert_eq!(shared(0, 9, 8), (1, 9));
        assert_eq!(shared(8, 8, 8), (8, 8));
    }

    #[test]
    fn what_takes_turns_has_all_processors() {
        let mut config = Config::default();
        assert_eq!(Threads::divide(&config), Threads { engine: 0, learner: 0 });
        config.rollout.mode = RolloutMode::Pipelined;
        let Threads { engine, learner } = Threads::divide(&config);
        assert!(engine > 0 && learner > 0);
    }
}
