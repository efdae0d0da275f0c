//! Forward and backward passes of a decoder.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{Decoder, Parameter};
use crate::batch::PackedBatch;
use crate::forward::{self, Kernels};
use crate::fused::sum;
use crate::layout::{Linear, Network};
use crate::numbers::{host_numbers, numbers};
use crate::ops::Ops;
use crate::pass::Pass;
use crate::plain::Plain;
use crate::shares::Shares;
use crate::slots::{Slot, SlotNumbers};
use crate::tape::{Keep, Loss, Played, Recorder, Tape, play_backward};

impl Decoder {
    /// Runs a forward pass, with predictions if the batch has targets.
    pub(crate) fn pass(&self, batch: Arc<PackedBatch>, keep: Keep) -> Result<Pass> {
        self.pass_in(batch, keep, |_| {})
    }

    /// Runs a forward pass over a modified network, which shows the effect of a wrong one.
    pub(crate) fn pass_in(
        &self,
        batch: Arc<PackedBatch>,
        keep: Keep,
        rewire: impl FnOnce(&mut Network<Slot<'_>>),
    ) -> Result<Pass> {
        let dimensions = self.dimensions();
        let wants_predictions = batch.n_targets() > 0;
        if self.kernels() == Kernels::Plain {
            let mut plain = self.plain(batch, keep)?;
            let network = if keep == Keep::Nothing { self.detached()? } else { self.tracked() };
            let hidden = forward::hidden(&mut plain, &network)?;
            if wants_predictions {
                forward::predict(&mut plain, &network, &hidden)?;
            }
            return Ok(Pass::Plain(plain));
        }
        let mut tape = Tape::new(batch, self.pool().clone(), keep, self.precision());
        self.with_slots(|_, network| {
            let mut network = network.clone();
            rewire(&mut network);
            let mut recorder = Recorder::new(&dimensions, &mut tape);
            let hidden = forward::hidden(&mut recorder, &network)?;
            if wants_predictions {
                forward::predict(&mut recorder, &network, &hidden)?;
            }
            Ok(())
        })?;
        Ok(Pass::Fused(tape))
    }

    /// Adds the gradient of `loss` to `gradients`, in the order of the parameters; those of frozen parameters are
    /// empty.
    pub(crate) fn backward(
        &self,
        pass: Pass,
        loss: Loss<'_>,
        gradients: &mut [Vec<f32>],
    ) -> Result<Played> {
        let dimensions = self.dimensions();
        if let Pass::Fused(tape) = pass {
            return self.with_slots(|slots, network| {
                play_backward(tape, &dimensions, slots, network, loss, gradients)
            });
        }
        let (found, played) = self.tensor_gradients(pass, loss)?;
        for (sum, gradient) in gradients.iter_mut().zip(&found) {
            if let Some(gradient) = gradient {
                sum::add(sum, &host_numbers(gradient)?);
            }
        }
        Ok(played)
    }

    /// Returns the gradient of `loss` for each trainable parameter that it reaches, on the model's device. Only for a
    /// pass of the tensor library's operations.
    pub(crate) fn tensor_gradients(
        &self,
        pass: Pass,
        loss: Loss<'_>,
    ) -> Result<(Vec<Option<Tensor>>, Played)> {
        let Pass::Plain(plain) = pass else {
            candle_core::bail!("a tape adds its gradients to buffers");
        };
        let stores = plain.backward(&self.tracked(), loss)?;
        let mut gradients = Vec::with_capacity(self.parameters().len());
        let mut reached = Vec::with_capacity(self.parameters().len());
        for parameter in self.parameters() {
            let mut found = stores.iter().filter_map(|store| store.get(parameter.var())).peekable();
            reached.push(found.peek().is_some());
            let mut sum = None;
            for gradient in found.filter(|_| parameter.trainable) {
                sum = Some(match sum {
                    Some(sum) => (sum + gradient)?,
                    None => gradient.contiguous()?,
                });
            }
            gradients.push(sum);
        }
        Ok((gradients, Played { shares: Shares::default(), reached }))
    }

    fn plain(&self, batch: Arc<PackedBatch>, keep: Keep) -> Result<Plain> {
        Plain::new(&self.dimensions(), self.precision(), self.place().clone(), batch, keep)
    }

    /// Returns zero gradients for all trainable parameters.
    pub(crate) fn zero_gradients(&self) -> Vec<Vec<f32>> {
        let length = |p: &Parameter| if p.trainable { p.spec.len() } else { 0 };
        self.parameters().iter().map(|parameter| vec![0.0; length(parameter)]).collect()
    }

    /// Computes the logits after every token. `[N, V]`
    pub(crate) fn all_logits(&self, batch: Arc<PackedBatch>) -> Result<Vec<f32>> {
        let dimensions = self.dimensions();
        if self.kernels() == Kernels::Plain {
            let mut plain = self.plain(batch, Keep::Nothing)?;
            let network = self.detached()?;
            let hidden = forward::hidden(&mut plain, &network)?;
            let normed = forward::before_head(&mut plain, &network, &hidden)?;
            let head = Linear { weight: network.output_head().clone(), bias: None, adapter: None };
            return plain.linear(&normed, &[head])?.flatten_all()?.to_vec1();
        }
        let mut tape = Tape::new(batch, self.pool().clone(), Keep::Nothing, self.precision());
        self.with_slots(|_, network| {
            let mut recorder = Recorder::new(&dimensions, &mut tape);
            let hidden = forward::hidden(&mut recorder, network)?;
            let normed = forward::before_head(&mut recorder, network, &hidden)?;
            let head = Linear { weight: *network.output_head(), bias: None, adapter: None };
            Ok(recorder.linear(&normed, &[head])?.numbers.to_vec())
        })
    }

    /// Calls a function with the weights in the form of a tape, one by one and in their places.
    pub(crate) fn with_slots<R>(
        &self,
        see: impl FnOnce(&[Slot<'_>], &Network<Slot<'_>>) -> Result<R>,
    ) -> Result<R> {
        let own = self.parameters().iter().filter_map(|parameter| parameter.own());
        let own = own.map(|var| numbers(var)).collect::<Result<Vec<_>>>()?;
        let (packed, mut own) = (self.packed_matrices(), own.iter());
        let all = self.parameters().iter().zip(&packed).enumerate();
        let slots = all.map(|(index, (parameter, packed))| {
            let numbers = match parameter.own() {
                Some(_) => SlotNumbers::Held(own.next().expect("its numbers are there")),
                None => SlotNumbers::Packed(packed),
            };
            Slot { index, numbers, trainable: parameter.trainable }
        });
        let slots: Vec<Slot<'_>> = slots.collect();
        let network = self.arrange(slots.iter().copied());
        see(&slots, &network)
    }
}

#[cfg(test)]
impl Decoder {
    /// Computes the residual stream after the last layer, before its norm. `[N, D]`
    pub(crate) fn hidden(&self, batch: PackedBatch) -> Vec<f32> {
        let (dimensions, batch) = (self.dimensions(), Arc::new(batch));
        if self.kernels() == Kernels::Plain {
            let mut plain = self.plain(batch, Keep::Nothing).unwrap();
            let hidden = forward::hidden(&mut plain, &self.detached().unwrap()).unwrap();
            return hidden.flatten_all().unwrap().to_vec1().unwrap();
        }
        let mut tape = Tape::new(batch, self.pool().clone(), Keep::Nothing, self.precision());
        let hidden = self.with_slots(|_, network| {
            forward::hidden(&mut Recorder::new(&dimensions, &mut tape), network)
        });
        hidden.unwrap().numbers.to_vec()
    }

    /// Returns the routing of each layer with experts, by the fused kernels.
    pub(crate) fn routed(&self, batch: PackedBatch) -> Vec<crate::fused::experts::Routed> {
        let dimensions = self.dimensions();
        let mut tape =
            Tape::new(Arc::new(batch), self.pool().clone(), Keep::Activations, self.precision());
        let hidden = self.with_slots(|_, network| {
            forward::hidden(&mut Recorder::new(&dimensions, &mut tape), network)
        });
        drop(hidden.unwrap());
        tape.into_routed()
    }
}
