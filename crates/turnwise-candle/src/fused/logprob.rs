//! Log-probabilities and entropies over the vocabulary, without storing `[N, V]` logits.
//!
//! Logits are computed in blocks of rows and vocabulary, twice: once for the sums, once for the gradient.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use turnwise_kernels::buffer::{Buffer, BufferPool};
use turnwise_kernels::math;
use turnwise_kernels::matrix::{Matrix, MatrixMut, Parallelism, Prepacked, Write};
use turnwise_kernels::vectorized;

use crate::ComputePrecision;
use crate::batch::Predictions;
use crate::slots::SlotNumbers;

/// Rows per block of logits.
const ROWS: usize = 512;

/// Vocabulary entries per block of logits.
const COLUMNS: usize = 512;

/// The number of parts of the vocabulary that are computed in parallel. It is fixed, so that sums do not depend on the
/// number of threads.
const LANES: usize = 16;

/// The logit of an id without probability. Finite, because minus infinity times a probability of 0 is not a number.
pub(crate) const REMOVED: f32 = -1e30;

/// The results for predicted distributions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Predicted {
    /// The log-probability of each target, in nats. `[M]`
    pub(crate) logprobs: Vec<f32>,
    /// The log-sum-exp of each distribution. `[R]`
    pub(crate) log_sums: Vec<f32>,
    /// The entropy of each distribution, in nats. `[R]`
    pub(crate) entropies: Vec<f32>,
}

/// The output gradient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Above<'a> {
    /// The derivative by the log-probability of each target. `[M]`
    pub(crate) dlogprobs: &'a [f32],
    /// The derivative by each entropy; `None` if entropies are not in the loss. `[R]`
    pub(crate) dentropies: Option<&'a [f32]>,
}

/// Computes `softmax(x head' * scale)` for each row of `x`. `[R, D]` and `[V, D]`
pub(crate) fn forward(read: Read<'_>) -> Predicted {
    let Read { x, head, width, wanted, precision } = read;
    let lanes: Vec<Lane> = (0..LANES)
        .into_par_iter()
        .map(|lane| {
            let (mut found, mut memory) = (Lane::new(wanted.n_rows()), Vec::new());
            for columns in columns(lane, head.len() / width) {
                let own = head.rows(&columns, width, &mut memory);
                let matrix = Matrix::rows(own, width).transposed();
                let shared = Prepacked::new(matrix, precision.forward(), Parallelism::Serial);
                for rows in pieces(wanted.n_rows(), ROWS) {
                    let part = LogitBlock { rows, columns: columns.clone() };
                    found.read(&part, some_rows(x, width, &part.rows), &shared, wanted);
                }
            }
            found
        })
        .collect();
    let mut own = vec![0.0; wanted.tokens.len()];
    for (target, logit) in lanes.iter().flat_map(|lane| &lane.own) {
        own[*target] = *logit;
    }
    let mut predicted = Predicted::default();
    for row in 0..wanted.n_rows() {
        let mut sums = Sums::default();
        for lane in &lanes {
            sums.join(lane.sums[row]);
        }
        let log_sum = f64::from(sums.highest) + sums.sum.ln();
        predicted.log_sums.push(log_sum as f32);
        predicted.entropies.push((log_sum - sums.weighted / sums.sum) as f32);
        for logit in &own[wanted.starts[row]..wanted.starts[row + 1]] {
            let logprob = (f64::from(*logit * wanted.scales[row]) - log_sum) as f32;
            // Rounding must not make it positive, and NaN stays NaN, which `min` would make 0.
            predicted.logprobs.push(if logprob > 0.0 { 0.0 } else { logprob });
        }
    }
    predicted
}

/// The targets of gradients.
#[derive(Debug)]
pub(crate) struct Below<'a> {
    /// The gradient of `x`, overwritten. `[R, D]`
    pub(crate) dx: &'a mut [f32],
    /// The gradient of the head, added to; `None` if the head is frozen. `[V, D]`
    pub(crate) dhead: Option<&'a mut [f32]>,
}

/// The inputs of both passes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read<'a> {
    /// `[R, D]`
    pub(crate) x: &'a [f32],
    /// `[V, D]`
    pub(crate) head: SlotNumbers<'a>,
    pub(crate) width: usize,
    pub(crate) wanted: &'a Predictions,
    pub(crate) precision: ComputePrecision,
}

/// Computes the gradients. With `p` the probabilities: d logprob / d logit is `(1 at the target, 0 elsewhere) - p`, and
/// d entropy / d logit is `-p (log p + entropy)`.
pub(crate) fn backward(
    below: Below<'_>,
    read: Read<'_>,
    predicted: &Predicted,
    above: Above<'_>,
    pool: &Arc<BufferPool>,
) {
    let Read { x, head, width, wanted, precision } = read;
    let Below { dx, dhead } = below;
    let shared_x = dhead.is_some().then(|| {
        let parts = pieces(wanted.n_rows(), ROWS).collect::<Vec<_>>().into_par_iter();
        let share = |rows| {
            let x = some_rows(x, width, &rows);
            Prepacked::new(x, precision.backward(), Parallelism::Serial)
        };
        parts.map(share).collect::<Vec<_>>()
    });
    // Each lane has its own rows of the head's gradient, and its own sum of the gradient of `x`.
    let mut by_lane: Vec<Vec<&mut [f32]>> = (0..LANES).map(|_| Vec::new()).collect();
    for (index, block) in dhead.into_iter().flat_map(|d| d.chunks_mut(COLUMNS * width)).enumerate()
    {
        by_lane[index % LANES].push(block);
    }
    let n_lanes = LANES.min((head.len() / width).div_ceil(COLUMNS));
    let puller = Puller { read, predicted, above, shared_x: shared_x.as_deref(), pool };
    let total = Mutex::new(OrderedSum { dx, next: 0, early: BTreeMap::new() });
    // A bridge hands out lanes in order, so that few results wait for an earlier one.
    by_lane.into_iter().take(n_lanes).enumerate().par_bridge().for_each(|(lane, blocks)| {
        let share = puller.pull(lane, blocks);
        total.lock().unwrap_or_else(PoisonError::into_inner).add(lane, share);
    });
}

/// A sum whose terms are added in the order of lanes, whatever the order in which they come.
struct OrderedSum<'a> {
    dx: &'a mut [f32],
    /// The lane to add next.
    next: usize,
    /// Terms that came before their turn.
    early: BTreeMap<usize, Buffer>,
}

impl OrderedSum<'_> {
    /// Adds on the calling thread alone: a thread that waits for others here could be given the next lane.
    fn add(&mut self, lane: usize, share: Buffer) {
        self.early.insert(lane, share);
        while let Some(share) = self.early.remove(&self.next) {
            if self.next == 0 {
                self.dx.copy_from_slice(&share);
            } else {
                add_share(self.dx, &share);
            }
            self.next += 1;
        }
    }
}

/// The backward pass of a lane.
struct Puller<'a> {
    read: Read<'a>,
    predicted: &'a Predicted,
    above: Above<'a>,
    /// The packed rows, if the head trains.
    shared_x: Option<&'a [Prepacked<'a>]>,
    pool: &'a Arc<BufferPool>,
}

impl Puller<'_> {
    /// Adds to the lane's rows of the head's gradient, and returns its share of the gradient of `x`.
    fn pull(&self, lane: usize, dhead: Vec<&mut [f32]>) -> Buffer {
        let Read { x, head, width, wanted, precision } = self.read;
        let mut dhead = dhead.into_iter();
        let mut dx = self.pool.take(x.len());
        let (mut logits, mut memory) = (Vec::new(), Vec::new());
        for (index, columns) in columns(lane, head.len() / width).enumerate() {
            let write = if index == 0 { Write::Replace } else { Write::Add };
            let own_head = Matrix::rows(head.rows(&columns, width, &mut memory), width);
            let share = |matrix| Prepacked::new(matrix, precision.backward(), Parallelism::Serial);
            let (for_logits, for_dx) = (share(own_head.transposed()), share(own_head));
            let mut dhead = dhead.next();
            for (index, rows) in pieces(wanted.n_rows(), ROWS).enumerate() {
                let part = LogitBlock { rows, columns: columns.clone() };
                part.logits(some_rows(x, width, &part.rows), &for_logits, wanted, &mut logits);
                part.pull(&mut logits, wanted, self.predicted, self.above);
                let dlogits = Matrix::rows(&logits, columns.len());
                let dx = &mut dx[part.rows.start * width..part.rows.end * width];
                let mut dx = MatrixMut::rows(dx, width);
                for_dx.multiply(&mut dx, write, dlogits, Parallelism::Serial);
                if let (Some(dhead), Some(x)) = (&mut dhead, self.shared_x) {
                    let mut dhead = MatrixMut::rows(dhead, width);
                    let dlogits = dlogits.transposed();
                    x[index].multiply(&mut dhead, Write::Add, dlogits, Parallelism::Serial);
                }
            }
        }
        dx
    }
}

/// Iterates over the parts of the vocabulary that belong to a lane.
fn columns(lane: usize, vocab_size: usize) -> impl Iterator<Item = Range<usize>> {
    pieces(vocab_size, COLUMNS).skip(lane).step_by(LANES)
}

/// Views some rows of a matrix.
fn some_rows<'a>(rows: &'a [f32], width: usize, some: &Range<usize>) -> Matrix<'a> {
    Matrix::rows(&rows[some.start * width..some.end * width], width)
}

/// Iterates over ranges of at most `size`.
fn pieces(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(size).map(move |start| start..(start + size).min(n))
}

/// Some rows and some entries of the vocabulary.
#[derive(Clone, Debug)]
struct LogitBlock {
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Sums over a distribution, relative to the highest logit so far.
#[derive(Clone, Copy, Debug)]
struct Sums {
    highest: f32,
    /// The sum of exponentials.
    sum: f64,
    /// The sum of exponentials times logits.
    weighted: f64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { highest: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0 }
    }
}

impl Sums {
    /// Converts the sums to another logit, which is at least as high.
    fn relative_to(self, highest: f32) -> Self {
        let factor = if self.sum > 0.0 { f64::from(self.highest - highest).exp() } else { 0.0 };
        Self { highest, sum: self.sum * factor, weighted: self.weighted * factor }
    }

    fn join(&mut self, other: Self) {
        let highest = self.highest.max(other.highest);
        let (ours, theirs) = (self.relative_to(highest), other.relative_to(highest));
        let sum = ours.sum + theirs.sum;
        *self = Self { highest, sum, weighted: ours.weighted + theirs.weighted };
    }
}

/// The results for a part of the vocabulary.
#[derive(Debug)]
struct Lane {
    /// `[R]`
    sums: Vec<Sums>,
    /// Targets and their unscaled logits.
    own: Vec<(usize, f32)>,
    logits: Vec<f32>,
}

impl Lane {
    fn new(n_rows: usize) -> Self {
        Self { sums: vec![Sums::default(); n_rows], own: Vec::new(), logits: Vec::new() }
    }

    /// Adds the results of rows of `x` and a part of the head.
    fn read(
        &mut self,
        part: &LogitBlock,
        x: Matrix<'_>,
        head: &Prepacked<'_>,
        wanted: &Predictions,
    ) {
        part.logits(x, head, wanted, &mut self.logits);
        let rows = self.logits.chunks_exact_mut(part.columns.len()).zip(part.rows.clone());
        for (logits, row) in rows {
            for target in wanted.starts[row]..wanted.starts[row + 1] {
                let token = wanted.tokens[target] as usize;
                if part.columns.contains(&token) {
                    self.own.push((target, logits[token - part.columns.start]));
                }
            }
            add_row(logits, wanted.scales[row], &mut self.sums[row]);
        }
    }
}

impl LogitBlock {
    /// Computes the logits, not yet scaled; those of ids that truncation removed have no probability. `[rows, columns]`
    fn logits(
        &self,
        x: Matrix<'_>,
        head: &Prepacked<'_>,
        wanted: &Predictions,
        logits: &mut Vec<f32>,
    ) {
        logits.resize(self.rows.len() * self.columns.len(), 0.0);
        let mut into = MatrixMut::rows(logits, self.columns.len());
        head.multiply(&mut into, Write::Replace, x, Parallelism::Serial);
        for (row, kept) in wanted.kept.range(self.rows.clone()) {
            let start = (row - self.rows.start) * self.columns.len();
            self.keep(kept, &mut logits[start..start + self.columns.len()]);
        }
    }

    /// Removes every id from a row of logits that is not among the kept ones, which are in ascending order.
    fn keep(&self, kept: &[u32], logits: &mut [f32]) {
        let start = kept.partition_point(|id| (*id as usize) < self.columns.start);
        let mut kept = kept[start..].iter().map(|id| *id as usize).peekable();
        for (id, logit) in self.columns.clone().zip(logits) {
            if kept.next_if_eq(&id).is_none() {
                *logit = REMOVED;
            }
        }
    }

    /// Replaces logits by the derivatives of the loss.
    fn pull(
        &self,
        logits: &mut [f32],
        wanted: &Predictions,
        predicted: &Predicted,
        above: Above<'_>,
    ) {
        for (logits, row) in logits.chunks_exact_mut(self.columns.len()).zip(self.rows.clone()) {
            let (scale, targets) = (wanted.scales[row], wanted.starts[row]..wanted.starts[row + 1]);
            let dlogprobs = &above.dlogprobs[targets.clone()];
            let pull = Pull {
                scale,
                log_sum: predicted.log_sums[row],
                dlogprob: dlogprobs.iter().sum(),
                entropy: predicted.entropies[row],
                dentropy: above.dentropies.map_or(0.0, |dentropies| dentropies[row]),
            };
            pull_row(logits, pull);
            for (token, dlogprob) in wanted.tokens[targets].iter().zip(dlogprobs) {
                if self.columns.contains(&(*token as usize)) {
                    logits[*token as usize - self.columns.start] += dlogprob * scale;
                }
            }
        }
    }
}

/// The factors of a row's gradient.
#[derive(Clone, Copy, Debug)]
struct Pull {
    scale: f32,
    log_sum: f32,
    /// Summed over the row's targets.
    dlogprob: f32,
    entropy: f32,
    dentropy: f32,
}

vectorized! {
    fn add_row(logits: &mut [f32], scale: f32, sums: &mut Sums) {
        for logit in logits.iter_mut() {
            *logit *= scale;
        }
        let highest = math::maximum(logits);
        if highest > sums.highest {
            *sums = sums.relative_to(highest);
        }
        let (sum, weighted) = math::exponential_sums(logits, sums.highest);
        sums.sum += f64::from(sum);
        sums.weighted += f64::from(weighted);
    }

    fn add_share(dx: &mut [f32], share: &[f32]) {
        math::add_scaled(dx, 1.0, share);
    }

    fn pull_row(logits: &mut [f32], pull: Pull) {
        let Pull { scale, log_sum, dlogprob, entropy, dentropy } = pull;
        let entropy_part = dentropy * scale;
        for logit in logits {
            let logprob = *logit * scale - log_sum;
            let probability = math::exp(logprob);
            let by_entropy = entropy_part * (logprob + entropy);
            *logit = -probability * (dlogprob * scale + by_entropy);
        }
    }
}
