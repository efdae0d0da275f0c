//! The policy gradient of one mini-batch: log-probabilities to the objective, coefficients back to the learner.

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;

use turnwise_objective::{Metrics, Objective, ObjectiveError, SequenceLoss, StepSize};
use turnwise_rollout::Meter;
use turnwise_trajectory::PolicyVersion;

use crate::columns::Columns;
use crate::parallel::{EvaluationJob, evaluate_all, threads_for};
use crate::{Batch, Learner, LearnerError, Row};

/// The objective's report about one mini-batch.
#[derive(Clone, Debug, Default)]
pub struct ObjectiveReport {
    /// The loss, with the denominator of the whole mini-batch.
    pub loss: f64,
    /// Statistics of ratios, clipping and credit.
    pub metrics: Metrics,
    /// The number of tokens that trained.
    pub n_tokens: usize,
    /// Σ k3 of trainer against engine over tokens of the version being trained, before any step on it.
    pub mismatch: Mismatch,
    /// Σ k3 of the trained policy against the reference policy, over the tokens with a reference log-probability.
    pub reference: Mismatch,
}

/// The distance of the trainer's log-probabilities from the engine's under the same weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mismatch {
    /// Σ (r − 1 − log r) with r = exp(trainer − engine).
    pub k3_sum: f64,
    /// The largest |trainer − engine| in nats.
    pub max: f64,
    /// The number of compared tokens.
    pub n: usize,
}

impl Mismatch {
    pub(crate) fn record(&mut self, trainer: f32, engine: f32) {
        let log_ratio = f64::from(trainer) - f64::from(engine);
        self.k3_sum += log_ratio.exp_m1() - log_ratio;
        self.max = self.max.max(log_ratio.abs());
        self.n += 1;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.k3_sum += other.k3_sum;
        self.max = self.max.max(other.max);
        self.n += other.n;
    }
}

/// Adds the gradient of a mini-batch to the learner, in micro-batches of at most `micro_batch_tokens` distinct tokens
/// (or one row, if that alone is longer); see [`accumulate_in`].
///
/// # Errors
/// If the learner fails or the objective rejects a number.
pub async fn accumulate(
    learner: &mut dyn Learner,
    objective: &dyn Objective,
    batch: &Batch,
    micro_batch_tokens: usize,
    first: bool,
) -> Result<ObjectiveReport, LearnerError> {
    let cut = micro_batches(batch, micro_batch_tokens);
    accumulate_in(learner, objective, batch, &cut, first).await
}

/// Adds the gradient of a mini-batch to the learner, in these micro-batches: lists of rows, in which each row occurs
/// once.
///
/// A ratio group inside one micro-batch costs one pass. Groups that several micro-batches share need an additional
/// pass: it computes log-probabilities without a gradient, and from all of a group's log-probabilities its
/// coefficients, so that the second pass needs no other row. Denominators are those of the whole mini-batch. Therefore
/// the cut into rows and micro-batches changes nothing but rounding.
///
/// `first` says that no step has been taken since the weights were published: only then can engine and trainer be
/// compared.
///
/// # Errors
/// If the learner fails or the objective rejects a number.
pub async fn accumulate_in(
    learner: &mut dyn Learner,
    objective: &dyn Objective,
    batch: &Batch,
    micro_batches: &[Vec<usize>],
    first: bool,
) -> Result<ObjectiveReport, LearnerError> {
    accumulate_shown(learner, objective, batch, micro_batches, first, &Meter::default()).await
}

/// Like [`accumulate_in`], and reports on `meter` the number of completed micro-batches.
pub(crate) async fn accumulate_shown(
    learner: &mut dyn Learner,
    objective: &dyn Objective,
    batch: &Batch,
    micro_batches: &[Vec<usize>],
    first: bool,
    meter: &Meter,
) -> Result<ObjectiveReport, LearnerError> {
    let mut step = MiniBatchEvaluation::new(objective, batch).map_err(in_gradient)?;
    let homes = homes(batch, micro_batches);
    step.evaluate_shared(learner, &homes, micro_batches).await?;
    let (mut mismatch, mut reference) = (Mismatch::default(), Mismatch::default());
    let version = learner.version();
    for (number, places) in micro_batches.iter().enumerate() {
        let mut gradient = |logprobs: &[Vec<f32>]| {
            if first {
                compare(batch, places, logprobs, version, &mut mismatch);
            }
            compare_with_reference(batch, places, logprobs, &mut reference);
            step.set(places, logprobs);
            step.evaluate(|sequence| homes[sequence] == Some(number)).map_err(boxed)?;
            Ok(places.iter().map(|row| step.rounded(*row)).collect())
        };
        learner.accumulate(&rows_of(batch, places), &mut gradient).await?;
        meter.advance(1);
    }
    let BatchLoss { loss, metrics, .. } = step.finish();
    Ok(ObjectiveReport { loss, metrics, n_tokens: batch.n_targets(), mismatch, reference })
}

/// The loss of a mini-batch, with its gradient.
#[derive(Clone, Debug, Default)]
pub struct BatchLoss {
    /// The loss, with the denominator of the whole mini-batch.
    pub loss: f64,
    /// The derivative with respect to the log-probability of each target. `[rows][targets]`
    pub gradient: Vec<Vec<f64>>,
    /// Statistics of ratios, clipping and credit.
    pub metrics: Metrics,
}

/// Computes the loss of a mini-batch from all its log-probabilities in nats, `[rows][targets]`: like [`accumulate`],
/// but without the rounding of a learner's numbers to f32.
///
/// # Errors
/// If the objective rejects a number, with the ratio group.
pub fn batch_loss(
    objective: &dyn Objective,
    batch: &Batch,
    logprobs: &[Vec<f64>],
) -> Result<BatchLoss, SequenceError> {
    let mut step = MiniBatchEvaluation::new(objective, batch)?;
    let rows: Vec<usize> = (0..batch.rows.len()).collect();
    step.set(&rows, logprobs);
    step.evaluate(|_| true)?;
    Ok(step.finish())
}

/// Packs rows into lists of at most `tokens` distinct tokens; a longer row is alone. The prefix that a row shares with
/// the previous row of its list counts once, because a learner computes it once. Therefore trajectories with a common
/// prefix are adjacent in the result, independently of their order in the batch, and rows of one trajectory share a
/// list if they fit, because a ratio group that is split costs a second forward pass.
#[must_use]
pub fn micro_batches(batch: &Batch, tokens: usize) -> Vec<Vec<usize>> {
    let mut cut: Vec<Vec<usize>> = Vec::new();
    let mut held = 0;
    let mut trajectories: Vec<Range<usize>> = trajectories(batch).collect();
    trajectories.sort_by_key(|rows| &batch.rows[rows.start].ids);
    for rows in trajectories {
        let fits = added(batch, &[], rows.clone()) <= tokens;
        let units: Vec<Range<usize>> =
            if fits { vec![rows] } else { rows.map(|row| row..row + 1).collect() };
        for unit in units {
            let more = cut.last().map_or(0, |last| added(batch, last, unit.clone()));
            match cut.last_mut() {
                Some(last) if held + more <= tokens => {
                    held += more;
                    last.extend(unit);
                }
                _ => {
                    held = added(batch, &[], unit.clone());
                    cut.push(unit.collect());
                }
            }
        }
    }
    cut
}

/// Returns the number of distinct tokens that rows add to others.
fn added(batch: &Batch, others: &[usize], rows: Range<usize>) -> usize {
    let ids = |row: usize| &batch.rows[row].ids[..];
    let common = |a: &[_], b: &[_]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let new = |row: usize| {
        let before = others.iter().copied().chain(rows.start..row);
        let shared = before.map(|other| common(ids(other), ids(row))).max().unwrap_or(0);
        ids(row).len() - shared
    };
    rows.clone().map(new).sum()
}

/// Iterates over the rows of each trajectory, as far as they are adjacent.
fn trajectories(batch: &Batch) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    batch.trajectory_of.chunk_by(|a, b| a == b).map(move |rows| {
        let range = start..start + rows.len();
        start = range.end;
        range
    })
}

fn n_trajectories(batch: &Batch) -> usize {
    batch.trajectory_of.iter().collect::<BTreeSet<_>>().len()
}

fn rows_of(batch: &Batch, places: &[usize]) -> Vec<Row> {
    places.iter().map(|row| batch.rows[*row].clone()).collect()
}

/// Returns for each ratio group the micro-batch that holds all of it, if any.
///
/// # Panics
/// Panics if the micro-batches do not hold each row exactly once: a gradient would be missing, or counted twice.
fn homes(batch: &Batch, micro_batches: &[Vec<usize>]) -> Vec<Option<usize>> {
    let mut of_row = vec![None; batch.rows.len()];
    for (number, rows) in micro_batches.iter().enumerate() {
        for row in rows {
            let before = of_row[*row].replace(number);
            assert!(before.is_none(), "row {row} must be in one micro-batch");
        }
    }
    assert!(of_row.iter().all(Option::is_some), "every row must be in a micro-batch");
    // For each ratio group, the micro-batch of its first token, and whether another micro-batch has a token of it.
    let mut homes = vec![(None, false); batch.weights.len()];
    for (home, tokens) in of_row.into_iter().zip(&batch.tokens) {
        for token in tokens {
            let (first, is_shared) = &mut homes[token.sequence];
            *is_shared |= *first.get_or_insert(home) != home;
        }
    }
    let alone = |(home, is_shared): (Option<Option<usize>>, bool)| {
        if is_shared { None } else { home.flatten() }
    };
    homes.into_iter().map(alone).collect()
}

/// A mini-batch whose ratio groups are being evaluated, in the order in which their log-probabilities become known.
struct MiniBatchEvaluation<'a> {
    objective: &'a dyn Objective,
    batch: &'a Batch,
    /// The factor of each ratio group's loss and gradient.
    scales: Vec<f64>,
    /// The objective's input, and the scaled gradient.
    columns: Columns,
    evaluated: Vec<SequenceLoss>,
}

impl<'a> MiniBatchEvaluation<'a> {
    fn new(objective: &'a dyn Objective, batch: &'a Batch) -> Result<Self, SequenceError> {
        let size = StepSize { sequences: n_trajectories(batch), tokens: batch.n_targets() };
        let denominator = objective.denominator();
        let value = denominator.value(&size);
        if !(value > 0.0 && value.is_finite()) {
            let source = ObjectiveError::InvalidDenominator { value };
            return Err(SequenceError { sequence: 0, source });
        }
        // If a token weighs the same in sequences of any length, each token counts once under every grouping.
        let counts_tokens = objective.token_weight(1) == objective.token_weight(2);
        let share = |weight: &f64| if counts_tokens { 1.0 } else { *weight };
        Ok(Self {
            objective,
            batch,
            scales: batch.weights.iter().map(|weight| share(weight) / value).collect(),
            columns: Columns::new(batch, objective.needs_reference()),
            evaluated: vec![SequenceLoss::default(); batch.weights.len()],
        })
    }

    /// Evaluates the ratio groups that several micro-batches share, from log-probabilities without a gradient.
    async fn evaluate_shared(
        &mut self,
        learner: &mut dyn Learner,
        homes: &[Option<usize>],
        micro_batches: &[Vec<usize>],
    ) -> Result<(), LearnerError> {
        let tokens = &self.batch.tokens;
        let is_needed =
            |row: &usize| tokens[*row].iter().any(|token| homes[token.sequence].is_none());
        for rows in micro_batches {
            let rows: Vec<usize> = rows.iter().copied().filter(is_needed).collect();
            if !rows.is_empty() {
                let logprobs = learner.logprobs(&rows_of(self.batch, &rows)).await?;
                self.set(&rows, &logprobs);
            }
        }
        self.evaluate(|sequence| homes[sequence].is_none()).map_err(in_gradient)
    }

    /// Stores the log-probabilities of some rows. `[rows][targets]`
    fn set<T: Copy + Into<f64>>(&mut self, rows: &[usize], logprobs: &[Vec<T>]) {
        for (row, logprobs) in rows.iter().zip(logprobs) {
            self.columns.set(*row, logprobs);
        }
    }

    /// Evaluates the wanted ratio groups, whose log-probabilities are complete.
    fn evaluate(&mut self, is_wanted: impl Fn(usize) -> bool) -> Result<(), SequenceError> {
        let (mut evaluations, mut n_tokens) = (Vec::new(), 0);
        for group in self.columns.groups(is_wanted) {
            let sequence = group.number;
            let columns = group.sequence().map_err(|source| SequenceError { sequence, source })?;
            n_tokens += columns.len();
            let scale = self.scales[sequence];
            evaluations.push(EvaluationJob::new(sequence, columns, scale, group.gradient));
        }
        evaluate_all(self.objective, &mut evaluations, threads_for(n_tokens));
        for EvaluationJob { sequence, outcome, .. } in evaluations {
            self.evaluated[sequence] =
                outcome.map_err(|source| SequenceError { sequence, source })?;
        }
        Ok(())
    }

    /// Returns a row's gradient in the learner's precision.
    fn rounded(&self, row: usize) -> Vec<f32> {
        self.columns.gradient(row).map(|gradient| gradient as f32).collect()
    }

    /// Returns the sums, in the order of the ratio groups.
    fn finish(self) -> BatchLoss {
        let rows = 0..self.batch.rows.len();
        let gradient = rows.map(|row| self.columns.gradient(row).collect()).collect();
        let mut done = BatchLoss { gradient, ..BatchLoss::default() };
        for (evaluated, scale) in self.evaluated.iter().zip(&self.scales) {
            done.loss += evaluated.loss * scale;
            done.metrics.record(evaluated);
        }
        done
    }
}

/// Compares the log-probabilities of these rows with the recorded ones, on tokens of this version.
pub(crate) fn compare(
    batch: &Batch,
    rows: &[usize],
    logprobs: &[Vec<f32>],
    version: PolicyVersion,
    mismatch: &mut Mismatch,
) {
    for (row, logprobs) in rows.iter().zip(logprobs) {
        for (token, logprob) in
            batch.tokens[*row].iter().zip(logprobs).filter(|(token, _)| token.version == version)
        {
            mismatch.record(*logprob, token.behavior_logprob);
        }
    }
}

/// Adds the k3 terms of the KL from the trained to the reference policy; their ratio is `π_ref / π_θ`.
fn compare_with_reference(
    batch: &Batch,
    rows: &[usize],
    logprobs: &[Vec<f32>],
    reference: &mut Mismatch,
) {
    for (row, logprobs) in rows.iter().zip(logprobs) {
        for (token, logprob) in batch.tokens[*row].iter().zip(logprobs) {
            if let Some(of_reference) = token.reference_logprob {
                reference.record(of_reference, *logprob);
            }
        }
    }
}

/// A number that the objective refused, and its ratio group.
#[derive(Debug, thiserror::Error)]
#[error("cannot evaluate ratio group {sequence} of the mini-batch")]
pub struct SequenceError {
    /// The ratio group, an index into the batch's weights.
    pub sequence: usize,
    /// The objective's error.
    #[source]
    pub source: ObjectiveError,
}

fn boxed(error: SequenceError) -> Box<dyn Error + Send + Sync> {
    Box::new(error)
}

fn in_gradient(error: SequenceError) -> LearnerError {
    LearnerError::Gradient(boxed(error))
}
