//! Gradients by tensor names of a checkpoint, for comparison with other implementations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use crate::batch::{PackedBatch, ScoredSequence};
use crate::learner::STACK_BYTES;
use crate::tape::{Keep, Loss};
use crate::{Decoder, ModelError};

/// A loss and its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct LikelihoodGradient {
    /// The mean negative log-likelihood, in nats.
    pub loss: f32,
    /// Its gradient with respect to every tensor of the checkpoint, in row-major order.
    pub gradient: BTreeMap<String, Vec<f32>>,
}

impl Decoder {
    /// Computes the mean negative log-likelihood of a sequence's tokens after the first, and its gradient. Returns
    /// `None` for a sequence with fewer than two tokens.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub fn likelihood_gradient(
        &self,
        ids: &[u32],
    ) -> Result<Option<LikelihoodGradient>, ModelError> {
        self.check_ids(0, ids)?;
        if ids.len() < 2 {
            return Ok(None);
        }
        // A backward pass recurses deeply and needs a large stack.
        thread::scope(|scope| {
            let work = thread::Builder::new().stack_size(STACK_BYTES);
            let work = work.spawn_scoped(scope, || self.mean_gradient(ids));
            let work = work.map_err(|error| ModelError::threads(1, "the backward pass", error))?;
            Ok(Some(work.join().expect("a backward pass does not panic")?))
        })
    }

    fn mean_gradient(&self, ids: &[u32]) -> Result<LikelihoodGradient, ModelError> {
        let batch = Arc::new(PackedBatch::new(&[ScoredSequence::whole(ids)]));
        let pass = self.pass(batch.clone(), Keep::Activations)?;
        let logprobs = self.finite("log-probabilities", pass.logprobs()?)?;
        let logprobs = batch.split(&logprobs).concat();
        let loss = -logprobs.iter().map(|x| f64::from(*x)).sum::<f64>() / logprobs.len() as f64;
        let each = vec![-1.0 / logprobs.len() as f32; logprobs.len()];
        let dlogprobs = batch.join(&[&each]);
        let loss_above = Loss { dlogprobs: &dlogprobs, ..Loss::default() };
        let mut gradients = self.zero_gradients();
        self.backward(pass, loss_above, &mut gradients)?;
        let mut named = BTreeMap::new();
        for (parameter, gradient) in self.parameters().iter().zip(gradients) {
            let spec = &parameter.spec;
            let gradient = self.finite(&format!("the gradient of {}", spec.name), gradient)?;
            let tensors = gradient.chunks(spec.len() / spec.n_tensors()).map(<[f32]>::to_vec);
            named.extend(spec.tensor_names().zip(tensors));
        }
        Ok(LikelihoodGradient { loss: loss as f32, gradient: named })
    }
}
