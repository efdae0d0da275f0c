use proptest::prelude::*;
use turnwise_lab::{Problem, SoftmaxPolicy, problems};

fn total(problem: &Problem, policy: &SoftmaxPolicy) -> f64 {
    problem.trajectories().iter().map(|one| one.probability(policy)).sum()
}

/// Generates a problem, and a policy around its own.
fn places() -> impl Strategy<Value = (Problem, SoftmaxPolicy)> {
    prop::sample::select(problems::all()).prop_flat_map(|problem| {
        let change = prop::collection::vec(-1.5..1.5, problem.policy.len());
        change.prop_map(move |change| (problem.clone(), problem.policy.moved(&change)))
    })
}

proptest! {
    // Objective 21
    #[test]
    fn trajectories_are_all_there_are((problem, policy) in places()) {
        prop_assert!((total(&problem, &policy) - 1.0).abs() < 1e-14, "{}", problem.name);
    }

    // Objective 21
    #[test]
    fn the_true_gradient_is_that_of_the_value((problem, policy) in places()) {
        let gradient = problem.true_gradient(&policy);
        let step = 1e-5;
        for place in 0..policy.len() {
            let moved = |by: f64| {
                let mut change = vec![0.0; policy.len()];
                change[place] = by;
                problem.value(&policy.moved(&change))
            };
            let difference = (moved(step) - moved(-step)) / (2.0 * step);
            prop_assert!((gradient[place] - difference).abs() < 1e-9, "{} {place}", problem.name);
        }
    }
}

// The true gradient of continuing is p(1 − p)c.
#[test]
fn stopping_has_the_gradient_that_is_known() {
    let problem = problems::stopping(2.5);
    let p = 1.0 / (1.0 + (-0.4_f64).exp());
    let gradient = problem.true_gradient(&problem.policy);
    assert!((gradient[1] - p * (1.0 - p) * 2.5).abs() < 1e-15);
}

#[test]
fn the_problems_are_what_their_names_say() {
    let lengths = |problem: &Problem| -> Vec<usize> {
        problem.trajectories().iter().map(|one| one.tokens().count()).collect()
    };
    for problem in problems::all() {
        let lengths = lengths(&problem);
        let equal = lengths.iter().all(|length| *length == lengths[0]);
        let expected = matches!(problem.name, "two_turns" | "equal_lengths" | "tool_answer");
        assert_eq!(equal, expected, "{}", problem.name);
        assert!(lengths.len() > 1 && lengths.len() <= 16, "{}", problem.name);
    }
    let names: Vec<&str> = problems::all().iter().map(|problem| problem.name).collect();
    for name in ["stopping", "two_turns", "equal_lengths", "lengths"] {
        assert!(names.contains(&name), "{name}");
    }
}
