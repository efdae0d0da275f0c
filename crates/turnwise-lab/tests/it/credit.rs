use std::sync::Arc;

use turnwise_environment::{Action, Demonstrator, Observation, Step, TaskSet};
use turnwise_lab::credit::{
    Arm, LeverPuller, LeverTasks, Levers, Run, Settings, Vocabulary, compare, run,
};
use turnwise_rollout::{Renderer, StopSignal};
use turnwise_testkit::TabularModel;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(future)
}

/// The first turn's action alone decides, and is rewarded in its turn.
#[test]
fn the_report_changes_nothing() {
    let levers = Levers::default();
    let tasks = LeverTasks(levers);
    for door in 0..tasks.len() {
        for lever in 0..levers.levers {
            for report in ["", "lever0", "door0 report lever3 lever3"] {
                let (opened, end) = block_on(async {
                    let mut environment = tasks.environment(door);
                    let seen = environment.reset(1).await.unwrap();
                    assert_eq!(seen, Observation::from(Levers::door(door)));
                    let action = Action::text(Levers::lever(lever));
                    (
                        environment.step(action).await.unwrap(),
                        environment.step(Action::text(report)).await.unwrap(),
                    )
                });
                let right = lever == levers.right(door);
                assert_eq!(opened, Step::next("report").reward(f64::from(u8::from(right))));
                assert_eq!(end, Step::terminated(0.0).solved(right));
            }
        }
    }
}

#[test]
fn what_is_written_is_read_back() {
    let levers = Levers::default();
    let vocabulary = Vocabulary::new(&levers);
    let mut player = LeverPuller::new(levers, 7);
    for (observation, n) in [("door2", 1), ("report", levers.report_words)] {
        let action = player.act(&observation.into());
        let ids = vocabulary.write(&action);
        assert_eq!(ids.len(), n + 1);
        assert!(ids.iter().all(|id| (*id as usize) < vocabulary.n_ids()));
        assert_eq!(vocabulary.parse(&ids, &[]).text, action.text);
    }
    assert!(vocabulary.open(&"dragon".into(), &[]).is_err());
}

/// The same loop with a table of logits instead of a network.
#[test]
fn every_arm_learns_the_levers() {
    let settings = Settings {
        levers: Levers { doors: 2, levers: 4, report_words: 3 },
        learning_rate: 4.0,
        max_episodes: 20_000,
        ..Settings::default()
    };
    for arm in [Arm::Outcome, Arm::Turn, Arm::TurnBaseline] {
        let model = TabularModel::new(Vocabulary::new(&settings.levers).n_ids());
        let parts = (Arc::new(model.clone()) as Arc<dyn turnwise_rollout::Policy>, model);
        let done = block_on(run(&settings, arm, 1, parts, &StopSignal::never()));
        let done = done.expect("nothing breaks").expect("nobody stops it");
        assert!(done.solved && done.success_at_start < 0.8, "{done:?}");
        assert_eq!(done.episodes % 64, 0);
    }
}

fn result(arm: Arm, seed: u64, episodes: usize) -> Run {
    Run { arm, seed, episodes, solved: true, success_at_start: 0.1, success_at_end: 0.9 }
}

#[test]
fn ratios_are_compared_seed_by_seed() {
    // One quarter on every seed, however different the seeds are.
    let runs: Vec<Run> = (1..=5)
        .flat_map(|seed| {
            let n = 1000 * seed as usize;
            [result(Arm::Outcome, seed, 4 * n), result(Arm::Turn, seed, n)]
        })
        .collect();
    let one = compare(&runs, Arm::Turn, Arm::Outcome).unwrap();
    assert!((one.ratio - 0.25).abs() < 1e-12 && one.seeds == 5 && one.unsolved == 0);
    assert!((one.ci_low - 0.25).abs() < 1e-12 && (one.ci_high - 0.25).abs() < 1e-12);
    assert_eq!(compare(&runs[..2], Arm::Turn, Arm::Outcome), None);
    assert_eq!(compare(&runs, Arm::TurnBaseline, Arm::Outcome), None);
}

#[test]
fn the_interval_is_students() {
    // Log ratios −1 and −3: mean −2, standard error 1, and 12.706 for one degree of freedom.
    let e = |power: f64| (1e9 * power.exp()) as usize;
    let runs = [
        result(Arm::Outcome, 1, e(0.0)),
        result(Arm::Turn, 1, e(-1.0)),
        result(Arm::Outcome, 2, e(0.0)),
        result(Arm::Turn, 2, e(-3.0)),
    ];
    let one = compare(&runs, Arm::Turn, Arm::Outcome).unwrap();
    assert!((one.ratio.ln() + 2.0).abs() < 1e-6);
    assert!((one.ci_low.ln() + 14.706).abs() < 1e-6);
    assert!((one.ci_high.ln() - 10.706).abs() < 1e-6);
}
