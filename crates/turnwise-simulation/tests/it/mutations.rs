use turnwise_simulation::{Invariant, Mode, Mutation, SimulationPlan, simulate};

/// Returns the invariants that a mutation violates, over some seeds.
fn broken_by(mutation: Mutation) -> Vec<Invariant> {
    let run = |seed| simulate(SimulationPlan::new(seed, Mode::Safety), Some(mutation));
    let failures = (0..120).filter_map(|seed| run(seed).err());
    let mut broken: Vec<Invariant> = failures.map(|failure| failure.violation.invariant).collect();
    broken.sort_unstable();
    broken.dedup();
    broken
}

// A simulation that cannot fail shows nothing.
#[test]
fn a_scheduler_with_one_thing_wrong_is_found_out() {
    let expected = [
        // An incomplete group is refused before the run continues.
        (Mutation::LosesEpisode, Invariant::Restore),
        (Mutation::DoublesEpisode, Invariant::Restore),
        (Mutation::LosesGroup, Invariant::Conservation),
        (Mutation::DoublesGroup, Invariant::Conservation),
        (Mutation::StampsTooNew, Invariant::Versions),
        (Mutation::AltersLogprob, Invariant::Tokens),
        (Mutation::TrainsTooOld, Invariant::Staleness),
        (Mutation::KeepsSessions, Invariant::Leaks),
        (Mutation::KeepsEnvironments, Invariant::Leaks),
        (Mutation::OutlivesDeadline, Invariant::Leaks),
        (Mutation::RunsTooMany, Invariant::Concurrency),
    ];
    for (mutation, invariant) in expected {
        let broken = broken_by(mutation);
        assert!(broken.contains(&invariant), "{mutation:?} broke {broken:?}");
    }
}

// Rollouts 13.26
#[test]
fn a_scheduler_that_reads_a_real_clock_has_another_trace_each_time() {
    let run = |mutation| {
        let plan = SimulationPlan::new(5, Mode::Safety).undisturbed();
        simulate(plan, mutation).expect("it holds").trace
    };
    assert_eq!(run(None), run(None));
    assert_ne!(run(Some(Mutation::ReadsTheClock)), run(Some(Mutation::ReadsTheClock)));
}

// A failure prints the command that replays it.
#[test]
fn a_failure_says_what_was_found_and_how_to_see_it_again() {
    let run = |seed| {
        simulate(SimulationPlan::new(seed, Mode::Safety), Some(Mutation::KeepsEnvironments)).err()
    };
    let text = (0..20).find_map(run).expect("one of them").to_string();
    for part in [
        "violated Leaks: ",
        "turnwise simulate --seed ",
        " --mode safety",
        "settings SimulationPlan",
    ] {
        assert!(text.contains(part), "{text}");
    }
}
