use std::collections::{BTreeMap, BTreeSet};

use turnwise_objective::{Clip, Metrics};
use turnwise_rollout::{Faults, Group, Iteration};
use turnwise_trajectory::{
    Limit, Outcome, PolicyVersion, SampledToken, SampledTokens, StopReason, Trajectory, Turn,
};

use crate::credit::has_equal_rewards;
use crate::metric::{self, Metric, MetricValues};
use crate::policy_gradient::{Mismatch, ObjectiveReport};
use crate::{Admitted, Books, CreditStreams, DropReason, Lengths, Updated};

/// The report of one step: numbers for the log, episodes for people.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// The index of the step, from 0.
    pub step: u64,
    /// The numbers.
    pub metrics: MetricValues,
    /// The trained episodes.
    pub trained: Vec<Trajectory>,
    /// The scored episodes of a step that trained on none; empty otherwise.
    pub untrained: Vec<Trajectory>,
    /// A scored episode of the step as a sample of the policy: the last solved one, or else the last.
    pub sample: Option<Trajectory>,
    /// The attempts that broke, by the kind of their fault.
    pub faults: Vec<Faults>,
    /// The credit streams of each trained group, in the order of `trained`.
    pub credit: Vec<CreditStreams>,
    /// The books of the run at the end of the step.
    pub books: Books,
    pub(crate) canary: Option<f64>,
    dropped: BTreeMap<DropReason, Lengths>,
    kept: Lengths,
}

/// Durations of a step, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) step_s: f64,
    pub(crate) rollout_s: f64,
}

/// The report of the optimiser steps of one training step.
#[derive(Clone, Debug, Default)]
pub(crate) struct UpdateReport {
    pub(crate) learning_rate: f64,
    pub(crate) trained_version: PolicyVersion,
    pub(crate) n_applied: usize,
    n_skipped: usize,
    loss_sum: f64,
    grad_norm_sum: f64,
    n_tokens: usize,
    objective: Metrics,
    mismatch: Mismatch,
    reference: Mismatch,
}

impl UpdateReport {
    pub(crate) fn new(learning_rate: f64, trained_version: PolicyVersion) -> Self {
        Self { learning_rate, trained_version, ..Self::default() }
    }

    pub(crate) fn record(&mut self, objective: &ObjectiveReport, updated: &Updated) {
        self.loss_sum += objective.loss;
        self.n_tokens += objective.n_tokens;
        self.objective.merge(&objective.metrics);
        self.compare(objective.mismatch);
        self.reference.merge(objective.reference);
        if updated.applied {
            self.n_applied += 1;
            self.grad_norm_sum += updated.grad_norm;
        } else {
            self.n_skipped += 1;
        }
    }

    /// Records the mismatch of engine and trainer, if any tokens were compared.
    pub(crate) fn compare(&mut self, mismatch: Mismatch) {
        if mismatch.n > 0 {
            self.mismatch = mismatch;
        }
    }

    /// Returns the standard deviation of log s; NaN if nothing was trained on.
    pub(crate) fn log_ratio_std(&self) -> f64 {
        self.objective.log_ratio_std()
    }

    fn write(&self, metrics: &mut MetricValues) {
        let n = (self.n_applied + self.n_skipped).max(1) as f64;
        metrics.set(metric::LOSS, self.loss_sum / n);
        metrics.set(metric::LOG_RATIO_MEAN, or_zero(self.objective.log_ratio_mean()));
        metrics.set(metric::LOG_RATIO_STD, or_zero(self.objective.log_ratio_std()));
        let clipped = self.objective.clip_fraction_by_token();
        metrics.set(metric::CLIP_FRAC, or_zero(clipped.total()));
        metrics.set(metric::CLIP_LOW_FRAC, clipped.low);
        metrics.set(metric::CLIP_HIGH_FRAC, clipped.high);
        metrics.set(metric::EFFECTIVE_SAMPLES, self.objective.effective_sample_size());
        metrics.set(metric::K3, self.objective.k3_mean());
        metrics.set(metric::GRAD_NORM, self.grad_norm_sum / self.n_applied.max(1) as f64);
        metrics.set(metric::LEARNING_RATE, self.learning_rate);
        metrics.set(metric::UPDATES, self.n_applied as f64);
        metrics.set(metric::SKIPPED_UPDATES, self.n_skipped as f64);
        metrics.set(metric::TRAINED_TOKENS, self.n_tokens as f64);
        if self.mismatch.n > 0 {
            metrics.set(metric::MISMATCH_KL, self.mismatch.k3_sum / self.mismatch.n as f64);
            metrics.set(metric::MISMATCH_MAX, self.mismatch.max);
        }
        if self.reference.n > 0 {
            metrics.set(metric::KL_REFERENCE, self.reference.k3_sum / self.reference.n as f64);
        }
    }
}

impl StepReport {
    pub(crate) fn new(
        step: u64,
        iteration: &Iteration,
        groups: &[Vec<Group>],
        n_replaced: usize,
    ) -> Self {
        let mut report = Self { step, ..Self::default() };
        report.describe_iteration(iteration);
        report.describe_groups(&groups.iter().flatten().collect::<Vec<_>>());
        report.metrics.set(metric::REPLACED, n_replaced as f64);
        report
    }

    /// Records the clip range, if a rule has set it.
    pub(crate) fn describe_clip(&mut self, clip: Option<Clip>) {
        if let Some(clip) = clip {
            self.metrics.set(metric::CLIP_LOW, clip.low());
            self.metrics.set(metric::CLIP_HIGH, clip.high());
        }
    }

    pub(crate) fn finish(
        &mut self,
        trained: &[Trajectory],
        update: &UpdateReport,
        books: Books,
        timing: Timing,
    ) {
        self.describe_trained(trained, update.trained_version);
        update.write(&mut self.metrics);
        self.describe_admission();
        self.metrics.set(metric::IN_FLIGHT, books.in_flight() as f64);
        if let Some(gap) = self.canary {
            self.metrics.set(metric::CANARY_MAX, gap);
        }
        self.books = books;
        self.metrics.set(metric::STEP_S, timing.step_s);
        self.metrics.set(metric::ROLLOUT_S, timing.rollout_s);
        self.metrics.set(metric::TRAIN_S, timing.step_s - timing.rollout_s);
        self.trained = trained.to_vec();
    }

    pub(crate) fn record_admission(&mut self, admitted: &Admitted) {
        self.kept.merge(admitted.kept());
        for (reason, lengths) in &admitted.dropped {
            self.dropped.entry(*reason).or_default().merge(*lengths);
        }
    }

    fn describe_admission(&mut self) {
        let mut all = Lengths::default();
        self.dropped.values().for_each(|lengths| all.merge(*lengths));
        self.metrics.set(metric::DROPPED, all.episodes as f64);
        for reason in DropReason::ALL {
            let n = self.dropped.get(&reason).map_or(0, |lengths| lengths.episodes);
            self.metrics.set(metric_of(reason), n as f64);
        }
        self.metrics.set(metric::TOKENS_KEPT_MEAN, self.kept.mean().unwrap_or(f64::NAN));
        self.metrics.set(metric::TOKENS_DROPPED_MEAN, all.mean().unwrap_or(f64::NAN));
    }

    fn describe_iteration(&mut self, iteration: &Iteration) {
        let metrics = &mut self.metrics;
        metrics.set(metric::SAMPLED_TOKENS, iteration.n_sampled as f64);
        metrics.set(metric::SUSPENDED, iteration.suspended as f64);
        metrics.set(metric::RESUMED, iteration.resumed as f64);
        let with_prefix = |prefix: &str| -> u64 {
            iteration
                .outcomes
                .iter()
                .filter(|(label, _)| label.starts_with(prefix))
                .map(|(_, n)| n)
                .sum()
        };
        metrics.set(metric::FAULTS, with_prefix("infra_") as f64);
        metrics.set(metric::AGENT_FAULTS, with_prefix("agent_") as f64);
        self.faults = iteration.faults.values().cloned().collect();
    }

    fn describe_groups(&mut self, groups: &[&Group]) {
        let scored: Vec<&Trajectory> = groups.iter().flat_map(|group| group.scored()).collect();
        self.sample = scored
            .iter()
            .rfind(|member| member.solved)
            .or(scored.last())
            .map(|member| (*member).clone());
        let metrics = &mut self.metrics;
        let rewards: Vec<f64> = scored.iter().filter_map(|member| member.reward()).collect();
        let mean_reward = mean(rewards.iter().copied());
        metrics.set(metric::REWARD_MEAN, mean_reward);
        metrics.set(
            metric::REWARD_STD,
            mean(rewards.iter().map(|reward| (reward - mean_reward).powi(2))).sqrt(),
        );
        let share = |of: fn(&Trajectory) -> bool| share_of(scored.iter().copied(), of);
        metrics.set(metric::SUCCESS_RATE, share(|member| member.solved));
        metrics.set(
            metric::TRUNCATED_FRAC,
            share(|member| matches!(member.outcome, Outcome::Truncated(_))),
        );
        metrics.set(
            metric::CONTEXT_FRAC,
            share(|member| matches!(member.outcome, Outcome::Truncated(Limit::Context))),
        );
        metrics.set(metric::SHORTENED_FRAC, share(|member| member.n_shortened() > 0));
        let share_of_turns =
            |of: fn(&Turn) -> bool| share_of(scored.iter().flat_map(|member| &member.turns), of);
        let is_cut = |turn: &Turn| turn.stop == StopReason::MaxTokens;
        metrics.set(metric::CUT_TURNS_FRAC, share_of_turns(is_cut));
        metrics.set(metric::MALFORMED_TURNS_FRAC, share_of_turns(|turn| turn.faults > 0));
        metrics
            .set(metric::TURNS_MEAN, mean(scored.iter().map(|member| member.turns.len() as f64)));
        metrics
            .set(metric::TOKENS_MEAN, mean(scored.iter().map(|member| member.n_sampled() as f64)));
        let logprobs = scored.iter().flat_map(|member| member.sampled());
        metrics.set(metric::ENTROPY, mean(logprobs.map(|token| -f64::from(token.logprob))));
        // A seat on which nobody acted has no scored member, and says nothing.
        let groups = groups.iter().filter(|group| group.scored().next().is_some());
        let groups = groups.copied();
        let of_groups = |of: fn(&Group) -> bool| share_of(groups.clone(), of);
        metrics.set(
            metric::MIXED_FRAC,
            of_groups(|group| !has_equal_rewards(&group.scored().collect::<Vec<_>>())),
        );
        metrics.set(
            metric::SOLVED_FRAC,
            of_groups(|group| group.scored().all(|member| member.solved)),
        );
        metrics.set(
            metric::NONE_SOLVED_FRAC,
            of_groups(|group| !group.scored().any(|member| member.solved)),
        );
    }

    fn describe_trained(&mut self, trained: &[Trajectory], version: PolicyVersion) {
        let tokens = || trained.iter().flat_map(Trajectory::sampled).filter(SampledToken::trains);
        let metrics = &mut self.metrics;
        let episodes: BTreeSet<_> =
            trained.iter().map(|one| (one.identity.group, one.identity.member)).collect();
        metrics.set(metric::EPISODES, episodes.len() as f64);
        let staleness = || tokens().map(|token| token.version.staleness(version));
        metrics.set(metric::STALENESS_MAX, f64::from(staleness().max().unwrap_or(0)));
        metrics.set(metric::STALENESS_MEAN, or_zero(mean(staleness().map(f64::from))));
        let oldest = trained.iter().map(|trajectory| f64::from(trajectory.staleness(version)));
        metrics.set(metric::STALENESS_TRAJECTORY_MEAN, or_zero(mean(oldest)));
        let mixed = trained.iter().filter(|trajectory| {
            let mut versions = trajectory.sampled_spans().flat_map(SampledTokens::versions);
            let first = versions.next();
            versions.any(|(version, _)| Some(version) != first.map(|(version, _)| version))
        });
        metrics.set(metric::MIXED_VERSIONS, mixed.count() as f64);
    }
}

fn metric_of(reason: DropReason) -> Metric {
    match reason {
        DropReason::Stale => metric::DROPPED_STALE,
        DropReason::Truncated => metric::DROPPED_TRUNCATED,
        DropReason::GroupDropped => metric::DROPPED_GROUP,
        DropReason::AllSolved => metric::DROPPED_ALL_SOLVED,
        DropReason::NoneSolved => metric::DROPPED_NONE_SOLVED,
        DropReason::SameReward => metric::DROPPED_SAME_REWARD,
    }
}

/// Returns the mean; NaN without values, and metrics do not record NaN.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0_usize), |(sum, n), value| (sum + value, n + 1));
    sum / n as f64
}

/// Returns the share of items with a property; NaN without items.
fn share_of<'a, T: 'a>(items: impl Iterator<Item = &'a T>, has: impl Fn(&T) -> bool) -> f64 {
    mean(items.map(|item| f64::from(u8::from(has(item)))))
}

/// Replaces NaN by 0, for means over the trained tokens of a step without any.
fn or_zero(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value }
}
