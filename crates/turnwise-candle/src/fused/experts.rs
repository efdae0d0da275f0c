//! Mixture-of-experts layers (Fedus et al., *Switch transformers*, 2021, equations 1 and 2, for more than one expert).
//! The choice has no gradient; the weights of the chosen experts have one.

use std::sync::Arc;

use rayon::prelude::*;
use turnwise_kernels::buffer::{Buffer, BufferPool};
use turnwise_kernels::math;
use turnwise_kernels::matrix::{Accuracy, Matrix, MatrixMut, Parallelism, Write, multiply};
use turnwise_kernels::vectorized;

use super::gate;
use super::linear::{self, ColumnRange};
use crate::ComputePrecision;
use crate::architecture::Activation;
use crate::layout::Choice;
use crate::routing::Routing;

/// The activation of experts in every family that has them.
const ACTIVATION: Activation = Activation::Silu;

/// The parameters of a layer's experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights<'a> {
    /// `[E, D]`
    pub(crate) router: &'a [f32],
    /// `[E, I, D]`
    pub(crate) gate: &'a [f32],
    /// `[E, I, D]`
    pub(crate) up: &'a [f32],
    /// `[E, D, I]`
    pub(crate) down: &'a [f32],
    pub(crate) choice: Choice,
    /// Of the experts; the router is f32.
    pub(crate) precision: ComputePrecision,
}

impl Weights<'_> {
    /// Returns the width of the rows.
    fn d(&self) -> usize {
        self.router.len() / self.choice.n_experts
    }

    /// Returns the width of an expert.
    fn inner(&self) -> usize {
        self.gate.len() / self.router.len()
    }
}

/// What a forward pass saves for the backward pass.
#[derive(Debug)]
pub(crate) struct Routed {
    pub(crate) choice: Choice,
    /// `[N, E]`
    pub(crate) probabilities: Buffer,
    pub(crate) routing: Arc<Routing>,
    /// The factors of the chosen experts' outputs. `[N, n_chosen]`
    pub(crate) weights: Vec<f32>,
    /// Gate and up, grouped by expert. `[M, 2 I]`
    gate_up: Buffer,
    /// `[M, I]`
    inner: Buffer,
    /// `[M, D]`
    outputs: Buffer,
}

/// Adds to each row of `y` the output of its experts for the same row of `x`. `[N, D]` both
pub(crate) fn forward(
    y: &mut [f32],
    x: &[f32],
    weights: Weights<'_>,
    pool: &Arc<BufferPool>,
) -> Routed {
    let (d, inner, choice) = (weights.d(), weights.inner(), weights.choice);
    let accuracy = weights.precision.forward();
    let mut probabilities = pool.take(x.len() / d * choice.n_experts);
    let columns = ColumnRange { start: 0, count: choice.n_experts, stride: choice.n_experts };
    let full = Accuracy::Full;
    linear::forward(&mut probabilities, columns, Write::Replace, x, weights.router, 1.0, full);
    softmax_rows(&mut probabilities, choice.n_experts);
    let routing = Arc::new(Routing::new(&probabilities, choice));
    let rows = gather(x, d, &routing, pool);
    let m = routing.origins.len();
    let mut gate_up = pool.take(m * 2 * inner);
    let work = cut_mut(&mut gate_up, &routing, 2 * inner).zip(cut(&rows, &routing, d));
    let matrices =
        weights.gate.par_chunks_exact(inner * d).zip(weights.up.par_chunks_exact(inner * d));
    work.zip(matrices).for_each(|((gate_up, rows), (gate, up))| {
        for (start, matrix) in [(0, gate), (inner, up)] {
            product(gate_up, start, (rows, d), matrix, accuracy);
        }
    });
    let mut activated = pool.take(m * inner);
    gate::forward(&mut activated, &gate_up, inner, ACTIVATION);
    let mut outputs = pool.take(m * d);
    let work = cut_mut(&mut outputs, &routing, d).zip(cut(&activated, &routing, inner));
    work.zip(weights.down.par_chunks_exact(inner * d)).for_each(|((outputs, rows), down)| {
        product(outputs, 0, (rows, inner), down, accuracy);
    });
    let chosen_weights = mixing_weights(&probabilities, &routing, choice);
    combine(y, &outputs, d, &chosen_weights, &routing);
    Routed {
        choice,
        probabilities,
        routing,
        weights: chosen_weights,
        gate_up,
        inner: activated,
        outputs,
    }
}

/// Targets of gradients, which are added to; `None` for a gradient that is not needed.
#[derive(Debug)]
pub(crate) struct Below<'a> {
    pub(crate) router: Option<&'a mut [f32]>,
    pub(crate) gate: Option<&'a mut [f32]>,
    pub(crate) up: Option<&'a mut [f32]>,
    pub(crate) down: Option<&'a mut [f32]>,
}

/// The load-balancing loss: its derivative by each expert's probability, `[E]`, and how often each token counts, `[N]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uneven<'a> {
    pub(crate) slopes: &'a [f32],
    pub(crate) multiplicities: &'a [u32],
}

/// Returns the gradient of `x`. `[N, D]`
pub(crate) fn backward(
    below: Below<'_>,
    dy: &[f32],
    x: &[f32],
    routed: &Routed,
    weights: Weights<'_>,
    uneven: Option<Uneven<'_>>,
    pool: &Arc<BufferPool>,
) -> Buffer {
    let (d, inner, choice) = (weights.d(), weights.inner(), weights.choice);
    let accuracy = weights.precision.backward();
    let routing = &*routed.routing;
    let rows = gather(x, d, routing, pool);
    let (doutputs, dweights) = pull_combine(dy, d, routed, pool);
    let mut dinner = pool.take(routed.inner.len());
    let work = cut_mut(&mut dinner, routing, inner).zip(cut(&doutputs, routing, d));
    work.zip(weights.down.par_chunks_exact(inner * d)).for_each(|((dinner, doutputs), down)| {
        pull_x(dinner, Write::Replace, Matrix::rows(doutputs, d), (down, inner), accuracy);
    });
    add_products(below.down, routing, (&doutputs, d), (&routed.inner, inner), accuracy);
    let mut dgate_up = pool.take(routed.gate_up.len());
    gate::backward(&mut dgate_up, &routed.gate_up, &dinner, inner, ACTIVATION);
    let mut drows = pool.take(rows.len());
    let work = cut_mut(&mut drows, routing, d).zip(cut(&dgate_up, routing, 2 * inner));
    let matrices =
        weights.gate.par_chunks_exact(inner * d).zip(weights.up.par_chunks_exact(inner * d));
    work.zip(matrices).for_each(|((drows, dgate_up), (gate, up))| {
        pull_x(drows, Write::Replace, side(dgate_up, 0, inner), (gate, d), accuracy);
        pull_x(drows, Write::Add, side(dgate_up, inner, inner), (up, d), accuracy);
    });
    for (target, start) in [(below.gate, 0), (below.up, inner)] {
        add_side_products(target, routing, (&dgate_up, start, inner), (&rows, d), accuracy);
    }
    let dlogits = pull_router(routed, &dweights, choice, uneven, pool);
    let columns = ColumnRange { start: 0, count: choice.n_experts, stride: choice.n_experts };
    if let Some(drouter) = below.router {
        linear::backward_weight(drouter, &dlogits, columns, x, 1.0, Accuracy::Gradient);
    }
    let mut dx = pool.take(x.len());
    let (by, gradient) = (weights.router, Accuracy::Gradient);
    linear::backward_x(&mut dx, Write::Replace, &dlogits, columns, by, 1.0, gradient);
    let tokens = dx.par_chunks_exact_mut(d).zip(routing.places.par_chunks(choice.n_chosen));
    tokens.with_min_len(16).for_each(|(dx, places)| {
        for place in places {
            math::add_scaled(dx, 1.0, &drows[*place as usize * d..][..d]);
        }
    });
    dx
}

/// Gathers the rows of tokens in the order of experts. `[M, D]`
fn gather(x: &[f32], d: usize, routing: &Routing, pool: &Arc<BufferPool>) -> Buffer {
    let mut rows = pool.take(routing.origins.len() * d);
    for (row, token) in rows.chunks_exact_mut(d).zip(routing.tokens()) {
        row.copy_from_slice(&x[token as usize * d..][..d]);
    }
    rows
}

/// Returns the probabilities of the chosen experts, divided by their sum if the model does so. `[N, n_chosen]`
fn mixing_weights(probabilities: &[f32], routing: &Routing, choice: Choice) -> Vec<f32> {
    let tokens =
        probabilities.chunks_exact(choice.n_experts).zip(routing.chosen.chunks(choice.n_chosen));
    let mut weights = Vec::with_capacity(routing.chosen.len());
    for (probabilities, chosen) in tokens {
        let of = chosen.iter().map(|expert| probabilities[*expert as usize]);
        let sum: f32 = if choice.renormalize { of.clone().sum() } else { 1.0 };
        weights.extend(of.map(|weight| weight / sum));
    }
    weights
}

/// Adds to each token the weighted sum of its experts' outputs.
fn combine(y: &mut [f32], outputs: &[f32], d: usize, weights: &[f32], routing: &Routing) {
    let tokens = y.par_chunks_exact_mut(d).zip(weights.par_chunks(routing.n_chosen));
    let tokens = tokens.zip(routing.places.par_chunks(routing.n_chosen));
    tokens.with_min_len(16).for_each(|((y, weights), places)| {
        for (weight, place) in weights.iter().zip(places) {
            math::add_scaled(y, *weight, &outputs[*place as usize * d..][..d]);
        }
    });
}

/// Returns the gradients of the experts' outputs, `[M, D]`, and of their factors, `[N, n_chosen]`.
fn pull_combine(
    dy: &[f32],
    d: usize,
    routed: &Routed,
    pool: &Arc<BufferPool>,
) -> (Buffer, Vec<f32>) {
    let routing = &*routed.routing;
    let mut doutputs = pool.zeros(routed.outputs.len());
    let rows = doutputs.par_chunks_exact_mut(d).zip(&routing.origins);
    rows.with_min_len(16).for_each(|(row, origin)| {
        let token = *origin as usize / routing.n_chosen;
        math::add_scaled(row, routed.weights[*origin as usize], &dy[token * d..][..d]);
    });
    let origins = (0..routing.chosen.len()).into_par_iter().with_min_len(16);
    let dweights = origins.map(|origin| {
        let output = &routed.outputs[routing.places[origin] as usize * d..][..d];
        math::dot(&dy[origin / routing.n_chosen * d..][..d], output)
    });
    (doutputs, dweights.collect())
}

/// Returns the gradient of the router's logits. `[N, E]`
fn pull_router(
    routed: &Routed,
    dweights: &[f32],
    choice: Choice,
    uneven: Option<Uneven<'_>>,
    pool: &Arc<BufferPool>,
) -> Buffer {
    let Choice { n_experts, n_chosen, renormalize } = choice;
    let mut dlogits = pool.zeros(routed.probabilities.len());
    let chosen = routed.routing.chosen.chunks_exact(n_chosen);
    let tokens = dlogits.chunks_exact_mut(n_experts).zip(chosen).enumerate();
    for (token, (dprobabilities, chosen)) in tokens {
        let probabilities = &routed.probabilities[token * n_experts..][..n_experts];
        let (dweights, weights) =
            (&dweights[token * n_chosen..][..n_chosen], &routed.weights[token * n_chosen..]);
        // With w = p / sum p: dp = (dw - sum dw w) / sum p.
        let (mean, sum) = if renormalize {
            let sum: f32 = chosen.iter().map(|expert| probabilities[*expert as usize]).sum();
            (dweights.iter().zip(weights).map(|(dw, w)| dw * w).sum::<f32>(), sum)
        } else {
            (0.0, 1.0)
        };
        for (expert, dweight) in chosen.iter().zip(dweights) {
            dprobabilities[*expert as usize] += (dweight - mean) / sum;
        }
        if let Some(Uneven { slopes, multiplicities }) = uneven {
            math::add_scaled(dprobabilities, multiplicities[token] as f32, slopes);
        }
        // Softmax backward: from probabilities to logits.
        let mean = math::dot(dprobabilities, probabilities);
        for (dlogit, probability) in dprobabilities.iter_mut().zip(probabilities) {
            *dlogit = probability * (*dlogit - mean);
        }
    }
    dlogits
}

/// Splits rows by expert.
fn cut<'a>(
    x: &'a [f32],
    routing: &'a Routing,
    width: usize,
) -> impl IndexedParallelIterator<Item = &'a [f32]> {
    routing.starts.par_windows(2).map(move |pair| &x[pair[0] * width..pair[1] * width])
}

fn cut_mut<'a>(
    mut x: &'a mut [f32],
    routing: &Routing,
    width: usize,
) -> impl IndexedParallelIterator<Item = &'a mut [f32]> + use<'a> {
    let counts = routing.counts();
    let cut = counts
        .map(|count| x.split_off_mut(..count * width).expect("starts end with the rows"))
        .collect::<Vec<_>>();
    cut.into_par_iter()
}

/// Adds to each expert's gradient the product of the output gradient and the input.
fn add_products(
    target: Option<&mut [f32]>,
    routing: &Routing,
    above: (&[f32], usize),
    read: (&[f32], usize),
    accuracy: Accuracy,
) {
    add_side_products(target, routing, (above.0, 0, above.1), read, accuracy);
}

/// Like `add_products`, for some columns of the output gradient: the numbers, the first column and the number of
/// columns. The routing gives the number of rows, and so their width.
fn add_side_products(
    target: Option<&mut [f32]>,
    routing: &Routing,
    above: (&[f32], usize, usize),
    read: (&[f32], usize),
    accuracy: Accuracy,
) {
    let Some(target) = target else { return };
    let stride = above.0.len() / routing.origins.len().max(1);
    let work = cut(above.0, routing, stride).zip(cut(read.0, routing, read.1));
    let matrices = target.par_chunks_exact_mut(above.2 * read.1);
    matrices.zip(work).filter(|(_, (above, _))| !above.is_empty()).for_each(
        |(matrix, (rows, read_rows))| {
            let n = rows.len() / stride;
            let rows = Matrix::strided(&rows[above.1..], n, above.2, stride).transposed();
            let mut matrix = MatrixMut::rows(matrix, read.1);
            let sides = [rows, Matrix::rows(read_rows, read.1)];
            multiply(&mut matrix, Write::Add, 1.0, sides, accuracy, Parallelism::Serial);
        },
    );
}

/// Views the gate or up columns of rows that hold both.
fn side(rows: &[f32], start: usize, inner: usize) -> Matrix<'_> {
    let n = rows.len() / (2 * inner);
    Matrix::strided(rows.get(start..).unwrap_or_default(), n, inner, 2 * inner)
}

/// Writes `x` times the transpose of `weight`, `[out, width]`, into the columns of `rows` from `start` on.
fn product(
    rows: &mut [f32],
    start: usize,
    (x, width): (&[f32], usize),
    weight: &[f32],
    accuracy: Accuracy,
) {
    if x.is_empty() {
        return;
    }
    let (n, out) = (x.len() / width, weight.len() / width);
    let stride = rows.len() / n;
    let mut target = MatrixMut::strided(&mut rows[start..], n, out, stride);
    let sides = [Matrix::rows(x, width), Matrix::rows(weight, width).transposed()];
    multiply(&mut target, Write::Replace, 1.0, sides, accuracy, Parallelism::Serial);
}

/// Multiplies the output gradient by `weight`.
fn pull_x(
    dx: &mut [f32],
    write: Write,
    above: Matrix<'_>,
    (weight, width): (&[f32], usize),
    accuracy: Accuracy,
) {
    if !dx.is_empty() {
        let mut dx = MatrixMut::rows(dx, width);
        let sides = [above, Matrix::rows(weight, width)];
        multiply(&mut dx, write, 1.0, sides, accuracy, Parallelism::Serial);
    }
}

vectorized! {
    fn softmax_rows(x: &mut [f32], width: usize) {
        for row in x.chunks_exact_mut(width) {
            math::softmax(row);
        }
    }
}
