//! The distance of the engine from the trainer.

use turnwise_candle::ComputePrecision;
use turnwise_training::{Behavior, metric};

use crate::config::{Config, EngineName};
use crate::doctor::evidence::{Evidence, median_of_updates};
use crate::doctor::finding::{Finding, Severity};

/// The largest KL between engine and trainer that rounding explains where both have the same precision, in nats per
/// token. A run of `turnwise try` has 4e-14.
const SAME_PRECISION: f64 = 1e-6;

/// The KL above which an engine of another precision biases the ratios noticeably, in nats per token.
const OTHER_PRECISION: f64 = 1e-2;

/// The KL above which the two are different policies, in nats per token.
const ANOTHER_POLICY: f64 = 0.1;

pub(super) fn engine_differs(evidence: &Evidence) -> Option<Finding> {
    let config = &evidence.config;
    let kl = median_of_updates(&evidence.steps, metric::MISMATCH_KL)?;
    let limit = match config.train.behavior {
        _ if is_same_precision(config) => SAME_PRECISION,
        Behavior::Recorded => OTHER_PRECISION,
        // The ratios are corrected for the difference, up to a bound.
        Behavior::Recomputed(_) => ANOTHER_POLICY,
    };
    let largest = evidence.steps.iter().filter_map(|step| step.get(metric::MISMATCH_MAX));
    let largest = largest.fold(0.0, f64::max);
    (kl > limit).then(|| Finding {
        rule: "engine_differs",
        severity: Severity::stops_if(kl > ANOTHER_POLICY),
        problem: format!(
            "the engine samples from another policy than the trainer trains: KL {kl:.1e} nats per token under the same weights, where less than {limit:.0e} is expected, and up to {largest:.2} nats on one token"
        ),
        change: change(config),
        examples: Vec::new(),
    })
}

fn is_same_precision(config: &Config) -> bool {
    config.rollout.engine == EngineName::Candle && config.model.compute == ComputePrecision::F32
}

fn change(config: &Config) -> String {
    match config.rollout.engine {
        EngineName::Gguf => "rollout.quantization = \"q8_0\" or \"f16\", or correct for it with train.behavior = { recomputed = { bound = { truncate = 2.0 } } }".to_owned(),
        EngineName::Vllm | EngineName::Sglang => "start the server in the trainer's precision (--dtype float32, with model.compute = \"f32\"), or correct for the difference with train.behavior = { recomputed = { bound = { truncate = 2.0 } } }".to_owned(),
        EngineName::Candle if is_same_precision(config) => {
            "this is a mistake in the program: please report it, with run.toml and metrics.jsonl".to_owned()
        }
        EngineName::Candle => "model.compute = \"f32\", or correct for it with train.behavior = { recomputed = { bound = { truncate = 2.0 } } }".to_owned(),
    }
}
