//! Our own reverse-mode differentiation: a forward pass leaves a tape, and the tape is played backward.
//!
//! It does for the operations of a decoder what the tensor library does for any, and no more. In return gradients of
//! parameters are added where they are collected, frozen parameters cost nothing, memory is used again from step to step, and
//! activations are freed as soon as the backward pass is behind them.

mod backward;
mod recorder;

use std::sync::Arc;

use turnwise_kernels::buffer::{Buffer, BufferPool};

pub(crate) use backward::{Loss, play_backward};
pub(crate) use recorder::Recorder;

use crate::balance::LayerUse;
use crate::batch::PackedBatch;
use crate::fused::experts::Routed;
use crate::fused::linear::ColumnRange;
use crate::fused::logprob::Predicted;
use crate::shares::Shares;

/// A parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot<'a> {
    /// Its place in the order of parameters.
    pub(crate) index: usize,
    pub(crate) values: &'a [f32],
    pub(crate) trainable: bool,
}

/// Rows of numbers, computed once.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    handle: Handle,
    pub(crate) width: usize,
    pub(crate) numbers: Arc<Buffer>,
}

/// A value without its numbers, for operations that do not read them in their backward pass.
#[derive(Clone, Copy, Debug)]
struct Handle {
    id: usize,
    length: usize,
    /// Whether anything that trains has a part in it.
    tracked: bool,
}

impl Value {
    fn n_rows(&self) -> usize {
        self.numbers.len() / self.width
    }
}

/// What is kept of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: there will be no backward pass.
    Nothing,
    /// What each operation needs to be pulled back through.
    Activations,
    /// The input of each layer, which is computed again from it: one layer's activations at a time for a forward pass more
    /// (Chen et al., *Training deep nets with sublinear memory cost*, 2016).
    Layers,
}

/// What a backward pass did.
#[derive(Clone, Debug)]
pub(crate) struct Played {
    /// Where its time went.
    pub(crate) shares: Shares,
    /// Which parameters it came by, in their order.
    pub(crate) reached: Vec<bool>,
}

/// A forward pass over a batch.
#[derive(Debug)]
pub(crate) struct Tape {
    pub(crate) batch: Arc<PackedBatch>,
    pub(crate) predicted: Predicted,
    /// How each layer with experts used them.
    pub(crate) uses: Vec<LayerUse>,
    /// Where its time went.
    pub(crate) shares: Shares,
    pool: Arc<BufferPool>,
    keep: Keep,
    nodes: Vec<TapeNode>,
    n_values: usize,
}

/// An operation, with what its backward pass needs. `y` is the value it made.
#[derive(Debug)]
enum TapeNode {
    Embed { y: usize, table: usize },
    Norm { y: usize, x: Value, gain: usize },
    Linear { y: usize, x: Value, maps: Vec<Map>, onto: Option<Handle> },
    Turn { y: usize, x: Value, norms: Option<[usize; 2]> },
    Attention { mixed: Value, qkv: Value, log_sums: Buffer },
    SwiGlu { y: usize, x: Value },
    Mixture { y: usize, x: Value, onto: Handle, weights: MixtureSlots, routed: Box<Routed> },
    Select { y: usize, x: Handle },
    Predict { x: Value, head: usize },
    Layer { y: usize, x: Value, index: usize },
}

/// A product inside a linear operation.
#[derive(Debug)]
struct Map {
    weight: usize,
    bias: Option<usize>,
    adapter: Option<Thin>,
    columns: ColumnRange,
}

/// The product through an adapter that is added to it.
#[derive(Debug)]
struct Thin {
    down: usize,
    up: usize,
    scale: f32,
    /// What the first matrix made. `[N, rank]`
    inner: Buffer,
    columns: ColumnRange,
}

/// The parameters of experts.
#[derive(Clone, Copy, Debug)]
struct MixtureSlots {
    router: usize,
    gate: usize,
    up: usize,
    down: usize,
}

impl Tape {
    pub(crate) fn new(batch: Arc<PackedBatch>, pool: Arc<BufferPool>, keep: Keep) -> Self {
        Self {
            batch,
            predicted: Predicted::default(),
            uses: Vec::new(),
            shares: Shares::default(),
            pool,
            keep,
            nodes: Vec::new(),
            n_values: 0,
        }
    }

    fn value(&mut self, numbers: Buffer, width: usize, tracked: bool) -> Value {
        self.n_values += 1;
        let handle = Handle { id: self.n_values - 1, length: numbers.len(), tracked };
        Value { handle, width, numbers: Arc::new(numbers) }
    }

    fn record(&mut self, node: TapeNode) {
        self.nodes.push(node);
    }

    /// What each layer with experts decided.
    #[cfg(test)]
    pub(crate) fn into_routed(self) -> Vec<Routed> {
        let routed = self.nodes.into_iter().filter_map(|node| match node {
            TapeNode::Mixture { routed, .. } => Some(*routed),
            _ => None,
        });
        routed.collect()
    }
}
