//! One mini-batch: log-probabilities to the objective, coefficients back to the learner.

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Range;

use turnwise_objective::{Advantages, Metrics, Objective, ObjectiveError, Sequence, StepSize};

use crate::{Batch, Learner, LearnerError};

/// What the objective said about one mini-batch.
#[derive(Clone, Debug, Default)]
pub struct ObjectiveReport {
    /// The loss, with the denominator of the whole mini-batch.
    pub loss: f64,
    /// Ratios, clipping, credit.
    pub metrics: Metrics,
    /// Tokens that trained.
    pub n_tokens: usize,
    /// Σ k3 of trainer against engine over tokens whose version is the one being trained, before any step on it.
    pub mismatch: Mismatch,
}

/// How far the trainer's log-probabilities are from the engine's under the same weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mismatch {
    /// Σ (r − 1 − log r) with r = exp(trainer − engine).
    pub k3_sum: f64,
    /// The largest |trainer − engine| in nats.
    pub max: f64,
    /// Tokens compared.
    pub n: usize,
}

impl Mismatch {
    fn record(&mut self, trainer: f32, engine: f32) {
        let log_ratio = f64::from(trainer) - f64::from(engine);
        self.k3_sum += log_ratio.exp_m1() - log_ratio;
        self.max = self.max.max(log_ratio.abs());
        self.n += 1;
    }
}

/// Adds the gradient of a mini-batch to the learner, in micro-batches of at most `micro_batch_tokens` padded tokens (or
/// one trajectory, if that alone is longer).
///
/// Denominators are those of the whole mini-batch, so that the cut into micro-batches changes nothing but rounding.
/// `first` says that no step has been taken since the weights were published: then, and only then, engine and trainer can be
/// compared.
///
/// # Errors
/// When the learner fails or the objective refuses a number.
pub async fn accumulate(
    learner: &mut dyn Learner,
    objective: &dyn Objective,
    batch: &Batch,
    micro_batch_tokens: usize,
    first: bool,
) -> Result<ObjectiveReport, LearnerError> {
    let mut report = ObjectiveReport { n_tokens: batch.n_targets(), ..ObjectiveReport::default() };
    let step = StepSize { sequences: n_trajectories(batch), tokens: report.n_tokens };
    let denominator = objective.denominator().value(&step);
    let version = learner.version();
    for rows in micro_batches(batch, micro_batch_tokens) {
        let mut gradient = |logprobs: &[Vec<f32>]| {
            if first {
                compare(batch, rows.clone(), logprobs, version, &mut report.mismatch);
            }
            let evaluated =
                evaluate(objective, batch, rows.clone(), logprobs, denominator, &mut report);
            evaluated.map_err(|error| Box::new(error) as Box<dyn Error + Send + Sync>)
        };
        learner.accumulate(&batch.rows[rows.clone()], &mut gradient).await?;
    }
    Ok(report)
}

fn n_trajectories(batch: &Batch) -> usize {
    let mut seen = batch.trajectory_of.clone();
    seen.dedup();
    seen.len()
}

/// Ranges of rows: whole trajectories, because a ratio group must be seen at once.
fn micro_batches(batch: &Batch, tokens: usize) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut longest = 0;
    for trajectory in trajectories(batch) {
        let length = trajectory.clone().map(|row| batch.rows[row].ids.len()).max().unwrap_or(0);
        match ranges.last_mut() {
            Some(last) if (trajectory.end - last.start) * longest.max(length) <= tokens => {
                last.end = trajectory.end;
                longest = longest.max(length);
            }
            _ => {
                longest = length;
                ranges.push(trajectory);
            }
        }
    }
    ranges
}

/// The rows of each trajectory, which stand together.
fn trajectories(batch: &Batch) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    batch.trajectory_of.chunk_by(|a, b| a == b).map(move |rows| {
        let range = start..start + rows.len();
        start = range.end;
        range
    })
}

fn compare(
    batch: &Batch,
    rows: Range<usize>,
    logprobs: &[Vec<f32>],
    version: turnwise_trajectory::PolicyVersion,
    mismatch: &mut Mismatch,
) {
    for (tokens, logprobs) in batch.tokens[rows].iter().zip(logprobs) {
        for (token, logprob) in
            tokens.iter().zip(logprobs).filter(|(token, _)| token.version == version)
        {
            mismatch.record(*logprob, token.behavior_logprob);
        }
    }
}

/// Where the tokens of a ratio group stand: row within the micro-batch, target within the row.
type Places = Vec<(usize, usize)>;

/// The gradient of the loss with respect to each log-probability. `[rows][targets]`
fn evaluate(
    objective: &dyn Objective,
    batch: &Batch,
    rows: Range<usize>,
    logprobs: &[Vec<f32>],
    denominator: f64,
    report: &mut ObjectiveReport,
) -> Result<Vec<Vec<f32>>, SequenceError> {
    let tokens = &batch.tokens[rows];
    let mut coefficients: Vec<Vec<f32>> = tokens.iter().map(|row| vec![0.0; row.len()]).collect();
    for (sequence, places) in ratio_groups(tokens) {
        let column = |value: &dyn Fn(usize, usize) -> f32| -> Vec<f64> {
            places.iter().map(|(row, target)| f64::from(value(*row, *target))).collect()
        };
        let current = column(&|row, target| logprobs[row][target]);
        let behavior = column(&|row, target| tokens[row][target].behavior_logprob);
        let advantages = column(&|row, target| tokens[row][target].advantage);
        let turns: Vec<usize> = places
            .chunk_by(|a, b| tokens[a.0][a.1].turn == tokens[b.0][b.1].turn)
            .map(<[_]>::len)
            .collect();
        let mut gradient = vec![0.0; places.len()];
        let evaluated = Sequence::new(&current, &behavior, Advantages::PerToken(&advantages))
            .and_then(|sequence| sequence.with_turns(&turns))
            .and_then(|sequence| objective.evaluate(&sequence, &mut gradient))
            .map_err(|source| SequenceError { sequence, source })?;
        let scale = batch.weights[sequence] / denominator;
        report.loss += evaluated.loss * scale;
        report.metrics.record(&evaluated);
        for ((row, target), gradient) in places.into_iter().zip(gradient) {
            coefficients[row][target] = (gradient * scale) as f32;
        }
    }
    Ok(coefficients)
}

fn ratio_groups(tokens: &[Vec<crate::TrainToken>]) -> BTreeMap<usize, Places> {
    let mut groups: BTreeMap<usize, Places> = BTreeMap::new();
    for (row, tokens) in tokens.iter().enumerate() {
        for (target, token) in tokens.iter().enumerate() {
            groups.entry(token.sequence).or_default().push((row, target));
        }
    }
    groups
}

/// A number the objective refuses, and where.
#[derive(Debug, thiserror::Error)]
#[error("evaluate ratio group {sequence} of the mini-batch")]
struct SequenceError {
    sequence: usize,
    #[source]
    source: ObjectiveError,
}
