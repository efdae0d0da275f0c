//! Log-probabilities and entropies of distributions over the vocabulary, without ever holding `[N, V]` logits.
//!
//! Logits are computed for some rows and some of the vocabulary at a time, twice: once for the sums, once for the gradient.

use rayon::prelude::*;

use crate::batch::Predictions;
use crate::math;
use crate::matrix::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::simd::vectorized;

/// Rows whose logits are held at once.
const ROWS: usize = 256;

/// Tokens of the vocabulary whose logits are held at once.
const COLUMNS: usize = 1024;

/// What is known of distributions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Predicted {
    /// Of each target, in nats. `[M]`
    pub(crate) logprobs: Vec<f32>,
    /// The logarithm of each distribution's sum of exponentials. `[R]`
    pub(crate) log_sums: Vec<f32>,
    /// In nats. `[R]`
    pub(crate) entropies: Vec<f32>,
}

/// The derivative of a loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Above<'a> {
    /// By the log-probability of each target. `[M]`
    pub(crate) dlogprobs: &'a [f32],
    /// By each entropy; `None` where none is in the loss. `[R]`
    pub(crate) dentropies: Option<&'a [f32]>,
}

/// `softmax(x head' * scale)` for each row of `x`. `[R, D]` and `[V, D]`
pub(crate) fn forward(x: &[f32], head: &[f32], width: usize, wanted: &Predictions) -> Predicted {
    let mut sums = vec![Sums::default(); wanted.n_rows()];
    let mut own = vec![0.0; wanted.tokens.len()];
    let mut logits = Vec::new();
    for rows in pieces(wanted.n_rows(), ROWS) {
        for columns in pieces(head.len() / width, COLUMNS) {
            let part = Part { rows: rows.clone(), columns };
            part.logits(x, head, width, &mut logits);
            part.pick(&logits, wanted, &mut own);
            let each = logits.par_chunks_exact_mut(part.columns.len());
            each.zip(&mut sums[rows.clone()])
                .zip(&wanted.scales[rows.clone()])
                .with_min_len(8)
                .for_each(|((logits, sums), scale)| add_row(logits, *scale, sums));
        }
    }
    let mut predicted = Predicted::default();
    for (row, sums) in sums.iter().enumerate() {
        let log_sum = f64::from(sums.highest) + sums.sum.ln();
        predicted.log_sums.push(log_sum as f32);
        predicted.entropies.push((log_sum - sums.weighted / sums.sum) as f32);
        for target in wanted.starts[row]..wanted.starts[row + 1] {
            let logit = f64::from(own[target] * wanted.scales[row]);
            // At most 0 whatever rounding does.
            predicted.logprobs.push(((logit - log_sum) as f32).min(0.0));
        }
    }
    predicted
}

/// Where gradients go.
#[derive(Debug)]
pub(crate) struct Below<'a> {
    /// By `x`, overwritten. `[R, D]`
    pub(crate) dx: &'a mut [f32],
    /// By the head, added to; `None` when it is frozen. `[V, D]`
    pub(crate) dhead: Option<&'a mut [f32]>,
}

/// With `p` the probabilities: d logprob / d logit is `(1 at the target, 0 elsewhere) - p`, and d entropy / d logit is
/// `-p (log p + entropy)`.
pub(crate) fn backward(
    mut below: Below<'_>,
    x: &[f32],
    head: &[f32],
    width: usize,
    wanted: &Predictions,
    predicted: &Predicted,
    above: Above<'_>,
) {
    let mut logits = Vec::new();
    for rows in pieces(wanted.n_rows(), ROWS) {
        let mut write = Write::Replace;
        for columns in pieces(head.len() / width, COLUMNS) {
            let part = Part { rows: rows.clone(), columns };
            part.logits(x, head, width, &mut logits);
            part.pull(&mut logits, wanted, predicted, above);
            let dlogits = Matrix::rows(&logits, part.columns.len());
            let (some_rows, some_columns) = (part.row_numbers(width), part.column_numbers(width));
            let head = Matrix::rows(&head[some_columns.clone()], width);
            product(&mut below.dx[some_rows.clone()], width, write, dlogits, head);
            if let Some(dhead) = &mut below.dhead {
                let x = Matrix::rows(&x[some_rows], width);
                product(&mut dhead[some_columns], width, Write::Add, dlogits.transposed(), x);
            }
            write = Write::Add;
        }
    }
}

/// Stretches of at most `size`.
fn pieces(n: usize, size: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..n).step_by(size).map(move |start| start..(start + size).min(n))
}

/// Some rows, and some of the vocabulary.
#[derive(Clone, Debug)]
struct Part {
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
}

/// Sums over a distribution, relative to the highest logit so far.
#[derive(Clone, Copy, Debug)]
struct Sums {
    highest: f32,
    /// Of exponentials.
    sum: f64,
    /// Of exponentials times logits.
    weighted: f64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { highest: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0 }
    }
}

impl Part {
    fn row_numbers(&self, width: usize) -> std::ops::Range<usize> {
        self.rows.start * width..self.rows.end * width
    }

    fn column_numbers(&self, width: usize) -> std::ops::Range<usize> {
        self.columns.start * width..self.columns.end * width
    }

    /// Not yet scaled. `[rows, columns]`
    fn logits(&self, x: &[f32], head: &[f32], width: usize, logits: &mut Vec<f32>) {
        logits.resize(self.rows.len() * self.columns.len(), 0.0);
        let x = Matrix::rows(&x[self.row_numbers(width)], width);
        let head = Matrix::rows(&head[self.column_numbers(width)], width);
        product(logits, self.columns.len(), Write::Replace, x, head.transposed());
    }

    /// Keeps the logits of targets.
    fn pick(&self, logits: &[f32], wanted: &Predictions, own: &mut [f32]) {
        for (row, logits) in self.rows.clone().zip(logits.chunks_exact(self.columns.len())) {
            for target in wanted.starts[row]..wanted.starts[row + 1] {
                let token = wanted.tokens[target] as usize;
                if self.columns.contains(&token) {
                    own[target] = logits[token - self.columns.start];
                }
            }
        }
    }

    /// Replaces logits by the loss's derivatives by them.
    fn pull(
        &self,
        logits: &mut [f32],
        wanted: &Predictions,
        predicted: &Predicted,
        above: Above<'_>,
    ) {
        let rows = logits.par_chunks_exact_mut(self.columns.len()).zip(self.rows.clone());
        rows.with_min_len(8).for_each(|(logits, row)| {
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
        });
    }
}

/// What a row of logits is pulled with.
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
            let factor = f64::from(sums.highest - highest).exp();
            let factor = if sums.sum > 0.0 { factor } else { 0.0 };
            *sums = Sums { highest, sum: sums.sum * factor, weighted: sums.weighted * factor };
        }
        let (sum, weighted) = math::exponential_sums(logits, sums.highest);
        sums.sum += f64::from(sum);
        sums.weighted += f64::from(weighted);
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

fn product(target: &mut [f32], columns: usize, write: Write, a: Matrix<'_>, b: Matrix<'_>) {
    multiply(&mut MatrixMut::rows(target, columns), write, 1.0, a, b, Threads::Pool);
}
