use std::sync::Arc;

use turnwise_environment::{Action, Demonstrator, Ending, Observation, Step, TaskSet};
use turnwise_lab::credit::{
    Arm, LeverPuller, LeverTasks, Levers, RunResult, Settings, Vocabulary, compare, run,
};
use turnwise_rollout::{Renderer, StopSignal};
use turnwise_testkit::TabularModel;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(future)
}

/// Plays an episode: pulls a lever and writes a report.
fn play(tasks: &LeverTasks, door: usize, seed: u64, lever: usize, report: &str) -> (Step, Step) {
    block_on(async {
        let mut environment = tasks.environment(door);
        let first = environment.reset(seed).await.expect("it resets");
        assert_eq!(first, Observation::from(Levers::door(door)));
        let pulled = environment.step(Action::text(Levers::lever(lever))).await;
        let written = environment.step(Action::text(report)).await;
        (pulled.expect("a lever"), written.expect("a report"))
    })
}

/// The first turn's action alone decides, and is rewarded in its turn.
#[test]
fn the_lever_alone_decides() {
    let levers = Levers { doors: 3, ..Levers::default() };
    let tasks = LeverTasks(levers);
    for door in 0..tasks.len() {
        for lever in 0..levers.levers {
            for report in ["", "lever0", "door0 report lever3 lever3"] {
                let (pulled, written) = play(&tasks, door, 1, lever, report);
                let right = lever == levers.right(door);
                let reward = f64::from(u8::from(right));
                assert_eq!(pulled, Step::next("report").reward(reward));
                let Step::End { reward: Some(score), ending, solved, .. } = written else {
                    panic!("it ends: {written:?}");
                };
                assert_eq!((score.abs(), ending, solved), (1.0, Ending::Terminated, right));
            }
        }
    }
}

/// The report's reward is noise: for every report and every lever, the mean over the seeds is 0.
#[test]
fn the_judge_is_as_often_pleased_as_not() {
    let tasks = LeverTasks(Levers::default());
    for report in ["", "lever0", "lever5 lever5 lever1"] {
        for lever in [0, 1] {
            let pleased = (0..2000)
                .filter(|seed| {
                    let (_, written) = play(&tasks, 0, *seed, lever, report);
                    matches!(written, Step::End { reward: Some(score), .. } if score > 0.0)
                })
                .count();
            // Five standard deviations of 22 around 1000.
            assert!(pleased.abs_diff(1000) < 112, "{report} {pleased}");
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
        levers: Levers { doors: 2, levers: 4, report_words: 3, judge: 0.5 },
        learning_rate: 4.0,
        max_episodes: 20_000,
        ..Settings::default()
    };
    for arm in [Arm::Outcome, Arm::Turn] {
        let model = TabularModel::new(Vocabulary::new(&settings.levers).n_ids());
        let parts = (Arc::new(model.clone()) as Arc<dyn turnwise_rollout::Policy>, model);
        let done = block_on(run(&settings, arm, 1, parts, &StopSignal::never()));
        let done = done.expect("nothing breaks").expect("nobody stops it");
        assert!(done.solved && done.success_at_start < 0.8, "{done:?}");
        assert_eq!(done.episodes % 16, 0);
    }
}

fn result(arm: Arm, seed: u64, episodes: usize) -> RunResult {
    RunResult { arm, seed, episodes, solved: true, success_at_start: 0.1, success_at_end: 0.9 }
}

#[test]
fn ratios_are_compared_seed_by_seed() {
    // One quarter on every seed, although the seeds differ.
    let runs: Vec<RunResult> = (1..=5)
        .flat_map(|seed| {
            let n = 1000 * seed as usize;
            [result(Arm::Outcome, seed, 4 * n), result(Arm::Turn, seed, n)]
        })
        .collect();
    let one = compare(&runs, Arm::Turn, Arm::Outcome).unwrap();
    assert!((one.ratio - 0.25).abs() < 1e-12 && one.seeds == 5 && one.unsolved == 0);
    assert!((one.ci_low - 0.25).abs() < 1e-12 && (one.ci_high - 0.25).abs() < 1e-12);
    assert_eq!(compare(&runs[..2], Arm::Turn, Arm::Outcome), None);
    assert_eq!(compare(&runs[..1], Arm::Turn, Arm::Outcome), None);
}

#[test]
fn the_interval_is_students() {
    // Log ratios −ln 2 and −ln 8: mean −2 ln 2, standard error ln 2, and 12.706 for one degree of freedom.
    let runs = [
        result(Arm::Outcome, 1, 8000),
        result(Arm::Turn, 1, 4000),
        result(Arm::Outcome, 2, 8000),
        result(Arm::Turn, 2, 1000),
    ];
    let one = compare(&runs, Arm::Turn, Arm::Outcome).unwrap();
    assert!((one.ratio.log2() + 2.0).abs() < 1e-12);
    assert!((one.ci_low.log2() + 14.706).abs() < 1e-9);
    assert!((one.ci_high.log2() - 10.706).abs() < 1e-9);
}
