use turnwise_lab::{
    CreditRule, LabError, Measurement, NamedObjective, Problem, Setup, credits, expected_gradients,
    measure, objectives, problems, table,
};

fn measured(problem: &Problem, group_size: usize) -> Vec<Measurement> {
    measure(problem, Setup { group_size, off_policy: 0.0 }).unwrap()
}

fn of<'a>(rows: &'a [Measurement], objective: &str, credit: &str) -> &'a Measurement {
    rows.iter()
        .find(|row| row.objective == objective && row.credit == credit)
        .unwrap_or_else(|| panic!("{objective} with {credit}"))
}

fn problem(name: &str) -> Problem {
    problems::all().into_iter().find(|problem| problem.name == name).unwrap()
}

/// Returns the credits whose expected gradient is the true one, with the multiple of it that they give in groups of
/// `n`.
fn unbiased(n: usize) -> [(&'static str, f64); 8] {
    let with_itself = 1.0 - 1.0 / n as f64;
    [
        ("broadcast return", 1.0),
        ("leave_one_out", 1.0),
        ("mean_only", with_itself),
        ("reward_to_go", 1.0),
        ("minus_mean_return", with_itself),
        ("minus_mean_return_of_others", 1.0),
        ("minus_mean_return_at_turn", 1.0),
        ("mix of the two of others", 1.0),
    ]
}

// Objective 21
#[test]
fn gspo_token_with_unbiased_credit_has_the_true_gradient_on_every_problem() {
    for problem in problems::all() {
        for n in 2..=3 {
            let rows = measured(&problem, n);
            for (credit, scale) in unbiased(n) {
                let row = of(&rows, "gspo_token, w=n", credit);
                let context = format!("{} {n} {row:?}", problem.name);
                assert!(row.bend <= 1e-12, "{context}");
                assert!((row.scale - scale).abs() <= 1e-12, "{context}");
                assert!((row.relative_bias - (1.0 - scale)).abs() <= 1e-12, "{context}");
            }
        }
    }
}

// Objective 1 and 21
#[test]
fn gspo_is_gspo_token_where_it_takes_the_credit() {
    for problem in problems::all() {
        let rows = measured(&problem, 3);
        for credit in ["broadcast return", "mean_std", "mean_only", "leave_one_out"] {
            for (gspo, token) in [("gspo", "gspo_token"), ("gspo, w=n", "gspo_token, w=n")] {
                let (one, other) = (of(&rows, gspo, credit), of(&rows, token, credit));
                assert!((one.scale - other.scale).abs() < 1e-13);
                assert!((one.relative_bias - other.relative_bias).abs() < 1e-13);
            }
        }
        assert!(!rows.iter().any(|row| row.objective == "gspo" && row.credit == "reward_to_go"));
    }
}

// Objective 21: 1/n_i is a scale if lengths are equal, and a bias if they are not
#[test]
fn the_weight_by_length_bends_the_gradient_only_where_lengths_differ() {
    for objective in ["gspo_token", "gspo", "grpo"] {
        let row = measured(&problem("equal_lengths"), 3);
        let equal = of(&row, objective, "leave_one_out");
        assert!(equal.bend <= 1e-12, "{equal:?}");
        assert!((equal.scale - 1.0 / 3.0).abs() <= 1e-12, "{equal:?}");
        for name in ["early_or_late", "lengths"] {
            let rows = measured(&problem(name), 3);
            let row = of(&rows, objective, "leave_one_out");
            assert!(row.bend > 0.02, "{name} {row:?}");
        }
    }
}

// Objective 21
#[test]
fn comparing_by_turn_index_sees_nothing_of_what_going_on_is_worth() {
    for n in 2..=4 {
        let rows = measured(&problems::stopping(1.0), n);
        for objective in ["gspo_token", "gspo_token, w=n", "grpo"] {
            let row = of(&rows, objective, "per_turn_index_biased");
            assert_eq!((row.scale, row.relative_bias, row.bend, row.cosine), (0.0, 1.0, 1.0, None));
        }
    }
    for name in ["early_or_late", "lengths"] {
        for n in [3, 5] {
            let rows = measured(&problem(name), n);
            let row = of(&rows, "gspo_token, w=n", "per_turn_index_biased");
            assert!(row.bend > 0.05, "{name} {n} {row:?}");
        }
    }
}

// Objective 20
#[test]
fn the_plain_ratio_impostor_averages_credit_away() {
    for name in ["equal_lengths", "early_or_late", "lengths", "tool_answer"] {
        let rows = measured(&problem(name), 3);
        for credit in ["reward_to_go", "minus_mean_return_of_others", "minus_mean_return_at_turn"] {
            let wrong = of(&rows, "plain_ratio_impostor, w=n", credit);
            assert!(wrong.relative_bias > 0.05, "{wrong:?}");
            assert!(wrong.bend > 0.01, "{wrong:?}");
            let right = of(&rows, "gspo_token, w=n", credit);
            assert!(right.relative_bias <= 1e-12, "{right:?}");
        }
        let harmless = of(&rows, "plain_ratio_impostor, w=n", "leave_one_out");
        assert!(harmless.relative_bias <= 1e-12, "{harmless:?}");
    }
    // If only the first of three tokens matters, a third of its credit remains on it.
    let rows = measured(&problem("two_turns"), 3);
    let row = of(&rows, "plain_ratio_impostor, w=n", "reward_to_go");
    assert!((row.scale - 1.0 / 3.0).abs() < 1e-12 && row.bend < 1e-12, "{row:?}");
}

// Objective 21: a credit of discounted returns estimates another gradient
#[test]
fn a_discount_is_a_bias() {
    let rows = measured(&problem("lengths"), 2);
    let row = of(&rows, "gspo_token, w=n", "reward_to_go, gamma=0.5");
    assert!(row.bend > 0.02, "{row:?}");
}

// Objective 21: the direction of the normalised estimators becomes right as the group grows
#[test]
fn division_by_the_groups_deviation_bends_small_groups() {
    for credit in ["mean_std", "normalised_over_all_turns"] {
        let bend = |n| of(&measured(&problem("early_or_late"), n), "gspo_token, w=n", credit).bend;
        let (small, large) = (bend(2), bend(6));
        assert!(small > 1e-3 && large < small, "{credit} {small} {large}");
    }
}

#[test]
fn a_baseline_of_the_turns_own_scatters_less_where_a_turn_earns_nothing() {
    let rows = measured(&problem("two_turns"), 4);
    let variance = |credit| of(&rows, "gspo_token, w=n", credit).relative_variance.unwrap();
    assert!(variance("minus_mean_return_at_turn") < 0.6 * variance("leave_one_out"));
    assert!(variance("minus_mean_return_of_others") < variance("leave_one_out"));
    assert!(variance("leave_one_out") < variance("broadcast return"));
}

#[test]
fn off_policy_nothing_stays_exact_and_little_changes_near_by() {
    let setup = |off_policy| Setup { group_size: 2, off_policy };
    for problem in problems::all() {
        let bias = |off_policy| {
            let rows = measure(&problem, setup(off_policy)).unwrap();
            of(&rows, "gspo_token, w=n", "minus_mean_return_of_others").relative_bias
        };
        assert!(bias(0.0) <= 1e-12, "{}", problem.name);
        // Inside the clip range, so that only the ratio is not an importance weight.
        assert!((1e-9..0.01).contains(&bias(1e-4)), "{} {}", problem.name, bias(1e-4));
        assert!(bias(0.5) > 0.05, "{} {}", problem.name, bias(0.5));
    }
}

/// Computes the same expectation over every ordered group.
#[test]
fn multisets_count_every_group() {
    let problem = problem("early_or_late");
    let episodes = problem.trajectories();
    let probability = |one: usize| episodes[one].probability(&problem.policy);
    let rewards =
        |one: usize| episodes[one].turns.iter().map(|turn| turn.reward).collect::<Vec<f64>>();
    let credits: Vec<CreditRule> =
        credits().into_iter().filter(|credit| credit.name == "mean_std").collect();
    let mut expected = vec![0.0; problem.policy.len()];
    for first in 0..episodes.len() {
        for second in 0..episodes.len() {
            let group = [first, second];
            let advantages = (credits[0].assign)(&group.map(rewards)).unwrap();
            for (member, turns) in group.into_iter().zip(&advantages) {
                let weight = probability(first) * probability(second) / 2.0;
                for (turn, advantage) in episodes[member].turns.iter().zip(turns) {
                    for &token in &turn.tokens {
                        problem.policy.add_score(token, weight * advantage, &mut expected);
                    }
                }
            }
        }
    }
    let objectives: Vec<NamedObjective> =
        objectives().into_iter().filter(|one| one.name == "gspo_token, w=n").collect();
    let setup = Setup { group_size: 2, off_policy: 0.0 };
    let estimates = expected_gradients(&problem, setup, &objectives, &credits).unwrap();
    for (one, other) in estimates[0].mean.iter().zip(&expected) {
        assert!((one - other).abs() < 1e-14, "{estimates:?} {expected:?}");
    }
}

#[test]
fn the_table_is_sorted_and_fits() {
    let setup = Setup::default();
    for problem in problems::all() {
        let text = table(&problem, setup, &measure(&problem, setup).unwrap());
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let bends: Vec<f64> = text
            .lines()
            .skip(3)
            .map(|line| line[59..66].trim().parse().expect("a number"))
            .collect();
        assert!(bends.is_sorted() && bends.len() > 50, "{bends:?}");
    }
}

#[test]
fn what_cannot_be_enumerated_is_refused() {
    let problem = problems::stopping(1.0);
    let refused = |group_size, off_policy| measure(&problem, Setup { group_size, off_policy });
    assert_eq!(refused(0, 0.0), Err(LabError::GroupSize { group_size: 0 }));
    assert_eq!(refused(7, 0.0), Err(LabError::GroupSize { group_size: 7 }));
    assert_eq!(refused(2, -1.0), Err(LabError::OffPolicy { off_policy: -1.0 }));
    assert!(refused(2, f64::NAN).is_err());
}
