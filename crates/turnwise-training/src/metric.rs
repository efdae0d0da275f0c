//! The list of metrics; a metric without a help text does not compile.

use std::collections::BTreeMap;

/// The direction in which a metric should move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Up.
    Higher,
    /// Down.
    Lower,
    /// Neither: the metric has a normal range.
    Neither,
}

/// A metric: a flat name whose meaning never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// `area/quantity[_statistic][_unit]`.
    pub name: &'static str,
    /// The direction in which the metric should move.
    pub better: Better,
    /// The meaning, the normal values, and advice for other values.
    pub help: &'static str,
}

impl AsRef<str> for Metric {
    /// Returns the name.
    fn as_ref(&self) -> &str {
        self.name
    }
}

/// The values of one step, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricValues {
    values: BTreeMap<&'static str, f64>,
}

impl MetricValues {
    /// Records a value; ignores one that is not finite, because JSON cannot express it.
    pub fn set(&mut self, metric: Metric, value: f64) {
        if value.is_finite() {
            self.values.insert(metric.name, value);
        }
    }

    /// Returns a recorded value, by a constant of this module or by its name in `metrics.jsonl`.
    ///
    /// ```
    /// use turnwise_training::metric::{self, MetricValues};
    ///
    /// let mut values = MetricValues::default();
    /// values.set(metric::REWARD_MEAN, 0.5);
    /// assert_eq!(values.get(metric::REWARD_MEAN), Some(0.5));
    /// assert_eq!(values.get("reward/mean"), Some(0.5));
    /// ```
    #[must_use]
    pub fn get(&self, metric: impl AsRef<str>) -> Option<f64> {
        self.values.get(metric.as_ref()).copied()
    }

    /// Iterates over names and values in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.values.iter().map(|(name, value)| (*name, *value))
    }
}

macro_rules! metrics {
    ($($constant:ident $name:literal $better:ident $help:literal)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $help)]
            pub const $constant: Metric = Metric { name: $name, better: Better::$better, help: $help };
        )*
        /// Every metric, in the order of this file.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    REWARD_MEAN "reward/mean" Higher "Mean reward of the step's scored episodes."
    SUCCESS_RATE "reward/success_rate" Higher "Share of the step's scored episodes that solved their task, 0 to 1."
    REWARD_STD "reward/std" Neither "Standard deviation of the rewards; 0 means that nothing can be learnt from this step."
    LOSS "objective/loss" Neither "The objective's loss, mean over mini-batches. It need not fall: advantages have mean 0, so it stays near 0."
    LOG_RATIO_MEAN "objective/log_ratio_mean" Neither "Mean of log s, the sequence ratio. Near 0; a drift means that steps are too large."
    LOG_RATIO_STD "objective/log_ratio_std" Neither "Standard deviation of log s. Read the clip range against it: GSPO clips far more than token-level GRPO."
    CLIP_FRAC "objective/clip_frac" Neither "Share of tokens with an advantage whose gradient clipping removed, 0 to 1."
    CLIP_LOW_FRAC "objective/clip_low_frac" Neither "The part of the clip fraction at the lower bound."
    CLIP_HIGH_FRAC "objective/clip_high_frac" Neither "The part of the clip fraction at the upper bound."
    CLIP_LOW "objective/clip_low" Neither "The lower clip range that was set by the measured spread. There with objective.clip = auto alone."
    CLIP_HIGH "objective/clip_high" Neither "The upper clip range that was set by the measured spread. There with objective.clip = auto alone."
    EFFECTIVE_SAMPLES "objective/effective_sample_size" Higher "Effective number of sequences under the ratios; close to their count when nothing is far off-policy."
    K3 "objective/k3_mean" Neither "KL of the behaviour policy from the trained one, per token, by the k3 estimator, in nats."
    KL_REFERENCE "policy/kl_reference" Neither "KL of the trained policy from the reference policy, per token, by the k3 estimator, in nats. There with objective.kl.beta alone; above 0.1 the policy is far from where it started."
    ENTROPY "policy/entropy_mean" Neither "Entropy of the policy that sampled, per token, in nats, estimated as the mean of -log p over the sampled tokens. Falls slowly while a policy learns; near 0 the members of a group are alike and nothing more is learnt."
    MISMATCH_KL "engine/mismatch_kl" Lower "KL between engine and trainer under the same weights, per token, by k3, in nats. Rounding only where both have the same precision: above 1e-6 they then disagree."
    MISMATCH_MAX "engine/mismatch_max" Lower "Largest difference of log-probability between engine and trainer under the same weights, in nats."
    CANARY_MAX "engine/canary_max" Lower "Largest difference between engine and trainer on the tokens drawn right after new weights were published, in nats."
    GRAD_NORM "train/grad_norm" Neither "Euclidean norm of the gradient before clipping, mean over the optimiser steps."
    LEARNING_RATE "train/learning_rate" Neither "The learning rate of the step."
    SKIPPED_UPDATES "train/skipped_count" Lower "Optimiser steps that were left out because the gradient was not finite."
    UPDATES "train/update_count" Neither "Optimiser steps that were taken."
    SAMPLED_TOKENS "tokens/sampled_count" Neither "Tokens the policy drew in the step."
    TRAINED_TOKENS "tokens/trained_count" Neither "Tokens that were trained on."
    EPISODES "group/episode_count" Neither "Episodes that were trained on."
    MIXED_FRAC "group/mixed_frac" Higher "Share of finished groups with different rewards: the ones there is something to learn from."
    SOLVED_FRAC "group/all_solved_frac" Neither "Share of finished groups whose members all solved the task."
    NONE_SOLVED_FRAC "group/none_solved_frac" Lower "Share of finished groups none of whose members solved the task."
    REPLACED "group/replaced_count" Lower "Groups without variance that others were rolled out for in the same step: work that taught nothing."
    IN_FLIGHT "partial/in_flight_count" Neither "Episodes that are running, or finished and waiting for their group or the trainer, at the end of the step."
    SUSPENDED "partial/suspended_count" Neither "Episodes suspended at the end of the step's rollouts."
    RESUMED "partial/resumed_count" Neither "Episodes that went on in this step after a suspension."
    MIXED_VERSIONS "partial/mixed_version_count" Neither "Trained episodes whose tokens were drawn by more than one version."
    STALENESS_MAX "stale/versions_max" Lower "Versions that the oldest trained token is behind the weights being trained."
    STALENESS_MEAN "stale/versions_mean" Lower "The mean of that over trained tokens."
    DROPPED "stale/dropped_count" Lower "Scored episodes that were not trained on, zero-variance groups included."
    STALENESS_TRAJECTORY_MEAN "stale/trajectory_mean" Lower "The mean over trained episodes of the age of the oldest trained token, in versions."
    DROPPED_STALE "drop/stale_count" Lower "Episodes dropped because they hold tokens of a policy too old."
    DROPPED_TRUNCATED "drop/truncated_count" Lower "Episodes dropped because they ran into a limit and the run leaves those out."
    DROPPED_GROUP "drop/group_count" Lower "Episodes dropped because too few of their group were left."
    DROPPED_ALL_SOLVED "drop/all_solved_count" Neither "Episodes dropped because their whole group had the same reward and solved the task."
    DROPPED_NONE_SOLVED "drop/none_solved_count" Lower "Episodes dropped because their whole group had the same reward and nobody solved the task."
    DROPPED_SAME_REWARD "drop/same_reward_count" Neither "Episodes dropped because their whole group had the same reward, though only some solved the task."
    TOKENS_KEPT_MEAN "length/kept_mean" Neither "Tokens drawn in an episode that was admitted to training."
    TOKENS_DROPPED_MEAN "length/dropped_mean" Neither "Tokens drawn in a scored episode that was not. Far above the mean of those kept, dropping favours short episodes."
    TURNS_MEAN "length/turns_mean" Neither "Turns of an episode."
    TOKENS_MEAN "length/sampled_mean" Neither "Tokens drawn in an episode."
    TRUNCATED_FRAC "length/truncated_frac" Lower "Share of episodes that ran into a limit."
    CUT_TURNS_FRAC "length/cut_turns_frac" Lower "Share of turns that reached the number of tokens that they may have, 0 to 1. Such a turn has no end of its own: raise limits.max_turn_tokens if it is more than a few percent."
    CONTEXT_FRAC "length/context_frac" Lower "Share of episodes that ended because the context of the model was full, 0 to 1; see limits.max_context_tokens."
    SHORTENED_FRAC "length/shortened_frac" Lower "Share of episodes with a message after the first turn that was longer than model.max_observation_tokens, so that the model did not see its middle, 0 to 1. Raise the setting, or shorten the messages."
    FAULTS "fault/infra_count" Lower "Attempts that broke; they have no reward and are tried again."
    AGENT_FAULTS "fault/agent_count" Lower "Episodes ended by the agent's own mistakes of form."
    MALFORMED_TURNS_FRAC "fault/malformed_turns_frac" Lower "Share of turns with an answer or a call that the environment could not read, 0 to 1. Its last turn ends an episode unread, so that an episode of one turn has 0."
    STEP_S "time/step_s" Lower "Wall time of the step, in seconds."
    ROLLOUT_S "time/rollout_s" Lower "The part of it in which the trainer waited for rollouts."
    TRAIN_S "time/train_s" Lower "The part of it spent on training, and on rollouts beside it."
}
