//! Gradients accumulated for a step: buffers for the fused kernels, tensors on the model's device for the tensor
//! library.

use candle_core::{Result, Tensor};

use crate::finite::all_finite;
use crate::fused::sum;
use crate::numbers::host_numbers;
use crate::pass::Pass;
use crate::tape::{Loss, Played};
use crate::{Decoder, Kernels};

/// Sums of gradients, in the order of the parameters.
#[derive(Debug)]
pub(crate) enum Accumulated {
    /// One buffer for each parameter; those of frozen parameters are empty.
    Buffers(Vec<Vec<f32>>),
    /// One tensor for each parameter; `None` until something is added.
    Tensors(Vec<Option<Tensor>>),
}

impl Accumulated {
    /// Returns zero gradients for a model in its current form.
    pub(crate) fn of(model: &Decoder) -> Self {
        match model.kernels() {
            Kernels::Fused => Self::Buffers(model.zero_gradients()),
            Kernels::Plain => Self::Tensors(vec![None; model.parameters().len()]),
        }
    }

    /// Returns a copy of tensor gradients, for additions that can fail half-way. Tensors are immutable, so the copy
    /// shares them.
    pub(crate) fn kept(&self) -> Option<Self> {
        match self {
            Self::Buffers(_) => None,
            Self::Tensors(tensors) => Some(Self::Tensors(tensors.clone())),
        }
    }

    /// Adds the gradient of a loss.
    pub(crate) fn add(&mut self, model: &Decoder, pass: Pass, loss: Loss<'_>) -> Result<Played> {
        let sums = match self {
            Self::Buffers(sums) => return model.backward(pass, loss, sums),
            Self::Tensors(sums) => sums,
        };
        let (gradients, played) = model.tensor_gradients(pass, loss)?;
        for (sum, gradient) in sums.iter_mut().zip(gradients) {
            *sum = match (sum.take(), gradient) {
                (Some(sum), Some(gradient)) => Some((sum + gradient)?),
                (sum, gradient) => sum.or(gradient),
            };
        }
        Ok(played)
    }

    /// Returns the norm of all gradients together.
    pub(crate) fn norm(&self) -> Result<f64> {
        let squares = match self {
            Self::Buffers(sums) => sums.iter().map(|sum| sum::squares(sum)).sum::<f64>(),
            Self::Tensors(sums) => {
                let squares =
                    |sum: &Tensor| Ok(f64::from(sum.sqr()?.sum_all()?.to_scalar::<f32>()?));
                sums.iter().flatten().map(squares).sum::<Result<f64>>()?
            }
        };
        Ok(squares.sqrt())
    }

    /// Returns the name of the first parameter whose gradient is NaN or infinite.
    pub(crate) fn first_not_finite(&self, model: &Decoder) -> Result<Option<String>> {
        for (index, parameter) in model.parameters().iter().enumerate() {
            let is_finite = match self {
                Self::Buffers(sums) => all_finite(&sums[index]),
                Self::Tensors(sums) => match &sums[index] {
                    Some(sum) => all_finite(&host_numbers(sum)?),
                    None => true,
                },
            };
            if !is_finite {
                return Ok(Some(parameter.spec.name.clone()));
            }
        }
        Ok(None)
    }

    pub(crate) fn clear(&mut self) {
        match self {
            Self::Buffers(sums) => sums.iter_mut().for_each(|sum| sum.fill(0.0)),
            Self::Tensors(sums) => sums.fill(None),
        }
    }

    /// Copies the gradients to the CPU.
    #[cfg(test)]
    pub(crate) fn to_host(&self, model: &Decoder) -> Result<Vec<Vec<f32>>> {
        let sums = match self {
            Self::Buffers(sums) => return Ok(sums.clone()),
            Self::Tensors(sums) => sums,
        };
        let all = sums.iter().zip(model.zero_gradients());
        all.map(|(sum, zeros)| {
            sum.as_ref().map_or(Ok(zeros), |sum| Ok(host_numbers(sum)?.to_vec()))
        })
        .collect()
    }
}
