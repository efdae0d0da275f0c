//! One seed is one run, whatever runs beside it and whenever it was stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use turnwise_environment::derive_seed;
use turnwise_rollout::{
    Group, Policy, PolicyError, PoolSettings, RolloutPool, Sample, SampleRequest, StopHandle,
    StopSignal, stop_signal,
};
use turnwise_testkit::{Interrupting, TabularModel};
use turnwise_training::{
    Admission, Learner, Parts, ReturnCredit, Schedule, StaleTokens, Trainer, TrainerSettings,
    TrainerSnapshot,
};
use turnwise_trajectory::{GroupId, PolicyVersion, Trajectory};

use crate::support::{OBJECTIVE, RecordingPolicy, agents, block_on, echoes, pool_settings};

/// Answers after a while that has nothing to do with the order of requests.
struct Jittered<P> {
    inner: P,
}

#[async_trait]
impl<P: Policy> Policy for Jittered<P> {
    fn version(&self) -> PolicyVersion {
        self.inner.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let millis = derive_seed(request.seed, request.first_index) % 1000;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        self.inner.sample(request).await
    }
}

fn groups(settings: PoolSettings, seed: u64, policy: &Arc<dyn Policy>) -> Vec<Group> {
    let mut pool =
        RolloutPool::new(Arc::new(echoes(4, true)), Arc::new(agents()), None, settings, seed);
    (0..5).for_each(|group| pool.start(GroupId(group), group as usize % 4));
    let mut groups = Vec::new();
    block_on(async {
        while pool.n_waiting() > 0 {
            let iteration = pool.iterate(policy, &StopSignal::never()).await;
            groups.extend(iteration.expect("nothing breaks").groups);
        }
    });
    groups.iter_mut().flat_map(|group| &mut group.members).for_each(forget_time);
    groups.sort_by_key(|group| group.id);
    groups
}

fn forget_time(trajectory: &mut Trajectory) {
    trajectory.turns.iter_mut().for_each(|turn| turn.seconds = 0.0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Rollouts 13.26: different concurrency, order of completion, interruptions and budgets; equal trajectories.
    #[test]
    fn what_runs_beside_an_episode_does_not_matter(
        seed in any::<u64>(),
        max_concurrent in 1_usize..30,
        tokens_per_iteration in prop::option::of(20_u64..200),
        after in 1_usize..8,
    ) {
        let engine: Arc<dyn Policy> = Arc::new(RecordingPolicy::new(4));
        let plain = groups(pool_settings(), seed, &engine);
        let settings = PoolSettings { max_concurrent, tokens_per_iteration, ..pool_settings() };
        let inner = Jittered { inner: RecordingPolicy::new(4) };
        let policy: Arc<dyn Policy> = Arc::new(Interrupting { inner, after });
        let others = groups(settings, seed, &policy);
        prop_assert_eq!(plain, others);
    }
}

/// A run with everything that can go out of step: partial rollouts, mixed versions, several mini-batches.
fn run(seed: u64, policy: Arc<dyn Policy>, model: &TabularModel) -> Trainer<TabularModel> {
    let parts = Parts {
        tasks: Arc::new(echoes(4, true)),
        agents: Arc::new(agents()),
        rubric: None,
        policy,
        learner: model.clone(),
        objective: Box::new(OBJECTIVE),
        credit: Box::new(ReturnCredit { gamma: 0.9 }),
    };
    let settings = TrainerSettings {
        groups_per_step: 3,
        rollout: PoolSettings { tokens_per_iteration: Some(48), ..pool_settings() },
        admission: Admission { max_staleness: 1, stale: StaleTokens::Mask, ..Admission::default() },
        n_minibatches: 2,
        schedule: Schedule { learning_rate: 0.5, ..Schedule::default() },
        seed,
        ..TrainerSettings::default()
    };
    Trainer::new(parts, settings)
}

fn steps(trainer: &mut Trainer<TabularModel>, n: usize) -> Vec<Trajectory> {
    let step = |_| block_on(trainer.step(&StopSignal::never())).expect("it goes on");
    let reports: Vec<_> = (0..n).map(step).collect();
    reports.into_iter().flat_map(|report| report.expect("nobody stops it").trained).collect()
}

fn weights(model: &TabularModel) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    block_on(model.clone().save(folder.path())).expect("it is written");
    std::fs::read_to_string(folder.path().join("table.json")).expect("it is read")
}

/// Rollouts 13.26: trajectories, and weights bit for bit; another seed is another run.
#[test]
fn one_seed_run_twice_is_one_run() {
    let once = |seed| {
        let model = TabularModel::new(4);
        let trained = steps(&mut run(seed, Arc::new(model.clone()), &model), 8);
        (trained, weights(&model))
    };
    assert_eq!(once(1), once(1));
    assert_ne!(once(1).1, once(2).1);
}

/// rollouts section 6: snapshot, drop everything, restore; the run goes on as if nothing had happened.
#[test]
fn a_restored_trainer_equals_an_uninterrupted_one() {
    for cut in 1..6 {
        let model = TabularModel::new(4);
        let mut whole = run(5, Arc::new(model.clone()), &model);
        let mut expected = steps(&mut whole, 8);

        let first = TabularModel::new(4);
        let mut trainer = run(5, Arc::new(first.clone()), &first);
        let mut done = steps(&mut trainer, cut);
        let json = serde_json::to_string(&block_on(trainer.snapshot())).expect("plain data");
        let folder = tempfile::tempdir().expect("a folder");
        block_on(trainer.learner().save(folder.path())).expect("it is written");
        let version = Learner::version(&first);
        drop((trainer, first));

        let mut second = TabularModel::new(4);
        block_on(second.load(folder.path(), version)).expect("it is read");
        let mut trainer = run(5, Arc::new(second.clone()), &second);
        let snapshot: TrainerSnapshot = serde_json::from_str(&json).expect("what was written");
        assert_eq!(snapshot.pool().n_restarting(), 0);
        trainer.restore(snapshot).expect("it fits");
        assert_eq!(trainer.next_step(), cut as u64);
        done.extend(steps(&mut trainer, 8 - cut));
        expected.iter_mut().chain(&mut done).for_each(forget_time);
        assert_eq!(done, expected, "cut after {cut} steps");
        assert_eq!(weights(&second), weights(&model), "cut after {cut} steps");
    }
}

/// Asks for a halt at one request, which it still serves.
struct StopsAt {
    inner: TabularModel,
    request: u64,
    requests: AtomicU64,
    handle: StopHandle,
}

#[async_trait]
impl Policy for StopsAt {
    fn version(&self) -> PolicyVersion {
        Policy::version(&self.inner)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        if self.requests.fetch_add(1, Ordering::Relaxed) == self.request {
            self.handle.stop();
        }
        Jittered { inner: self.inner.clone() }.sample(request).await
    }
}

/// rollouts section 6: a halt suspends; nothing is lost, and the run goes on to the same weights.
#[test]
fn a_stopped_run_goes_on_as_if_it_had_not_been_stopped() {
    let unbudgeted = |model: &TabularModel, policy: Arc<dyn Policy>| {
        let parts = Parts {
            tasks: Arc::new(echoes(4, true)),
            agents: Arc::new(agents()),
            rubric: None,
            policy,
            learner: model.clone(),
            objective: Box::new(OBJECTIVE),
            credit: Box::new(ReturnCredit { gamma: 0.9 }),
        };
        let settings = TrainerSettings {
            groups_per_step: 4,
            rollout: pool_settings(),
            schedule: Schedule { learning_rate: 0.5, ..Schedule::default() },
            ..TrainerSettings::default()
        };
        Trainer::new(parts, settings)
    };
    let model = TabularModel::new(4);
    let expected = steps(&mut unbudgeted(&model, Arc::new(model.clone())), 4);
    for request in (0..150).step_by(4) {
        let stopped = TabularModel::new(4);
        let (handle, signal) = stop_signal();
        let policy =
            StopsAt { inner: stopped.clone(), request, requests: AtomicU64::new(0), handle };
        let mut trainer = unbudgeted(&stopped, Arc::new(policy));
        let mut done = Vec::new();
        while let Some(report) = block_on(trainer.step(&signal)).expect("nothing breaks") {
            done.extend(report.trained);
        }
        let left = 4 - trainer.next_step() as usize;
        done.extend(steps(&mut trainer, left));
        done.iter_mut().for_each(forget_time);
        assert_eq!(done, expected, "stopped at request {request}");
        assert_eq!(weights(&stopped), weights(&model), "stopped at request {request}");
    }
}
