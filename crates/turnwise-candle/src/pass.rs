//! A forward pass of a decoder over a batch, by either set of operations.

use std::sync::Arc;

use candle_core::Result;

use crate::balance::LayerUse;
use crate::batch::PackedBatch;
use crate::plain::Plain;
use crate::shares::Shares;
use crate::tape::Tape;

/// The results of a forward pass.
#[derive(Debug)]
pub(crate) enum Pass {
    Fused(Tape),
    Plain(Plain),
}

impl Pass {
    pub(crate) fn batch(&self) -> &Arc<PackedBatch> {
        match self {
            Self::Fused(tape) => &tape.batch,
            Self::Plain(plain) => plain.batch(),
        }
    }

    /// Returns the log-probability of each prediction's targets, in nats. `[M]`
    pub(crate) fn logprobs(&self) -> Result<Vec<f32>> {
        match self {
            Self::Fused(tape) => Ok(tape.predicted.logprobs.clone()),
            Self::Plain(plain) => plain.logprobs(),
        }
    }

    /// Returns the entropy of each distribution, in nats. `[R]`
    pub(crate) fn entropies(&self) -> Result<Vec<f32>> {
        match self {
            Self::Fused(tape) => Ok(tape.predicted.entropies.clone()),
            Self::Plain(plain) => plain.entropies(),
        }
    }

    /// Returns the expert use of each layer with experts.
    pub(crate) fn uses(&self) -> &[LayerUse] {
        match self {
            Self::Fused(tape) => &tape.uses,
            Self::Plain(plain) => &plain.uses,
        }
    }

    /// Returns the time of the forward pass by kind of work; unknown for the tensor library's operations.
    pub(crate) fn shares(&self) -> Shares {
        match self {
            Self::Fused(tape) => tape.shares,
            Self::Plain(_) => Shares::default(),
        }
    }
}
