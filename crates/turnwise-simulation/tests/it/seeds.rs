use turnwise_simulation::{FaultKind, ManySettings, Mode, SimulationPlan, simulate, simulate_many};

/// Seeds that once showed a bug, each with the bug.
const REGRESSIONS: [(u64, Mode); 10] = [
    // A graded group that tripped the breaker beside an update was in no book at the end of the step.
    (171, Mode::Liveness),
    // A step without pauses waited for a whole batch while almost every group was dropped whole.
    (5672, Mode::Safety),
    (11190, Mode::Liveness),
    // An episode that was cancelled for its age kept its session at the engine.
    (13, Mode::Liveness),
    (1015, Mode::Safety),
    // A group that finished in the round in which the breaker tripped was in no book.
    (93, Mode::Safety),
    // An engine panic stopped the run.
    (4, Mode::Liveness),
    // An environment that refused its snapshot stopped the whole run.
    (17, Mode::Liveness),
    // A rubric that never answered hung the run.
    (19, Mode::Liveness),
    (19, Mode::Safety),
];

// Rollouts 13.3, 13.6, 13.7, 13.8, 13.9, 13.10, 13.21, 13.22, 13.24: under every kind of fault.
#[test]
fn whatever_goes_wrong_the_books_balance_and_the_run_goes_on() {
    let summary = simulate_many(&ManySettings::new(0..300), |_| {});
    assert_eq!(summary.failures.first().map(ToString::to_string), None);
    assert_eq!((summary.seeds, summary.runs, summary.repeated), (300, 600, 30));
    assert!(summary.rollouts > 10_000 && summary.trained > 1_000, "{summary:?}");
    assert!(summary.halts > 50 && summary.kills > 50 && summary.restores > 100, "{summary:?}");
    let missing: Vec<FaultKind> =
        FaultKind::ALL.into_iter().filter(|kind| !summary.faults.contains_key(kind)).collect();
    assert_eq!(missing, [], "every kind of fault happened");
}

// Rollouts 13.10
#[test]
fn seeds_that_showed_a_bug_show_none() {
    for (seed, mode) in REGRESSIONS {
        let result = simulate(SimulationPlan::new(seed, mode), None);
        assert_eq!(result.err().map(|failure| failure.to_string()), None);
    }
}

// Rollouts 13.26
#[test]
fn one_seed_run_twice_gives_one_trace_and_two_seeds_give_two() {
    for seed in 1000..1020 {
        let run = |seed| simulate(SimulationPlan::new(seed, Mode::Safety), None).expect("it holds");
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first, second);
        assert_ne!(first.trace, run(seed + 1).trace);
    }
}

// Rollouts 13.22
#[test]
fn a_run_whose_faults_stop_comes_to_its_end() {
    for seed in 2000..2050 {
        let plan = SimulationPlan::new(seed, Mode::Liveness);
        let steps = plan.steps;
        let report = simulate(plan, None).expect("it holds");
        assert!(report.is_complete);
        assert_eq!(report.steps, steps);
    }
}

// Rollouts 13.24
#[test]
fn no_call_goes_on_after_its_deadline() {
    let summary = simulate_many(&ManySettings::new(3000..3050), |_| {});
    assert_eq!(summary.max_stall.as_millis() / 10, 0, "{:?}", summary.max_stall);
    assert!(summary.faults.contains_key(&FaultKind::EnvironmentDead));
}

// Rollouts 13.10
#[test]
fn a_world_without_faults_has_none() {
    for seed in 0..50 {
        let report = simulate(SimulationPlan::new(seed, Mode::Safety).undisturbed(), None)
            .expect("it holds");
        assert!(report.faults.is_empty() && report.is_complete);
        assert_eq!((report.errors, report.kills, report.halts), (0, 0, 0));
    }
}
