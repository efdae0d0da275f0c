//! The memory that a run needs, and the memory that is there.

use turnwise_candle::{DecoderConfig, Device, TrainingPlan};

use crate::config::{Config, EngineName};

/// Returns whether training has to recompute layers: with all activations, the run would need more memory than is free
/// beside the weights, which are loaded.
pub(crate) fn has_to_recompute(config: &Config, shape: &DecoderConfig) -> bool {
    let memory = shape.training_memory(&plan(config, false));
    available_memory().is_some_and(|available| available < memory.beyond_loaded())
}

/// Returns the bound of the engine's keys and values: that of the settings, or what is free beside the rest of the run, but
/// enough for an episode. Requests that do not fit wait. On other devices than the CPU it is that of the settings.
pub(crate) fn bounded_kv(config: &Config, shape: &DecoderConfig, available: Option<u64>) -> u64 {
    let bound = config.engine.max_kv_bytes;
    let Some(available) = available.filter(|_| config.model.device == Device::Cpu) else {
        return bound;
    };
    let recomputes = config.train.recompute_layers == Some(true);
    let all = plan(config, recomputes);
    let memory = shape.training_memory(&all);
    let beside = memory.beyond_loaded().saturating_sub(memory.kv);
    let episode =
        TrainingPlan { kv_tokens: config.limits.max_context_tokens, max_kv_bytes: u64::MAX, ..all };
    let least = shape.training_memory(&episode).kv;
    available.saturating_sub(beside).max(least).min(bound)
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
        kv_episodes: 0,
        max_kv_bytes: config.engine.max_kv_bytes,
        samples_here: matches!(config.rollout.engine, EngineName::Candle | EngineName::Gguf),
        compute: config.model.compute,
        engine_weights: config.engine.weights,
        moments: config.optimizer.moments,
    }
}

/// How long episodes are, and what they have in common, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpisodeLengths {
    /// The beginning that all episodes share.
    pub common: usize,
    /// A task's prompt, with the common beginning.
    pub prompt: usize,
    /// A whole episode.
    pub whole: usize,
}

impl EpisodeLengths {
    /// Returns the distinct tokens of some episodes in groups.
    pub(crate) fn distinct(self, episodes: usize, group_size: usize) -> usize {
        let groups = episodes.div_ceil(group_size.max(1));
        let of_groups = groups.saturating_mul(self.prompt.saturating_sub(self.common));
        let own = episodes.saturating_mul(self.whole.saturating_sub(self.prompt));
        self.common.saturating_add(of_groups).saturating_add(own)
    }
}

/// Returns what the memory of a run depends on, where episodes are of known length.
pub(crate) fn plan_of(config: &Config, lengths: EpisodeLengths) -> TrainingPlan {
    let all = plan(config, config.train.recompute_layers == Some(true));
    let episodes = config.rollout.groups_per_step.saturating_mul(config.rollout.group_size);
    let of_batch = episodes.div_ceil(config.train.n_minibatches);
    let distinct = |episodes| lengths.distinct(episodes, config.rollout.group_size);
    let cached = cached_episodes(config);
    TrainingPlan {
        micro_batch_tokens: all.micro_batch_tokens.min(distinct(of_batch)),
        kv_tokens: distinct(cached),
        kv_episodes: cached,
        ..all
    }
}

/// Returns how many episodes have keys and values in the engine at most: those of episodes that have ended stay until there
/// are new weights, as long as there is room.
fn cached_episodes(config: &Config) -> usize {
    let episodes = config.rollout.groups_per_step.saturating_mul(config.rollout.group_size);
    episodes.max(config.eval.episodes)
}

/// Like [`plan`], with all keys and values that the engine keeps while there is room.
pub(crate) fn largest_plan(config: &Config, recompute_layers: bool) -> TrainingPlan {
    let cached = cached_episodes(config);
    TrainingPlan {
        kv_tokens: cached.saturating_mul(config.limits.max_context_tokens),
        kv_episodes: cached,
        ..plan(config, recompute_layers)
    }
}

/// Returns the largest memory that the process has had, if the system reports it.
pub(crate) fn peak_memory() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Returns the memory that is still available, if the system reports it.
pub(crate) fn available_memory() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Returns a number of kilobytes as bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_share_their_prompts_and_all_episodes_their_beginning() {
        let lengths = EpisodeLengths { common: 100, prompt: 110, whole: 150 };
        assert_eq!(lengths.distinct(16, 8), 100 + 2 * 10 + 16 * 40);
        let mut config = Config::default();
        (config.rollout.groups_per_step, config.rollout.group_size) = (8, 8);
        (config.train.n_minibatches, config.train.micro_batch_tokens) = (4, 4096);
        config.limits.max_context_tokens = 512;
        let plan = plan_of(&config, lengths);
        assert_eq!(plan.micro_batch_tokens, 760);
        assert!(peak_memory() > Some(1 << 20));
    }

    #[test]
    fn keys_and_values_leave_room_for_the_rest_of_the_run() {
        let (mut config, shape) = (Config::default(), DecoderConfig::small(300));
        let bound = config.engine.max_kv_bytes;
        assert_eq!(bounded_kv(&config, &shape, None), bound);
        assert_eq!(bounded_kv(&config, &shape, Some(1 << 50)), bound);
        let [none, some] = [0, 400 << 20].map(|free| bounded_kv(&config, &shape, Some(free)));
        assert!(0 < none && none < some && some < 400 << 20, "{none} {some}");
        config.model.device = Device::Cuda(0);
        assert_eq!(bounded_kv(&config, &shape, Some(0)), bound);
    }

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
