//! The memory that a run needs, and the memory that is there.

use turnwise_candle::{DecoderConfig, TrainingPlan};

use crate::config::Config;

/// Returns whether training has to recompute layers: with all activations, the run would need more memory than is free
/// beside the weights, which are loaded.
pub(crate) fn has_to_recompute(config: &Config, shape: &DecoderConfig) -> bool {
    let memory = shape.training_memory(&plan(config, false));
    let more = memory.total().saturating_sub(memory.weights);
    available_memory().is_some_and(|available| available < more)
}

/// Returns what the memory of a run depends on.
pub(crate) fn plan(config: &Config, recompute_layers: bool) -> TrainingPlan {
    let episodes = config.rollout.groups_per_step.saturating_mul(config.rollout.group_size);
    let length = config.limits.max_context_tokens;
    let of_batch = episodes.div_ceil(config.train.n_minibatches).saturating_mul(length);
    TrainingPlan {
        lora: config.model.lora.clone(),
        keeps_reference: config.objective.kl.beta > 0.0,
        micro_batch_tokens: config.train.micro_batch_tokens.min(of_batch),
        recompute_layers,
        kv_tokens: episodes.min(config.rollout.max_concurrent).saturating_mul(length),
        max_kv_bytes: config.engine.max_kv_bytes,
        compute: config.model.compute,
        engine_weights: config.engine.weights,
        moments: config.optimizer.moments,
    }
}

/// Returns the memory that is still available, if the system reports it.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_recomputed_where_their_activations_do_not_fit() {
        let mut config = Config::default();
        config.train.micro_batch_tokens = 1 << 30;
        let shape = DecoderConfig::small(300);
        let [all, one] = [false, true].map(|again| shape.training_memory(&plan(&config, again)));
        assert!(one.activations < all.activations);
        // No machine has room for a step of so many episodes.
        config.rollout.groups_per_step = 65_536;
        config.rollout.group_size = 4096;
        config.limits.max_context_tokens = 1 << 20;
        assert_eq!(has_to_recompute(&config, &shape), available_memory().is_some());
    }
}
