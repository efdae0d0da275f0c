//! The model's operations with a backward pass of their own.
//!
//! Each does in one pass over memory what takes the tensor library several. What they compute is that of
//! [`plain`](crate::plain); results and gradients are compared in the tests.

mod attention;
mod combine;
mod grouped;
mod linear;
mod logprob;
mod rms_norm;
mod rotate;
mod swiglu;

pub(crate) use attention::attention;
pub(crate) use combine::combine;
pub(crate) use grouped::grouped;
pub(crate) use linear::{affine, linear};
pub(crate) use logprob::logprobs;
pub(crate) use rms_norm::rms_norm;
pub(crate) use rotate::rope;
pub(crate) use swiglu::swiglu;
