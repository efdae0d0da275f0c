//! KL to a reference policy.

use proptest::prelude::*;
use turnwise_objective::{
    Advantages, Clip, Dapo, DrGrpo, Grpo, KlEstimator, LengthWeight, Objective, ObjectiveError,
    Reinforce, Sequence, StepSize, WithKl,
};

use crate::support::*;

const ESTIMATORS: [KlEstimator; 3] = [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3];

/// A constructor of an objective from a range and a length weight.
type Make = fn(Clip, LengthWeight) -> Box<dyn Objective>;

/// Generates two distributions over the same four outcomes.
fn distributions() -> impl Strategy<Value = ([f64; 4], [f64; 4])> {
    let logits = || prop::array::uniform4(-2.0..2.0);
    (logits(), logits()).prop_map(|(a, b)| (softmax(a), softmax(b)))
}

fn softmax(logits: [f64; 4]) -> [f64; 4] {
    let sum: f64 = logits.iter().map(|logit: &f64| logit.exp()).sum();
    logits.map(|logit| logit.exp() / sum)
}

fn kl(p: &[f64; 4], q: &[f64; 4]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
}

/// Returns E_p[∂k/∂log p_y · ∂log p_y/∂logit_j], by enumeration.
fn expected_gradient(estimator: KlEstimator, p: &[f64; 4], q: &[f64; 4]) -> [f64; 4] {
    std::array::from_fn(|logit| {
        let part = |y: usize| {
            let (_, derivative) = estimator.value_and_derivative(p[y].ln(), q[y].ln());
            p[y] * derivative * (f64::from(u8::from(y == logit)) - p[logit])
        };
        (0..4).map(part).sum()
    })
}

proptest! {
    // Objective 23
    #[test]
    fn p23_k3_is_never_negative_and_zero_only_where_the_policies_agree(
        logprob in -20.0..0.0,
        difference in prop_oneof![-20.0..20.0, -1e-6..1e-6, Just(0.0)],
    ) {
        let reference = logprob - difference;
        let (value, derivative) = KlEstimator::K3.value_and_derivative(logprob, reference);
        prop_assert!(value >= 0.0);
        prop_assert_eq!(value == 0.0, logprob == reference);
        prop_assert_eq!(derivative == 0.0, logprob == reference);
        prop_assert!(KlEstimator::K2.value_and_derivative(logprob, reference).0 >= 0.0);
    }

    // Objective 23
    #[test]
    fn p23_the_expectation_of_k1_and_of_k3_is_the_kl((p, q) in distributions()) {
        for estimator in [KlEstimator::K1, KlEstimator::K3] {
            let part = |(p, q): (&f64, &f64)| p * estimator.value_and_derivative(p.ln(), q.ln()).0;
            let expected: f64 = p.iter().zip(&q).map(part).sum();
            prop_assert!(close(expected, kl(&p, &q), 1e-13), "{:?}", estimator);
        }
    }

    // Objective 23
    #[test]
    fn p23_as_a_loss_k1_pulls_nowhere_k2_to_the_reference_and_k3_by_the_other_kl((p, q) in distributions()) {
        let reverse: [f64; 4] = std::array::from_fn(|j| p[j] * ((p[j] / q[j]).ln() - kl(&p, &q)));
        let forward: [f64; 4] = std::array::from_fn(|j| p[j] - q[j]);
        prop_assert!(all_close(&expected_gradient(KlEstimator::K1, &p, &q), &[0.0; 4], 1e-14));
        prop_assert!(all_close(&expected_gradient(KlEstimator::K2, &p, &q), &reverse, 1e-13));
        prop_assert!(all_close(&expected_gradient(KlEstimator::K3, &p, &q), &forward, 1e-13));
    }

    // Objective 23
    #[test]
    fn p23_the_derivative_is_the_finite_difference_of_the_value(logprob in -5.0..0.0, difference in -3.0..3.0) {
        for estimator in ESTIMATORS {
            let value = |logprob: f64| estimator.value_and_derivative(logprob, logprob_of_reference(difference)).0;
            let slope = (value(logprob + 1e-5) - value(logprob - 1e-5)) / 2e-5;
            let derivative = estimator.value_and_derivative(logprob, logprob_of_reference(difference)).1;
            prop_assert!(close(derivative, slope, 1e-7), "{:?} {} {}", estimator, derivative, slope);
        }
    }

    // Objective 23
    #[test]
    fn p23_without_weight_a_reference_changes_no_bit((clip, _, tokens) in placed_tokens(), reference in -8.0..0.0) {
        let reference = vec![reference; tokens.len()];
        for estimator in ESTIMATORS {
            let held = WithKl::new(Grpo { clip }, estimator, 0.0).unwrap();
            prop_assert!(!held.needs_reference());
            let plain = evaluate(&Grpo { clip }, &tokens.per_token());
            prop_assert_eq!(&evaluate(&held, &tokens.per_token()), &plain);
            prop_assert_eq!(&evaluate(&held, &tokens.per_token().with_reference(&reference).unwrap()), &plain);
        }
    }

    // Objective 23: same aggregation as the policy term, never scaled by A or s.
    #[test]
    fn p23_the_term_is_aggregated_as_the_policy_term_and_sees_no_advantage_and_no_ratio(
        (clip, _, tokens) in placed_tokens(),
        scale in 0.0f64..5.0,
        beta in 0.01..2.0,
    ) {
        let reference: Vec<f64> = tokens.logprobs.iter().enumerate().map(|(t, l)| l - 0.1 * (t as f64 - 2.0)).collect();
        let length_weight = LengthWeight::SqrtTokens;
        let inners: [Make; 4] = [
            |clip, length_weight| Box::new(turnwise_objective::GspoToken { clip, length_weight }),
            |clip, _| Box::new(Dapo { clip }),
            |clip, _| Box::new(DrGrpo { clip, max_tokens: 7 }),
            |_, length_weight| Box::new(Reinforce { length_weight }),
        ];
        let mut other = tokens.clone();
        other.advantages.iter_mut().for_each(|a: &mut f64| *a *= -scale);
        other.behavior_logprobs.iter_mut().for_each(|l: &mut f64| *l -= 0.7);
        for make in inners {
            let inner = make(clip, length_weight);
            for estimator in ESTIMATORS {
                let weight = inner.token_weight(tokens.len());
                let held = WithKl::new(make(clip, length_weight), estimator, beta).unwrap();
                for tokens in [&tokens, &other] {
                    let (plain, plain_gradient) = evaluate(inner.as_ref(), &tokens.per_token());
                    let (loss, gradient) = evaluate(&held, &tokens.per_token().with_reference(&reference).unwrap());
                    let terms: Vec<(f64, f64)> = tokens.logprobs.iter().zip(&reference)
                        .map(|(l, r)| estimator.value_and_derivative(*l, *r)).collect();
                    let kl: f64 = terms.iter().map(|term| term.0).sum();
                    prop_assert!(close(loss.stats.kl_sum, kl, 1e-13));
                    prop_assert!(close(loss.loss, plain.loss + beta * weight * kl, 1e-12));
                    let expected: Vec<f64> = plain_gradient.iter().zip(&terms).map(|(c, term)| c + beta * weight * term.1).collect();
                    prop_assert!(all_close(&gradient, &expected, 1e-13));
                }
            }
        }
    }
}

/// Returns the log-probability of a reference that does not change with the policy.
fn logprob_of_reference(difference: f64) -> f64 {
    -2.0 - difference
}

// Objective 23
#[test]
fn p23_a_missing_reference_and_numbers_that_are_not_finite_are_errors() {
    let tokens = Tokens::drifted(&[0.1, 0.2], &[1.0, 1.0]);
    let held = WithKl::new(Grpo { clip: Clip::PAPER_GRPO }, KlEstimator::K3, 0.1).unwrap();
    assert!(held.needs_reference() && !Grpo { clip: Clip::PAPER_GRPO }.needs_reference());
    let refused = held.evaluate(&tokens.per_token(), &mut [0.0; 2]).unwrap_err();
    assert_eq!(refused, ObjectiveError::MissingColumn { column: "reference_logprobs" });
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let reference = [-1.0, value];
        let sequence = tokens.per_token().with_reference(&reference).unwrap();
        let refused = held.evaluate(&sequence, &mut [0.0; 2]).unwrap_err();
        assert_eq!(refused.to_string(), format!("reference logprob of token 1 is {value}"));
        assert!(WithKl::new(Grpo { clip: Clip::PAPER_GRPO }, KlEstimator::K1, value).is_err());
    }
    assert!(WithKl::new(Grpo { clip: Clip::PAPER_GRPO }, KlEstimator::K1, -0.1).is_err());
    assert!(tokens.per_token().with_reference(&[-1.0]).is_err());
}

// Objective 14 and 23
#[test]
fn p23_the_term_is_divided_by_the_denominator_of_the_whole_step() {
    let held = WithKl::new(Dapo::PAPER, KlEstimator::K1, 0.5).unwrap();
    let (long, short) = ([-0.5; 3], [-0.5; 1]);
    let reference = [-1.5; 3];
    let sequences = [
        Sequence::new(&long, &long, Advantages::Uniform(0.0)).unwrap(),
        Sequence::new(&short, &short, Advantages::Uniform(0.0)).unwrap(),
    ];
    let sequences = [
        sequences[0].with_reference(&reference).unwrap(),
        sequences[1].with_reference(&reference[..1]).unwrap(),
    ];
    let step = turnwise_objective::evaluate_step(&held, &sequences).unwrap();
    assert_eq!((step.loss, step.gradients[0][0]), (0.5, 0.125));
    assert_eq!(step.metrics.kl_mean(), 1.0);
    let size = StepSize::from_lengths([3, 1]);
    assert_eq!(held.denominator().value(&size), 4.0);
}
