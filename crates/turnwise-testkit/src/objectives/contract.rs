//! Checks of the contract that every objective keeps.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use turnwise_objective::{
    Advantages, Objective, ObjectiveError, Sequence, StepSize, evaluate_step,
};

use super::fitted::{Fitted, evaluate};
use super::{Tokens, all_close, close};

/// Runs every check that holds for all objectives.
///
/// The checks of claims, such as [`check_gradient`](super::check_gradient), are for objectives that make the claim.
///
/// # Errors
///
/// Those of the first check that fails.
pub fn check_contract(objective: &dyn Objective, step: &[Tokens]) -> TestCaseResult {
    for tokens in step {
        check_padding(objective, tokens)?;
        check_uniform_advantages(objective, tokens, 0.75)?;
        check_uniform_advantages(objective, tokens, -1.5)?;
        check_scale(objective, tokens, 1.0 / 3.0)?;
        check_finite(objective, tokens)?;
    }
    let order: Vec<usize> = (0..step.len()).rev().collect();
    check_sequence_order(objective, step, &order)?;
    check_micro_batches(objective, step, &[1, 3, 2])?;
    check_empty_sequences(objective, step, 2)?;
    check_buffer_length(objective)?;
    check_refusals(objective, 3, 1)?;
    check_refusals(objective, 20, 18)?;
    check_extremes(objective)
}

/// Checks that only the sequence's own numbers matter: neither the memory around its columns nor the earlier content of
/// the gradient changes a bit, and a second evaluation repeats the first.
///
/// An objective that adds to the gradient instead of writing it fails, and so does one that keeps state.
///
/// # Errors
///
/// Fails with the two results if they differ.
pub fn check_padding(objective: &dyn Objective, tokens: &Tokens) -> TestCaseResult {
    let alone = evaluate(objective, &tokens.per_token())?;
    let here = 3..3 + tokens.len();
    for garbage in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30] {
        let padded = |column: &[f64]| [&[garbage; 3], column, &[garbage; 2]].concat();
        let logprobs = padded(&tokens.logprobs);
        let behavior_logprobs = padded(&tokens.behavior_logprobs);
        let advantages = padded(&tokens.advantages);
        let embedded = Sequence::new(
            &logprobs[here.clone()],
            &behavior_logprobs[here.clone()],
            Advantages::PerToken(&advantages[here.clone()]),
        );
        let embedded = embedded.expect("the columns have one length");
        let mut gradient = vec![garbage; here.len()];
        let evaluated = Fitted(objective).evaluate(&embedded, &mut gradient);
        prop_assert_eq!(&evaluated, &Ok(alone.0), "padding: {:?}, among {}", objective, garbage);
        let is_same = gradient.iter().map(|c| c.to_bits()).eq(alone.1.iter().map(|c| c.to_bits()));
        prop_assert!(
            is_same,
            "padding: {objective:?}: a gradient that held {garbage} before is {gradient:?} instead of {:?}",
            alone.1
        );
    }
    Ok(())
}

/// Checks that a scaled gradient has the bits of one that is scaled after it was computed.
///
/// # Errors
///
/// Fails with the two results if they differ.
pub fn check_scale(objective: &dyn Objective, tokens: &Tokens, scale: f64) -> TestCaseResult {
    let fitted = tokens.per_token();
    let (loss, gradient) = evaluate(objective, &fitted)?;
    let mut scaled = vec![f64::NAN; tokens.len()];
    let evaluated = Fitted(objective).evaluate_scaled(&fitted, &mut scaled, scale);
    prop_assert_eq!(&evaluated, &Ok(loss), "scale: {:?}", objective);
    let after = gradient.iter().map(|slot| (slot * scale).to_bits());
    prop_assert!(
        scaled.iter().map(|slot| slot.to_bits()).eq(after),
        "scale: {objective:?}: {scaled:?} instead of {scale} times {gradient:?}"
    );
    Ok(())
}

/// Checks that one advantage for the whole sequence has the result of that advantage on every token.
///
/// # Errors
///
/// Fails with the two results if they differ.
pub fn check_uniform_advantages(
    objective: &dyn Objective,
    tokens: &Tokens,
    advantage: f64,
) -> TestCaseResult {
    let repeated = Tokens { advantages: vec![advantage; tokens.len()], ..tokens.clone() };
    let (uniform, uniform_gradient) = evaluate(objective, &tokens.uniform(advantage))?;
    let (per_token, gradient) = evaluate(objective, &repeated.per_token())?;
    prop_assert!(
        close(uniform.loss, per_token.loss, 1e-14),
        "uniform advantages: {objective:?}: the loss is {} with one advantage and {} with it on every token",
        uniform.loss,
        per_token.loss
    );
    prop_assert!(
        all_close(&uniform_gradient, &gradient, 1e-14),
        "uniform advantages: {objective:?}: the gradient is {uniform_gradient:?} with one advantage and {gradient:?} \
         with it on every token"
    );
    Ok(())
}

/// Checks that the order of the sequences of a step changes no gradient, and the loss only by its rounding.
///
/// `order` is a permutation of the positions of `step`.
///
/// # Errors
///
/// Fails with the losses or gradients that differ.
pub fn check_sequence_order(
    objective: &dyn Objective,
    step: &[Tokens],
    order: &[usize],
) -> TestCaseResult {
    let sequences: Vec<Sequence<'_>> = step.iter().map(Tokens::per_token).collect();
    let shuffled: Vec<Sequence<'_>> = order.iter().map(|&position| sequences[position]).collect();
    let straight = evaluated_step(objective, &sequences)?;
    let other = evaluated_step(objective, &shuffled)?;
    let mut size = 0.0;
    for sequence in &sequences {
        size += evaluate(objective, sequence)?.0.loss.abs();
    }
    prop_assert!(
        (straight.loss - other.loss).abs() <= 2.0 * f64::EPSILON * size,
        "sequence order: {objective:?}: the loss of a step is {} in order and {} in the order {order:?}",
        straight.loss,
        other.loss
    );
    for (position, gradient) in order.iter().zip(&other.gradients) {
        let expected = &straight.gradients[*position];
        prop_assert_eq!(gradient, expected, "sequence order: {:?}, {:?}", objective, order);
    }
    Ok(())
}

/// Checks that a step cut into micro-batches has the loss and gradient of the whole step.
///
/// `cuts` are the sizes of the micro-batches, repeated until the end of the step.
///
/// # Errors
///
/// Fails with the losses or gradients that differ.
///
/// # Panics
///
/// Panics if `cuts` is empty or has a 0.
pub fn check_micro_batches(
    objective: &dyn Objective,
    step: &[Tokens],
    cuts: &[usize],
) -> TestCaseResult {
    assert!(!cuts.is_empty() && cuts.iter().all(|cut| *cut > 0), "micro-batches have sequences");
    let sequences: Vec<Sequence<'_>> = step.iter().map(Tokens::per_token).collect();
    let whole = evaluated_step(objective, &sequences)?;
    let size = StepSize::from_lengths(step.iter().map(Tokens::len));
    let denominator = objective.denominator().value(&size);
    let (mut rest, mut loss, mut gradients) = (&sequences[..], 0.0, Vec::new());
    for cut in cuts.iter().cycle() {
        let (micro_batch, remaining) = rest.split_at((*cut).min(rest.len()));
        rest = remaining;
        for sequence in micro_batch {
            let (evaluated, gradient) = evaluate(objective, sequence)?;
            loss += evaluated.loss / denominator;
            gradients.push(gradient.iter().map(|c| c / denominator).collect::<Vec<_>>());
        }
        if rest.is_empty() {
            break;
        }
    }
    prop_assert!(
        close(loss, whole.loss, 1e-14),
        "micro-batches: {objective:?}: the loss is {loss} in micro-batches and {} in one step",
        whole.loss
    );
    prop_assert_eq!(&gradients, &whole.gradients, "micro-batches: {:?}", objective);
    Ok(())
}

/// Checks that sequences without tokens add nothing and do not count, with numbers in them that are not finite.
///
/// # Errors
///
/// Fails with the losses or gradients that differ.
pub fn check_empty_sequences(
    objective: &dyn Objective,
    step: &[Tokens],
    n_empty: usize,
) -> TestCaseResult {
    let empty = Tokens::default();
    let filled = step.iter().filter(|tokens| !tokens.is_empty());
    let filled: Vec<Sequence<'_>> = filled.map(Tokens::per_token).collect();
    let padded = [filled.clone(), vec![empty.uniform(f64::NAN); n_empty]].concat();
    let without = evaluated_step(objective, &filled)?;
    let with = evaluated_step(objective, &padded)?;
    prop_assert_eq!(with.loss, without.loss, "empty sequences: {:?}: loss", objective);
    let gradients = &with.gradients[..filled.len()];
    prop_assert_eq!(gradients, &without.gradients[..], "empty sequences: {:?}", objective);
    Ok(())
}

/// Checks that a gradient of another length than the sequence's is rejected.
///
/// # Errors
///
/// Fails if the gradient is accepted, or rejected for another reason.
pub fn check_buffer_length(objective: &dyn Objective) -> TestCaseResult {
    let tokens = Tokens::drifted(&[0.0; 2], &[1.0; 2]);
    for actual in [1, 3] {
        let refused = Fitted(objective).evaluate(&tokens.per_token(), &mut vec![0.0; actual]);
        let expected =
            Err(ObjectiveError::LengthMismatch { slice: "gradient", expected: 2, actual });
        prop_assert_eq!(refused, expected, "buffer length: {:?}", objective);
    }
    Ok(())
}

/// Checks that a number that is not finite is an error that names the quantity and the token, in a sequence of `n`
/// tokens, at position `at`.
///
/// # Errors
///
/// Fails with the result that the objective returned instead.
///
/// # Panics
///
/// Panics unless `at` is below `n`.
pub fn check_refusals(objective: &dyn Objective, n: usize, at: usize) -> TestCaseResult {
    let infinite = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    for (quantity, values) in
        [("logprob", &infinite[..2]), ("behavior logprob", &infinite), ("advantage", &infinite)]
    {
        for &value in values {
            let mut tokens = Tokens::drifted(&vec![0.01; n], &vec![1.0; n]);
            match quantity {
                "logprob" => tokens.logprobs[at] = value,
                "behavior logprob" => tokens.behavior_logprobs[at] = value,
                _ => tokens.advantages[at] = value,
            }
            let refused = Fitted(objective).evaluate(&tokens.per_token(), &mut vec![0.0; n]);
            let expected = format!("{quantity} of token {at} is {value}");
            let actual = match &refused {
                Err(error @ ObjectiveError::NonFinite { .. }) => error.to_string(),
                other => format!("{other:?}"),
            };
            prop_assert_eq!(actual, expected, "refusals: {:?}", objective);
        }
    }
    Ok(())
}

/// Checks that loss, gradient and statistics of a sequence are finite. log π_θ = −∞ is a ratio of 0.
///
/// # Errors
///
/// Fails with the numbers that are not finite.
pub fn check_finite(objective: &dyn Objective, tokens: &Tokens) -> TestCaseResult {
    let (evaluated, gradient) = evaluate(objective, &tokens.per_token())?;
    let is_finite = evaluated.loss.is_finite() && evaluated.stats.k3_sum.is_finite();
    prop_assert!(
        is_finite && gradient.iter().all(|coefficient| coefficient.is_finite()),
        "extremes: {objective:?}: loss {}, k3 {}, gradient {gradient:?} of log ratios {:?} and advantages {:?}",
        evaluated.loss,
        evaluated.stats.k3_sum,
        tokens.log_ratios(),
        tokens.advantages
    );
    Ok(())
}

/// Checks that ratios at the edge of f64 and beyond it have finite losses and gradients, alone and beside tokens of
/// ratio 1, with advantages of both signs and 0.
///
/// # Errors
///
/// Those of [`check_finite`].
pub fn check_extremes(objective: &dyn Objective) -> TestCaseResult {
    for log_ratio in [f64::NEG_INFINITY, -1e300, -800.0, -50.0, 50.0, 400.0, 800.0, 1e300] {
        for advantage in [1.0, -1.0, 0.0] {
            for n_beside in [0, 1, 8] {
                let log_ratios = [vec![0.0; n_beside], vec![log_ratio]].concat();
                let tokens = Tokens::drifted(&log_ratios, &vec![advantage; n_beside + 1]);
                check_finite(objective, &tokens)?;
            }
        }
    }
    Ok(())
}

fn evaluated_step(
    objective: &dyn Objective,
    sequences: &[Sequence<'_>],
) -> Result<turnwise_objective::StepLoss, TestCaseError> {
    evaluate_step(&Fitted(objective), sequences).map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        TestCaseError::fail(format!("{objective:?}: {error}: {}", source.unwrap_or_default()))
    })
}
