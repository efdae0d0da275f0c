//! `AdamW` as operations of the tensor library: moments and weights stay on their device.

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use turnwise_rollout::Meter;

use super::moments::{MomentPrecision, Moments};
use super::{AdamW, AdamWState, Rates, not_finite};
use crate::accumulated::Accumulated;
use crate::checkpoint::Decode;
use crate::decoder::Parameter;
use crate::layout::Spec;
use crate::numbers::host_numbers;
use crate::{Decoder, Kernels, ModelError};

/// The optimiser state, where gradients and weights are. Both forms write the same files.
#[derive(Debug)]
pub(crate) enum Optimizer {
    Buffers(AdamWState),
    Tensors(TensorState),
}

/// Moments of the trainable parameters, as tensors.
#[derive(Debug)]
pub(crate) struct TensorState {
    settings: AdamW,
    /// The number of steps taken.
    steps: u64,
    moments: Vec<[Tensor; 2]>,
}

impl Optimizer {
    /// Creates the state for a model in its current form.
    ///
    /// # Errors
    /// [`ModelError::Settings`] for rounded moments where moments are tensors.
    pub(crate) fn new(settings: AdamW, model: &Decoder) -> std::result::Result<Self, ModelError> {
        if model.kernels() == Kernels::Fused {
            return Ok(Self::Buffers(AdamWState::new(settings, &model.trainable_specs())));
        }
        if settings.moments != MomentPrecision::F32 {
            let reason = "optimizer.moments is f32 on this device; rounded moments are for the CPU";
            return Err(ModelError::Settings(reason.to_owned()));
        }
        let zeros = |parameter: &Parameter| {
            let zeros = || Tensor::zeros(&parameter.spec.shape[..], DType::F32, model.place());
            Ok([zeros()?, zeros()?])
        };
        let moments = model.trainable().map(zeros).collect::<Result<_>>()?;
        Ok(Self::Tensors(TensorState { settings, steps: 0, moments }))
    }

    /// Takes one step along `gradients * scale`.
    ///
    /// # Errors
    /// As [`AdamWState::step`].
    pub(crate) fn step(
        &mut self,
        parameters: &[Parameter],
        gradients: &Accumulated,
        scale: f64,
        learning_rate: f64,
    ) -> std::result::Result<(), ModelError> {
        match (self, gradients) {
            (Self::Buffers(state), Accumulated::Buffers(gradients)) => {
                state.step(parameters, gradients, scale, learning_rate)
            }
            (Self::Tensors(state), Accumulated::Tensors(gradients)) => {
                state.step(parameters, gradients, scale, learning_rate)
            }
            _ => {
                Err(candle_core::Error::msg("gradients and moments are in different forms").into())
            }
        }
    }

    /// Returns whether no step has been taken.
    pub(crate) fn is_new(&self) -> bool {
        match self {
            Self::Buffers(state) => state.steps == 0,
            Self::Tensors(state) => state.steps == 0,
        }
    }

    pub(crate) fn save(
        &self,
        path: &Path,
        specs: &[Spec],
        meter: &Meter,
    ) -> std::result::Result<(), ModelError> {
        match self {
            Self::Buffers(state) => state.save(path, specs, meter),
            Self::Tensors(state) => state.to_host()?.save(path, specs, meter),
        }
    }

    /// Reads a file of either form for a model with the same parameters.
    pub(crate) fn load(
        settings: AdamW,
        path: &Path,
        model: &Decoder,
        meter: &Meter,
    ) -> std::result::Result<Self, ModelError> {
        let state = AdamWState::load(settings, path, &model.trainable_specs(), meter)?;
        Ok(match model.kernels() {
            Kernels::Fused => Self::Buffers(state),
            Kernels::Plain => Self::Tensors(TensorState::from_host(state, model)?),
        })
    }
}

impl TensorState {
    fn step(
        &mut self,
        parameters: &[Parameter],
        gradients: &[Option<Tensor>],
        scale: f64,
        learning_rate: f64,
    ) -> std::result::Result<(), ModelError> {
        self.steps += 1;
        let trained =
            || parameters.iter().zip(gradients).filter(|(parameter, _)| parameter.trainable);
        // The device is synchronised once, after all parameters.
        let mut zero = None;
        for ((parameter, gradient), moments) in trained().zip(&mut self.moments) {
            let rates = Rates::of(self.settings, parameter, self.steps, scale, learning_rate);
            advance(parameter, gradient.as_ref(), moments, rates)?;
            for tensor in [&parameter.var().as_detached_tensor(), &moments[0], &moments[1]] {
                let own = (tensor * 0.0)?.sum_all()?;
                zero = Some(match zero {
                    Some(zero) => (zero + own)?,
                    None => own,
                });
            }
        }
        let zero = zero.map_or(Ok(0.0), |zero| zero.to_scalar::<f32>())?;
        if zero == 0.0 {
            return Ok(());
        }
        for ((parameter, _), [first, second]) in trained().zip(&self.moments) {
            let weights = parameter.var().as_detached_tensor();
            let values = [host_numbers(&weights)?, host_numbers(first)?, host_numbers(second)?];
            if let Some(error) =
                not_finite(parameter, values.each_ref().map(|v| &**v), learning_rate)
            {
                return Err(error);
            }
        }
        Ok(())
    }

    fn to_host(&self) -> Result<AdamWState> {
        let copied = |[first, second]: &[Tensor; 2]| {
            let copied =
                |moment: &Tensor| -> Result<Vec<f32>> { Ok(host_numbers(moment)?.to_vec()) };
            Ok(Moments::F32([copied(first)?, copied(second)?]))
        };
        let moments = self.moments.iter().map(copied).collect::<Result<_>>()?;
        Ok(AdamWState { settings: self.settings, steps: self.steps, moments })
    }

    fn from_host(state: AdamWState, model: &Decoder) -> Result<Self> {
        let AdamWState { settings, steps, moments } = state;
        let placed = |(moments, parameter): (Moments, &Parameter)| {
            let placed = |values| {
                Tensor::from_vec(values, &parameter.spec.shape[..], &Device::Cpu)?
                    .to_device(model.place())
            };
            let [first, second] = moments.halves().map(Decode::decoded);
            Ok([placed(first)?, placed(second)?])
        };
        let moments =
            moments.into_iter().zip(model.trainable()).map(placed).collect::<Result<_>>()?;
        Ok(Self { settings, steps, moments })
    }
}

/// Applies the formula of [`AdamW`] to a parameter. A missing gradient counts as zero.
fn advance(
    parameter: &Parameter,
    gradient: Option<&Tensor>,
    moments: &mut [Tensor; 2],
    rates: Rates,
) -> Result<()> {
    let Rates { scale, beta1, beta2, epsilon, rate, second_correction, kept, .. } = rates;
    let weights = parameter.var().as_detached_tensor();
    let gradient = match gradient {
        Some(gradient) => (gradient * f64::from(scale))?,
        None => weights.zeros_like()?,
    };
    let [first, second] = moments;
    *first = (&*first + ((&gradient - &*first)? * f64::from(1.0 - beta1))?)?;
    *second = (&*second + ((gradient.sqr()? - &*second)? * f64::from(1.0 - beta2))?)?;
    let root = ((&*second * f64::from(second_correction))?.sqrt()? + f64::from(epsilon))?;
    let moved = ((&*first * f64::from(rate))? / root)?;
    parameter.var().set(&((weights * f64::from(kept))? - moved)?)
}
