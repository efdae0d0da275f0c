mod moments;
mod tensors;

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::Path;

use candle_core::{CpuStorage, InplaceOp1, Layout};
pub use moments::MomentPrecision;
use moments::Moments;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub(crate) use tensors::Optimizer;
use turnwise_rollout::Meter;

use crate::ModelError;
use crate::checkpoint::{Decode, Piece, Precision, Tensors, Values, write_tensors};
use crate::decoder::Parameter;
use crate::finite::{describe, first_not_finite};
use crate::layout::{ParameterRole, Spec};
use crate::numbers::numbers;

/// Settings of AdamW (Loshchilov and Hutter, *Decoupled weight decay regularization*, 2019, algorithm 2).
///
/// ```text
/// m <- beta1 m + (1 - beta1) g          v <- beta2 v + (1 - beta2) g^2
/// w <- w - lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay w)
/// ```
///
/// Weight decay applies to matrices, adapters included. It does not apply to gains of norms, whose neutral value is not
/// zero, nor to the embedding, whose rows for tokens outside the batch would shrink without a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay of matrices, multiplied by the learning rate.
    pub weight_decay: f64,
    /// The precision of both moments in memory, on the CPU.
    pub moments: MomentPrecision,
}

impl Default for AdamW {
    /// Returns the defaults of `torch.optim.AdamW`, so that a learning rate from elsewhere means the same here.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            moments: MomentPrecision::F32,
        }
    }
}

/// The optimiser state: two moments for each trainable parameter, in the order of the parameters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdamWState {
    settings: AdamW,
    /// The number of steps taken.
    steps: u64,
    moments: Vec<Moments>,
}

impl AdamWState {
    pub(crate) fn new(settings: AdamW, specs: &[Spec]) -> Self {
        let zeros = |spec: &Spec| Moments::zeros(settings.moments, spec.len());
        let moments = specs.iter().map(zeros).collect();
        Self { settings, steps: 0, moments }
    }

    /// Takes one step along `gradients * scale`.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] when a weight or a moment becomes NaN or infinite. Some weights have changed by then.
    pub(crate) fn step(
        &mut self,
        parameters: &[Parameter],
        gradients: &[Vec<f32>],
        scale: f64,
        learning_rate: f64,
    ) -> Result<(), ModelError> {
        self.steps += 1;
        let trained = parameters.iter().zip(gradients).filter(|(parameter, _)| parameter.trainable);
        for ((parameter, gradient), moments) in trained.zip(&mut self.moments) {
            if self.steps == 1 {
                moments.write_zeros();
            }
            let rates = Rates::of(self.settings, parameter, self.steps, scale, learning_rate);
            let is_finite = Cell::new(true);
            let moved = RefCell::new(&mut *moments);
            let step = AdamWUpdate { gradient, moments: moved, rates, is_finite: &is_finite };
            parameter.var().inplace_op1(&step)?;
            if is_finite.get() {
                continue;
            }
            let [first, second] = moments.halves().map(Decode::decoded);
            let weights = numbers(parameter.var())?;
            if let Some(error) = not_finite(parameter, [&weights, &first, &second], learning_rate) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes the moments as `first.<name>` and `second.<name>`, and the number of steps as two halves that f32 holds
    /// exactly. Before the first step all moments are zero, and the file holds the number of steps only. Moments of 16 or
    /// 8 bits are written in bf16, which holds them exactly.
    pub(crate) fn save(
        &self,
        path: &Path,
        specs: &[Spec],
        meter: &Meter,
    ) -> Result<(), ModelError> {
        let names = state_specs(if self.steps == 0 { &[] } else { specs });
        let steps = [(self.steps >> STEP_BITS) as f32, (self.steps & STEP_MASK) as f32];
        let precision = match self.settings.moments {
            MomentPrecision::F32 => Precision::Single,
            MomentPrecision::Bf16 | MomentPrecision::Fp8 => Precision::Brain,
        };
        let moments = self.moments.iter().flat_map(Moments::halves);
        let moments = moments.map(|values| (Values::Encoded(values), precision));
        let values = std::iter::once((Values::Numbers(&steps), Precision::Single)).chain(moments);
        let pieces = names.iter().zip(values).map(|(spec, (values, precision))| Piece {
            name: spec.name.clone(),
            shape: &spec.shape,
            values,
            adapter: None,
            precision,
        });
        write_tensors(path, pieces, meter)
    }

    /// Reads what [`Self::save`] wrote for parameters of the same names and shapes.
    pub(crate) fn load(
        settings: AdamW,
        path: &Path,
        specs: &[Spec],
        meter: &Meter,
    ) -> Result<Self, ModelError> {
        fs::metadata(path).map_err(|error| ModelError::read(path, error))?;
        let tensors = Tensors::in_file(path)?;
        let is_new = tensors.shape(STEPS).is_some() && tensors.len() == 1;
        let written = if is_new { &[] } else { specs };
        let values = tensors.read(&state_specs(written), meter)?;
        let mut values = values.into_iter().map(|loaded| loaded.values);
        let steps = values.next().unwrap_or_default();
        #[expect(clippy::cast_sign_loss, reason = "the cast saturates at 0")]
        let steps = ((steps[0] as u64) << STEP_BITS) | steps[1] as u64;
        if is_new && steps > 0 {
            let reason = format!("it counts {steps} steps and has no moments");
            return Err(ModelError::malformed(path, reason));
        }
        if is_new {
            return Ok(Self::new(settings, specs));
        }
        let mut moments = Vec::with_capacity(specs.len());
        while let (Some(first), Some(second)) = (values.next(), values.next()) {
            if second.iter().any(|x| *x < 0.0) {
                let name = &specs[moments.len()].name;
                let reason = format!("second.{name} is a mean of squares and has negative numbers");
                return Err(ModelError::malformed(path, reason));
            }
            moments.push(Moments::encode(settings.moments, [first, second]));
        }
        Ok(Self { settings, steps, moments })
    }
}

/// Returns the error for a parameter whose weights, first moments or second moments became NaN or infinite in a step.
fn not_finite(
    parameter: &Parameter,
    [weights, first, second]: [&[f32]; 3],
    learning_rate: f64,
) -> Option<ModelError> {
    let Spec { name, shape, .. } = &parameter.spec;
    let all = [("", weights), ("the first moment of ", first), ("the second moment of ", second)];
    let reason = all.into_iter().find_map(|(what, values)| {
        let index = first_not_finite(values)?;
        Some(describe(&format!("{what}{name}"), shape, index, values[index]))
    })?;
    let action = format!("take a step with the learning rate {learning_rate:e}");
    Some(ModelError::NotFinite { action, reason })
}

const STEP_BITS: u32 = 24;
const STEP_MASK: u64 = (1 << STEP_BITS) - 1;

/// The name of the tensor with the number of steps.
const STEPS: &str = "steps";

fn state_specs(specs: &[Spec]) -> Vec<Spec> {
    let steps =
        Spec { name: STEPS.to_owned(), shape: vec![2], role: ParameterRole::Norm, stacked: false };
    let moments = specs.iter().flat_map(|spec| {
        ["first", "second"].map(|moment| Spec {
            name: format!("{moment}.{}", spec.name),
            stacked: false,
            ..spec.clone()
        })
    });
    std::iter::once(steps).chain(moments).collect()
}

/// Updates a parameter and its moments in place.
struct AdamWUpdate<'a> {
    gradient: &'a [f32],
    moments: RefCell<&'a mut Moments>,
    rates: Rates,
    /// Whether all results so far are finite.
    is_finite: &'a Cell<bool>,
}

impl InplaceOp1 for AdamWUpdate<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(weights), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("parameters are contiguous f32 tensors");
        };
        let mut moments = self.moments.borrow_mut();
        self.is_finite.set(moments.step(&mut weights[start..end], self.gradient, self.rates));
        Ok(())
    }
}

/// The factors of an update, the same for all numbers of a parameter.
#[derive(Clone, Copy, Debug)]
struct Rates {
    scale: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    /// The learning rate divided by the bias correction of the first moment.
    rate: f32,
    /// The reciprocal of the bias correction of the second moment.
    second_correction: f32,
    /// The factor that weight decay leaves of a weight.
    kept: f32,
    /// The number of the step, for the chance of rounding.
    step: u32,
}

impl Rates {
    /// Returns the factors of a step, counted from 1.
    fn of(
        settings: AdamW,
        parameter: &Parameter,
        step: u64,
        scale: f64,
        learning_rate: f64,
    ) -> Self {
        let AdamW { beta1, beta2, epsilon, weight_decay, .. } = settings;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let decays = !matches!(
            parameter.spec.role,
            ParameterRole::Embedding | ParameterRole::Bias | ParameterRole::Norm
        );
        Self {
            scale: scale as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            epsilon: epsilon as f32,
            rate: (learning_rate / correction(beta1)) as f32,
            second_correction: (1.0 / correction(beta2)) as f32,
            kept: (1.0 - if decays { learning_rate * weight_decay } else { 0.0 }) as f32,
            step: step as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::decoder::NumberStorage;

    fn parameter(role: ParameterRole, value: f32) -> Parameter {
        let spec = Spec { name: format!("{role:?}"), shape: vec![1], role, stacked: false };
        let var = Var::from_vec(vec![value], 1, &Device::Cpu).unwrap();
        let storage = NumberStorage::Own(var);
        Parameter { spec, storage, precision: Precision::Single, trainable: true }
    }

    fn value(parameter: &Parameter) -> f64 {
        f64::from(parameter.var().to_vec1::<f32>().unwrap()[0])
    }

    #[test]
    fn two_steps_are_those_of_the_formula() {
        let parameters =
            [parameter(ParameterRole::Matrix, 0.5), parameter(ParameterRole::Norm, 0.5)];
        let specs: Vec<Spec> = parameters.iter().map(|p| p.spec.clone()).collect();
        let settings = AdamW {
            beta1: 0.8,
            beta2: 0.9,
            epsilon: 1e-3,
            weight_decay: 0.1,
            moments: MomentPrecision::F32,
        };
        let mut state = AdamWState::new(settings, &specs);
        // Computed by hand from algorithm 2: gradients 2 and -1, clipped to 1 and -0.5.
        state.step(&parameters, &[vec![2.0], vec![2.0]], 0.5, 0.01).unwrap();
        let first = 0.01 * 1.0 / (1.0 + 1e-3);
        let decayed = 0.5 * (1.0 - 0.01 * 0.1) - first;
        assert!((value(&parameters[0]) - decayed).abs() < 1e-7);
        assert!((value(&parameters[1]) - (0.5 - first)).abs() < 1e-7);

        state.step(&parameters, &[vec![-1.0], vec![-1.0]], 0.5, 0.02).unwrap();
        let mean = (0.8 * 0.2 * 1.0 + 0.2 * -0.5) / (1.0 - 0.8_f64.powi(2));
        let square = (0.9 * 0.1 * 1.0 + 0.1 * 0.25) / (1.0 - 0.9_f64.powi(2));
        let second = 0.02 * mean / (square.sqrt() + 1e-3);
        assert!((value(&parameters[0]) - (decayed * (1.0 - 0.02 * 0.1) - second)).abs() < 1e-7);
        assert!((value(&parameters[1]) - (0.5 - first - second)).abs() < 1e-7);
    }

    #[test]
    fn a_state_survives_its_file() {
        let parameters = [parameter(ParameterRole::Matrix, 0.5)];
        let specs = [parameters[0].spec.clone()];
        for moments in [MomentPrecision::F32, MomentPrecision::Bf16, MomentPrecision::Fp8] {
            let settings = AdamW { moments, ..AdamW::default() };
            let mut state = AdamWState::new(settings, &specs);
            state.step(&parameters, &[vec![0.3]], 1.0, 0.01).unwrap();
            state.steps = (1 << 30) + 12_345;
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("optimizer.safetensors");
            let meter = Meter::default();
            state.save(&path, &specs, &meter).unwrap();
            let same = AdamWState::load(settings, &path, &specs, &meter).unwrap();
            // With 8 bits a number has more than one form.
            let decoded = |state: &AdamWState| state.moments[0].halves().map(Decode::decoded);
            assert_eq!((same.steps, decoded(&same)), (state.steps, decoded(&state)));
            assert!(decoded(&same)[1][0] > 0.0);
        }
    }

    /// Field 21: before the first step, the optimiser's file holds no moments.
    #[test]
    fn before_the_first_step_the_file_holds_no_zeros() {
        let specs = [Spec { shape: vec![1000], ..parameter(ParameterRole::Matrix, 0.5).spec }];
        let state = AdamWState::new(AdamW::default(), &specs);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("optimizer.safetensors");
        let meter = Meter::default();
        state.save(&path, &specs, &meter).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1000);
        assert_eq!(AdamWState::load(AdamW::default(), &path, &specs, &meter).unwrap(), state);

        // A file that lost its moments is rejected, unlike the file of a new state.
        let lost = AdamWState { steps: 3, moments: Vec::new(), ..state };
        lost.save(&path, &[], &meter).unwrap();
        let error = AdamWState::load(AdamW::default(), &path, &specs, &meter).unwrap_err();
        assert!(error.to_string().contains("it counts 3 steps and has no moments"), "{error}");
    }
}
