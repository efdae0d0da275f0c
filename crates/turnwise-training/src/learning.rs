use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use turnwise_environment::{Random, derive_seed};
use turnwise_objective::Objective;
use turnwise_rollout::{Meter, Policy};
use turnwise_trajectory::{TokenId, TokenKind, Trajectory};

use crate::canary::Canary;
use crate::policy_gradient::{Mismatch, ObjectiveReport, accumulate_shown, micro_batches};
use crate::proximal::{Behavior, recompute};
use crate::report::UpdateReport;
use crate::{
    Batch, Credit, Learner, TrainError, TrainerSettings, Update, Updated, check_trajectories,
    fill_references,
};

/// The learning half of a trainer: updates the weights by a batch of rollouts.
pub(crate) struct Learning<L> {
    pub(crate) learner: L,
    pub(crate) objective: Box<dyn Objective>,
    pub(crate) credit: Box<dyn Credit>,
    pub(crate) skipped_in_row: u32,
    /// The number of completed micro-batches of the update.
    pub(crate) meter: Meter,
}

/// The number of skipped updates in a row that stops a run.
pub(crate) const MAX_SKIPPED_IN_ROW: u32 = 3;

/// The label of a seed that is derived from the run's seed; the pool uses group numbers, which never reach it.
const MINIBATCHES: u64 = u64::MAX - 1;

impl<L: Learner> Learning<L> {
    /// Takes the optimiser steps of one batch of rollouts; the policy keeps the old weights until the new ones are
    /// published.
    pub(crate) async fn optimise(
        &mut self,
        trajectories: &[Trajectory],
        step: u64,
        settings: &TrainerSettings,
    ) -> Result<UpdateReport, TrainError> {
        let update = Update {
            learning_rate: settings.schedule.at(step),
            max_grad_norm: settings.max_grad_norm,
        };
        let mut report = UpdateReport::new(update.learning_rate, self.learner.version());
        let (batches, mismatch) = self.minibatches(trajectories, step, settings).await?;
        report.compare(mismatch);
        let cuts: Vec<_> =
            batches.iter().map(|batch| micro_batches(batch, settings.micro_batch_tokens)).collect();
        self.meter.begin("micro-batches", cuts.iter().map(|cut| cut.len() as u64).sum());
        for (index, (batch, cut)) in batches.iter().zip(&cuts).enumerate() {
            let first = index == 0 && settings.behavior == Behavior::Recorded;
            let (learner, objective) = (&mut self.learner, &*self.objective);
            let objective =
                accumulate_shown(learner, objective, batch, cut, first, &self.meter).await?;
            let updated = self.learner.step(update).await?;
            self.count_skipped(&updated, step, &objective)?;
            report.record(&objective, &updated);
        }
        self.meter.end();
        Ok(report)
    }

    /// Publishes the new weights, and runs the canary with at most `longest` tokens in all.
    pub(crate) async fn publish(
        &mut self,
        policy: &dyn Policy,
        trained: &[Trajectory],
        canary: Option<Canary>,
        longest: usize,
    ) -> Result<Option<f64>, TrainError> {
        self.learner.publish().await?;
        let prompt = trained.iter().find_map(first_prompt);
        match (canary, prompt) {
            (Some(canary), Some(prompt)) if prompt.len() < longest => {
                let tokens = canary.tokens.min(longest - prompt.len());
                let canary = Canary { tokens, ..canary };
                Ok(canary.check(policy, &mut self.learner, &prompt).await?)
            }
            _ => Ok(None),
        }
    }

    /// Returns the batch in mini-batches of whole trajectories, and the mismatch between engine and trainer, if it was
    /// computed.
    async fn minibatches(
        &mut self,
        trajectories: &[Trajectory],
        step: u64,
        settings: &TrainerSettings,
    ) -> Result<(Vec<Batch>, Mismatch), TrainError> {
        // All trajectories are checked first, so that none is rejected after some weights have changed.
        check_trajectories(trajectories)?;
        let mut random = Random::new(derive_seed(derive_seed(settings.seed, MINIBATCHES), step));
        let order = shuffled_groups(trajectories, |one| one.identity.group, &mut random);
        let (mut batches, mut mismatch) = (Vec::new(), Mismatch::default());
        for range in even_parts(order.len(), settings.n_minibatches) {
            let chunk = &order[range];
            let mut batch = Batch::new(chunk.iter().copied(), settings.ratio_scope)?;
            if self.objective.needs_reference() {
                fill_references(&mut batch, &mut self.learner).await?;
            }
            if let Behavior::Recomputed(correction) = settings.behavior {
                mismatch.merge(recompute(&mut batch, &mut self.learner, correction).await?);
            }
            if batch.n_targets() > 0 {
                batches.push(batch);
            }
        }
        Ok((batches, mismatch))
    }

    fn count_skipped(
        &mut self,
        updated: &Updated,
        step: u64,
        objective: &ObjectiveReport,
    ) -> Result<(), TrainError> {
        if updated.applied {
            self.skipped_in_row = 0;
            return Ok(());
        }
        self.skipped_in_row += 1;
        tracing::warn!(
            step,
            loss = objective.loss,
            parameter = updated.not_finite,
            "skipped an update: its gradient was not finite"
        );
        if self.skipped_in_row >= MAX_SKIPPED_IN_ROW {
            return Err(TrainError::NotFinite { step, parameter: updated.not_finite.clone() });
        }
        Ok(())
    }
}

/// Returns items in random order, those of a group side by side: a mini-batch then holds few prompts, which are computed
/// once for all their trajectories, and most of its advantages are those of whole groups, which sum to 0.
fn shuffled_groups<'a, T, G: Ord>(
    items: &'a [T],
    group: impl Fn(&T) -> G,
    random: &mut Random,
) -> Vec<&'a T> {
    let mut groups: BTreeMap<G, Vec<&T>> = BTreeMap::new();
    for item in items {
        groups.entry(group(item)).or_default().push(item);
    }
    let mut groups: Vec<Vec<&T>> = groups.into_values().collect();
    random.shuffle(&mut groups);
    for group in &mut groups {
        random.shuffle(group);
    }
    groups.concat()
}

/// Returns `wanted` ranges, or `n` if that is less, whose lengths differ by at most one: each mini-batch divides by its
/// own size, so a small one would weigh its trajectories more.
fn even_parts(n: usize, wanted: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = wanted.min(n);
    (0..parts).map(move |part| part * n / parts..(part + 1) * n / parts)
}

/// Returns the tokens before the first sampled token of a trajectory.
fn first_prompt(trajectory: &Trajectory) -> Option<Vec<TokenId>> {
    let node = trajectory.graph.node(trajectory.turns.first()?.node);
    let mut prompt = node.parent.map_or_else(Vec::new, |parent| trajectory.graph.ids_to(parent));
    let lead_in = node.spans.iter().take_while(|span| span.kind() != TokenKind::Sampled);
    lead_in.for_each(|span| span.extend_ids(&mut prompt));
    Some(prompt).filter(|ids| !ids.is_empty())
}

impl<L: fmt::Debug> fmt::Debug for Learning<L> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Learning")
            .field("learner", &self.learner)
            .field("objective", &self.objective)
            .field("credit", &self.credit)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use turnwise_environment::Random;

    use super::{even_parts, shuffled_groups};

    proptest! {
        /// Nothing is lost, whichever episodes are missing, and a cut divides at most one group.
        #[test]
        fn groups_are_shuffled_and_stay_whole(groups in prop::collection::vec(0_u8..6, 0..40), seed: u64) {
            let items: Vec<(usize, u8)> = groups.into_iter().enumerate().collect();
            let order = shuffled_groups(&items, |(_, group)| *group, &mut Random::new(seed));
            let mut sorted: Vec<_> = order.iter().map(|item| **item).collect();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &items);
            let runs = order.chunk_by(|(_, one), (_, next)| one == next).count();
            sorted.sort_unstable_by_key(|(_, group)| *group);
            prop_assert_eq!(runs, sorted.chunk_by(|(_, one), (_, next)| one == next).count());
        }

        /// Rollouts 5.5
        #[test]
        fn mini_batches_are_as_many_as_wanted_and_of_one_size(n in 0_usize..200, wanted in 1_usize..20) {
            let parts: Vec<_> = even_parts(n, wanted).collect();
            prop_assert_eq!(parts.len(), wanted.min(n));
            prop_assert!(parts.iter().flat_map(Clone::clone).eq(0..n));
            let sizes = || parts.iter().map(ExactSizeIterator::len);
            prop_assert!(sizes().max().unwrap_or(0) <= sizes().min().unwrap_or(0) + 1);
        }
    }
}
