//! Fused operations on plain buffers, forward and backward, each with as few passes over memory as possible.
//!
//! They compute the same as [`plain`](crate::plain); tests compare results and gradients, and gradients with finite
//! differences. Work is divided into pieces of a fixed size, so that sums do not depend on the number of threads.

pub(crate) mod attention;
pub(crate) mod experts;
pub(crate) mod gate;
pub(crate) mod heads;
pub(crate) mod linear;
pub(crate) mod logprob;
pub(crate) mod residual;
pub(crate) mod rms_norm;
pub(crate) mod sum;

/// The rows that one thread takes at a time.
pub(crate) const PIECE_ROWS: usize = 64;
