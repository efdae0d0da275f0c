use std::slice;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Result;
use turnwise_kernels::matrix::Write;
use turnwise_kernels::rounded::RoundedBuffer;

use super::{
    Buffer, Keep, Kept, Map, MixtureSlots, Origin, Slot, Tape, TapeNode, Thin, ThinValue, Value,
};
use crate::ComputePrecision;
use crate::architecture::{Activation, RopeKind};
use crate::balance::LayerUse;
use crate::dimensions::Dimensions;
use crate::forward;
use crate::fused::attention::AttentionSetting;
use crate::fused::linear::ColumnRange;
use crate::fused::{attention, experts, gate, heads, linear, logprob, residual, rms_norm, sum};
use crate::layout::{Adapter, Attending, HeadNorms, Layer, Linear, Mixture};
use crate::ops::Ops;
use crate::shares::PassPart;
use crate::slots::HeldNumbers;

/// The result of an operation.
#[derive(Debug)]
struct Made {
    numbers: Buffer,
    width: usize,
    /// Whether it depends on a trainable parameter.
    tracked: bool,
}

/// Computes on a tape, and records the operations if the tape is kept.
#[derive(Debug)]
pub(crate) struct Recorder<'a> {
    pub(crate) dimensions: &'a Dimensions,
    pub(crate) tape: &'a mut Tape,
    /// Whether a layer is being recomputed for its backward pass.
    pub(crate) again: bool,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(dimensions: &'a Dimensions, tape: &'a mut Tape) -> Self {
        Self { dimensions, tape, again: false }
    }

    /// Wraps a result as a value, and adds the time of its operation.
    fn made(&mut self, part: PassPart, start: Instant, made: Made) -> Value {
        self.tape.shares.add_since(part, start);
        let Made { numbers, width, tracked } = made;
        self.tape.value(numbers, width, tracked && self.tape.keep != Keep::Nothing)
    }

    /// Lets operations that read a value compute it again in their backward pass, if there is one.
    fn from(&self, origin: impl FnOnce() -> Origin) -> Option<Kept> {
        (self.tape.keep == Keep::Activations).then(|| Kept::Again(Arc::new(origin())))
    }

    /// Returns a value as a backward pass keeps it: rounded, where products are.
    fn thin(&self, x: &Value) -> ThinValue {
        let mut thin = x.thin();
        let is_kept = self.tape.keep == Keep::Activations && x.kept.is_none();
        if is_kept && self.tape.precision == ComputePrecision::Bf16 {
            let rounded = RoundedBuffer::new(&self.tape.pool, &x.numbers);
            thin.numbers = Kept::Rounded(Arc::new(rounded));
        }
        thin
    }

    /// Records an operation, if it depends on a trainable parameter.
    fn record(&mut self, y: &Value, node: impl FnOnce(usize) -> TapeNode) {
        if y.handle.tracked {
            self.tape.record(node(y.handle.id));
        }
    }

    fn n_tokens(&self) -> usize {
        self.tape.batch.n_inputs()
    }

    fn rotation<'t>(
        dimensions: &'t Dimensions,
        tape: &'t Tape,
        norms: Option<&'t HeadNorms<&'t [f32]>>,
        rope: RopeKind,
    ) -> heads::HeadRotation<'t> {
        heads::HeadRotation {
            heads: dimensions.heads,
            norms,
            eps: dimensions.eps as f32,
            rope: dimensions.ropes.of(rope),
            positions: &tape.batch.positions,
        }
    }

    /// Computes products side by side, into rows of `stride` numbers.
    fn products(
        tape: &Tape,
        y: &mut [f32],
        write: Write,
        x: &Value,
        linears: &[Linear<Slot<'_>>],
    ) -> Vec<Map> {
        let accuracy = tape.precision.forward();
        let stride = y.len() / x.n_rows();
        let held = linears.iter().map(|linear| linear.weight.numbers.all(&tape.pool));
        let held: Vec<HeldNumbers<'_>> = held.collect();
        let weights: Vec<&[f32]> = held.iter().map(|numbers| &**numbers).collect();
        linear::forward_joined(y, stride, write, &x.numbers, x.width, &weights, accuracy);
        let mut start = 0;
        let each = linears.iter().map(|linear| {
            let count = linear.weight.numbers.len() / x.width;
            let columns = ColumnRange { start, count, stride };
            start += count;
            if let Some(bias) = &linear.bias {
                linear::add_bias(y, columns, bias.held());
            }
            let adapter = linear.adapter.map(|adapter| thin(tape, y, columns, x, adapter));
            let bias = linear.bias.map(|bias| bias.index);
            Map { weight: linear.weight.index, bias, adapter, columns }
        });
        each.collect()
    }
}

/// Adds an adapter's product, which needs memory as wide as its rank.
fn thin(
    tape: &Tape,
    y: &mut [f32],
    columns: ColumnRange,
    x: &Value,
    adapter: Adapter<Slot<'_>>,
) -> Thin {
    let Adapter { down, up, rank, scale } = adapter;
    let accuracy = tape.precision.forward();
    let mut inner = tape.pool.take(x.n_rows() * rank);
    let within = ColumnRange { start: 0, count: rank, stride: rank };
    linear::forward(&mut inner, within, Write::Replace, &x.numbers, down.held(), 1.0, accuracy);
    linear::forward(y, columns, Write::Add, &inner, up.held(), scale, accuracy);
    Thin { down: down.index, up: up.index, scale, inner, columns: within }
}

fn trains(linear: &Linear<Slot<'_>>) -> bool {
    let Linear { weight, bias, adapter } = linear;
    weight.trainable
        || bias.is_some_and(|bias| bias.trainable)
        || adapter.is_some_and(|adapter| adapter.down.trainable || adapter.up.trainable)
}

impl<'a> Ops for Recorder<'a> {
    type Weight = Slot<'a>;
    type Value = Value;

    fn embed(&mut self, table: &Slot<'a>) -> Result<Value> {
        let start = Instant::now();
        let batch = self.tape.batch.clone();
        let d = self.dimensions.hidden_size;
        let mut y = self.tape.pool.take(self.n_tokens() * d);
        for (row, id) in y.chunks_exact_mut(d).zip(&batch.inputs) {
            row.copy_from_slice(&table.held()[*id as usize * d..][..d]);
        }
        let made = Made { numbers: y, width: d, tracked: table.trainable };
        let y = self.made(PassPart::Embedding, start, made);
        self.record(&y, |y| TapeNode::Embed { y, table: table.index });
        Ok(y)
    }

    fn norm(&mut self, x: &Value, gain: &Slot<'a>) -> Result<Value> {
        let start = Instant::now();
        let mut y = self.tape.pool.take(x.numbers.len());
        let gains = self.dimensions.gains(gain.held());
        rms_norm::forward(&mut y, &x.numbers, &gains, self.dimensions.eps as f32);
        let tracked = x.handle.tracked || gain.trainable;
        let mut y = self.made(PassPart::Norms, start, Made { numbers: y, width: x.width, tracked });
        if y.handle.tracked {
            let x = self.thin(x);
            y.kept = self.from(|| Origin::Norm { x: x.clone(), gain: gain.index });
            self.tape.record(TapeNode::Norm { y: y.handle.id, x, gain: gain.index });
        }
        Ok(y)
    }

    fn linear(&mut self, x: &Value, linears: &[Linear<Slot<'a>>]) -> Result<Value> {
        let start = Instant::now();
        let widths = linears.iter().map(|linear| linear.weight.numbers.len() / x.width);
        let width = widths.sum();
        let mut y = self.tape.pool.take(x.n_rows() * width);
        let maps = Self::products(self.tape, &mut y, Write::Replace, x, linears);
        let tracked = x.handle.tracked || linears.iter().any(trains);
        let y = self.made(PassPart::Linear, start, Made { numbers: y, width, tracked });
        self.record(&y, |y| TapeNode::Linear { y, x: x.thin(), maps, onto: None });
        Ok(y)
    }

    fn add_linear(&mut self, onto: &Value, x: &Value, linear: &Linear<Slot<'a>>) -> Result<Value> {
        let start = Instant::now();
        let mut y = self.tape.pool.copy(&onto.numbers);
        let maps = Self::products(self.tape, &mut y, Write::Add, x, slice::from_ref(linear));
        let tracked = onto.handle.tracked || x.handle.tracked || trains(linear);
        let made = Made { numbers: y, width: onto.width, tracked };
        let y = self.made(PassPart::Linear, start, made);
        let onto = onto.handle;
        self.record(&y, |y| TapeNode::Linear { y, x: x.thin(), maps, onto: Some(onto) });
        Ok(y)
    }

    fn rotate_heads(
        &mut self,
        qkv: &Value,
        norms: Option<&HeadNorms<Slot<'a>>>,
        attending: Attending,
    ) -> Result<Value> {
        let start = Instant::now();
        let mut y = self.tape.pool.take(qkv.numbers.len());
        let gains = norms.map(|norms| {
            let of = |gain: &Slot<'a>| self.dimensions.gains(gain.held());
            HeadNorms { query: of(&norms.query), key: of(&norms.key) }
        });
        let gains = gains.as_ref().map(|n| HeadNorms { query: &*n.query, key: &*n.key });
        let rope = attending.rope;
        let rotation = Self::rotation(self.dimensions, self.tape, gains.as_ref(), rope);
        heads::forward(&mut y, &qkv.numbers, rotation);
        if self.tape.precision == ComputePrecision::Bf16 {
            // As the engine keeps them. The gradient is that of the numbers before.
            heads::round_keys_and_values(&mut y, self.dimensions.heads);
        }
        let trains = norms.is_some_and(|norms| norms.query.trainable || norms.key.trainable);
        let tracked = qkv.handle.tracked || trains;
        let made = Made { numbers: y, width: qkv.width, tracked };
        let y = self.made(PassPart::Attention, start, made);
        let indices = norms.map(|norms| [norms.query.index, norms.key.index]);
        let normed = indices.filter(|_| y.handle.tracked).map(|norms| (self.thin(qkv), norms));
        self.record(&y, |y| TapeNode::Rotate { y, x: qkv.handle, normed, rope });
        Ok(y)
    }

    fn attention(&mut self, qkv: &Value, attending: Attending) -> Result<Value> {
        let start = Instant::now();
        let (heads, window) = (self.dimensions.heads, attending.window);
        let n = self.n_tokens();
        let width = heads.n_heads * heads.head_dim;
        let mut mixed = self.tape.pool.take(n * width);
        let mut log_sums = self.tape.pool.take(n * heads.n_heads);
        let batch = self.tape.batch.clone();
        let pool = &self.tape.pool;
        let accuracy = self.tape.precision.forward();
        let setting = AttentionSetting { batch: &batch, heads, window, accuracy };
        attention::forward(&mut mixed, &mut log_sums, &qkv.numbers, setting, pool);
        let made = Made { numbers: mixed, width, tracked: qkv.handle.tracked };
        let mut mixed = self.made(PassPart::Attention, start, made);
        if mixed.handle.tracked {
            let (thin, qkv) = (self.thin(&mixed), self.thin(qkv));
            mixed.kept = Some(thin.numbers.clone());
            self.tape.record(TapeNode::Attention { mixed: thin, qkv, log_sums, window });
        }
        Ok(mixed)
    }

    fn gate(&mut self, gate_up: &Value, activation: Activation) -> Result<Value> {
        let start = Instant::now();
        let mut y = self.tape.pool.take(gate_up.numbers.len() / 2);
        let width = gate_up.width / 2;
        gate::forward(&mut y, &gate_up.numbers, width, activation);
        let made = Made { numbers: y, width, tracked: gate_up.handle.tracked };
        let mut y = self.made(PassPart::FeedForward, start, made);
        if y.handle.tracked {
            let x = self.thin(gate_up);
            y.kept = self.from(|| Origin::Gate { x: x.clone(), activation });
            self.tape.record(TapeNode::Gate { y: y.handle.id, x, activation });
        }
        Ok(y)
    }

    fn scale(&mut self, x: &Value, factor: f32) -> Result<Value> {
        let start = Instant::now();
        let mut y = self.tape.pool.copy(&x.numbers);
        sum::scale(&mut y, factor);
        let made = Made { numbers: y, width: x.width, tracked: x.handle.tracked };
        let y = self.made(PassPart::Norms, start, made);
        self.record(&y, |y| TapeNode::Scale { y, x: x.handle, factor });
        Ok(y)
    }

    fn add(&mut self, onto: &Value, x: &Value) -> Result<Value> {
        let start = Instant::now();
        let mut y = self.tape.pool.copy(&onto.numbers);
        sum::add(&mut y, &x.numbers);
        let tracked = onto.handle.tracked || x.handle.tracked;
        let y = self.made(PassPart::Norms, start, Made { numbers: y, width: x.width, tracked });
        self.record(&y, |y| TapeNode::Add { y, onto: onto.handle, x: x.handle });
        Ok(y)
    }

    fn add_gated(&mut self, onto: &Value, x: &Value, gate: &Value) -> Result<Value> {
        let start = Instant::now();
        let mut y = self.tape.pool.copy(&onto.numbers);
        residual::forward(&mut y, &x.numbers, &gate.numbers);
        let tracked = onto.handle.tracked || x.handle.tracked || gate.handle.tracked;
        let y = self.made(PassPart::Experts, start, Made { numbers: y, width: x.width, tracked });
        let (onto, x, gate) = (onto.handle, x.clone(), gate.clone());
        self.record(&y, |y| TapeNode::AddGated { y, onto, x, gate });
        Ok(y)
    }

    fn add_mixture(
        &mut self,
        onto: &Value,
        x: &Value,
        mixture: &Mixture<Slot<'a>>,
    ) -> Result<Value> {
        let start = Instant::now();
        let mut y = self.tape.pool.copy(&onto.numbers);
        let Mixture { choice, router, gate, up, down, .. } = mixture;
        let pool = self.tape.pool.clone();
        let held = [router, gate, up, down].map(|slot| slot.numbers.all(&pool));
        let weights = experts::Weights {
            router: &held[0],
            gate: &held[1],
            up: &held[2],
            down: &held[3],
            choice: *choice,
            precision: self.tape.precision,
        };
        let routed = experts::forward(&mut y, &x.numbers, weights, &pool);
        if !self.again {
            let multiplicities = &self.tape.batch.multiplicities;
            let used =
                LayerUse::new(&routed.probabilities, &routed.routing, *choice, multiplicities);
            self.tape.uses.push(used);
        }
        let trains = [router, gate, up, down].iter().any(|slot| slot.trainable);
        let tracked = onto.handle.tracked || x.handle.tracked || trains;
        let made = Made { numbers: y, width: onto.width, tracked };
        let y = self.made(PassPart::Experts, start, made);
        let weights =
            MixtureSlots { router: router.index, gate: gate.index, up: up.index, down: down.index };
        let (x, onto, routed) = (x.clone(), onto.handle, Box::new(routed));
        self.record(&y, |y| TapeNode::Mixture { y, x, onto, weights, routed });
        Ok(y)
    }

    fn select(&mut self, x: &Value) -> Result<Value> {
        let start = Instant::now();
        let batch = self.tape.batch.clone();
        let d = x.width;
        let mut y = self.tape.pool.take(batch.predictions.n_rows() * d);
        for (row, source) in y.chunks_exact_mut(d).zip(&batch.predictions.sources) {
            row.copy_from_slice(&x.numbers[*source as usize * d..][..d]);
        }
        let made = Made { numbers: y, width: d, tracked: x.handle.tracked };
        let y = self.made(PassPart::Embedding, start, made);
        self.record(&y, |y| TapeNode::Select { y, x: x.handle });
        Ok(y)
    }

    fn predict(&mut self, x: &Value, head: &Slot<'a>) -> Result<()> {
        let start = Instant::now();
        let batch = self.tape.batch.clone();
        let read = logprob::Read {
            x: &x.numbers,
            head: head.numbers,
            width: x.width,
            wanted: &batch.predictions,
            precision: self.tape.precision,
        };
        self.tape.predicted = logprob::forward(read);
        self.tape.shares.add_since(PassPart::Head, start);
        if self.tape.keep != Keep::Nothing && (x.handle.tracked || head.trainable) {
            self.tape.record(TapeNode::Predict { x: x.clone(), head: head.index });
        }
        Ok(())
    }

    fn layer(&mut self, index: usize, layer: &Layer<Slot<'a>>, x: &Value) -> Result<Value> {
        if self.tape.keep != Keep::Layers {
            return forward::layer(self, layer, x);
        }
        self.tape.keep = Keep::Nothing;
        let y = forward::layer(self, layer, x);
        self.tape.keep = Keep::Layers;
        let mut y = y?;
        y.handle.tracked = x.handle.tracked || layer.any(|slot| slot.trainable);
        self.record(&y, |y| TapeNode::Layer { y, x: x.clone(), index });
        Ok(y)
    }
}
