//! Rollouts and training at the same time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::time::{Instant, sleep};
use turnwise_environment::derive_seed;
use turnwise_rollout::{
    Policy, PolicyError, PoolSettings, Sample, SampleRequest, StopSignal, stop_signal,
};
use turnwise_testkit::{Fault, FaultyTasks, TabularModel};
use turnwise_training::{
    Admission, Canary, DynamicSampling, GradientFn, Learner, LearnerError, Parts, ReturnCredit,
    RolloutMode, Row, Schedule, StaleTokens, StepReport, TrainError, Trainer, TrainerSettings,
    TrainerSnapshot, Update, Updated, metric,
};
use turnwise_trajectory::{PolicyVersion, Trajectory};

use crate::support::{OBJECTIVE, agents, block_on, echoes, pool_settings};

/// A model both sides of which take their time, on a clock that only moves when everybody waits.
#[derive(Clone, Debug)]
pub(crate) struct Slow {
    model: TabularModel,
    request_ms: u64,
    update_ms: u64,
}

impl Slow {
    pub(crate) fn new(request_ms: u64, update_ms: u64) -> Self {
        Self { model: TabularModel::new(4), request_ms, update_ms }
    }

    /// One that is as slow, and has learnt nothing.
    pub(crate) fn anew(&self) -> Self {
        Self::new(self.request_ms, self.update_ms)
    }
}

#[async_trait]
impl Policy for Slow {
    fn version(&self) -> PolicyVersion {
        Policy::version(&self.model)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        // Different for each request, so that episodes come back in another order than they went.
        let spread = derive_seed(request.seed, request.first_index) % 7;
        sleep(Duration::from_millis(self.request_ms * (1 + spread))).await;
        self.model.sample(request).await
    }
}

#[async_trait]
impl Learner for Slow {
    fn version(&self) -> PolicyVersion {
        Learner::version(&self.model)
    }

    async fn check_gradients(&mut self) -> Result<(), LearnerError> {
        self.model.check_gradients().await
    }

    async fn logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        self.model.logprobs(rows).await
    }

    async fn accumulate(
        &mut self,
        rows: &[Row],
        gradient: &mut GradientFn<'_>,
    ) -> Result<(), LearnerError> {
        sleep(Duration::from_millis(self.update_ms)).await;
        self.model.accumulate(rows, gradient).await
    }

    async fn step(&mut self, update: Update) -> Result<Updated, LearnerError> {
        self.model.step(update).await
    }

    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        self.model.publish().await
    }

    async fn save(&mut self, directory: &Path) -> Result<(), LearnerError> {
        self.model.save(directory).await
    }

    async fn load(&mut self, directory: &Path, version: PolicyVersion) -> Result<(), LearnerError> {
        self.model.load(directory, version).await
    }
}

fn settings(mode: RolloutMode, seed: u64) -> TrainerSettings {
    TrainerSettings {
        groups_per_step: 3,
        rollout: PoolSettings { max_concurrent: 24, ..pool_settings() },
        mode,
        admission: Admission { max_staleness: 2, ..Admission::default() },
        n_minibatches: 2,
        schedule: Schedule { learning_rate: 0.2, ..Schedule::default() },
        seed,
        ..TrainerSettings::default()
    }
}

fn trainer(slow: &Slow, settings: TrainerSettings) -> Trainer<Slow> {
    let parts = Parts {
        tasks: Arc::new(echoes(4, true)),
        agents: Arc::new(agents()),
        rubric: None,
        policy: Arc::new(slow.clone()),
        learner: slow.clone(),
        objective: Box::new(OBJECTIVE),
        credit: Box::new(ReturnCredit { gamma: 0.9 }),
    };
    Trainer::new(parts, settings)
}

async fn steps(trainer: &mut Trainer<Slow>, n: usize) -> Vec<StepReport> {
    let mut reports = Vec::new();
    for _ in 0..n {
        let report = trainer.step(&StopSignal::never()).await.expect("it goes on");
        reports.push(report.expect("nobody stops it"));
    }
    reports
}

fn weights(slow: &Slow) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    block_on(slow.clone().save(folder.path())).expect("it is written");
    std::fs::read_to_string(folder.path().join("table.json")).expect("it is read")
}

fn stalest(reports: &[StepReport]) -> f64 {
    let each = reports.iter().filter_map(|report| report.metrics.get(metric::STALENESS_MAX));
    each.fold(0.0, f64::max)
}

/// The part 8: overlapping rollouts that are as reproducible as those that wait.
#[test]
fn pipelined_rollouts_depend_on_the_seed_alone() {
    let run = |seed, request_ms, update_ms, max_concurrent| {
        let slow = Slow::new(request_ms, update_ms);
        let mut settings = settings(RolloutMode::Pipelined, seed);
        settings.rollout.max_concurrent = max_concurrent;
        settings.rollout.tokens_per_iteration = Some(60);
        let reports = block_on(async {
            let mut trainer = trainer(&slow, settings);
            steps(&mut trainer, 8).await
        });
        let ids: Vec<Vec<u32>> = reports
            .iter()
            .flat_map(|report| &report.trained)
            .map(|one| one.sampled().map(|token| token.id).collect())
            .collect();
        (ids, weights(&slow), stalest(&reports))
    };
    let (ids, table, staleness) = run(1, 1, 30, 24);
    let slow_rollouts = run(1, 20, 1, 3);
    assert_eq!((&ids, &table), (&slow_rollouts.0, &slow_rollouts.1));
    assert_ne!(table, run(2, 1, 30, 24).1);
    assert!((1.0..=2.0).contains(&staleness), "{staleness}");
}

/// The point of it: the slower of the two halves alone decides how long a step takes.
#[test]
fn overlapping_takes_less_time_than_taking_turns() {
    let seconds = |mode| {
        block_on(async {
            let started = Instant::now();
            let mut trainer = trainer(&Slow::new(4, 20), settings(mode, 5));
            steps(&mut trainer, 12).await;
            started.elapsed().as_secs_f64()
        })
    };
    let in_turns = seconds(RolloutMode::Synchronous);
    for mode in [RolloutMode::Pipelined, RolloutMode::Asynchronous] {
        let overlapped = seconds(mode);
        assert!(overlapped < 0.85 * in_turns, "{mode:?}: {overlapped} s against {in_turns} s");
    }
}

/// Rollouts 13.21: a bound on staleness is for the slow. Rollouts that are faster than training wait for it, instead of
/// filling a queue in which everything becomes as old as the bound allows.
#[test]
fn rollouts_that_are_faster_than_training_stay_fresh() {
    let bound = Admission { max_staleness: 6, ..Admission::default() };
    let fast = TrainerSettings { admission: bound, ..settings(RolloutMode::Asynchronous, 3) };
    let reports = block_on(async {
        let mut trainer = trainer(&Slow::new(1, 400), fast);
        steps(&mut trainer, 20).await
    });
    assert!(stalest(&reports) <= 2.0, "{}", stalest(&reports));
    let of_trajectories = reports[1..].iter().map(|report| {
        report.metrics.get(metric::STALENESS_TRAJECTORY_MEAN).expect("it is always there")
    });
    let mean = of_trajectories.sum::<f64>() / 19.0;
    assert!((0.9..1.5).contains(&mean), "{mean}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Rollouts 13.10 and 13.21, in every mode, with a fault in every tenth environment.
    #[test]
    fn the_books_hold_and_nothing_is_too_old_in_every_mode(
        mode in prop::sample::select(vec![
            RolloutMode::Synchronous,
            RolloutMode::Pipelined,
            RolloutMode::Asynchronous,
        ]),
        max_staleness in 0_u32..3,
        mask in any::<bool>(),
        tokens_per_iteration in prop::option::of(30_u64..200),
        fault in prop::sample::select(Fault::ALL.to_vec()),
        request_ms in 1_u64..20,
        update_ms in 1_u64..20,
        seed in any::<u64>(),
    ) {
        // A mode that is one version stale by its nature needs the room.
        let max_staleness = max_staleness.max(u32::from(mode == RolloutMode::Pipelined));
        let slow = Slow::new(request_ms, update_ms);
        let mut settings = settings(mode, seed);
        settings.admission.max_staleness = max_staleness;
        settings.admission.stale = if mask { StaleTokens::Mask } else { StaleTokens::Drop };
        settings.rollout.tokens_per_iteration = tokens_per_iteration;
        settings.rollout.max_faults_in_row = u32::MAX;
        let reports = block_on(async {
            let parts = Parts {
                tasks: Arc::new(FaultyTasks::new(echoes(4, true), fault, 10)),
                agents: Arc::new(agents()),
                rubric: None,
                policy: Arc::new(slow.clone()) as Arc<dyn Policy>,
                learner: slow.clone(),
                objective: Box::new(OBJECTIVE),
                credit: Box::new(ReturnCredit { gamma: 0.9 }),
            };
            let mut trainer = Trainer::new(parts, settings);
            let mut reports = Vec::new();
            for _ in 0..6 {
                reports.push(trainer.step(&StopSignal::never()).await);
            }
            reports
        });
        for report in reports {
            let report = report.expect("its books hold, or it would fail").expect("nobody stops it");
            prop_assert_eq!(report.books.unaccounted(), 0);
            let staleness = report.metrics.get(metric::STALENESS_MAX).unwrap_or(0.0);
            prop_assert!(staleness <= f64::from(max_staleness), "{} in {:?}", staleness, mode);
        }
    }
}

/// A run without pauses is stopped, written down, and goes on with every episode it had.
#[test]
fn an_asynchronous_run_is_halted_and_goes_on() {
    let slow = Slow::new(5, 10);
    let (json, before) = block_on(async {
        let mut trainer = trainer(&slow, settings(RolloutMode::Asynchronous, 9));
        steps(&mut trainer, 3).await;
        assert!(trainer.books().open.running > 0, "nothing runs between steps");
        let (handle, stop) = stop_signal();
        handle.stop();
        assert!(trainer.step(&stop).await.expect("a halt is no error").is_none());
        let snapshot = trainer.snapshot().await;
        assert_eq!(trainer.books().open.running, 0);
        (serde_json::to_string(&snapshot).expect("plain data"), trainer.books())
    });
    let snapshot: TrainerSnapshot = serde_json::from_str(&json).expect("what was written");
    assert_eq!(snapshot.pool().n_restarting(), 0);
    block_on(async {
        let mut again = trainer(&slow, settings(RolloutMode::Asynchronous, 9));
        again.restore(snapshot).expect("it fits");
        assert_eq!(again.books(), before);
        let reports = steps(&mut again, 3).await;
        assert!(reports.iter().any(|report| !report.trained.is_empty()));
    });
}

/// What can no longer make it is given up as soon as new weights are published, by name.
#[test]
fn episodes_that_grew_too_old_are_cancelled() {
    let dropped = block_on(async {
        let mut settings = settings(RolloutMode::Synchronous, 3);
        // Two groups a step with few tokens: while one is trained on, the other waits with tokens of the weights before.
        settings.admission.max_staleness = 0;
        settings.groups_per_step = 2;
        settings.rollout.tokens_per_iteration = Some(20);
        let mut trainer = trainer(&Slow::new(1, 1), settings);
        steps(&mut trainer, 12).await;
        trainer.books().dropped
    });
    assert!(dropped.get("cancelled_stale").is_some_and(|n| *n > 0), "{dropped:?}");
}

/// Rollouts 13.23: where no group ever has variance, resampling ends at its bound and the step goes on.
#[test]
fn dynamic_sampling_ends_at_its_bound() {
    for mode in [RolloutMode::Synchronous, RolloutMode::Pipelined, RolloutMode::Asynchronous] {
        let report = block_on(async {
            let slow = Slow::new(1, 1);
            let settings = TrainerSettings {
                dynamic_sampling: Some(DynamicSampling { max_groups: 5, max_seconds: 1e6 }),
                ..settings(mode, 2)
            };
            // Every episode breaks until its attempts are used up but the zero-reward ones: nobody differs.
            let mut trainer = flat(&slow, settings);
            steps(&mut trainer, 1).await.remove(0)
        });
        let replaced = report.metrics.get(metric::REPLACED).expect("it is recorded");
        assert!(report.trained.is_empty() && replaced >= 5.0, "{mode:?}: {replaced}");
        assert!(replaced <= 5.0 + 3.0 + 6.0, "{mode:?}: {replaced}");
        assert_eq!(report.metrics.get(metric::UPDATES), Some(0.0));
    }
}

/// A run whose rewards are all alike.
fn flat(slow: &Slow, settings: TrainerSettings) -> Trainer<Slow> {
    let parts = Parts {
        tasks: Arc::new(vec![crate::staleness::Constant(1.0)]),
        agents: Arc::new(agents()),
        rubric: None,
        policy: Arc::new(slow.clone()),
        learner: slow.clone(),
        objective: Box::new(OBJECTIVE),
        credit: Box::new(ReturnCredit { gamma: 1.0 }),
    };
    Trainer::new(parts, settings)
}

/// An engine that never received the weights is reported at the first publication.
#[test]
fn a_canary_finds_an_engine_that_kept_its_weights() {
    let run = |policy: Arc<dyn Policy>, slow: &Slow| {
        let parts = Parts {
            tasks: Arc::new(echoes(4, true)),
            agents: Arc::new(agents()),
            rubric: None,
            policy,
            learner: slow.clone(),
            objective: Box::new(OBJECTIVE),
            credit: Box::new(ReturnCredit { gamma: 0.9 }),
        };
        let settings = TrainerSettings {
            canary: Some(Canary::default()),
            schedule: Schedule { learning_rate: 50.0, ..Schedule::default() },
            ..settings(RolloutMode::Synchronous, 4)
        };
        block_on(async {
            let mut trainer = Trainer::new(parts, settings);
            for _ in 0..4 {
                trainer.step(&StopSignal::never()).await?;
            }
            Ok::<(), TrainError>(())
        })
    };
    let fresh = Slow::new(1, 1);
    run(Arc::new(fresh.clone()), &fresh).expect("an engine with the weights passes");
    let learner = Slow::new(1, 1);
    let kept = TabularModel::new(4);
    let error = run(Arc::new(kept), &learner).expect_err("an engine without them does not");
    assert!(error.to_string().contains("sample with the new weights"), "{error}");
    // The same, but the engine claims to have them.
    let learner = Slow::new(1, 1);
    let error = run(Arc::new(Pretends(learner.clone(), TabularModel::new(4))), &learner);
    let error = error.expect_err("its numbers give it away");
    assert!(error.to_string().contains("nats"), "{error}");
}

/// Draws with its own weights and stamps the version of others.
struct Pretends(Slow, TabularModel);

#[async_trait]
impl Policy for Pretends {
    fn version(&self) -> PolicyVersion {
        Policy::version(&self.0)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let request = SampleRequest { min_version: PolicyVersion(0), ..request };
        let mut sample = self.1.sample(request).await?;
        let version = self.version();
        for token in &mut sample.tokens {
            (token.version, token.kv_version) = (version, version);
        }
        Ok(sample)
    }
}

/// Nothing of a trajectory depends on when its turns happened but the seconds it took.
#[test]
fn asynchronous_rollouts_train_whole_trajectories_of_several_versions() {
    let reports = block_on(async {
        let mut settings = settings(RolloutMode::Asynchronous, 8);
        settings.admission.max_staleness = 8;
        let mut trainer = trainer(&Slow::new(10, 5), settings);
        steps(&mut trainer, 12).await
    });
    let trained: Vec<&Trajectory> = reports.iter().flat_map(|report| &report.trained).collect();
    let n_versions = |one: &Trajectory| {
        let mut versions: Vec<u32> = one.sampled().map(|token| token.version.0).collect();
        assert!(versions.is_sorted(), "versions never decrease along a branch");
        versions.dedup();
        versions.len()
    };
    assert!(trained.iter().any(|one| n_versions(one) > 1), "no weights changed under an episode");
}
