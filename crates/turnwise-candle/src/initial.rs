//! First values of a model that is made here.

use std::f64::consts::TAU;

use turnwise_rollout::uniform_at;

use crate::DecoderConfig;
use crate::layout::{Role, Spec, specs};

/// In the order of [`specs`].
pub(crate) fn values(config: &DecoderConfig, seed: u64) -> Vec<Vec<f32>> {
    let mut drawn = 0;
    let specs = specs(config).into_iter();
    specs
        .map(|spec| match first(&spec, config) {
            First::Constant(value) => vec![value; spec.len()],
            First::Normal(deviation) => (0..spec.len())
                .map(|_| {
                    drawn += 1;
                    (normal(seed, drawn) * deviation) as f32
                })
                .collect(),
        })
        .collect()
}

/// What a parameter's numbers are at first.
enum First {
    Constant(f32),
    /// Drawn around 0 with this deviation.
    Normal(f64),
}

fn first(spec: &Spec, config: &DecoderConfig) -> First {
    let by_inputs = || 1.0 / (spec.tensor_shape()[1] as f64).sqrt();
    match spec.role {
        Role::Norm => First::Constant(1.0),
        Role::Bias => First::Constant(0.0),
        Role::Embedding | Role::Head => First::Normal(0.02),
        Role::Matrix => First::Normal(by_inputs()),
        Role::Residual => First::Normal(by_inputs() / (2.0 * config.n_layers as f64).sqrt()),
    }
}

/// Box and Muller, *A note on the generation of random normal deviates*, 1958.
fn normal(seed: u64, index: u64) -> f64 {
    // 1 - u lies in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * (1.0 - uniform_at(seed, 2 * index)).ln()).sqrt();
    radius * (TAU * uniform_at(seed, 2 * index + 1)).cos()
}
