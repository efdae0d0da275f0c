//! What is too old does not train, what teaches nothing makes no step, and both are counted.

use std::sync::Arc;

use async_trait::async_trait;
use proptest::prelude::*;
use turnwise_environment::{Action, Environment, EnvironmentError, Observation, Step};
use turnwise_objective::{GroupAdvantage, Std};
use turnwise_rollout::{Group, Limits, PoolSettings, StopSignal};
use turnwise_testkit::TabularModel;
use turnwise_training::{
    Admission, DropReason, Learner, OutcomeCredit, Parts, StaleTokens, StepReport, Trainer,
    TrainerSettings, TruncatedEpisodes, assign_credit, metric,
};
use turnwise_trajectory::{
    CancelReason, GroupId, InfraFault, InfraReason, Limit, Outcome, PolicyVersion, SampledToken,
    Trajectory,
};

use crate::support::{Built, OBJECTIVE, agents, block_on, echoes, ended, pool_settings};

const CREDIT: OutcomeCredit =
    OutcomeCredit { advantage: GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 1e-6 } };

fn outcome() -> impl Strategy<Value = Outcome> {
    let infra = InfraFault { reason: InfraReason::EngineError, message: String::new() };
    prop_oneof![
        4 => Just(Outcome::Done),
        1 => Just(Outcome::Truncated(Limit::Turns)),
        1 => Just(Outcome::InfraFault(infra)),
        1 => Just(Outcome::Cancelled(CancelReason::User)),
    ]
}

fn member() -> impl Strategy<Value = Trajectory> {
    (prop::collection::vec(0_u32..6, 1..6), 0_u32..3, outcome()).prop_map(
        |(versions, reward, outcome)| {
            let drawn = |version| SampledToken::new(1, -0.5, PolicyVersion(version));
            let tokens = versions.into_iter().map(drawn).collect();
            let trajectory = Built::new(0).turn(tokens, f64::from(reward)).trajectory;
            Trajectory { outcome, ..trajectory }
        },
    )
}

fn admission() -> impl Strategy<Value = Admission> {
    (
        0_u32..5,
        prop::sample::select(vec![StaleTokens::Drop, StaleTokens::Mask]),
        prop::sample::select(vec![
            TruncatedEpisodes::Keep,
            TruncatedEpisodes::Penalise(-0.5),
            TruncatedEpisodes::Mask,
        ]),
        any::<bool>(),
        1_usize..4,
    )
        .prop_map(|(max_staleness, stale, truncated, keep_zero_variance, min_group_size)| {
            Admission {
                max_staleness,
                stale,
                truncated,
                keep_zero_variance,
                min_group_size,
                ..Admission::default()
            }
        })
}

proptest! {
    /// Rollouts 13.21: nothing older than η trains, and whoever does not train is in the books.
    #[test]
    fn nothing_admitted_is_too_old_and_nobody_is_lost(
        members in prop::collection::vec(member(), 0..7),
        admission in admission(),
        newest in 0_u32..8,
    ) {
        let newest = PolicyVersion(newest);
        let group = Group { id: GroupId(0), members };
        let n_scored = group.scored().count() as u64;
        let admitted = admission.admit(group, newest);
        let n_dropped: u64 = admitted.dropped.values().map(|lengths| lengths.episodes).sum();
        prop_assert_eq!(admitted.members.len() as u64 + n_dropped, n_scored);
        for member in &admitted.members {
            prop_assert!(member.staleness(newest) <= admission.max_staleness);
            prop_assert!(member.reward().is_some());
            if admission.truncated == TruncatedEpisodes::Mask {
                prop_assert!(!matches!(member.outcome, Outcome::Truncated(_)));
            }
        }
        prop_assert!(admitted.members.is_empty() || admitted.members.len() >= admission.min_group_size);
        let rewards: Vec<_> = admitted.members.iter().map(Trajectory::reward).collect();
        let is_flat = rewards.windows(2).all(|pair| pair[0] == pair[1]);
        prop_assert!(!is_flat || rewards.is_empty() || admission.keep_zero_variance);
    }

    /// Rollouts 13.23: exactly 0, for any constant reward and any size, a group of one included.
    #[test]
    fn a_group_without_variance_gets_exactly_nothing(
        reward in -1e6_f64..1e6,
        n in 1_usize..9,
    ) {
        let mut members: Vec<Trajectory> =
            (0..n).map(|member| ended(member as u32, reward, Outcome::Done)).collect();
        assign_credit(&CREDIT, &mut members).expect("finite rewards");
        let mut advantages = members.iter().flat_map(Trajectory::sampled).map(|one| one.advantage);
        prop_assert!(advantages.all(|advantage| advantage == Some(0.0)));
    }
}

/// rollouts section 2: keep, penalise, mask.
#[test]
fn truncated_episodes_are_kept_penalised_or_masked() {
    let members = || {
        vec![
            ended(0, 1.0, Outcome::Done),
            ended(1, 0.5, Outcome::Truncated(Limit::Turns)),
            ended(2, 0.0, Outcome::Done),
        ]
    };
    let admit = |truncated| {
        let admission = Admission { truncated, ..Admission::default() };
        let group = Group { id: GroupId(0), members: members() };
        let admitted = admission.admit(group, PolicyVersion(0));
        let rewards: Vec<f64> = admitted.members.iter().filter_map(Trajectory::reward).collect();
        (rewards, admitted.dropped.get(&DropReason::Truncated).map(|lengths| lengths.episodes))
    };
    assert_eq!(admit(TruncatedEpisodes::Keep), (vec![1.0, 0.5, 0.0], None));
    assert_eq!(admit(TruncatedEpisodes::Penalise(-2.0)), (vec![1.0, -1.5, 0.0], None));
    assert_eq!(admit(TruncatedEpisodes::Mask), (vec![1.0, 0.0], Some(1)));
}

/// Says the same to everybody and rewards everybody alike.
#[derive(Clone, Debug)]
pub(crate) struct Constant(pub(crate) f64);

#[async_trait]
impl Environment for Constant {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("Say anything.".into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        Ok(Step::terminated(self.0))
    }
}

fn trainer(
    tasks: Arc<dyn turnwise_environment::TaskSet>,
    model: &TabularModel,
    settings: TrainerSettings,
) -> Trainer<TabularModel> {
    let parts = Parts {
        tasks,
        agents: Arc::new(agents()),
        rubric: None,
        policy: Arc::new(model.clone()),
        learner: model.clone(),
        objective: Box::new(OBJECTIVE),
        credit: Box::new(CREDIT),
    };
    Trainer::new(parts, settings)
}

fn step(trainer: &mut Trainer<TabularModel>) -> StepReport {
    let report = block_on(trainer.step(&StopSignal::never())).expect("it goes on");
    report.expect("nobody stops it")
}

/// Rollouts 13.23: no optimiser step, no NaN, no publication.
#[test]
fn a_batch_without_variance_makes_no_step() {
    for reward in [0.0, 0.1, 1.0 / 3.0, 100.3, -1e30] {
        let model = TabularModel::new(4);
        let settings = TrainerSettings {
            groups_per_step: 3,
            rollout: pool_settings(),
            ..TrainerSettings::default()
        };
        let mut trainer = trainer(Arc::new(vec![Constant(reward)]), &model, settings);
        for _ in 0..3 {
            let report = step(&mut trainer);
            assert!(report.trained.is_empty());
            assert_eq!(report.metrics.get(metric::UPDATES), Some(0.0));
            assert_eq!(report.metrics.get(metric::LOSS), Some(0.0));
            assert_eq!(report.metrics.get(metric::DROPPED), Some(12.0));
            assert!(report.metrics.iter().all(|(_, value)| value.is_finite()));
        }
        assert_eq!(Learner::version(&model), PolicyVersion(0));
        assert_eq!(trainer.next_step(), 3);
    }
}

/// Rollouts 13.23: kept by setting, such groups still pull at nothing.
#[test]
fn a_batch_without_variance_that_is_kept_moves_no_weight() {
    let model = TabularModel::new(4);
    let settings = TrainerSettings {
        groups_per_step: 2,
        rollout: pool_settings(),
        admission: Admission { keep_zero_variance: true, ..Admission::default() },
        ..TrainerSettings::default()
    };
    let mut trainer = trainer(Arc::new(vec![Constant(0.1)]), &model, settings);
    let first = step(&mut trainer);
    assert_eq!(first.metrics.get(metric::GRAD_NORM), Some(0.0));
    assert_eq!(first.trained.len(), 8);
    let folder = tempfile::tempdir().expect("a folder");
    block_on(trainer.learner().save(folder.path())).expect("it is written");
    let table = std::fs::read_to_string(folder.path().join("table.json")).expect("it is read");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&table).expect("it is JSON");
    let mut logits = rows.iter().flat_map(|row| row["logits"].as_array().expect("numbers"));
    assert!(logits.all(|logit| logit.as_f64() == Some(0.0)));
}

/// A run whose episodes take several iterations.
fn partial(max_staleness: u32, stale: StaleTokens, seed: u64) -> Vec<(PolicyVersion, StepReport)> {
    let model = TabularModel::new(4);
    let settings = TrainerSettings {
        groups_per_step: 4,
        rollout: PoolSettings {
            tokens_per_iteration: Some(64),
            limits: Limits { max_turn_tokens: 6, ..Limits::default() },
            ..pool_settings()
        },
        admission: Admission { max_staleness, stale, ..Admission::default() },
        n_minibatches: 2,
        seed,
        ..TrainerSettings::default()
    };
    let mut trainer = trainer(Arc::new(echoes(4, true)), &model, settings);
    (0..12).map(|_| (Learner::version(&model), step(&mut trainer))).collect()
}

fn ages(steps: &[(PolicyVersion, StepReport)]) -> Vec<u32> {
    let of_step = |(version, report): &(PolicyVersion, StepReport)| -> Vec<u32> {
        let sampled = report.trained.iter().flat_map(Trajectory::sampled);
        sampled.filter(SampledToken::trains).map(|one| one.version.staleness(*version)).collect()
    };
    steps.iter().flat_map(of_step).collect()
}

/// Rollouts 13.21: with η = 0 every trained token has the training version; suspended episodes still train, in part.
#[test]
fn without_staleness_only_the_newest_weights_tokens_train() {
    for seed in 0..4 {
        let steps = partial(0, StaleTokens::Mask, seed);
        assert!(ages(&steps).iter().all(|age| *age == 0));
        let n_masked = steps
            .iter()
            .flat_map(|(_, report)| &report.trained)
            .flat_map(Trajectory::sampled)
            .filter(|token| !token.trains())
            .count();
        assert!(n_masked > 0, "some trained episode is partly old");
        let dropped = partial(0, StaleTokens::Drop, seed);
        assert!(ages(&dropped).iter().all(|age| *age == 0));
    }
}

/// Rollouts 13.21: the bound holds at every step, is reached, and the report tells it.
#[test]
fn no_trained_token_is_older_than_the_bound() {
    for max_staleness in 1..3 {
        let steps = partial(max_staleness, StaleTokens::Drop, 1);
        let ages = ages(&steps);
        assert_eq!(ages.iter().max(), Some(&max_staleness));
        for (_, report) in &steps {
            let worst = report.metrics.get(metric::STALENESS_MAX).expect("it is recorded");
            assert!(worst <= f64::from(max_staleness));
        }
    }
}
