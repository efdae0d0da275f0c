//! What the rules look at: settings, metrics, evaluations and episodes of a run.

use serde::Deserialize;
use serde_json::Value;
use turnwise_rollout::Faults;
use turnwise_training::metric::{self, Metric, MetricValues};
use turnwise_training::{EpisodeFile, RunFiles, SuccessDifference, wilson};
use turnwise_trajectory::Trajectory;

use super::events::{FAULTS, RunFailure};
use crate::config::Config;

/// The number of steps over which the start and the present of a run are measured, and for which a problem has to last.
pub(super) const WINDOW: usize = 5;

/// The success rate from which a task counts as learnt.
pub(super) const LEARNT: f64 = 0.9;

/// The most files of training episodes that are read, from the end of the run.
const STEP_FILES: usize = 5;

/// The metrics of a step, as measured or as read from the log.
#[derive(Clone, Debug)]
pub(crate) struct StepMetrics {
    /// The number of the step as screens count it, from 1.
    pub(super) number: u64,
    values: MetricValues,
    /// The attempts that broke, by the kind of their fault.
    pub(super) faults: Vec<Faults>,
}

impl StepMetrics {
    /// Takes the metrics of the step with this index.
    pub(crate) fn measured(index: u64, values: MetricValues) -> Self {
        Self { number: index + 1, values, faults: Vec::new() }
    }

    /// Adds the attempts that broke.
    pub(crate) fn with_faults(self, faults: Vec<Faults>) -> Self {
        Self { faults, ..self }
    }

    /// Reads a line of `metrics.jsonl`; metrics that it lacks, or that are unknown, are left out.
    pub(crate) fn of_row(row: &Value) -> Self {
        let mut values = MetricValues::default();
        for metric in metric::ALL {
            if let Some(value) = row[metric.name].as_f64() {
                values.set(*metric, value);
            }
        }
        Self::measured(row["step"].as_u64().unwrap_or(0), values)
    }

    pub(super) fn get(&self, metric: Metric) -> Option<f64> {
        self.values.get(metric)
    }
}

/// Everything that is known about a run.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    pub(super) config: Config,
    pub(super) steps: Vec<StepMetrics>,
    /// The change from the evaluation before training to the newest one.
    pub(super) change: Option<SuccessDifference>,
    /// The number of held-out tasks, if the run logged it.
    pub(super) n_held_out: Option<usize>,
    /// The error that ended the run.
    pub(super) failure: Option<RunFailure>,
    /// Some of the run's episodes, newest first, each with the file that has it.
    pub(super) episodes: Vec<(String, Trajectory)>,
    /// Whether no further step is to come, so that a short run is judged by what there is.
    pub(super) is_whole: bool,
}

impl Evidence {
    /// Creates the evidence of a run that begins.
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            steps: Vec::new(),
            change: None,
            n_held_out: None,
            failure: None,
            episodes: Vec::new(),
            is_whole: false,
        }
    }

    /// Adds to each step the faults that the events have of it.
    pub(super) fn read_faults(&mut self, events: &[Value]) {
        for event in events.iter().filter(|event| event["event"] == FAULTS) {
            let number = event["step"].as_u64().map(|index| index + 1);
            let step = self.steps.iter_mut().find(|step| Some(step.number) == number);
            let faults = Vec::deserialize(&event["faults"]).ok();
            if let (Some(step), Some(faults)) = (step, faults) {
                step.faults = faults;
            }
        }
    }

    /// Reads the newest episodes of a run. Files that cannot be read are left out.
    pub(super) fn read_episodes(&mut self, files: &RunFiles) {
        let (steps, evaluations): (Vec<_>, Vec<_>) = files
            .episode_files()
            .unwrap_or_default()
            .into_iter()
            .partition(|file| matches!(file, EpisodeFile::Step(_)));
        for file in steps.iter().rev().take(STEP_FILES).chain(&evaluations) {
            let Ok((episodes, _)) = files.episodes(file) else { continue };
            let path = files.path_of(file);
            let path = path.strip_prefix(files.path()).unwrap_or(&path);
            let name = path.display().to_string();
            self.episodes.extend(episodes.into_iter().map(|episode| (name.clone(), episode)));
        }
    }

    /// Returns the steps at the end of the run, if there are enough to judge by.
    pub(super) fn recent(&self) -> Option<&[StepMetrics]> {
        let is_enough = self.steps.len() >= WINDOW || (self.is_whole && !self.steps.is_empty());
        is_enough.then(|| &self.steps[self.steps.len().saturating_sub(WINDOW)..])
    }

    /// Returns the steps at the start of the run; none in a run that has no later ones.
    pub(super) fn first(&self) -> &[StepMetrics] {
        if self.steps.len() > WINDOW { &self.steps[..WINDOW] } else { &[] }
    }

    /// Returns whether the evaluations show that the policy became better.
    pub(super) fn has_learnt(&self) -> bool {
        self.change.is_some_and(|change| change.ci_low > 0.0)
    }

    /// Returns whether the policy solves nearly all tasks of the last steps.
    pub(super) fn is_solved(&self) -> bool {
        self.recent().and_then(|steps| mean(steps, metric::SUCCESS_RATE)) >= Some(LEARNT)
    }

    /// Returns whether the ratios of a step differ from 1: whether a batch takes several updates, or is older than the
    /// weights.
    pub(super) fn has_ratios(&self) -> bool {
        use turnwise_training::RolloutMode::Synchronous;
        self.config.train.n_minibatches > 1 || self.config.rollout.mode != Synchronous
    }
}

/// Returns the mean of a metric over the steps that have it.
pub(super) fn mean<'a>(
    steps: impl IntoIterator<Item = &'a StepMetrics>,
    metric: Metric,
) -> Option<f64> {
    let values = steps.into_iter().filter_map(|step| step.get(metric));
    let (sum, n) = values.fold((0.0, 0_u32), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

/// Returns the median of a metric over the steps that trained.
pub(super) fn median_of_updates<'a>(
    steps: impl IntoIterator<Item = &'a StepMetrics>,
    metric: Metric,
) -> Option<f64> {
    let trained = steps.into_iter().filter(|step| step.get(metric::TRAINED_TOKENS) > Some(0.0));
    let mut values: Vec<f64> = trained.filter_map(|step| step.get(metric)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Returns the sum of a metric over steps.
pub(super) fn sum(steps: &[StepMetrics], metric: Metric) -> f64 {
    steps.iter().filter_map(|step| step.get(metric)).sum()
}

/// Returns the number of episodes that were scored in these steps.
pub(super) fn n_episodes(steps: &[StepMetrics]) -> f64 {
    sum(steps, metric::EPISODES) + sum(steps, metric::DROPPED)
}

/// Formats a share with its 95 % interval, as in `97 % [95, 99]`. `n` is the number of independent observations; the
/// turns of an episode are not.
pub(super) fn share(rate: f64, n: f64) -> String {
    let (low, high) = wilson(rate, n.max(1.0));
    format!("{:.0} % [{:.0}, {:.0}]", 100.0 * rate, 100.0 * low, 100.0 * high)
}

/// Formats the steps that a finding is about: `step 7`, or `steps 3-7`.
pub(super) fn which(steps: &[StepMetrics]) -> String {
    match steps {
        [] => "no step".to_owned(),
        [one] => format!("step {}", one.number),
        [first, .., last] => format!("steps {}-{}", first.number, last.number),
    }
}
