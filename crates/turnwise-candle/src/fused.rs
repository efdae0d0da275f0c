//! The model's operations on plain numbers, forward and backward, each in as few passes over memory as it takes.
//!
//! What they compute is that of [`plain`](crate::plain); results and gradients are compared in the tests, and gradients with
//! finite differences. Work is cut in pieces of a fixed size, so that a sum does not depend on the number of threads.

pub(crate) mod attention;
pub(crate) mod experts;
pub(crate) mod heads;
pub(crate) mod linear;
pub(crate) mod logprob;
pub(crate) mod rms_norm;
pub(crate) mod sum;
pub(crate) mod swiglu;

/// Rows that one thread takes at a time.
pub(crate) const PIECE_ROWS: usize = 64;
