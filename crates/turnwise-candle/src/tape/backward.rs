use std::mem;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Result;
use turnwise_kernels::math;
use turnwise_kernels::matrix::Write;

use super::{
    Buffer, BufferPool, Handle, Keep, Kept, Map, MixtureSlots, Origin, Played, Recorder, Slot,
    Tape, TapeNode, Thin, ThinValue, Value,
};
use crate::ComputePrecision;
use crate::architecture::{Activation, RopeKind};
use crate::balance::balance_slopes;
use crate::batch::PackedBatch;
use crate::dimensions::Dimensions;
use crate::forward;
use crate::fused::attention::AttentionSetting;
use crate::fused::experts::{self, Routed, Uneven};
use crate::fused::linear::ColumnRange;
use crate::fused::{attention, gate, heads, linear, logprob, residual, rms_norm, sum};
use crate::layout::{HeadNorms, Network};
use crate::shares::{PassPart, Shares};
use crate::slots::HeldNumbers;

/// The derivatives of a loss, from which a backward pass starts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Loss<'a> {
    /// By each log-probability. `[M]`
    pub(crate) dlogprobs: &'a [f32],
    /// By each distribution's entropy, if it is in the loss. `[R]`
    pub(crate) dentropies: Option<&'a [f32]>,
    /// The weight of the load-balancing loss.
    pub(crate) balance: f64,
}

/// Replays a tape in reverse: adds the gradient of `loss` to `gradients`, which are in the order of the parameters;
/// those of frozen parameters are empty.
///
/// # Errors
/// When a layer cannot be recomputed.
pub(crate) fn play_backward(
    tape: Tape,
    dimensions: &Dimensions,
    slots: &[Slot<'_>],
    network: &Network<Slot<'_>>,
    loss: Loss<'_>,
    gradients: &mut [Vec<f32>],
) -> Result<Played> {
    let balance = loss.balance as f32;
    let slopes = if balance == 0.0 { None } else { balance_slopes(&tape.uses) };
    let slopes = slopes.map(|slopes| slopes.iter().map(|s| *s as f32 * balance).collect());
    let mut player = BackwardPass {
        dimensions,
        slots,
        network,
        loss,
        slopes,
        reached: vec![false; gradients.len()],
        gradients,
        pool: tape.pool.clone(),
        batch: tape.batch.clone(),
        precision: tape.precision,
        adjoints: Vec::new(),
        shares: Shares::default(),
    };
    player.play(tape)?;
    Ok(Played { shares: player.shares, reached: player.reached })
}

/// A running backward pass.
#[derive(Debug)]
struct BackwardPass<'a> {
    dimensions: &'a Dimensions,
    slots: &'a [Slot<'a>],
    network: &'a Network<Slot<'a>>,
    loss: Loss<'a>,
    /// The derivative of the load-balancing loss by an expert's probability for a token. `[E]`
    slopes: Option<Vec<f32>>,
    gradients: &'a mut [Vec<f32>],
    /// Whether each parameter was reached.
    reached: Vec<bool>,
    pool: Arc<BufferPool>,
    batch: Arc<PackedBatch>,
    precision: ComputePrecision,
    /// The gradient of each value whose operation is not yet replayed.
    adjoints: Vec<Option<Buffer>>,
    shares: Shares,
}

impl BackwardPass<'_> {
    fn play(&mut self, mut tape: Tape) -> Result<()> {
        self.adjoints.resize_with(tape.n_values, || None);
        // Nodes are dropped one by one, each with the activations that only it needed.
        while let Some(node) = tape.nodes.pop() {
            let start = Instant::now();
            let part = match node {
                TapeNode::Layer { y, x, index } => {
                    self.layer(&mut tape, y, &x, index)?;
                    continue;
                }
                node => self.pull(node, &tape),
            };
            self.shares.add_since(part, start);
        }
        Ok(())
    }

    fn pull(&mut self, node: TapeNode, tape: &Tape) -> PassPart {
        match node {
            TapeNode::Embed { y, table } => self.embed(y, table),
            TapeNode::Scale { y, x, factor } => self.scale(y, x, factor),
            TapeNode::Add { y, onto, x } => self.add(y, onto, x),
            TapeNode::AddGated { y, onto, x, gate } => self.add_gated(y, onto, &x, &gate),
            TapeNode::Norm { y, x, gain } => self.norm(y, &x, gain),
            TapeNode::Linear { y, x, maps, onto } => self.linear(y, &x, &maps, onto),
            TapeNode::Rotate { y, x, normed, rope } => self.rotate_heads(y, x, normed, rope),
            TapeNode::Attention { mixed, qkv, log_sums, window } => {
                self.attention(&mixed, &qkv, &log_sums, window)
            }
            TapeNode::Gate { y, x, activation } => self.gate(y, &x, activation),
            TapeNode::Mixture { y, x, onto, weights, routed } => {
                self.mixture(y, &x, onto, weights, &routed)
            }
            TapeNode::Select { y, x } => self.select(y, x),
            TapeNode::Predict { x, head } => self.predict(&x, head, &tape.predicted),
            TapeNode::Layer { .. } => unreachable!("a layer is replayed separately"),
        }
    }

    /// Takes the complete gradient of a value. Returns `None` if the loss does not depend on it.
    fn above(&mut self, y: usize) -> Option<Buffer> {
        self.adjoints[y].take()
    }

    /// Adds to the gradient of a value, if it depends on a trainable parameter.
    fn below(&mut self, x: Handle, pull: impl FnOnce(&mut [f32], Write)) {
        if !x.tracked {
            return;
        }
        if let Some(buffer) = &mut self.adjoints[x.id] {
            return pull(buffer, Write::Add);
        }
        let mut buffer = self.pool.take(x.length);
        pull(&mut buffer, Write::Replace);
        self.adjoints[x.id] = Some(buffer);
    }

    /// Like `below`, for a gradient that is already computed.
    fn hand_down(&mut self, x: Handle, gradient: Buffer) {
        if !x.tracked {
            return;
        }
        match &mut self.adjoints[x.id] {
            Some(buffer) => sum::add(buffer, &gradient),
            none => *none = Some(gradient),
        }
    }

    /// Returns the gradient buffer of a parameter; `None` for a frozen one.
    fn gradient(&mut self, index: usize) -> Option<&mut [f32]> {
        self.reached[index] = true;
        let gradient = &mut self.gradients[index];
        (!gradient.is_empty()).then_some(gradient)
    }

    fn embed(&mut self, y: usize, table: usize) -> PassPart {
        if let Some(dy) = self.above(y) {
            let batch = self.batch.clone();
            let d = dy.len() / batch.n_inputs();
            if let Some(dtable) = self.gradient(table) {
                for (row, id) in dy.chunks_exact(d).zip(&batch.inputs) {
                    math::add_scaled(&mut dtable[*id as usize * d..][..d], 1.0, row);
                }
            }
        }
        PassPart::Embedding
    }

    fn scale(&mut self, y: usize, x: Handle, factor: f32) -> PassPart {
        if let Some(mut dy) = self.above(y) {
            sum::scale(&mut dy, factor);
            self.hand_down(x, dy);
        }
        PassPart::Norms
    }

    fn add(&mut self, y: usize, onto: Handle, x: Handle) -> PassPart {
        if let Some(dy) = self.above(y) {
            self.hand_down(x, self.pool.copy(&dy));
            self.hand_down(onto, dy);
        }
        PassPart::Norms
    }

    fn add_gated(&mut self, y: usize, onto: Handle, x: &Value, gate: &Value) -> PassPart {
        if let Some(dy) = self.above(y) {
            let mut dx = self.pool.take(x.numbers.len());
            let mut dgate = self.pool.take(gate.numbers.len());
            residual::backward(&mut dx, &mut dgate, &x.numbers, &gate.numbers, &dy);
            self.hand_down(x.handle, dx);
            self.hand_down(gate.handle, dgate);
            self.hand_down(onto, dy);
        }
        PassPart::Experts
    }

    fn norm(&mut self, y: usize, x: &ThinValue, gain: usize) -> PassPart {
        if let Some(dy) = self.above(y) {
            let numbers = self.numbers(x);
            let dimensions = self.dimensions;
            let (gains, eps) = (dimensions.gains(self.slots[gain].held()), dimensions.eps as f32);
            let values = &*gains;
            let mut dgain = Vec::new();
            let pull = |dx: &mut [f32], write| {
                dgain = rms_norm::backward(dx, write, &numbers, values, &dy, eps);
            };
            if x.handle.tracked {
                self.below(x.handle, pull);
            } else {
                let mut unused = self.pool.take(dy.len());
                dgain = rms_norm::backward(&mut unused, Write::Replace, &numbers, values, &dy, eps);
            }
            self.add_gradient(gain, &dgain);
        }
        PassPart::Norms
    }

    fn add_gradient(&mut self, index: usize, gradient: &[f32]) {
        if let Some(sum) = self.gradient(index) {
            math::add_scaled(sum, 1.0, gradient);
        }
    }

    /// Returns the numbers of a value, computed again if they were not kept.
    fn numbers(&self, x: &ThinValue) -> Arc<Buffer> {
        let dimensions = self.dimensions;
        let origin = match &x.numbers {
            Kept::Exact(numbers) => return numbers.clone(),
            Kept::Rounded(rounded) => return Arc::new(rounded.widened(&self.pool)),
            Kept::Again(origin) => origin,
        };
        let mut numbers = self.pool.take(x.handle.length);
        match &**origin {
            Origin::Norm { x, gain } => {
                let gains = dimensions.gains(self.slots[*gain].held());
                rms_norm::forward(&mut numbers, &self.numbers(x), &gains, dimensions.eps as f32);
            }
            Origin::Gate { x, activation } => {
                gate::forward(&mut numbers, &self.numbers(x), x.width / 2, *activation);
            }
        }
        Arc::new(numbers)
    }

    fn linear(&mut self, y: usize, x: &ThinValue, maps: &[Map], onto: Option<Handle>) -> PassPart {
        if let Some(dy) = self.above(y) {
            let stride = maps.first().map_or(1, |map| map.columns.stride);
            let is_read =
                |map: &Map| map.adapter.is_some() || !self.gradients[map.weight].is_empty();
            let numbers = maps.iter().any(is_read).then(|| self.numbers(x));
            let numbers = numbers.as_ref().map_or(&[][..], |numbers| numbers);
            self.weights(&dy, (numbers, x.width), maps);
            let accuracy = self.precision.backward();
            let (slots, pool) = (self.slots, self.pool.clone());
            self.below(x.handle, |dx, write| {
                let held = maps.iter().map(|map| slots[map.weight].numbers.all(&pool));
                let held: Vec<HeldNumbers<'_>> = held.collect();
                let weights: Vec<&[f32]> = held.iter().map(|numbers| &**numbers).collect();
                linear::backward_x_joined(dx, write, &dy, stride, x.width, &weights, accuracy);
            });
            for Map { bias, adapter, columns, .. } in maps {
                if let Some(dbias) = bias.and_then(|bias| self.gradient(bias)) {
                    linear::backward_bias(dbias, &dy, *columns);
                }
                if let Some(adapter) = adapter {
                    self.thin(&dy, *columns, (x.handle, numbers), adapter);
                }
            }
            if let Some(onto) = onto {
                self.hand_down(onto, dy);
            }
        }
        PassPart::Linear
    }

    /// Adds the gradients of products' matrices; adjacent trainable ones are computed together.
    fn weights(&mut self, dy: &[f32], (x, width): (&[f32], usize), maps: &[Map]) {
        for map in maps {
            self.reached[map.weight] = true;
        }
        let accuracy = self.precision.backward();
        let gradients = &mut *self.gradients;
        let trains = |map: &Map, gradients: &[Vec<f32>]| !gradients[map.weight].is_empty();
        let alike = |a: &Map, b: &Map| trains(a, gradients) == trains(b, gradients);
        let stretches: Vec<&[Map]> = maps.chunk_by(alike).collect();
        for maps in stretches {
            let [Map { columns, .. }, ..] = maps else { continue };
            if !trains(&maps[0], gradients) {
                continue;
            }
            let mut taken: Vec<Vec<f32>> =
                maps.iter().map(|map| mem::take(&mut gradients[map.weight])).collect();
            let mut dweights: Vec<&mut [f32]> = taken.iter_mut().map(Vec::as_mut_slice).collect();
            linear::backward_weights(&mut dweights, dy, *columns, x, width, accuracy);
            for (map, dweight) in maps.iter().zip(taken) {
                gradients[map.weight] = dweight;
            }
        }
    }

    /// Runs the backward pass of an adapter's product for its columns.
    fn thin(&mut self, dy: &[f32], columns: ColumnRange, x: (Handle, &[f32]), adapter: &Thin) {
        let (x, numbers) = x;
        let Thin { down, up, scale, inner, columns: within } = adapter;
        let accuracy = self.precision.backward();
        if let Some(dup) = self.gradient(*up) {
            linear::backward_weight(dup, dy, columns, inner, *scale, accuracy);
        }
        let mut dinner = self.pool.take(inner.len());
        let values = self.slots[*up].held();
        linear::backward_x(&mut dinner, Write::Replace, dy, columns, values, *scale, accuracy);
        if let Some(ddown) = self.gradient(*down) {
            linear::backward_weight(ddown, &dinner, *within, numbers, 1.0, accuracy);
        }
        let values = self.slots[*down].held();
        self.below(x, |dx, write| {
            linear::backward_x(dx, write, &dinner, *within, values, 1.0, accuracy);
        });
    }

    fn rotate_heads(
        &mut self,
        y: usize,
        x: Handle,
        normed: Option<(ThinValue, [usize; 2])>,
        rope: RopeKind,
    ) -> PassPart {
        if let Some(mut dy) = self.above(y) {
            let (numbers, norms) = normed.unzip();
            let values = |index: usize| self.dimensions.gains(self.slots[index].held());
            let gains =
                norms.map(|[query, key]| HeadNorms { query: values(query), key: values(key) });
            let gains = gains.as_ref().map(|n| HeadNorms { query: &*n.query, key: &*n.key });
            let batch = self.batch.clone();
            let rotation = heads::HeadRotation {
                heads: self.dimensions.heads,
                norms: gains.as_ref(),
                eps: self.dimensions.eps as f32,
                rope: self.dimensions.ropes.of(rope),
                positions: &batch.positions,
            };
            let numbers = numbers.map(|numbers| self.numbers(&numbers));
            let numbers = numbers.as_ref().map_or(&[][..], |numbers| numbers);
            let dgains = heads::backward(&mut dy, numbers, rotation);
            if let (Some([query, key]), Some(dgains)) = (norms, dgains) {
                self.add_gradient(query, &dgains.query);
                self.add_gradient(key, &dgains.key);
            }
            self.hand_down(x, dy);
        }
        PassPart::Attention
    }

    fn attention(
        &mut self,
        mixed: &ThinValue,
        qkv: &ThinValue,
        log_sums: &[f32],
        window: Option<usize>,
    ) -> PassPart {
        if let Some(dmixed) = self.above(mixed.handle.id) {
            let (batch, heads) = (self.batch.clone(), self.dimensions.heads);
            let above = attention::Saved {
                qkv: &self.numbers(qkv),
                output: &self.numbers(mixed),
                log_sum_exp: log_sums,
                doutput: &dmixed,
            };
            let mut dqkv = self.pool.take(qkv.handle.length);
            let accuracy = self.precision.backward();
            let setting = AttentionSetting { batch: &batch, heads, window, accuracy };
            attention::backward(&mut dqkv, &above, setting, &self.pool);
            self.hand_down(qkv.handle, dqkv);
        }
        PassPart::Attention
    }

    fn gate(&mut self, y: usize, x: &ThinValue, activation: Activation) -> PassPart {
        if let Some(dy) = self.above(y) {
            let width = x.width / 2;
            let mut dx = self.pool.take(x.handle.length);
            gate::backward(&mut dx, &self.numbers(x), &dy, width, activation);
            self.hand_down(x.handle, dx);
        }
        PassPart::FeedForward
    }

    fn mixture(
        &mut self,
        y: usize,
        x: &Value,
        onto: Handle,
        slots: MixtureSlots,
        routed: &Routed,
    ) -> PassPart {
        if let Some(dy) = self.above(y) {
            let MixtureSlots { router, gate, up, down } = slots;
            let held =
                [router, gate, up, down].map(|index| self.slots[index].numbers.all(&self.pool));
            let weights = experts::Weights {
                router: &held[0],
                gate: &held[1],
                up: &held[2],
                down: &held[3],
                choice: routed.choice,
                precision: self.precision,
            };
            let mut taken =
                [router, gate, up, down].map(|i| std::mem::take(&mut self.gradients[i]));
            let [drouter, dgate, dup, ddown] = taken.each_mut().map(|gradient| {
                let gradient = &mut gradient[..];
                (!gradient.is_empty()).then_some(gradient)
            });
            let below = experts::Below { router: drouter, gate: dgate, up: dup, down: ddown };
            let multiplicities = &self.batch.multiplicities;
            let uneven = self.slopes.as_ref().map(|slopes| Uneven { slopes, multiplicities });
            let dx = experts::backward(below, &dy, &x.numbers, routed, weights, uneven, &self.pool);
            for (index, gradient) in [router, gate, up, down].into_iter().zip(taken) {
                self.reached[index] = true;
                self.gradients[index] = gradient;
            }
            self.hand_down(x.handle, dx);
            self.hand_down(onto, dy);
        }
        PassPart::Experts
    }

    fn select(&mut self, y: usize, x: Handle) -> PassPart {
        if let Some(dy) = self.above(y) {
            let batch = self.batch.clone();
            let d = dy.len() / batch.predictions.n_rows();
            self.below(x, |dx, write| {
                if write == Write::Replace {
                    dx.fill(0.0);
                }
                for (row, source) in dy.chunks_exact(d).zip(&batch.predictions.sources) {
                    math::add_scaled(&mut dx[*source as usize * d..][..d], 1.0, row);
                }
            });
        }
        PassPart::Embedding
    }

    fn predict(&mut self, x: &Value, head: usize, predicted: &logprob::Predicted) -> PassPart {
        let batch = self.batch.clone();
        let wanted = &batch.predictions;
        let values = self.slots[head].numbers;
        let above =
            logprob::Above { dlogprobs: self.loss.dlogprobs, dentropies: self.loss.dentropies };
        let pool = self.pool.clone();
        let mut dx = pool.take(x.numbers.len());
        let precision = self.precision;
        let below = logprob::Below { dx: &mut dx, dhead: self.gradient(head) };
        let read = logprob::Read { x: &x.numbers, head: values, width: x.width, wanted, precision };
        logprob::backward(below, read, predicted, above, &pool);
        self.hand_down(x.handle, dx);
        PassPart::Head
    }

    /// Recomputes a layer with the inputs of its backward pass, and replays it.
    fn layer(&mut self, tape: &mut Tape, y: usize, x: &Value, index: usize) -> Result<()> {
        let Some(dy) = self.above(y) else { return Ok(()) };
        let mut again =
            Tape::new(self.batch.clone(), self.pool.clone(), Keep::Activations, self.precision);
        again.n_values = tape.n_values;
        let (dimensions, layer) = (self.dimensions, &self.network.layers[index]);
        let mut recorder = Recorder { dimensions, tape: &mut again, again: true };
        let computed = forward::layer(&mut recorder, layer, x)?;
        tape.n_values = again.n_values;
        self.adjoints.resize_with(again.n_values, || None);
        self.adjoints[computed.handle.id] = Some(dy);
        drop(computed);
        self.shares.add(&again.shares);
        self.play(again)
    }
}
