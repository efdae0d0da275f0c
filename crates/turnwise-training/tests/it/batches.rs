//! How trajectories are laid out, packed, ordered or cut changes neither loss nor gradient.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use proptest::prelude::*;
use turnwise_objective::{Advantages, Objective, Sequence};
use turnwise_rollout::{Group, uniform_at};
use turnwise_testkit::TabularModel;
use turnwise_training::{
    Admission, Batch, BatchError, Bound, Correction, GradientFn, Learner, LearnerError,
    ObjectiveReport, RatioScope, Row, StaleTokens, Stretch, TrainerSettings, Update, Updated,
    accumulate, micro_batches, recompute,
};
use turnwise_trajectory::{
    GroupId, MaskReason, NodeId, PolicyVersion, SampledToken, Span, TokenId, Trajectory,
};

use crate::support::{Built, OBJECTIVE, block_on};

pub(crate) const WHOLE: usize = usize::MAX / 1024;

/// A learner whose log-probability of a token depends on its id alone, and that writes the gradient of each id down.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// How far its log-probabilities are from those that were recorded.
    pub(crate) drift: f64,
    pub(crate) gradient: BTreeMap<TokenId, f64>,
}

impl Probe {
    pub(crate) fn logprob(&self, id: TokenId) -> f32 {
        let drift = self.drift * (uniform_at(2, u64::from(id)) - 0.5);
        (f64::from(recorded(id)) + drift) as f32
    }
}

/// The log-probability that the token with this id was drawn with.
fn recorded(id: TokenId) -> f32 {
    (-0.5 - uniform_at(1, u64::from(id))) as f32
}

#[async_trait]
impl Learner for Probe {
    fn version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }

    async fn check_gradients(&mut self) -> Result<(), LearnerError> {
        Ok(())
    }

    async fn logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let one = |row: &Row| {
            row.targets.iter().map(|target| self.logprob(row.ids[target.position])).collect()
        };
        Ok(rows.iter().map(one).collect())
    }

    async fn accumulate(
        &mut self,
        rows: &[Row],
        gradient: &mut GradientFn<'_>,
    ) -> Result<(), LearnerError> {
        let logprobs = self.logprobs(rows).await?;
        let coefficients = gradient(&logprobs).map_err(LearnerError::Gradient)?;
        for (row, coefficients) in rows.iter().zip(coefficients) {
            assert_eq!(row.targets.len(), coefficients.len());
            for (target, coefficient) in row.targets.iter().zip(coefficients) {
                *self.gradient.entry(row.ids[target.position]).or_default() +=
                    f64::from(coefficient);
            }
        }
        Ok(())
    }

    async fn step(&mut self, _update: Update) -> Result<Updated, LearnerError> {
        unreachable!("nothing here steps")
    }

    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        unreachable!("nothing here publishes")
    }

    async fn save(&mut self, _directory: &Path) -> Result<(), LearnerError> {
        unreachable!("nothing here saves")
    }

    async fn load(&mut self, _: &Path, _: PolicyVersion) -> Result<(), LearnerError> {
        unreachable!("nothing here loads")
    }
}

/// One turn of a trajectory to build.
#[derive(Clone, Debug)]
pub(crate) struct TurnSpec {
    n_tokens: usize,
    advantage: f32,
    /// Which of the earlier places it follows, where forks are wanted.
    follows: usize,
    /// The version of each of its tokens, over and over.
    versions: Vec<u32>,
}

fn turns() -> impl Strategy<Value = Vec<TurnSpec>> {
    let turn = (1_usize..5, -2.0_f32..2.0, any::<usize>(), prop::collection::vec(0_u32..3, 1..4));
    let spec = |(n_tokens, advantage, follows, versions)| TurnSpec {
        n_tokens,
        advantage,
        follows,
        versions,
    };
    prop::collection::vec(turn.prop_map(spec), 1..6)
}

pub(crate) fn members() -> impl Strategy<Value = Vec<Vec<TurnSpec>>> {
    prop::collection::vec(turns(), 1..5)
}

/// Ids differ between all tokens of all members.
fn build(member: usize, turns: &[TurnSpec], forked: bool) -> Trajectory {
    let mut next = 1000 * (member as TokenId + 1);
    let mut built = Built::new(member as u32);
    for (number, turn) in turns.iter().enumerate() {
        let tokens = (0..turn.n_tokens).map(|place| {
            next += 1;
            let version = PolicyVersion(turn.versions[place % turn.versions.len()]);
            let advantage = Some(turn.advantage);
            SampledToken { advantage, ..SampledToken::new(next, recorded(next), version) }
        });
        let tokens = tokens.collect();
        // The environment's answers are the nodes with even numbers.
        let parent = if forked { turn.follows % (number + 1) } else { number };
        built = built.turn_after(NodeId(2 * parent as u32), tokens, 1.0);
    }
    built.trajectory
}

pub(crate) fn build_all(members: &[Vec<TurnSpec>], forked: bool) -> Vec<Trajectory> {
    members.iter().enumerate().map(|(place, turns)| build(place, turns, forked)).collect()
}

pub(crate) fn measured(
    trajectories: &[Trajectory],
    scope: RatioScope,
    micro_batch_tokens: usize,
    drift: f64,
) -> (ObjectiveReport, BTreeMap<TokenId, f64>) {
    let batch = Batch::new(trajectories, scope).expect("everything is scored");
    let mut probe = Probe { drift, ..Probe::default() };
    let report = block_on(accumulate(&mut probe, &OBJECTIVE, &batch, micro_batch_tokens, true))
        .expect("finite numbers");
    (report, probe.gradient)
}

/// A batch is shuffled, and no start is computed in two micro-batches for it.
#[test]
fn members_of_a_group_share_a_micro_batch_in_any_order() {
    let member = |group: u32, member: u32| {
        let start = (0..20).map(|place| 1000 * (group + 1) + place);
        let tokens = start.chain([10_000 + 100 * group + member]).map(|id| SampledToken {
            advantage: Some(1.0),
            ..SampledToken::new(id, -1.0, PolicyVersion(0))
        });
        Built::new(member).turn(tokens.collect(), 1.0).trajectory
    };
    let dealt: Vec<Trajectory> = (0..12).map(|place| member(place % 4, place / 4)).collect();
    let batch = Batch::new(&dealt, RatioScope::Trajectory).expect("everything is scored");
    // Room for one group's distinct tokens, and not for two.
    let cut = micro_batches(&batch, 30);
    assert_eq!(cut.len(), 4);
    for rows in cut {
        assert_eq!(rows.len(), 3);
        assert!(rows.iter().all(|row| row % 4 == rows[0] % 4));
    }
}

/// Coefficients are stored as f32.
fn near(a: &BTreeMap<TokenId, f64>, b: &BTreeMap<TokenId, f64>) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|((id, a), (other, b))| {
            id == other && (a - b).abs() <= f64::from(f32::EPSILON) * a.abs().max(b.abs())
        })
}

pub(crate) const SCOPES: [RatioScope; 4] =
    [RatioScope::Trajectory, RatioScope::Branch, RatioScope::Turn, RatioScope::VersionSegment];

/// Loss and gradient from the definition: each ratio group on its own, weighted by 1 / (trajectories · groups of its own).
fn by_definition(
    trajectories: &[Trajectory],
    scope: RatioScope,
    drift: f64,
) -> (f64, BTreeMap<TokenId, f64>) {
    let probe = Probe { drift, ..Probe::default() };
    let (mut loss, mut gradient) = (0.0, BTreeMap::new());
    for trajectory in trajectories {
        let groups = groups_by_definition(trajectory, scope);
        let weight = 1.0 / (trajectories.len() * groups.len()) as f64;
        for tokens in groups {
            let column = |value: &dyn Fn(&SampledToken) -> f32| -> Vec<f64> {
                tokens.iter().map(|token| f64::from(value(token))).collect()
            };
            let current = column(&|token| probe.logprob(token.id));
            let behavior = column(&|token| token.logprob);
            let advantages = column(&|token| token.advantage.expect("it is scored"));
            let sequence = Sequence::new(&current, &behavior, Advantages::PerToken(&advantages))
                .expect("equal lengths");
            let mut coefficients = vec![0.0; tokens.len()];
            loss += weight * OBJECTIVE.evaluate(&sequence, &mut coefficients).expect("finite").loss;
            for (token, coefficient) in tokens.iter().zip(coefficients) {
                gradient.insert(token.id, f64::from((coefficient * weight) as f32));
            }
        }
    }
    (loss, gradient)
}

/// For trajectories without forks, except under the scopes in which forks make no difference.
fn groups_by_definition(trajectory: &Trajectory, scope: RatioScope) -> Vec<Vec<SampledToken>> {
    let tokens: Vec<SampledToken> = trajectory.sampled().filter(SampledToken::trains).collect();
    match scope {
        RatioScope::Trajectory | RatioScope::Branch => vec![tokens],
        RatioScope::Turn => trajectory
            .turn_nodes()
            .map(|node| node.sampled().filter(SampledToken::trains).collect())
            .filter(|tokens: &Vec<_>| !tokens.is_empty())
            .collect(),
        RatioScope::VersionSegment => {
            tokens.chunk_by(|a, b| a.version == b.version).map(<[_]>::to_vec).collect()
        }
    }
}

proptest! {
    /// Rollouts 13.12 and 5.3: the four scopes are what they say.
    #[test]
    fn a_batch_has_the_loss_and_gradient_of_the_definition(members in members()) {
        let linear = build_all(&members, false);
        for scope in SCOPES {
            let (report, gradient) = measured(&linear, scope, WHOLE, 0.3);
            let (loss, expected) = by_definition(&linear, scope, 0.3);
            prop_assert!((report.loss - loss).abs() < 1e-12, "{scope:?}");
            prop_assert!(near(&gradient, &expected), "{scope:?}");
        }
    }

    /// Rollouts 13.12 and Objective 19: one row or many.
    #[test]
    fn cutting_a_trajectory_into_rows_changes_nothing(members in members()) {
        let (linear, forked) = (build_all(&members, false), build_all(&members, true));
        for scope in [RatioScope::Trajectory, RatioScope::Turn] {
            let (whole, expected) = measured(&linear, scope, WHOLE, 0.3);
            let (cut, gradient) = measured(&forked, scope, WHOLE, 0.3);
            prop_assert!((whole.loss - cut.loss).abs() < 1e-12);
            prop_assert_eq!(whole.n_tokens, cut.n_tokens);
            prop_assert!(near(&gradient, &expected));
        }
    }

    /// Rollouts 13.12 and Objective 14: micro-batches of any size, rows of one trajectory together or apart.
    #[test]
    fn the_size_of_a_micro_batch_changes_nothing(members in members(), tokens in 1_usize..200) {
        let forked = build_all(&members, true);
        for scope in SCOPES {
            let (whole, expected) = measured(&forked, scope, WHOLE, 0.3);
            let (cut, gradient) = measured(&forked, scope, tokens, 0.3);
            prop_assert!((whole.loss - cut.loss).abs() < 1e-12);
            prop_assert_eq!(gradient, expected);
            prop_assert_eq!(whole.mismatch.n, cut.mismatch.n);
        }
    }

    /// Rollouts 13.12: the order of trajectories.
    #[test]
    fn the_order_of_trajectories_changes_nothing(
        (members, order) in members().prop_flat_map(|members| {
            let order: Vec<usize> = (0..members.len()).collect();
            (Just(members), Just(order).prop_shuffle())
        }),
    ) {
        let forked = build_all(&members, true);
        let permuted: Vec<Trajectory> = order.iter().map(|place| forked[*place].clone()).collect();
        for scope in SCOPES {
            let (whole, expected) = measured(&forked, scope, WHOLE, 0.3);
            let (other, gradient) = measured(&permuted, scope, 40, 0.3);
            prop_assert!((whole.loss - other.loss).abs() < 1e-12);
            prop_assert_eq!(gradient, expected);
        }
    }

    /// Rollouts 13.13: each sampled token is the target of one row, however many rows hold it.
    #[test]
    fn a_shared_prefix_trains_once(members in members()) {
        let forked = build_all(&members, true);
        let batch = Batch::new(&forked, RatioScope::Trajectory).expect("everything is scored");
        let mut trained: Vec<TokenId> = batch
            .rows
            .iter()
            .flat_map(|row| row.targets.iter().map(|target| row.ids[target.position]))
            .collect();
        trained.sort_unstable();
        let mut sampled: Vec<TokenId> =
            forked.iter().flat_map(Trajectory::sampled).map(|token| token.id).collect();
        sampled.sort_unstable();
        prop_assert_eq!(trained, sampled);
        for (row, place) in batch.rows.iter().zip(&batch.trajectory_of) {
            let graph = &forked[*place].graph;
            let is_of_branch = |leaf: &NodeId| graph.ids_to(*leaf).starts_with(&row.ids);
            prop_assert!(graph.leaves().iter().any(is_of_branch));
            let last = row.targets.last().expect("a row has targets");
            prop_assert_eq!(last.position + 1, row.ids.len());
        }
    }

    /// Rollouts 13.13, 5.5 and 11.17: on-policy with advantage A the coefficients of a trajectory add up to −A/N in every scope, whatever its
    /// turns, rows and forks.
    #[test]
    fn every_trajectory_weighs_the_same(mut members in members(), advantage in -2.0_f32..2.0) {
        members.iter_mut().flatten().for_each(|turn| turn.advantage = advantage);
        for forked in [false, true] {
            let trajectories = build_all(&members, forked);
            for scope in SCOPES {
                let (_, gradient) = measured(&trajectories, scope, WHOLE, 0.0);
                for trajectory in &trajectories {
                    let sum: f64 = trajectory.sampled().map(|token| gradient[&token.id]).sum();
                    let expected = -f64::from(advantage) / members.len() as f64;
                    prop_assert!((sum - expected).abs() < 1e-6, "{scope:?}: {sum} {expected}");
                }
            }
        }
    }

    /// Rollouts 13.14: a masked token is in neither sum nor count, as if it had been said to the policy instead.
    #[test]
    fn masking_a_segment_equals_deleting_it(
        members in members(),
        newest in 0_u32..4,
        max_staleness in 0_u32..3,
    ) {
        let newest = PolicyVersion(newest);
        let admission = Admission {
            max_staleness,
            stale: StaleTokens::Mask,
            min_group_size: 1,
            keep_zero_variance: true,
            ..Admission::default()
        };
        let trajectories = build_all(&members, false);
        let group = Group { id: GroupId(0), members: trajectories.clone() };
        let masked = admission.admit(group, newest).members;
        prop_assert_eq!(masked.len(), trajectories.len(), "masking drops nobody");
        let is_stale =
            |token: &SampledToken| token.version.staleness(newest) > max_staleness;
        for token in masked.iter().flat_map(Trajectory::sampled) {
            prop_assert_eq!(token.mask, is_stale(&token).then_some(MaskReason::Stale));
        }
        let deleted: Vec<Trajectory> =
            trajectories.into_iter().map(|one| without(one, is_stale)).collect();
        for scope in SCOPES {
            // Deleting can join what a masked token held apart, and only then differ.
            let (a, masked_gradient) = measured(&masked, scope, WHOLE, 0.3);
            let (b, deleted_gradient) = measured(&deleted, scope, WHOLE, 0.3);
            prop_assert_eq!(a.loss, b.loss, "{:?}", scope);
            prop_assert_eq!(masked_gradient, deleted_gradient, "{:?}", scope);
        }
    }

    /// Rollouts 13.11: in |y|, and without a gradient.
    #[test]
    fn an_advantage_of_zero_counts_and_pulls_nothing(
        mut turns in turns(),
        n_silent in 1_usize..5,
    ) {
        let before = build(0, &turns, false);
        turns.push(TurnSpec { n_tokens: n_silent, advantage: 0.0, follows: 0, versions: vec![0] });
        let after = build(0, &turns, false);
        let (_, alone) = measured(std::slice::from_ref(&before), RatioScope::Trajectory, WHOLE, 0.0);
        let (_, with) = measured(std::slice::from_ref(&after), RatioScope::Trajectory, WHOLE, 0.0);
        let (n, longer) = (before.n_sampled() as f64, after.n_sampled() as f64);
        for token in after.sampled() {
            let expected = alone.get(&token.id).map_or(0.0, |alone| alone * n / longer);
                prop_assert!((with[&token.id] - expected).abs() < 1e-6);
                prop_assert!(alone.contains_key(&token.id) || with[&token.id] == 0.0);
        }
    }

    /// Behaviour recomputed under the weights that drew the tokens is the behaviour that was recorded.
    #[test]
    fn recomputing_on_policy_changes_nothing(members in members(), max_weight in 1.0_f64..4.0) {
        for scope in SCOPES {
            let mut batch = Batch::new(&build_all(&members, true), scope).expect("scored");
            let recorded = batch.clone();
            block_on(recompute(&mut batch, &mut Probe::default(), Correction::truncated(max_weight))).unwrap();
            prop_assert_eq!(batch, recorded);
        }
    }

    /// rollouts section 6: one detached weight for each version of a ratio group, capped.
    #[test]
    fn recomputed_behaviour_weighs_each_versions_segment(
        members in members(),
        max_weight in 1.0_f64..1.2,
    ) {
        let mut batch = Batch::new(&build_all(&members, true), RatioScope::Trajectory).unwrap();
        let recorded = batch.clone();
        let mut probe = Probe { drift: 2.0, ..Probe::default() };
        block_on(recompute(&mut batch, &mut probe, Correction::truncated(max_weight))).unwrap();
        let tokens = || recorded.tokens.iter().flatten().zip(batch.tokens.iter().flatten());
        for (old, new) in tokens() {
            let drifts: Vec<f64> = tokens()
                .filter(|(other, _)| (other.sequence, other.version) == (old.sequence, old.version))
                .map(|(other, now)| f64::from(now.behavior_logprob) - f64::from(other.behavior_logprob))
                .collect();
            let mean = drifts.iter().sum::<f64>() / drifts.len() as f64;
            let expected = f64::from(old.advantage) * mean.exp().min(max_weight);
            prop_assert!((f64::from(new.advantage) - expected).abs() < 1e-6);
        }
    }

    /// Objective 22: masking takes gradients away, and leaves every token in its ratio group.
    #[test]
    fn weights_outside_their_bounds_take_the_gradient_and_nothing_else(members in members(), low in 0.5_f64..1.0) {
        for over in [Stretch::Token, Stretch::Version, Stretch::Sequence, Stretch::SequenceProduct] {
            let mut batch = Batch::new(&build_all(&members, true), RatioScope::Trajectory).unwrap();
            let recorded = batch.clone();
            let mut probe = Probe { drift: 2.0, ..Probe::default() };
            let correction = Correction { over, bound: Bound::Mask(low, 1.0 / low) };
            block_on(recompute(&mut batch, &mut probe, correction)).unwrap();
            prop_assert_eq!(&batch.rows, &recorded.rows);
            for (old, new) in recorded.tokens.iter().flatten().zip(batch.tokens.iter().flatten()) {
                prop_assert_eq!((old.sequence, old.version), (new.sequence, new.version));
                let weight = f64::from(new.advantage) / f64::from(old.advantage);
                let is_kept = weight >= low - 1e-5 && weight <= 1.0 / low + 1e-5;
                prop_assert!(old.advantage == 0.0 || weight == 0.0 || is_kept, "{over:?} {weight}");
            }
        }
    }

    /// Rollouts 13.12 with a model that has weights: a step is the same step.
    #[test]
    fn a_model_learns_the_same_from_micro_batches_of_any_size(
        members in members(),
        tokens in 1_usize..100,
    ) {
        let learnt = |micro_batch_tokens: usize| {
            let trajectories: Vec<Trajectory> =
                build_all(&members, true).into_iter().map(small_ids).collect();
            let batch = Batch::new(&trajectories, RatioScope::Trajectory).expect("scored");
            let mut model = TabularModel::new(5);
            block_on(async {
                accumulate(&mut model, &OBJECTIVE, &batch, micro_batch_tokens, true).await.unwrap();
                let update = Update { learning_rate: 1.0, max_grad_norm: f64::INFINITY };
                let updated = model.step(update).await.unwrap();
                (updated.grad_norm, model.logprobs(&batch.rows).await.unwrap())
            })
        };
        prop_assert_eq!(learnt(tokens), learnt(WHOLE));
    }
}

/// The trajectory with some sampled tokens turned into context.
fn without(mut trajectory: Trajectory, gone: impl Fn(&SampledToken) -> bool) -> Trajectory {
    for id in trajectory.graph.ids().collect::<Vec<_>>() {
        let node = trajectory.graph.node_mut(id);
        let spans = std::mem::take(&mut node.spans);
        node.spans = spans
            .into_iter()
            .flat_map(|span| match span {
                Span::Sampled(tokens) => tokens
                    .iter()
                    .map(|token| {
                        if gone(&token) {
                            Span::Context(vec![token.id])
                        } else {
                            Span::Sampled(vec![token].into())
                        }
                    })
                    .collect(),
                other => vec![other],
            })
            .collect();
    }
    trajectory
}

/// Ids and log-probabilities of a model that draws one of five tokens.
fn small_ids(mut trajectory: Trajectory) -> Trajectory {
    for id in trajectory.graph.ids().collect::<Vec<_>>() {
        for tokens in trajectory.graph.node_mut(id).sampled_mut() {
            let small = |token: SampledToken| SampledToken {
                id: token.id % 5,
                logprob: 0.2_f32.ln(),
                ..token
            };
            *tokens = tokens.iter().map(small).collect();
        }
    }
    trajectory
}

/// Rollouts 13.11
#[test]
fn a_token_without_an_advantage_is_a_typed_error() {
    let unscored = SampledToken::new(3, -0.5, PolicyVersion(0));
    let trajectory = Built::new(2).turn(vec![unscored], 1.0).trajectory;
    let error = Batch::new([&trajectory], RatioScope::Trajectory).unwrap_err();
    assert_eq!(error, BatchError::NoAdvantage { group: 0, member: 2, node: 1 });
    let masked = SampledToken { mask: Some(MaskReason::User), ..unscored };
    let trajectory = Built::new(2).turn(vec![masked], 1.0).trajectory;
    let batch = Batch::new([&trajectory], RatioScope::Trajectory).expect("it does not train");
    assert_eq!((batch.n_targets(), batch.rows.len(), batch.weights.len()), (0, 0, 0));
}

/// Rollouts 13.11: nor does an advantage that is no number reach the weights.
#[test]
fn an_advantage_that_is_no_number_is_an_error() {
    for bad in [f32::NAN, f32::INFINITY] {
        let token =
            SampledToken { advantage: Some(bad), ..SampledToken::new(3, -0.5, PolicyVersion(0)) };
        let trajectory = Built::new(0).turn(vec![token], 1.0).trajectory;
        let batch = Batch::new([&trajectory], RatioScope::Trajectory).unwrap();
        let mut probe = Probe::default();
        let error = block_on(accumulate(&mut probe, &OBJECTIVE, &batch, 100, true)).unwrap_err();
        assert!(matches!(error, LearnerError::Gradient(_)));
        assert!(probe.gradient.is_empty());
    }
}

/// Rollouts 5.3: it is logged by the word it is set with.
#[test]
fn the_scope_of_a_ratio_is_a_setting_and_by_default_the_whole_trajectory() {
    assert_eq!(RatioScope::default(), RatioScope::Trajectory);
    assert_eq!(TrainerSettings::default().ratio_scope, RatioScope::Trajectory);
    let words = ["trajectory", "branch", "turn", "version_segment"];
    for (scope, word) in SCOPES.into_iter().zip(words) {
        let written = serde_json::to_value(scope).expect("a word");
        assert_eq!(written, serde_json::Value::from(word));
        assert_eq!(serde_json::from_value::<RatioScope>(written).expect("just written"), scope);
    }
}

/// Rollouts 13.12: an empty batch is a batch.
#[test]
fn a_batch_of_nothing_has_no_loss() {
    let (report, gradient) = measured(&[], RatioScope::Trajectory, WHOLE, 0.3);
    assert_eq!((report.loss, report.n_tokens, gradient.len()), (0.0, 0, 0));
}
