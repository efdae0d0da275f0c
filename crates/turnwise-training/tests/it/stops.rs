//! A run that is stopped and resumed is the run that was not.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::time::sleep;
use turnwise_environment::{Babbler, TaskSet};
use turnwise_rollout::{
    Opponent, Policy, PolicyError, Sample, SampleRequest, StopSignal, stop_signal,
};
use turnwise_testkit::Duel;
use turnwise_training::{
    Admission, Checkpoints, DynamicSampling, Learner, Parts, ReturnCredit, RolloutMode, Schedule,
    StepReport, Trainer, TrainerSettings, metric,
};
use turnwise_trajectory::PolicyVersion;

use crate::overlap::Slow;
use crate::support::{OBJECTIVE, agents, block_on, echoes, pool_settings};

/// Steps of a run.
const STEPS: u64 = 5;

fn settings(mode: RolloutMode, seed: u64) -> TrainerSettings {
    TrainerSettings {
        groups_per_step: 3,
        rollout: pool_settings(),
        mode,
        admission: Admission { max_staleness: 2, ..Admission::default() },
        n_minibatches: 2,
        schedule: Schedule { learning_rate: 0.2, ..Schedule::default() },
        seed,
        ..TrainerSettings::default()
    }
}

/// A process of a run: a model of its own, and a trainer on it.
fn process(slow: &Slow, settings: TrainerSettings, game: Game) -> Trainer<Slow> {
    let policy = Arc::new(slow.clone());
    match game {
        Game::Alone => process_with(slow, policy, settings, Arc::new(echoes(4, true))),
        Game::SelfPlay => process_with(slow, policy, settings, Arc::new(vec![Duel::new(2, 3)])),
        Game::Scripted => {
            let opponent =
                Opponent::Scripted(Arc::new(|seed| Box::new(Babbler::new(seed, Vec::new()))));
            process_with(slow, policy, settings, Arc::new(vec![Duel::new(2, 3)])).against(opponent)
        }
    }
}

/// What the policy plays, and against whom.
#[derive(Clone, Copy, Debug)]
enum Game {
    Alone,
    SelfPlay,
    Scripted,
}

fn process_with(
    slow: &Slow,
    policy: Arc<dyn Policy>,
    settings: TrainerSettings,
    tasks: Arc<dyn TaskSet>,
) -> Trainer<Slow> {
    let parts = Parts {
        tasks,
        agents: Arc::new(agents()),
        rubric: None,
        policy,
        learner: slow.clone(),
        objective: Box::new(OBJECTIVE),
        credit: Box::new(ReturnCredit { gamma: 0.9 }),
    };
    Trainer::new(parts, settings)
}

/// A step, its metrics by name, and the tokens of each episode that was trained on.
type Facts = (u64, Vec<(String, String)>, Vec<Vec<u32>>);

/// What of a step must not depend on when the run was stopped: every metric but the times, and the tokens trained on.
fn facts(report: &StepReport) -> Facts {
    let metrics = report.metrics.iter().filter(|(name, _)| !name.starts_with("time/"));
    // As text, so that a metric without a value equals itself.
    let metrics = metrics.map(|(name, value)| (name.to_owned(), format!("{value:?}"))).collect();
    let ids = report.trained.iter().map(|one| one.sampled().map(|token| token.id).collect());
    (report.step, metrics, ids.collect())
}

/// Plays a run of several processes. Each is stopped so many milliseconds after it began, written down, and gone; the last
/// goes on to the end. Returns the facts of every step and the last weights.
fn run(slow: &Slow, settings: &TrainerSettings, game: Game, stops: &[u64]) -> (Vec<Facts>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = Checkpoints::new(folder.path().join("checkpoints"), 2);
    let mut reports = Vec::new();
    for number in 0..=stops.len() {
        let model = slow.anew();
        let is_over = block_on(async {
            let mut trainer = process(&model, settings.clone(), game);
            if number > 0 {
                checkpoints.load(&mut trainer).await.expect("it is whole").expect("it is there");
            }
            let (handle, stop) = stop_signal();
            if let Some(ms) = stops.get(number).copied() {
                tokio::spawn(async move {
                    sleep(Duration::from_millis(ms)).await;
                    handle.stop();
                });
            }
            while trainer.next_step() < STEPS {
                if let Some(report) = trainer.step(&stop).await.expect("it goes on") {
                    reports.push(facts(&report));
                } else {
                    checkpoints.save(&mut trainer, |_| Ok(())).await.expect("it is written");
                    return false;
                }
            }
            true
        });
        if is_over {
            return (reports, table(&model, folder.path()));
        }
    }
    unreachable!("the last process is not stopped")
}

/// The first step that differs, and what of it.
fn first_difference(stopped: &[Facts], undisturbed: &[Facts]) -> Option<String> {
    if stopped.len() != undisturbed.len() {
        return Some(format!("{} steps against {}", stopped.len(), undisturbed.len()));
    }
    let (one, other) = stopped.iter().zip(undisturbed).find(|(one, other)| one != other)?;
    let metrics = one.1.iter().zip(&other.1).filter(|(one, other)| one != other);
    let metrics: Vec<_> = metrics.collect();
    Some(format!("step {}: {metrics:?}, {:?} against {:?}", one.0, one.2, other.2))
}

fn table(model: &Slow, folder: &Path) -> String {
    block_on(model.clone().save(folder)).expect("it is written");
    std::fs::read_to_string(folder.join("table.json")).expect("it is read")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// A polite stop at any moment changes no token, no metric but the times, and no weight, like a kill.
    ///
    /// Field 5
    #[test]
    fn a_run_that_is_stopped_and_resumed_equals_one_that_is_not(
        mode in prop::sample::select(vec![RolloutMode::Synchronous, RolloutMode::Pipelined]),
        tokens_per_iteration in prop::option::of(30_u64..200),
        max_groups in prop::option::of(1_u64..5),
        max_concurrent in 2_usize..24,
        request_ms in 1_u64..20,
        update_ms in 1_u64..20,
        stops in prop::collection::vec(0_u64..700, 1..5),
        game in prop::sample::select(vec![Game::Alone, Game::SelfPlay, Game::Scripted]),
        seed in any::<u64>(),
    ) {
        let mut settings = settings(mode, seed);
        settings.rollout.tokens_per_iteration = tokens_per_iteration;
        settings.rollout.max_concurrent = max_concurrent;
        settings.dynamic_sampling =
            max_groups.map(|max_groups| DynamicSampling { max_groups, max_seconds: 1e9 });
        let slow = Slow::new(request_ms, update_ms);
        let undisturbed = run(&slow, &settings, game, &[]);
        let stopped = run(&slow, &settings, game, &stops);
        prop_assert_eq!(first_difference(&stopped.0, &undisturbed.0), None);
        prop_assert_eq!(stopped.1, undisturbed.1);
    }
}

/// Counts the tokens that its engine draws.
#[derive(Debug)]
struct Counting(Slow, Arc<AtomicU64>);

#[async_trait]
impl Policy for Counting {
    fn version(&self) -> PolicyVersion {
        Policy::version(&self.0)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let sample = self.0.sample(request).await?;
        self.1.fetch_add(sample.tokens.len() as u64, Ordering::Relaxed);
        Ok(sample)
    }
}

/// What was drawn beside an update belongs to the next step, also when a new process takes it: the steps' numbers add up to
/// the tokens that the engines drew.
///
/// Field 3
#[test]
fn the_tokens_of_all_steps_are_those_the_engines_drew() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = Checkpoints::new(folder.path().join("checkpoints"), 2);
    let settings = settings(RolloutMode::Asynchronous, 7);
    let slow = Slow::new(5, 10);
    let (drawn, mut reported) = (Arc::new(AtomicU64::new(0)), 0.0);
    for number in 0..4 {
        let model = slow.anew();
        let policy = Arc::new(Counting(model.clone(), drawn.clone()));
        block_on(async {
            let mut trainer =
                process_with(&model, policy, settings.clone(), Arc::new(echoes(4, true)));
            if number > 0 {
                checkpoints.load(&mut trainer).await.expect("it is whole").expect("it is there");
            }
            for _ in 0..2 {
                let report = trainer.step(&StopSignal::never()).await.expect("it goes on");
                let report = report.expect("nobody stops it");
                let sampled = report.metrics.get(metric::SAMPLED_TOKENS).expect("it is counted");
                assert!(sampled > 0.0, "step {} of process {number} drew nothing", report.step);
                reported += sampled;
            }
            checkpoints.save(&mut trainer, |_| Ok(())).await.expect("it is written");
        });
    }
    // What was drawn after the last step waits in the last checkpoint; it is what the next step begins with.
    let model = slow.anew();
    block_on(async {
        let counting = Arc::new(AtomicU64::new(0));
        let policy = Arc::new(Counting(model.clone(), counting.clone()));
        let mut trainer = process_with(&model, policy, settings.clone(), Arc::new(echoes(4, true)));
        checkpoints.load(&mut trainer).await.expect("it is whole").expect("it is there");
        let (handle, stop) = stop_signal();
        handle.stop();
        assert!(trainer.step(&stop).await.expect("a stop is no error").is_none());
        let snapshot = serde_json::to_value(trainer.snapshot().await).expect("plain data");
        let waiting = snapshot["scheduler"]["news"]["n_sampled"].as_u64().expect("a count");
        assert_eq!(counting.load(Ordering::Relaxed), 0);
        assert_eq!(reported + waiting as f64, drawn.load(Ordering::Relaxed) as f64);
    });
}
