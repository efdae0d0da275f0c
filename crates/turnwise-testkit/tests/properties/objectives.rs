use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use turnwise_objective::{
    Advantages, Clip, Denominator, Grpo, Gspo, GspoToken, LengthWeight, Objective, ObjectiveError,
    Sequence, SequenceLoss, presets,
};
use turnwise_testkit::objectives::*;

use crate::{failure, tells_apart};

const CLIP: Clip = Clip::PAPER_GRPO;
const GRPO: Grpo = Grpo { clip: CLIP };
const GSPO: Gspo = Gspo { clip: CLIP, length_weight: LengthWeight::Mean };

/// GRPO with a mistake in each evaluation.
#[derive(Clone, Copy, Debug)]
struct Mistaken(Mistake);

/// Changes what GRPO returned; the sequence comes first, the gradient last.
type Mistake = fn(&Sequence<'_>, &mut SequenceLoss, &mut [f64]);

impl Objective for Mistaken {
    fn name(&self) -> &'static str {
        "mistaken"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        let mut evaluated = GRPO.evaluate(sequence, gradient)?;
        (self.0)(sequence, &mut evaluated, gradient);
        Ok(evaluated)
    }
}

/// GRPO with a mistake around its evaluation.
#[derive(Clone, Copy, Debug)]
enum Careless {
    Accumulates,
    IgnoresLengths,
    IgnoresNumbers,
    DividesByTokens,
}

impl Objective for Careless {
    fn name(&self) -> &'static str {
        "careless"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        let before = gradient.to_vec();
        let mut own = vec![0.0; sequence.len()];
        let evaluated = match (self, GRPO.evaluate(sequence, &mut own)) {
            (Self::IgnoresNumbers, Err(_)) => SequenceLoss::default(),
            (Self::DividesByTokens, Ok(one)) => {
                SequenceLoss { loss: one.loss * own.len() as f64 / own.len() as f64, ..one }
            }
            (_, evaluated) => evaluated?,
        };
        if !matches!(self, Self::IgnoresLengths) && gradient.len() != own.len() {
            return GRPO.evaluate(sequence, gradient);
        }
        for (slot, (own, before)) in gradient.iter_mut().zip(own.iter().zip(before)) {
            *slot = if matches!(self, Self::Accumulates) { before + own } else { *own };
        }
        Ok(evaluated)
    }
}

/// GSPO-token whose gradient flows through the ratio.
#[derive(Debug)]
struct Impostor(GspoToken);

impl Objective for Impostor {
    fn name(&self) -> &'static str {
        "impostor"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        let evaluated = self.0.evaluate(sequence, gradient)?;
        gradient.fill(gradient.iter().sum::<f64>() / gradient.len() as f64);
        Ok(evaluated)
    }
}

/// A right and a wrong objective behind one type.
type Either<'a> = &'a dyn Objective;

fn one_advantage(sequence: &Sequence<'_>) -> bool {
    matches!(sequence.advantages(), Advantages::Uniform(_))
}

#[test]
fn every_preset_keeps_the_contract() {
    for preset in presets() {
        let objective = preset.objective().expect("presets are valid");
        let found = failure(steps(), |step| check_contract(&*objective, &step));
        assert_eq!(found, None, "{}", preset.name);
    }
}

#[test]
fn check_contract_finds_what_one_of_its_checks_finds() {
    let found = failure(steps(), |step| check_contract(&Careless::IgnoresNumbers, &step));
    assert!(found.is_some_and(|why| why.contains("refusals: ")));
}

#[test]
fn check_padding_finds_a_gradient_that_is_added_to() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &Careless::Accumulates);
    tells_apart(right, wrong, "padding", tokens, |objective, tokens| {
        check_padding(objective, &tokens)
    });
}

#[test]
fn check_uniform_advantages_finds_one_advantage_that_is_read_otherwise() {
    let wrong = Mistaken(|sequence, evaluated, _| {
        evaluated.loss *= if one_advantage(sequence) { 2.0 } else { 1.0 };
    });
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &wrong);
    tells_apart(right, wrong, "uniform advantages", tokens, |objective, tokens| {
        check_uniform_advantages(objective, &tokens, 1.0)
    });
}

/// Counts evaluations: a mean over the sequences so far.
static CALLS: AtomicU64 = AtomicU64::new(0);

const STATEFUL: Mistaken = Mistaken(|_, evaluated, gradient| {
    let calls = CALLS.fetch_add(1, Ordering::Relaxed) as f64 + 1.0;
    evaluated.loss /= calls;
    for coefficient in gradient {
        *coefficient /= calls;
    }
});

#[test]
fn check_sequence_order_finds_a_mean_over_the_sequences_so_far() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &STATEFUL);
    tells_apart(right, wrong, "sequence order", steps, |objective, step| {
        check_sequence_order(objective, &step, &(0..step.len()).rev().collect::<Vec<_>>())
    });
}

#[test]
fn check_micro_batches_finds_a_mean_over_the_sequences_so_far() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &STATEFUL);
    tells_apart(right, wrong, "micro-batches", steps, |objective, step| {
        check_micro_batches(objective, &step, &[2, 1])
    });
}

#[test]
fn check_empty_sequences_finds_a_division_by_no_tokens() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &Careless::DividesByTokens);
    tells_apart(right, wrong, "empty sequences", steps, |objective, step| {
        check_empty_sequences(objective, &step, 1)
    });
}

#[test]
fn check_buffer_length_finds_a_gradient_that_is_written_in_part() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &Careless::IgnoresLengths);
    tells_apart(
        right,
        wrong,
        "buffer length",
        || Just(()),
        |objective, ()| check_buffer_length(objective),
    );
}

#[test]
fn check_refusals_finds_an_error_that_is_ignored() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &Careless::IgnoresNumbers);
    let places = || (1_usize..20).prop_flat_map(|n| (Just(n), 0..n));
    tells_apart(right, wrong, "refusals", places, |objective, (n, at)| {
        check_refusals(objective, n, at)
    });
}

#[test]
fn check_extremes_finds_a_ratio_that_overflows() {
    let wrong = Mistaken(|sequence, evaluated, _| {
        evaluated.loss += 0.0 * sequence.log_ratio(0).map_or(0.0, f64::exp);
    });
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &wrong);
    tells_apart(right, wrong, "extremes", || Just(()), |objective, ()| check_extremes(objective));
}

#[test]
fn check_gradient_finds_a_gradient_that_is_detached_shifted_or_of_the_wrong_sign() {
    let mistakes: [Mistake; 3] = [
        |_, _, gradient| gradient.fill(0.0),
        |_, _, gradient| gradient.rotate_left(usize::from(!gradient.is_empty())),
        |_, _, gradient| gradient.iter_mut().for_each(|coefficient| *coefficient *= -1.0),
    ];
    for mistake in mistakes {
        let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &Mistaken(mistake));
        tells_apart(right, wrong, "finite differences", tokens, |objective, tokens| {
            check_gradient(objective, &tokens)
        });
    }
}

#[test]
fn check_gradient_of_finds_a_loss_that_is_not_the_surrogate_and_a_ratio_that_is_not_detached() {
    let surrogate = |frozen: &Tokens, logprobs: &[f64]| {
        let (ratio, n) = (frozen.log_ratio().exp(), frozen.len() as f64);
        let moved = logprobs.iter().zip(&frozen.logprobs).zip(&frozen.advantages);
        let terms = moved.map(|((now, at), advantage)| {
            let ratio = ratio * (now - at).exp();
            let clipped = ratio.clamp(1.0 - CLIP.low(), 1.0 + CLIP.high());
            (ratio * advantage).min(clipped * advantage)
        });
        -terms.sum::<f64>() / n
    };
    let gspo_token = GspoToken { clip: CLIP, length_weight: LengthWeight::Mean };
    let check =
        |objective: Either<'_>, tokens: Tokens| check_gradient_of(objective, &tokens, surrogate);
    let (right, wrong): (Either<'_>, Either<'_>) = (&gspo_token, &GRPO);
    tells_apart(right, wrong, "value", tokens, check);
    tells_apart(right, &Impostor(gspo_token), "finite differences", tokens, check);
}

#[test]
fn check_equals_gspo_finds_a_ratio_per_token() {
    let gspo_token = GspoToken { clip: CLIP, length_weight: LengthWeight::Mean };
    let (right, wrong): (Either<'_>, Either<'_>) = (&gspo_token, &GRPO);
    tells_apart(right, wrong, "equal to GSPO", tokens, |objective, tokens| {
        check_equals_gspo(objective, &GSPO, &tokens, -1.0)
    });
}

#[test]
fn check_clip_sides_finds_a_clip_on_the_wrong_side_and_one_that_is_missing() {
    let both: Mistake = |sequence, _, gradient| {
        // Clips a ratio that is out of range whatever the sign of its advantage.
        for (token, coefficient) in gradient.iter_mut().enumerate() {
            let log_ratio = sequence.log_ratio(token).unwrap_or(0.0);
            if log_ratio.abs() > 0.3 {
                *coefficient = 0.0;
            }
        }
    };
    let none: Mistake = |sequence, _, gradient| {
        for (token, coefficient) in gradient.iter_mut().enumerate() {
            *coefficient = -sequence.advantage(token).unwrap_or(0.0);
        }
    };
    for mistake in [both, none] {
        let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &Mistaken(mistake));
        tells_apart(right, wrong, "clip sides", tokens, |objective, tokens| {
            check_clip_sides(objective, CLIP, &tokens, &tokens.log_ratios())
        });
    }
}

#[test]
fn check_clip_counts_finds_a_count_of_all_that_is_out_of_range() {
    let wrong = Mistaken(|sequence, evaluated, _| {
        let is_out = |token: &usize| sequence.log_ratio(*token).is_ok_and(|ratio| ratio > 0.25);
        evaluated.stats.n_clipped_high = (0..sequence.len()).filter(is_out).count();
    });
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &wrong);
    tells_apart(right, wrong, "clip counts", tokens, |objective, tokens| {
        check_clip_counts(objective, &tokens)
    });
}

#[test]
fn check_one_token_finds_another_range() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &Grpo { clip: Clip::PAPER_PPO });
    let values = || (-1.0..1.0, nonzero_advantage());
    tells_apart(right, wrong, "one token", values, |objective, (log_ratio, advantage)| {
        check_one_token(objective, CLIP, log_ratio, advantage)
    });
}

#[test]
fn check_on_policy_finds_a_factor_that_is_missing() {
    let wrong = Mistaken(|_, _, gradient| {
        let n = gradient.len() as f64;
        for coefficient in gradient {
            *coefficient *= n;
        }
    });
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &wrong);
    tells_apart(right, wrong, "on policy", tokens, |objective, tokens| {
        check_on_policy(objective, &tokens)
    });
}

#[test]
fn check_signs_finds_advantages_that_are_averaged() {
    let wrong = Mistaken(|_, _, gradient| {
        let mean = gradient.iter().sum::<f64>() / gradient.len() as f64;
        gradient.fill(mean);
    });
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &wrong);
    tells_apart(right, wrong, "signs", tokens_near_policy, |objective, tokens| {
        check_signs(objective, &tokens)
    });
}

#[test]
fn check_zero_advantage_finds_a_pull_that_no_reward_asks_for() {
    let wrong = Mistaken(|_, _, gradient| gradient.iter_mut().for_each(|slot| *slot += 0.01));
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &wrong);
    tells_apart(right, wrong, "zero advantages", tokens, |objective, tokens| {
        check_zero_advantage(objective, &tokens, tokens.len() - 1)
    });
}

#[test]
fn check_zero_advantage_finds_a_pull_beside_other_advantages() {
    let wrong = Mistaken(|_, _, gradient| {
        let mean = gradient.iter().sum::<f64>() / gradient.len() as f64;
        gradient.fill(mean);
    });
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &wrong);
    tells_apart(right, wrong, "zero advantages", tokens, |objective, tokens| {
        check_zero_advantage(objective, &tokens, 0)
    });
}

#[test]
fn check_scaling_finds_the_square_of_an_advantage() {
    let wrong = Mistaken(|_, evaluated, _| evaluated.loss *= evaluated.loss);
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &wrong);
    tells_apart(right, wrong, "scaling", tokens, |objective, tokens| {
        check_scaling(objective, &tokens, 2.0)
    });
}

#[test]
fn check_token_order_finds_a_weight_by_place() {
    let wrong = Mistaken(|_, _, gradient| {
        for (place, coefficient) in gradient.iter_mut().enumerate() {
            *coefficient *= place as f64;
        }
    });
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &wrong);
    let values = || f32_tokens(2);
    tells_apart(right, wrong, "token order", values, |objective, tokens| {
        check_token_order(objective, &tokens, &(0..tokens.len()).rev().collect::<Vec<_>>())
    });
}

#[test]
fn check_length_finds_a_mean_that_is_divided_twice() {
    let wrong = Mistaken(|sequence, evaluated, _| evaluated.loss /= sequence.len() as f64);
    let (right, wrong): (Either<'_>, Either<'_>) = (&GRPO, &wrong);
    let values = || 2_usize..2000;
    tells_apart(right, wrong, "length", values, |objective, length| {
        check_length(objective, 0.1, 1.0, length, 1e-12)
    });
}
