//! Numbers from another implementation: float64 autograd and exact rationals, in tests/fixtures.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use turnwise_objective::{
    Advantages, Cispo, Clip, Dapo, DrGrpo, Gmpo, Grpo, KlEstimator, Objective, Sapo, Sequence, Std,
    StepLoss, broadcast_outcome, evaluate_step, leave_one_out, mean_only, mean_std,
    mean_with_std_of, minus_mean_return, mix, normalised_over_all_turns, per_turn_index_biased,
    reward_to_go, reward_to_go_with_outcome, spread_over_tokens, standard_deviation,
};

use crate::support::*;

/// Relative above 1, absolute below; the golden values are float64 themselves.
const TOLERANCE: f64 = 1e-12;

fn fixture(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A JSON number, or "inf", "-inf", "nan".
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(numbers).collect()
}

fn flags(value: &Value) -> Vec<bool> {
    value.as_array().unwrap().iter().map(|flag| flag.as_u64().unwrap() == 1).collect()
}

/// One case of objective/*.json, reduced to the input of an objective: the policy's tokens.
struct Case {
    name: String,
    json: Value,
    masks: Vec<Vec<bool>>,
    sequences: Vec<Tokens>,
}

impl Case {
    fn all() -> Vec<Self> {
        let index = fixture("objective/index.json");
        let names = index["cases"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        names.map(Self::load).collect()
    }

    fn load(name: &str) -> Self {
        let json = fixture(&format!("objective/{name}.json"));
        let sequences = json["sequences"].as_array().unwrap();
        let masks: Vec<Vec<bool>> =
            sequences.iter().map(|sequence| flags(&sequence["mask"])).collect();
        let select = |sequence: &Value, mask: &Vec<bool>| Tokens {
            logprobs: selected(&numbers(&sequence["logp"]), mask),
            behavior_logprobs: selected(&numbers(&sequence["old_logp"]), mask),
            advantages: selected(&numbers(&sequence["advantage"]), mask),
        };
        let sequences =
            sequences.iter().zip(&masks).map(|(sequence, mask)| select(sequence, mask)).collect();
        Self { name: name.to_owned(), json, masks, sequences }
    }

    fn is_uniform(&self) -> bool {
        self.json["advantage_uniform_per_sequence"].as_bool().unwrap()
    }

    fn n_nonempty(&self) -> usize {
        self.sequences.iter().filter(|tokens| !tokens.is_empty()).count()
    }

    /// Returns whether the objective is a mean over tokens, which a row without tokens does not
    /// change.
    fn is_token_mean(objective: &str) -> bool {
        matches!(objective, "dapo" | "cispo" | "cispo_upper")
    }

    /// Returns the expectation under our rule for empty rows: given as `*_nonempty_rows`, or
    /// rescaled from a mean over all rows.
    fn expected(&self, objective: &str) -> Option<Expected> {
        let all = &self.json["expected"];
        let own_rule = &all[format!("{objective}_nonempty_rows")];
        let (json, scale) = if own_rule.is_object() {
            (own_rule, 1.0)
        } else if Self::is_token_mean(objective) {
            (&all[objective], 1.0)
        } else {
            (&all[objective], self.sequences.len() as f64 / self.n_nonempty().max(1) as f64)
        };
        json.is_object().then(|| Expected {
            params: json["params"].clone(),
            loss: scale * number(&json["loss"]),
            gradients: self.per_token(&json["grad"], |row, mask| {
                selected(&numbers(row), mask).iter().map(|c| scale * c).collect()
            }),
            clipped: self.per_token(&json["clipped"], |row, mask| selected(&flags(row), mask)),
            active: self.per_token(&json["active"], |row, mask| selected(&flags(row), mask)),
        })
    }

    fn per_token<T>(&self, rows: &Value, read: impl Fn(&Value, &[bool]) -> Vec<T>) -> Vec<Vec<T>> {
        rows.as_array()
            .unwrap()
            .iter()
            .zip(&self.masks)
            .map(|(row, mask)| read(row, mask))
            .collect()
    }
}

fn selected<T: Copy>(row: &[T], mask: &[bool]) -> Vec<T> {
    row.iter().zip(mask).filter(|(_, keep)| **keep).map(|(value, _)| *value).collect()
}

struct Expected {
    params: Value,
    loss: f64,
    gradients: Vec<Vec<f64>>,
    clipped: Vec<Vec<bool>>,
    active: Vec<Vec<bool>>,
}

impl Expected {
    fn clip(&self) -> Clip {
        Clip::new(number(&self.params["clip_low"]), number(&self.params["clip_high"])).unwrap()
    }

    fn check(
        &self,
        label: &str,
        objective: &dyn Objective,
        sequences: &[Sequence<'_>],
    ) -> StepLoss {
        let step = evaluate_step(objective, sequences).unwrap();
        assert!(
            close(step.loss, self.loss, TOLERANCE),
            "{label}: {} instead of {}",
            step.loss,
            self.loss
        );
        for (row, (gradient, expected)) in step.gradients.iter().zip(&self.gradients).enumerate() {
            assert!(
                all_close(gradient, expected, TOLERANCE),
                "{label} row {row}: {gradient:?} instead of {expected:?}"
            );
            let is_zero = |expected: &[bool]| {
                expected.iter().zip(gradient).all(|(clipped, c)| !clipped || *c == 0.0)
            };
            let n_clipped = self.clipped[row].iter().filter(|clipped| **clipped).count();
            let stats = evaluate(objective, &sequences[row]).0.stats;
            if objective.name() == "cispo" {
                // The fixture counts a weight as clipped if it was cut, with an advantage of either
                // sign; the token keeps its gradient.
                let Advantages::PerToken(advantages) = sequences[row].advantages() else {
                    panic!("{label} row {row}: an advantage per token")
                };
                let flags = self.clipped[row].iter().zip(advantages);
                let n_cut = flags.filter(|(clipped, a)| **clipped && **a != 0.0).count();
                assert_eq!(stats.n_truncated, n_cut, "{label} row {row}");
                assert_eq!(stats.n_clipped_low + stats.n_clipped_high, 0, "{label} row {row}");
                continue;
            }
            assert!(is_zero(&self.clipped[row]), "{label} row {row}: a clipped token moves");
            let idle: Vec<bool> = self.active[row].iter().map(|active| !active).collect();
            assert!(is_zero(&idle), "{label} row {row}: an inactive token moves");
            assert_eq!(stats.n_clipped_low + stats.n_clipped_high, n_clipped, "{label} row {row}");
        }
        step
    }
}

/// Checks every case that has an expectation under `name`, and returns their number.
fn check_all(
    name: &str,
    objective: impl Fn(&Expected) -> Box<dyn Objective>,
    advantages: fn(&Tokens) -> Advantages<'_>,
) -> usize {
    let mut n_checked = 0;
    for case in Case::all() {
        let Some(expected) = case.expected(name) else { continue };
        let sequences: Vec<Sequence> = case
            .sequences
            .iter()
            .map(|tokens| {
                Sequence::new(&tokens.logprobs, &tokens.behavior_logprobs, advantages(tokens))
                    .unwrap()
            })
            .collect();
        expected.check(&format!("{name} {}", case.name), objective(&expected).as_ref(), &sequences);
        n_checked += 1;
    }
    n_checked
}

fn per_token(tokens: &Tokens) -> Advantages<'_> {
    Advantages::PerToken(&tokens.advantages)
}

fn mean_advantage(tokens: &Tokens) -> Advantages<'_> {
    Advantages::Uniform(if tokens.is_empty() { 0.0 } else { tokens.mean_advantage() })
}

// Objective 25
#[test]
fn p25_gspo_reproduces_every_golden_case() {
    assert_eq!(
        check_all(
            "gspo",
            |case| Box::new(gspo(case.clip())),
            |tokens| Advantages::PerToken(&tokens.advantages)
        ),
        38
    );
}

// Objective 25
#[test]
fn p25_gspo_with_the_mean_advantage_reproduces_every_golden_case() {
    assert_eq!(
        check_all("gspo_mean_advantage", |case| Box::new(gspo(case.clip())), mean_advantage),
        7
    );
}

// Objective 25
#[test]
fn p25_gspo_token_reproduces_every_golden_case() {
    assert_eq!(check_all("gspo_token", |case| Box::new(gspo_token(case.clip())), per_token), 46);
}

// Objective 25
#[test]
fn p25_gspo_token_with_one_advantage_reproduces_the_golden_cases_of_gspo() {
    assert_eq!(check_all("gspo", |case| Box::new(gspo_token(case.clip())), mean_advantage), 38);
}

// Objective 25
#[test]
fn p25_grpo_reproduces_every_golden_case() {
    assert_eq!(check_all("grpo", |case| Box::new(Grpo { clip: case.clip() }), per_token), 45);
}

// Objective 25
#[test]
fn p25_dapo_reproduces_every_golden_case() {
    assert_eq!(check_all("dapo", |case| Box::new(Dapo { clip: case.clip() }), per_token), 44);
}

// Objective 25
#[test]
fn p25_dr_grpo_reproduces_every_golden_case() {
    let dr_grpo = |case: &Expected| -> Box<dyn Objective> {
        let max_tokens = usize::try_from(case.params["constant"].as_u64().unwrap()).unwrap();
        Box::new(DrGrpo { clip: case.clip(), max_tokens })
    };
    assert_eq!(check_all("dr_grpo", dr_grpo, per_token), 38);
}

// Objective 25
#[test]
fn p25_cispo_reproduces_every_golden_case_with_and_without_a_lower_bound() {
    let cispo = |case: &Expected| -> Box<dyn Objective> {
        let low = &case.params["clip_low"];
        let low = (!low.is_null()).then(|| number(low));
        Box::new(Cispo::new(low, number(&case.params["clip_high"])).unwrap())
    };
    assert_eq!(check_all("cispo", cispo, per_token), 36);
    assert_eq!(check_all("cispo_upper", cispo, per_token), 36);
}

// Objective 25
#[test]
fn p25_gmpo_reproduces_every_golden_case() {
    let gmpo = |case: &Expected| -> Box<dyn Objective> {
        let bound = |name: &str| number(&case.params[name]);
        Box::new(Gmpo::new(bound("log_clip_low"), bound("log_clip_high")).unwrap())
    };
    assert_eq!(check_all("gmpo", gmpo, mean_advantage), 29);
}

// Objective 25
#[test]
fn p25_sapo_reproduces_every_golden_case() {
    let sapo = |case: &Expected| -> Box<dyn Objective> {
        let tau = |name: &str| number(&case.params[name]);
        Box::new(Sapo::new(tau("tau_pos"), tau("tau_neg")).unwrap())
    };
    assert_eq!(check_all("sapo", sapo, per_token), 36);
}

// Objective 23 and 25
#[test]
fn p25_kl_estimators_and_their_derivatives_reproduce_every_golden_row() {
    let fixture = fixture("objective/kl.json");
    let rows = fixture["rows"].as_array().unwrap();
    for row in rows {
        for (name, estimator) in
            [("k1", KlEstimator::K1), ("k2", KlEstimator::K2), ("k3", KlEstimator::K3)]
        {
            let (value, derivative) =
                estimator.value_and_derivative(number(&row["logp"]), number(&row["ref_logp"]));
            let (expected, slope) = (number(&row[name]), number(&row[format!("grad_{name}")]));
            // The fixture subtracts d from expm1, which leaves a rounding of d in k3.
            let rounding = 2.3e-16 * number(&row["k1"]).abs();
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-14 * b.abs() + rounding;
            assert!(near(value, expected), "{name} {row}: {value}");
            assert!(near(derivative, slope), "{name} {row}: {derivative}");
        }
    }
    assert!(rows.len() >= 20, "{}", rows.len());
}

// Objective 25
#[test]
fn p25_the_plain_ratio_with_token_advantages_has_the_value_of_gspo_token_and_another_gradient() {
    let mut n_checked = 0;
    for case in Case::all() {
        let Some(expected) = case.expected("gspo_plain_ratio_token_advantage") else { continue };
        let objective = gspo_token(expected.clip());
        let sequences: Vec<Sequence> = case.sequences.iter().map(Tokens::per_token).collect();
        let step = evaluate_step(&objective, &sequences).unwrap();
        assert!(close(step.loss, expected.loss, TOLERANCE), "{}", case.name);
        // Averaging our coefficients over the tokens gives the impostor's.
        for (gradient, impostor) in step.gradients.iter().zip(&expected.gradients) {
            assert!(
                all_close(&vec![mean(gradient); gradient.len()], impostor, TOLERANCE),
                "{}",
                case.name
            );
        }
        let all_clipped = expected.active.concat().iter().all(|active| !active);
        let same =
            step.gradients.iter().zip(&expected.gradients).all(|(a, b)| all_close(a, b, 1e-6));
        assert_eq!(same, all_clipped, "{}", case.name);
        n_checked += 1;
    }
    assert_eq!(n_checked, 7);
}

// Objective 25
#[test]
fn p25_sequence_statistics_are_the_golden_ones() {
    for case in Case::all() {
        let stats = case.json["sequence_stats"].as_array().unwrap();
        for (tokens, expected) in
            case.sequences.iter().zip(stats).filter(|(tokens, _)| !tokens.is_empty())
        {
            let stats = evaluate(&gspo_token(Clip::PAPER_GSPO), &tokens.per_token()).0.stats;
            assert_eq!(stats.n_tokens as u64, expected["policy_tokens"].as_u64().unwrap());
            assert!(
                close(stats.log_ratio, number(&expected["mean_log_ratio"]), 1e-15),
                "{}",
                case.name
            );
        }
    }
}

// Objective 25
#[test]
fn p25_turn_credit_of_mean_zero_moves_in_gspo_token() {
    let case = Case::load("turn_credit_zero_mean");
    let expected = case.expected("gspo_token").unwrap();
    let sequences: Vec<Sequence> = case.sequences.iter().map(Tokens::per_token).collect();
    let step = expected.check("gspo_token", &gspo_token(expected.clip()), &sequences);
    assert!(step.gradients.concat().iter().all(|c| *c != 0.0));
    assert!(!case.is_uniform());
}

/// Applies a rule group by group, as a caller does.
fn by_group(rewards: &[f64], groups: &[Value], rule: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let mut advantages = vec![f64::NAN; rewards.len()];
    for group in groups {
        let members: Vec<usize> =
            (0..rewards.len()).filter(|&member| groups[member] == *group).collect();
        let own = rule(&members.iter().map(|&member| rewards[member]).collect::<Vec<_>>());
        members.iter().zip(own).for_each(|(&member, advantage)| advantages[member] = advantage);
    }
    advantages
}

/// A rule from the rewards of one group to advantages.
type Rule = Box<dyn Fn(&[f64]) -> Vec<f64>>;

/// Returns the rule that a name of group_relative.json stands for.
fn group_rule(name: &str, batch_std: f64) -> Rule {
    let normalised = |std: Std, epsilon: &str| -> Rule {
        let epsilon = epsilon.parse().unwrap();
        Box::new(move |rewards: &[f64]| mean_std(rewards, std, epsilon).unwrap())
    };
    if let Some(epsilon) = name.strip_prefix("std_unbiased_eps_") {
        normalised(Std::Sample, epsilon)
    } else if let Some(epsilon) = name.strip_prefix("std_biased_eps_") {
        normalised(Std::Population, epsilon)
    } else if let Some(epsilon) = name.strip_prefix("mean_by_group_std_by_batch_unbiased_eps_") {
        let epsilon = epsilon.parse().unwrap();
        Box::new(move |rewards| mean_with_std_of(rewards, batch_std, epsilon).unwrap())
    } else if name == "mean_only" {
        Box::new(|rewards| mean_only(rewards).unwrap())
    } else {
        assert_eq!(name, "leave_one_out");
        Box::new(|rewards| leave_one_out(rewards).unwrap())
    }
}

// Objective 25
#[test]
fn p25_group_advantages_reproduce_every_golden_case() {
    let fixture = fixture("advantages/group_relative.json");
    let mut n_checked = 0;
    for case in fixture["cases"].as_array().unwrap() {
        let (rewards, groups) = (numbers(&case["rewards"]), case["groups"].as_array().unwrap());
        let batch_std = standard_deviation(&rewards, Std::Sample).unwrap();
        assert!(close(batch_std, number(&case["batch_std_unbiased"]), 1e-15));
        for (name, expected) in case["expected"].as_object().unwrap() {
            let (actual, expected) =
                (by_group(&rewards, groups, group_rule(name, batch_std)), numbers(expected));
            assert!(
                all_close(&actual, &expected, 1e-14),
                "{} {name}: {actual:?} instead of {expected:?}",
                case["id"]
            );
            // If the rule says exactly 0, the advantage is exactly 0.
            assert!(
                actual.iter().zip(&expected).all(|(a, e)| *e != 0.0 || a.abs() < 1e-16),
                "{} {name}",
                case["id"]
            );
            n_checked += 1;
        }
    }
    assert_eq!(n_checked, 16 * 13);
}

fn assert_rows(actual: &[Vec<f64>], expected: &Value, label: &str) {
    let expected = rows(expected);
    assert_eq!(actual.len(), expected.len(), "{label}");
    let same = actual.iter().zip(&expected).all(|(a, b)| all_close(a, b, 1e-13));
    assert!(same, "{label}: {actual:?} instead of {expected:?}");
}

// Objective 25
#[test]
fn p25_returns_reproduce_every_golden_case() {
    let fixture = fixture("advantages/turn_returns.json");
    for case in fixture["cases"].as_array().unwrap() {
        let (rewards, outcomes) = (rows(&case["turn_rewards"]), numbers(&case["outcome_rewards"]));
        for (name, expected) in case["by_gamma"].as_object().unwrap() {
            let gamma: f64 = name.strip_prefix("gamma_").unwrap().parse().unwrap();
            let label = format!("{} {name}", case["id"]);
            let to_go: Vec<Vec<f64>> =
                rewards.iter().map(|turns| reward_to_go(turns, gamma)).collect();
            let with_outcome: Vec<Vec<f64>> = rewards
                .iter()
                .zip(&outcomes)
                .map(|(turns, &outcome)| reward_to_go_with_outcome(turns, outcome, gamma))
                .collect();
            let over_all = normalised_over_all_turns(&to_go, Std::Sample, 1e-6).unwrap();
            let per_index = per_turn_index_biased(&to_go, Std::Sample, 1e-6).unwrap();
            assert_rows(&to_go, &expected["reward_to_go"], &label);
            assert_rows(&with_outcome, &expected["reward_to_go_with_outcome_at_last_turn"], &label);
            let minus_mean = minus_mean_return(&to_go).unwrap();
            assert_rows(&minus_mean, &expected["to_go_minus_group_mean_of_first_turn"], &label);
            assert_rows(
                &over_all,
                &expected["normalised_over_all_turns_unbiased_eps_1e_6"],
                &label,
            );
            assert_rows(
                &per_index,
                &expected["normalised_per_turn_index_unbiased_eps_1e_6"],
                &label,
            );
        }
    }
}

// Objective 25
#[test]
fn p25_outcome_and_mixed_credit_reproduce_every_golden_case() {
    let fixture = fixture("advantages/turn_returns.json");
    for case in fixture["cases"].as_array().unwrap() {
        let label = case["id"].to_string();
        let (rewards, outcomes) = (rows(&case["turn_rewards"]), numbers(&case["outcome_rewards"]));
        let n_turns: Vec<usize> = rewards.iter().map(Vec::len).collect();
        let outcome = mean_std(&outcomes, Std::Sample, 1e-6).unwrap();
        assert!(all_close(&outcome, &numbers(&case["outcome_advantage_std"]), 1e-14), "{label}");
        let without_std = mean_only(&outcomes).unwrap();
        assert!(
            all_close(&without_std, &numbers(&case["outcome_advantage_mean_only"]), 1e-14),
            "{label}"
        );
        let broadcast = broadcast_outcome(&outcome, &n_turns).unwrap();
        assert_rows(&broadcast, &case["outcome_broadcast_to_turns"], &label);
        let turn = normalised_over_all_turns(&rewards, Std::Sample, 1e-6).unwrap();
        for (position, expected) in case["mixes"].as_array().unwrap().iter().enumerate() {
            let weights = (number(&expected["outcome_weight"]), number(&expected["turn_weight"]));
            let mixed = mix(&outcome, &turn, weights.0, weights.1).unwrap();
            assert_rows(&mixed, &expected["advantages"], &label);
            if position == 0 {
                check_tokens(&mixed, case, &label);
            }
        }
    }
}

/// Checks the credit of the sampled tokens; the fixture has environment tokens between them.
fn check_tokens(mixed: &[Vec<f64>], case: &Value, label: &str) {
    let tokens = &case["tokens_of_first_mix"];
    let lengths = case["tokens_per_turn"].as_array().unwrap();
    let given =
        tokens["advantages"].as_array().unwrap().iter().zip(tokens["mask"].as_array().unwrap());
    for ((turns, lengths), (advantages, mask)) in mixed.iter().zip(lengths).zip(given) {
        let n_tokens: Vec<usize> = lengths
            .as_array()
            .unwrap()
            .iter()
            .map(|turn| usize::try_from(turn[0].as_u64().unwrap()).unwrap())
            .collect();
        let spread = spread_over_tokens(turns, &n_tokens).unwrap();
        assert!(
            all_close(&spread, &selected(&numbers(advantages), &flags(mask)), 1e-13),
            "{label}"
        );
    }
}
