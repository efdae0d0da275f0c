//! Gradients by the names of a checkpoint's tensors, to compare with other implementations.

use std::collections::BTreeMap;
use std::thread;

use crate::batch::{Batch, Sequence};
use crate::learner::STACK_BYTES;
use crate::numbers::numbers;
use crate::{Decoder, ModelError};

/// A loss and where it leads.
#[derive(Clone, Debug, PartialEq)]
pub struct LikelihoodGradient {
    /// The mean negative log-likelihood, in nats.
    pub loss: f32,
    /// Its gradient with respect to every tensor of the checkpoint, in row-major order.
    pub gradient: BTreeMap<String, Vec<f32>>,
}

impl Decoder {
    /// The mean negative log-likelihood of a sequence's tokens after the first, and its gradient. `None` for a sequence of
    /// one token or none.
    ///
    /// # Errors
    /// As [`Self::score`].
    ///
    /// # Panics
    /// When the system cannot start a thread.
    pub fn likelihood_gradient(
        &self,
        ids: &[u32],
    ) -> Result<Option<LikelihoodGradient>, ModelError> {
        self.check_ids(0, ids)?;
        if ids.len() < 2 {
            return Ok(None);
        }
        // A backward pass recurses deeply.
        thread::scope(|scope| {
            let work = thread::Builder::new().stack_size(STACK_BYTES);
            let work = work.spawn_scoped(scope, || self.mean_gradient(ids));
            let result = work.expect("the system can start a thread").join();
            Ok(Some(result.expect("a backward pass does not panic")?))
        })
    }

    fn mean_gradient(&self, ids: &[u32]) -> candle_core::Result<LikelihoodGradient> {
        let batch = Batch::new(&[Sequence::whole(ids)])?;
        let loss = self.forward().logprobs(&self.tracked(), &batch)?.mean_all()?.neg()?;
        let store = loss.backward()?;
        let mut named = BTreeMap::new();
        for parameter in self.parameters() {
            let spec = &parameter.spec;
            let Some(gradient) = store.get(&parameter.var) else {
                candle_core::bail!("{} has no gradient", spec.name)
            };
            let gradient = gradient.contiguous()?;
            let gradient = numbers(&gradient)?;
            let tensors = gradient.chunks(spec.len() / spec.n_tensors()).map(<[f32]>::to_vec);
            named.extend(spec.tensor_names().zip(tensors));
        }
        Ok(LikelihoodGradient { loss: loss.to_scalar()?, gradient: named })
    }
}
