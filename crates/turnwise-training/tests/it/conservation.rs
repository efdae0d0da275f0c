//! Every episode is somewhere, under every fault.

use std::sync::Arc;

use async_trait::async_trait;
use proptest::prelude::*;
use turnwise_environment::TaskSet;
use turnwise_objective::{GroupAdvantage, Std};
use turnwise_rollout::{
    Iteration, Limits, Meter, Opponent, Policy, PolicyError, PoolSettings, RolloutError,
    RolloutPool, Sample, SampleRequest, StopSignal,
};
use turnwise_testkit::{Echo, Fault, Faulty, FaultyTasks, Interrupting, TabularModel};
use turnwise_training::{
    Admission, Credit, Evaluated, EvaluationSettings, OutcomeCredit, Parts, ReturnCredit,
    TrainError, Trainer, TrainerSettings, TurnCredit, evaluate,
};
use turnwise_trajectory::{
    CancelReason, GroupId, InfraFault, InfraReason, Outcome, PolicyVersion, Trajectory,
};

use crate::support::{OBJECTIVE, agents, block_on, ended, pool_settings};

/// What goes wrong in a run.
#[derive(Clone, Debug)]
struct Schedule {
    fault: Fault,
    every_environment: u64,
    every_request: u64,
    after: usize,
    tokens_per_iteration: Option<u64>,
    min_group_size: usize,
    max_retries: u32,
    seed: u64,
}

fn schedules() -> impl Strategy<Value = Schedule> {
    (
        prop::sample::select(Fault::ALL.to_vec()),
        2_u64..9,
        3_u64..40,
        1_usize..9,
        prop::option::of(4_u64..80),
        1_usize..5,
        0_u32..4,
        any::<u64>(),
    )
        .prop_map(|schedule| Schedule {
            fault: schedule.0,
            every_environment: schedule.1,
            every_request: schedule.2,
            after: schedule.3,
            tokens_per_iteration: schedule.4,
            min_group_size: schedule.5,
            max_retries: schedule.6,
            seed: schedule.7,
        })
}

impl Schedule {
    fn tasks(&self) -> Arc<dyn TaskSet> {
        let echoes: Vec<Echo> = (2..6).map(|turns| Echo::new(turns, true)).collect();
        Arc::new(FaultyTasks::new(echoes, self.fault, self.every_environment))
    }

    fn policy(&self, model: &TabularModel) -> Arc<dyn Policy> {
        let faulty = Faulty::new(model.clone(), self.every_request);
        Arc::new(Interrupting { inner: faulty, after: self.after })
    }

    fn settings(&self) -> PoolSettings {
        PoolSettings {
            min_group_size: self.min_group_size,
            max_retries: self.max_retries,
            max_faults_in_row: u32::MAX,
            tokens_per_iteration: self.tokens_per_iteration,
            ..pool_settings()
        }
    }
}

fn books_hold(pool: &RolloutPool, group_size: usize) -> bool {
    let open = pool.ledger().open();
    let snapshot = serde_json::to_value(pool.snapshot()).expect("plain data");
    let groups = snapshot["finished"].as_object().expect("by group");
    let finished: usize =
        groups.values().map(|members| members.as_array().expect("a list").len()).sum();
    open == (pool.n_open() * group_size) as u64 && open == (finished + pool.n_waiting()) as u64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Rollouts 13.10 for the pool: nothing is lost, retries are bounded, attempts differ and their seeds do not.
    #[test]
    fn the_books_of_a_pool_hold_after_every_iteration(schedule in schedules()) {
        let model = TabularModel::new(4);
        let settings = schedule.settings();
        let mut pool =
            RolloutPool::new(schedule.tasks(), Arc::new(agents()), None, settings.clone(), schedule.seed);
        let policy = schedule.policy(&model);
        let mut delivered = Vec::new();
        let mut dropped = 0;
        for round in 0..200 {
            if round < 4 {
                pool.start(GroupId(round), round as usize % 4);
            }
            let iteration = block_on(pool.iterate(&policy, &StopSignal::never())).unwrap();
            prop_assert!(books_hold(&pool, settings.group_size), "round {round}: {pool:?}");
            dropped += iteration.dropped.values().sum::<u64>();
            delivered.extend(iteration.groups);
            if round >= 4 && pool.n_waiting() == 0 {
                break;
            }
        }
        prop_assert_eq!(pool.n_open(), 0, "once faults stop there is progress");
        let scored: usize = delivered.iter().map(|group| group.scored().count()).sum();
        prop_assert_eq!(pool.ledger().delivered, scored as u64);
        prop_assert_eq!(pool.ledger().dispatched, 16);
        prop_assert_eq!(dropped + scored as u64, 16);
        for group in &delivered {
            prop_assert!(group.scored().count() >= settings.min_group_size);
            prop_assert_eq!(group.members.len(), settings.group_size);
            for (place, member) in group.members.iter().enumerate() {
                let identity = &member.identity;
                prop_assert_eq!(identity.member as usize, place);
                prop_assert!(identity.attempt <= settings.max_retries);
                prop_assert_eq!(identity.environment_seed, group.members[0].identity.environment_seed);
                prop_assert!(!member.solved || member.outcome.is_scored());
            }
            let mut seeds: Vec<u64> =
                group.members.iter().map(|member| member.identity.sampling_seed).collect();
            seeds.sort_unstable();
            seeds.dedup();
            prop_assert_eq!(seeds.len(), settings.group_size);
        }
    }

    /// Rollouts 13.10 for the trainer, which checks its books itself at every step and fails when they are wrong.
    #[test]
    fn the_books_of_a_trainer_hold_after_every_step(schedule in schedules()) {
        let model = TabularModel::new(4);
        let mut trainer = trainer(&schedule, &model);
        for _ in 0..4 {
            match block_on(trainer.step(&StopSignal::never())) {
                Ok(report) => {
                    let report = report.expect("nobody stops it");
                    prop_assert!(report.trained.iter().all(|one| one.reward().is_some_and(f64::is_finite)));
                    let bad = report.metrics.iter().find(|(_, value)| !value.is_finite());
                    prop_assert!(bad.is_none(), "{bad:?}");
                }
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}

fn trainer(schedule: &Schedule, model: &TabularModel) -> Trainer<TabularModel> {
    let parts = Parts {
        tasks: schedule.tasks(),
        agents: Arc::new(agents()),
        rubric: None,
        policy: schedule.policy(model),
        learner: model.clone(),
        objective: Box::new(OBJECTIVE),
        credit: Box::new(ReturnCredit { gamma: 1.0 }),
    };
    let settings = TrainerSettings {
        groups_per_step: 3,
        rollout: schedule.settings(),
        admission: Admission { max_staleness: 1, ..Admission::default() },
        n_minibatches: 2,
        seed: schedule.seed,
        ..TrainerSettings::default()
    };
    Trainer::new(parts, settings)
}

fn pool_of(fault: Fault, every: u64, settings: PoolSettings) -> RolloutPool {
    let tasks = FaultyTasks::new(vec![Echo::new(3, true); 4], fault, every);
    RolloutPool::new(Arc::new(tasks), Arc::new(agents()), None, settings, 7)
}

fn iterate(pool: &mut RolloutPool) -> Result<Iteration, RolloutError> {
    let policy: Arc<dyn Policy> = Arc::new(TabularModel::new(4));
    block_on(pool.iterate(&policy, &StopSignal::never()))
}

/// rollouts section 2: at most two more attempts, each with a new number and the same seeds.
#[test]
fn a_broken_episode_is_tried_again_and_then_given_up() {
    let settings = PoolSettings { max_faults_in_row: 100, ..pool_settings() };
    let mut pool = pool_of(Fault::Error, 1, settings);
    pool.start(GroupId(0), 0);
    let iteration = iterate(&mut pool).unwrap();
    assert_eq!(iteration.outcomes["infra_env_error"], 4 * 3);
    assert!(iteration.groups.is_empty());
    assert_eq!(pool.ledger().dropped["infra_env_error"], 4);
    assert_eq!(pool.ledger().open(), 0);
}

/// rollouts section 6: attempts of one episode share what the iteration has for it.
#[test]
fn a_retry_draws_from_what_the_attempt_before_it_left() {
    let group_size = pool_settings().group_size as u64;
    for share in [3, 5, 8] {
        let settings = PoolSettings {
            max_retries: 2,
            max_faults_in_row: 1000,
            retry_delay_s: 0.0,
            tokens_per_iteration: Some(share * group_size),
            ..pool_settings()
        };
        let mut pool = pool_of(Fault::Error, 1, settings);
        pool.start(GroupId(0), 0);
        while pool.n_waiting() > 0 {
            let iteration = iterate(&mut pool).expect("it goes on");
            let n = iteration.n_sampled;
            assert!(n <= share * group_size, "{n} tokens where {share} each were to be had");
        }
    }
}

/// rollouts section 2: a fault of one member is nothing to the others.
#[test]
fn a_broken_episode_never_cancels_its_siblings() {
    // Of the environments 1 to 4 the fourth breaks, and with it no retry: the fifth is whole.
    let mut healthy = pool_of(Fault::Panic, u64::MAX, pool_settings());
    let mut faulty = pool_of(Fault::Panic, 4, pool_settings());
    for pool in [&mut healthy, &mut faulty] {
        pool.start(GroupId(0), 0);
    }
    let (whole, retried) = (iterate(&mut healthy).unwrap(), iterate(&mut faulty).unwrap());
    assert_eq!(retried.outcomes["infra_env_panic"], 1);
    let (whole, retried) = (&whole.groups[0].members, &retried.groups[0].members);
    assert_eq!(whole[..3], retried[..3]);
    assert_eq!((retried[3].identity.attempt, retried[3].reward()), (1, whole[3].reward()));
    assert!(whole[3].sampled().eq(retried[3].sampled()), "same seeds, same tokens");
}

/// rollouts section 2: minimum viable group.
#[test]
fn a_group_below_its_minimum_is_dropped_whole_and_counted() {
    for (min_group_size, delivered) in [(3, 3), (4, 0)] {
        let settings = PoolSettings { max_retries: 0, min_group_size, ..pool_settings() };
        let mut pool = pool_of(Fault::Error, 4, settings);
        pool.start(GroupId(0), 0);
        let iteration = iterate(&mut pool).unwrap();
        assert_eq!(iteration.groups.len(), usize::from(delivered > 0));
        assert_eq!(pool.ledger().delivered, delivered);
        assert_eq!(pool.ledger().dropped["infra_env_error"], 1);
        assert_eq!(pool.ledger().dropped.get("group_dropped").copied().unwrap_or(0), 3 - delivered);
    }
}

/// rollouts section 2: the breaker, with figures; a fault here and there does not open it.
#[test]
fn faults_in_a_row_stop_the_run() {
    let settings = PoolSettings { max_faults_in_row: 6, ..pool_settings() };
    let mut broken = pool_of(Fault::Error, 1, settings.clone());
    broken.start(GroupId(0), 0);
    broken.start(GroupId(1), 1);
    let error = iterate(&mut broken).unwrap_err();
    let RolloutError::TooManyFaults { n, last } = error else { panic!("{error}") };
    assert_eq!((n, last.reason), (6, InfraReason::EnvError));
    let mut shaky = pool_of(Fault::Error, 2, settings);
    (0..8).for_each(|group| shaky.start(GroupId(group), 0));
    assert!(iterate(&mut shaky).is_ok());
}

/// An engine whose model has a weight that is NaN.
#[derive(Debug)]
struct Broken;

#[async_trait]
impl Policy for Broken {
    fn version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }

    async fn sample(&self, _: SampleRequest) -> Result<Sample, PolicyError> {
        Err(PolicyError::NotFinite("model.norm.weight is NaN at [3]".to_owned()))
    }
}

/// The model is the same for every episode: no retry repairs it, and the environment is not to blame.
#[test]
fn a_model_whose_logits_are_not_finite_stops_the_run_at_once() {
    let settings = PoolSettings { max_faults_in_row: 1000, ..pool_settings() };
    let mut pool = pool_of(Fault::Error, u64::MAX, settings);
    pool.start(GroupId(0), 0);
    let policy: Arc<dyn Policy> = Arc::new(Broken);
    let error = block_on(pool.iterate(&policy, &StopSignal::never())).unwrap_err();
    let RolloutError::NotFinite { last } = &error else { panic!("{error}") };
    assert_eq!(last.reason, InfraReason::NotFinite);
    assert!(error.to_string().contains("model.norm.weight is NaN at [3]"), "{error}");
    assert!(books_hold(&pool, 4), "{pool:?}");
}

/// Rollouts 13.10: the breaker loses no episode either.
#[test]
fn what_ran_when_the_breaker_opened_is_still_in_the_books() {
    for tokens_per_iteration in [None, Some(40)] {
        let settings =
            PoolSettings { max_faults_in_row: 3, tokens_per_iteration, ..pool_settings() };
        let mut pool = pool_of(Fault::Error, 1, settings);
        let outcomes: Vec<bool> = (0..20)
            .map(|group| {
                pool.start(GroupId(group), 0);
                let outcome = iterate(&mut pool);
                assert!(books_hold(&pool, 4), "{pool:?}");
                outcome.is_err()
            })
            .collect();
        assert!(outcomes.contains(&true), "the breaker opened");
    }
}

/// Rollouts 13.10: the trainer passes the breaker on.
#[test]
fn a_run_in_which_everything_breaks_ends_with_an_error() {
    let schedule = Schedule {
        fault: Fault::Error,
        every_environment: 1,
        every_request: u64::MAX,
        after: 9,
        tokens_per_iteration: None,
        min_group_size: 2,
        max_retries: 2,
        seed: 0,
    };
    let model = TabularModel::new(4);
    let mut trainer = trainer(&schedule, &model);
    let report = block_on(trainer.step(&StopSignal::never()));
    assert!(report.expect("without a breaker it goes on").expect("a report").trained.is_empty());
    let settings = PoolSettings { max_faults_in_row: 5, ..schedule.settings() };
    let parts = Parts {
        tasks: schedule.tasks(),
        agents: Arc::new(agents()),
        rubric: None,
        policy: schedule.policy(&model),
        learner: model,
        objective: Box::new(OBJECTIVE),
        credit: Box::new(ReturnCredit { gamma: 1.0 }),
    };
    let mut trainer =
        Trainer::new(parts, TrainerSettings { rollout: settings, ..TrainerSettings::default() });
    let error = block_on(trainer.step(&StopSignal::never())).unwrap_err();
    assert!(matches!(error, TrainError::Rollout(RolloutError::TooManyFaults { n: 5, .. })));
}

/// Seeds are the same in every attempt, and so is a conversation that does not fit: it is tried once, and the reason
/// ends an evaluation and a step that have no other episode, as often as the step is begun.
#[test]
fn what_can_never_be_rendered_is_tried_once_and_ends_evaluation_and_step_with_the_reason() {
    let settings = PoolSettings {
        limits: Limits { max_context_tokens: 1, ..pool_settings().limits },
        max_retries: 5,
        max_faults_in_row: u32::MAX,
        ..pool_settings()
    };
    let tasks: Arc<dyn TaskSet> = Arc::new(FaultyTasks::new(
        vec![Echo::new(2, true), Echo::new(3, true)],
        Fault::Error,
        u64::MAX,
    ));
    let model = TabularModel::new(4);
    let reason = |error: RolloutError, expected: usize| {
        let RolloutError::AllBroke { n, first } = error else { panic!("{error}") };
        assert_eq!((n, first.reason), (expected, InfraReason::Render));
        assert!(first.message.contains("max_context_tokens is 1"), "{first}");
    };
    let evaluated = Evaluated {
        policy: Arc::new(model.clone()),
        tasks: tasks.clone(),
        agents: Arc::new(agents()),
        opponent: Opponent::default(),
        rubric: None,
    };
    let of_evaluation = EvaluationSettings {
        episodes: 3,
        limits: settings.limits.clone(),
        ..EvaluationSettings::default()
    };
    let (never, meter) = (StopSignal::never(), Meter::default());
    let evaluation = block_on(evaluate(&evaluated, &of_evaluation, &never, &meter));
    reason(evaluation.unwrap_err(), 3);
    let parts = Parts {
        tasks,
        agents: Arc::new(agents()),
        rubric: None,
        policy: Arc::new(model.clone()),
        learner: model,
        objective: Box::new(OBJECTIVE),
        credit: Box::new(ReturnCredit { gamma: 1.0 }),
    };
    let n = 2 * settings.group_size;
    let settings =
        TrainerSettings { rollout: settings, groups_per_step: 2, ..TrainerSettings::default() };
    let mut trainer = Trainer::new(parts, settings);
    for _ in 0..3 {
        let error = block_on(trainer.step(&never)).unwrap_err();
        let TrainError::Rollout(error) = error else { panic!("{error}") };
        reason(error, n);
        assert_eq!((trainer.next_step(), trainer.books().unaccounted()), (0, 0));
    }
}

fn credits() -> [Box<dyn Credit>; 3] {
    let advantage = GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 1e-6 };
    [
        Box::new(OutcomeCredit { advantage }),
        Box::new(ReturnCredit { gamma: 0.9 }),
        Box::new(TurnCredit { advantage, gamma: 0.5, outcome_weight: 1.0, turn_weight: 0.5 }),
    ]
}

fn unscored() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Cancelled(CancelReason::Stale)),
        Just(Outcome::InfraFault(InfraFault {
            reason: InfraReason::EnvError,
            message: String::new(),
        })),
    ]
}

proptest! {
    /// Rollouts 13.8
    #[test]
    fn members_without_a_reward_are_as_if_they_had_never_existed(
        rewards in prop::collection::vec(-2.0_f64..2.0, 2..7),
        ghosts in prop::collection::vec((0_usize..7, unscored(), -100.0_f64..100.0), 0..5),
    ) {
        let alone: Vec<Trajectory> =
            (0..).zip(&rewards).map(|(member, reward)| ended(member, *reward, Outcome::Done)).collect();
        let mut members = alone.clone();
        for (place, outcome, reward) in ghosts {
            members.insert(place.min(members.len()), ended(99, reward, outcome));
        }
        for credit in credits() {
            let assigned = |members: &[Trajectory]| {
                let group = turnwise_rollout::Group { id: GroupId(0), members: members.to_vec() };
                let mut admitted =
                    Admission::default().admit(group, turnwise_trajectory::PolicyVersion(0)).members;
                turnwise_training::assign_credit(&*credit, &mut admitted).expect("finite rewards");
                admitted
            };
            prop_assert_eq!(assigned(&members), assigned(&alone));
        }
    }
}
