//! Reverse-mode automatic differentiation: a forward pass records a tape, and the backward pass replays it in reverse.
//!
//! It supports only the operations of a decoder. In return, gradients of parameters are added in place, frozen
//! parameters cost nothing, memory is reused from step to step, and activations are freed as soon as the backward pass
//! no longer needs them.

mod backward;
mod recorder;

use std::sync::Arc;

use turnwise_kernels::buffer::{Buffer, BufferPool};
use turnwise_kernels::rounded::RoundedBuffer;

pub(crate) use backward::{Loss, play_backward};
pub(crate) use recorder::Recorder;

use crate::ComputePrecision;
use crate::architecture::{Activation, RopeKind};
use crate::balance::LayerUse;
use crate::batch::PackedBatch;
use crate::fused::experts::Routed;
use crate::fused::linear::ColumnRange;
use crate::fused::logprob::Predicted;
use crate::shares::Shares;
use crate::slots::Slot;

/// Rows of numbers, computed once.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    handle: Handle,
    pub(crate) width: usize,
    pub(crate) numbers: Arc<Buffer>,
    /// What a backward pass keeps instead of the numbers.
    kept: Option<Kept>,
}

/// What a backward pass keeps of numbers.
#[derive(Clone, Debug)]
enum Kept {
    Exact(Arc<Buffer>),
    /// In bf16, where products round them anyway.
    Rounded(Arc<RoundedBuffer>),
    /// How to compute them again, where that is cheap.
    Again(Arc<Origin>),
}

/// A cheap operation, with inputs that the tape keeps anyway.
#[derive(Debug)]
enum Origin {
    Norm { x: ThinValue, gain: usize },
    Gate { x: ThinValue, activation: Activation },
}

/// A value as a backward pass keeps it.
#[derive(Clone, Debug)]
struct ThinValue {
    handle: Handle,
    width: usize,
    numbers: Kept,
}

/// A value without its numbers, for operations that do not need them in their backward pass.
#[derive(Clone, Copy, Debug)]
struct Handle {
    id: usize,
    length: usize,
    /// Whether it depends on a trainable parameter.
    tracked: bool,
}

impl Value {
    fn n_rows(&self) -> usize {
        self.numbers.len() / self.width
    }

    fn thin(&self) -> ThinValue {
        let exact = || Kept::Exact(self.numbers.clone());
        let numbers = self.kept.clone().unwrap_or_else(exact);
        ThinValue { handle: self.handle, width: self.width, numbers }
    }
}

/// What a forward pass saves for a backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing, without a backward pass.
    Nothing,
    /// The inputs of each operation's backward pass.
    Activations,
    /// The input of each layer, from which the layer is recomputed: activations of one layer at a time, for one more
    /// forward pass (Chen et al., *Training deep nets with sublinear memory cost*, 2016).
    Layers,
}

/// The result of a backward pass.
#[derive(Clone, Debug)]
pub(crate) struct Played {
    /// Time by kind of work.
    pub(crate) shares: Shares,
    /// Whether each parameter was reached, in order.
    pub(crate) reached: Vec<bool>,
}

/// A forward pass over a batch.
#[derive(Debug)]
pub(crate) struct Tape {
    pub(crate) batch: Arc<PackedBatch>,
    pub(crate) predicted: Predicted,
    /// The expert use of each layer with experts.
    pub(crate) uses: Vec<LayerUse>,
    /// Time by kind of work.
    pub(crate) shares: Shares,
    pool: Arc<BufferPool>,
    keep: Keep,
    precision: ComputePrecision,
    nodes: Vec<TapeNode>,
    n_values: usize,
}

/// An operation with the inputs of its backward pass. `y` is its result.
#[derive(Debug)]
enum TapeNode {
    Embed {
        y: usize,
        table: usize,
    },
    Scale {
        y: usize,
        x: Handle,
        factor: f32,
    },
    Add {
        y: usize,
        onto: Handle,
        x: Handle,
    },
    AddGated {
        y: usize,
        onto: Handle,
        x: Value,
        gate: Value,
    },
    Norm {
        y: usize,
        x: ThinValue,
        gain: usize,
    },
    Linear {
        y: usize,
        x: ThinValue,
        maps: Vec<Map>,
        onto: Option<Handle>,
    },
    /// Without norms, the rotation's backward pass does not read its input.
    Rotate {
        y: usize,
        x: Handle,
        normed: Option<(ThinValue, [usize; 2])>,
        rope: RopeKind,
    },
    Attention {
        mixed: ThinValue,
        qkv: ThinValue,
        log_sums: Buffer,
        window: Option<usize>,
    },
    Gate {
        y: usize,
        x: ThinValue,
        activation: Activation,
    },
    Mixture {
        y: usize,
        x: Value,
        onto: Handle,
        weights: MixtureSlots,
        routed: Box<Routed>,
    },
    Select {
        y: usize,
        x: Handle,
    },
    Predict {
        x: Value,
        head: usize,
    },
    Layer {
        y: usize,
        x: Value,
        index: usize,
    },
}

/// One product of a linear operation.
#[derive(Debug)]
struct Map {
    weight: usize,
    bias: Option<usize>,
    adapter: Option<Thin>,
    columns: ColumnRange,
}

/// An adapter's product.
#[derive(Debug)]
struct Thin {
    down: usize,
    up: usize,
    scale: f32,
    /// The result of the first matrix. `[N, rank]`
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
    pub(crate) fn new(
        batch: Arc<PackedBatch>,
        pool: Arc<BufferPool>,
        keep: Keep,
        precision: ComputePrecision,
    ) -> Self {
        Self {
            batch,
            predicted: Predicted::default(),
            uses: Vec::new(),
            shares: Shares::default(),
            pool,
            keep,
            precision,
            nodes: Vec::new(),
            n_values: 0,
        }
    }

    fn value(&mut self, numbers: Buffer, width: usize, tracked: bool) -> Value {
        self.n_values += 1;
        let handle = Handle { id: self.n_values - 1, length: numbers.len(), tracked };
        Value { handle, width, numbers: Arc::new(numbers), kept: None }
    }

    fn record(&mut self, node: TapeNode) {
        self.nodes.push(node);
    }

    /// Returns the routing of each layer with experts.
    #[cfg(test)]
    pub(crate) fn into_routed(self) -> Vec<Routed> {
        let routed = self.nodes.into_iter().filter_map(|node| match node {
            TapeNode::Mixture { routed, .. } => Some(*routed),
            _ => None,
        });
        routed.collect()
    }
}
