//! Initial values of new models and adapters.

use std::f64::consts::TAU;

use turnwise_rollout::uniform_at;

use crate::DecoderConfig;
use crate::layout::{ParameterRole, Spec, specs};

/// Returns the initial values in the order of [`specs`].
pub(crate) fn values(config: &DecoderConfig, seed: u64) -> Vec<Vec<f32>> {
    let mut drawn = 0;
    specs(config, None).iter().map(|spec| first(spec, config, seed, &mut drawn)).collect()
}

/// Returns the initial values of one parameter; `drawn` counts the random numbers of the parameters before it.
///
/// Adapters are initialised as in PEFT: Kaiming's uniform distribution with a slope of the root of 5 ends at one over
/// the root of the inputs (He et al., *Delving deep into rectifiers*, 2015, section 2.2).
pub(crate) fn first(spec: &Spec, config: &DecoderConfig, seed: u64, drawn: &mut u64) -> Vec<f32> {
    let mut draw = |distribution: fn(u64, u64) -> f64, width: f64| {
        let each = (0..spec.len()).map(|_| {
            *drawn += 1;
            (distribution(seed, *drawn) * width) as f32
        });
        each.collect()
    };
    let by_inputs = || 1.0 / (spec.tensor_shape()[1] as f64).sqrt();
    match spec.role {
        ParameterRole::Norm => vec![1.0 - config.architecture.properties().gain_offset; spec.len()],
        ParameterRole::Bias | ParameterRole::AdapterUp => vec![0.0; spec.len()],
        ParameterRole::Embedding | ParameterRole::Head => draw(normal, 0.02),
        ParameterRole::Matrix => draw(normal, by_inputs()),
        ParameterRole::Residual => {
            draw(normal, by_inputs() / (2.0 * config.n_layers as f64).sqrt())
        }
        ParameterRole::AdapterDown => draw(even, by_inputs()),
    }
}

/// Returns a normally distributed number (Box and Muller, *A note on the generation of random normal deviates*, 1958).
fn normal(seed: u64, index: u64) -> f64 {
    // 1 - u lies in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * (1.0 - uniform_at(seed, 2 * index)).ln()).sqrt();
    radius * (TAU * uniform_at(seed, 2 * index + 1)).cos()
}

/// Returns a uniformly distributed number from -1 to 1.
fn even(seed: u64, index: u64) -> f64 {
    2.0 * uniform_at(seed, index) - 1.0
}
