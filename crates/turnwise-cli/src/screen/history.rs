//! The history of a run's reports, as far as the screen needs it.

use turnwise_training::StepReport;
use turnwise_training::metric::{self, Metric, MetricValues};
use turnwise_trajectory::Trajectory;

/// The number of recent steps from which speed and direction are computed.
const WINDOW: usize = 10;

/// The fewest steps before a remaining time is estimated.
const N_BEFORE_ETA: usize = 3;

/// The direction of the reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
    Level,
}

/// The reports so far. All times come from the reports, so that the same reports draw the same screen.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Steps of the whole run.
    pub(super) n_steps: u64,
    /// The mean reward of each step, NaN for a step without one.
    pub(super) rewards: Vec<f64>,
    /// The metrics of the last step.
    pub(super) metrics: MetricValues,
    /// The last sample, and its step counted from 1.
    pub(super) sample: Option<(u64, Trajectory)>,
    /// The number of finished steps, those before a resumption included.
    pub(super) n_done: u64,
    /// Seconds and episodes of recent steps, newest last.
    recent: Vec<(f64, f64)>,
}

impl History {
    pub(super) fn new(n_steps: u64) -> Self {
        Self { n_steps, ..Self::default() }
    }

    pub(super) fn record(&mut self, report: &StepReport) {
        self.metrics = report.metrics.clone();
        self.n_done = report.step + 1;
        // A resumed run starts in the middle, and may repeat one step.
        self.rewards.resize(usize::try_from(report.step).unwrap_or(0), f64::NAN);
        self.rewards.push(self.get(metric::REWARD_MEAN).unwrap_or(f64::NAN));
        if let Some(sample) = &report.sample {
            self.sample = Some((self.n_done, sample.clone()));
        }
        let zero = |metric| self.get(metric).unwrap_or(0.0);
        // An episode that does not train was also played.
        let episodes = zero(metric::EPISODES) + zero(metric::DROPPED);
        self.recent.push((self.step_s(), episodes));
        if self.recent.len() > WINDOW {
            self.recent.remove(0);
        }
    }

    pub(super) fn get(&self, metric: Metric) -> Option<f64> {
        self.metrics.get(metric)
    }

    /// Returns the seconds of the last step.
    pub(super) fn step_s(&self) -> f64 {
        self.get(metric::STEP_S).unwrap_or(0.0)
    }

    /// Returns the episodes per second.
    pub(super) fn speed(&self) -> Option<f64> {
        let (seconds, episodes) = self.recent_sums();
        (seconds > 0.0).then(|| episodes / seconds)
    }

    /// Returns the estimated remaining seconds of the run.
    pub(super) fn remaining_s(&self) -> Option<f64> {
        let n = self.recent.len();
        let left = self.n_steps.saturating_sub(self.n_done) as f64;
        (n >= N_BEFORE_ETA && left > 0.0).then(|| left * self.recent_sums().0 / n as f64)
    }

    /// Compares the last reward with the mean of those before it.
    pub(super) fn direction(&self) -> Direction {
        let Some((last, earlier)) = self.rewards.split_last() else { return Direction::Level };
        let window = earlier.iter().rev().take(WINDOW).filter(|reward| reward.is_finite());
        let (sum, n) = window.fold((0.0, 0), |(sum, n), reward| (sum + reward, n + 1));
        // Without earlier steps, or without a reward of this one, the difference is NaN, which is neither up nor down.
        match last - sum / f64::from(n) {
            up if up > 0.0 => Direction::Up,
            down if down < 0.0 => Direction::Down,
            _ => Direction::Level,
        }
    }

    /// Returns the ends of the reward axis: 0 to 1, or integers around rewards outside it.
    pub(super) fn reward_range(&self) -> (f64, f64) {
        let finite = self.rewards.iter().copied().filter(|reward| reward.is_finite());
        finite.fold((0.0, 1.0), |(low, high): (f64, f64), reward| {
            (low.min(reward.floor()), high.max(reward.ceil()))
        })
    }

    fn recent_sums(&self) -> (f64, f64) {
        self.recent.iter().fold((0.0, 0.0), |sums, step| (sums.0 + step.0, sums.1 + step.1))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::report;
    use super::*;

    fn history(steps: &[(u64, f64)]) -> History {
        let mut history = History::new(60);
        for (step, reward) in steps {
            history.record(&report(*step, *reward));
        }
        history
    }

    #[test]
    fn the_remaining_time_is_guessed_after_three_steps() {
        assert_eq!(history(&[(0, 0.1), (1, 0.1)]).remaining_s(), None);
        // Each step of the fixture takes half a second.
        assert_eq!(history(&[(0, 0.1), (1, 0.1), (2, 0.1)]).remaining_s(), Some(28.5));
    }

    #[test]
    fn a_run_that_is_over_has_no_remaining_time() {
        assert_eq!(history(&[(57, 0.1), (58, 0.1), (59, 0.1)]).remaining_s(), None);
    }

    #[test]
    fn the_direction_is_against_the_mean_of_the_last_steps() {
        assert_eq!(history(&[]).direction(), Direction::Level);
        assert_eq!(history(&[(0, 0.3)]).direction(), Direction::Level);
        assert_eq!(history(&[(0, 0.5), (1, 0.1), (2, 0.4)]).direction(), Direction::Up);
        assert_eq!(history(&[(0, 0.5), (1, 0.5), (2, 0.4)]).direction(), Direction::Down);
        assert_eq!(history(&[(0, 0.5), (1, f64::NAN)]).direction(), Direction::Level);
    }

    #[test]
    fn a_resumed_run_leaves_the_steps_before_it_open() {
        let history = history(&[(3, 0.5), (4, 0.6)]);
        assert!(history.rewards[..3].iter().all(|reward| reward.is_nan()));
        assert_eq!((history.rewards[3], history.rewards[4], history.n_done), (0.5, 0.6, 5));
    }

    #[test]
    fn rewards_outside_0_to_1_widen_the_axis() {
        assert_eq!(history(&[(0, 0.2), (1, 0.9)]).reward_range(), (0.0, 1.0));
        assert_eq!(history(&[(0, -1.5), (1, 2.5)]).reward_range(), (-2.0, 3.0));
    }
}
