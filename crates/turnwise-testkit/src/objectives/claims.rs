//! Checks of properties that an objective may claim.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use turnwise_objective::{Advantages, Clip, Gspo, Objective, Sequence};

use super::fitted::evaluate;
use super::{Tokens, all_close, close};

/// The distance of the finite differences.
const STEP: f64 = 1e-6;

/// The largest error of a derivative, in units of loss and gradient: differences of [`STEP`] have one of 1e-9.
const TOLERANCE: f64 = 1e-7;

/// Returns the tokens with advantages that the objective accepts: one for all if the objective rejects advantages that
/// differ.
fn suited(objective: &dyn Objective, tokens: &Tokens) -> Tokens {
    let mut tokens = tokens.clone();
    if objective.needs_uniform_advantages() && !tokens.is_empty() {
        let advantage = tokens.advantages[0];
        tokens.advantages.fill(advantage);
    }
    tokens
}

/// Checks that the gradient is the derivative of the loss, by finite differences.
///
/// For objectives that detach nothing. An objective with a stop-gradient, such as GSPO-token, CISPO or any that weighs
/// log π_θ by a constant, fails here and has its own [`check_gradient_of`].
///
/// # Errors
///
/// Fails with the first token whose entry is neither the derivative nor, at a kink of the loss, between the slopes of
/// its two sides.
pub fn check_gradient(objective: &dyn Objective, tokens: &Tokens) -> TestCaseResult {
    let tokens = suited(objective, tokens);
    check_gradient_of(objective, &tokens, |frozen, logprobs| {
        let advantages = Advantages::PerToken(&frozen.advantages);
        let moved = Sequence::new(logprobs, &frozen.behavior_logprobs, advantages)
            .expect("the columns have one length");
        evaluate(objective, &moved).map_or(f64::NAN, |(evaluated, _)| evaluated.loss)
    })
}

/// Checks that the gradient is the derivative of a surrogate, and that the surrogate has the value of the loss.
///
/// `surrogate` gets the tokens at which the derivative is taken, and other log-probabilities of the same tokens. It
/// returns the loss of the sequence before the division by the denominator. Everything that the objective detaches is
/// computed from the first, and everything that has a gradient from the second.
///
/// ```
/// use turnwise_objective::{Clip, GspoToken, LengthWeight};
/// use turnwise_testkit::objectives::{Tokens, check_gradient, check_gradient_of};
///
/// let gspo_token = GspoToken { clip: Clip::PAPER_GRPO, length_weight: LengthWeight::Mean };
/// let tokens = Tokens::drifted(&[0.1, -0.05], &[1.0, -2.0]); // inside the clip range
/// check_gradient_of(&gspo_token, &tokens, |frozen, logprobs| {
///     let ratio = frozen.log_ratio().exp(); // detached
///     let moved = logprobs.iter().zip(&frozen.logprobs).zip(&frozen.advantages);
///     -moved.map(|((now, at), advantage)| ratio * (now - at).exp() * advantage).sum::<f64>() / 2.0
/// })?;
/// // The gradient is not the derivative of the value: that would average the advantages.
/// assert!(check_gradient(&gspo_token, &tokens).is_err());
/// # Ok::<(), proptest::test_runner::TestCaseError>(())
/// ```
///
/// # Errors
///
/// Fails with the values that differ, or with the first token whose entry is neither the derivative nor, at a kink of
/// the surrogate, between the slopes of its two sides.
pub fn check_gradient_of(
    objective: &dyn Objective,
    tokens: &Tokens,
    surrogate: impl Fn(&Tokens, &[f64]) -> f64,
) -> TestCaseResult {
    let tokens = &suited(objective, tokens);
    let (evaluated, gradient) = evaluate(objective, &tokens.per_token())?;
    let value = surrogate(tokens, &tokens.logprobs);
    prop_assert!(
        close(evaluated.loss, value, 1e-12),
        "value: {objective:?}: the loss is {} and the surrogate {value}",
        evaluated.loss
    );
    for (token, &coefficient) in gradient.iter().enumerate() {
        let slope = |by: f64| {
            let mut moved = tokens.logprobs.clone();
            moved[token] += by;
            // The difference after rounding.
            let by = moved[token] - tokens.logprobs[token];
            (surrogate(tokens, &moved) - value) / by
        };
        let (below, above) = (slope(-STEP), slope(STEP));
        let slack = TOLERANCE * (1.0 + value.abs() + coefficient.abs());
        let is_derivative =
            coefficient >= below.min(above) - slack && coefficient <= below.max(above) + slack;
        prop_assert!(
            is_derivative,
            "finite differences: {objective:?}: the gradient of token {token} is {coefficient}, and the slopes below \
             and above it are {below} and {above}, of {tokens:?}"
        );
    }
    Ok(())
}

/// Checks that with one advantage for all tokens the objective equals GSPO, in loss, in gradient and in the tokens that
/// have a gradient.
///
/// # Errors
///
/// Fails with the losses or gradients that differ.
pub fn check_equals_gspo(
    objective: &dyn Objective,
    gspo: &Gspo,
    tokens: &Tokens,
    advantage: f64,
) -> TestCaseResult {
    let (expected, expected_gradient) = evaluate(gspo, &tokens.uniform(advantage))?;
    let repeated = Tokens { advantages: vec![advantage; tokens.len()], ..tokens.clone() };
    for sequence in [tokens.uniform(advantage), repeated.per_token()] {
        let (evaluated, gradient) = evaluate(objective, &sequence)?;
        prop_assert!(
            close(evaluated.loss, expected.loss, 1e-14),
            "equal to GSPO: {objective:?}: the loss is {} and GSPO's {}",
            evaluated.loss,
            expected.loss
        );
        let is_active = |gradient: &[f64]| gradient.iter().map(|c| *c != 0.0).collect::<Vec<_>>();
        prop_assert!(
            all_close(&gradient, &expected_gradient, 1e-14)
                && is_active(&gradient) == is_active(&expected_gradient),
            "equal to GSPO: {objective:?}: the gradient is {gradient:?} and GSPO's {expected_gradient:?}"
        );
    }
    Ok(())
}

/// Checks which gradients a clip removes: those of A > 0 above the range, of A < 0 below it and, with a dual clip, of
/// A < 0 above its bound. All others of A ≠ 0 have the sign of −A.
///
/// `log_ratios` are the logarithms of the ratio that each token is clipped by: [`Tokens::log_ratios`] for a ratio per
/// token, their mean on every token for the ratio of the sequence. Tokens within 1e-9 of a bound are not judged.
///
/// # Errors
///
/// Fails with the first token that is wrong.
pub fn check_clip_sides(
    objective: &dyn Objective,
    clip: Clip,
    tokens: &Tokens,
    log_ratios: &[f64],
) -> TestCaseResult {
    let tokens = &suited(objective, tokens);
    let (_, gradient) = evaluate(objective, &tokens.per_token())?;
    let (low, high) = ((-clip.low()).ln_1p(), clip.high().ln_1p());
    let dual = clip.dual().map_or(f64::INFINITY, f64::ln);
    for (token, &coefficient) in gradient.iter().enumerate() {
        let (advantage, log_ratio) = (tokens.advantages[token], log_ratios[token]);
        if [low, high, dual].iter().any(|bound| (log_ratio - bound).abs() < 1e-9) {
            continue;
        }
        let is_removed = (advantage > 0.0 && log_ratio > high)
            || (advantage < 0.0 && (log_ratio < low || log_ratio > dual));
        let is_right = if is_removed || advantage == 0.0 {
            coefficient == 0.0
        } else {
            coefficient * advantage < 0.0
        };
        prop_assert!(
            is_right,
            "clip sides: {objective:?}: the gradient of token {token} is {coefficient}, with advantage {advantage} and \
             a ratio of e^{log_ratio} in the range {clip:?}"
        );
    }
    Ok(())
}

/// Checks that the statistics count exactly the gradients that clipping removed.
///
/// # Errors
///
/// Fails with the counts that differ.
pub fn check_clip_counts(objective: &dyn Objective, tokens: &Tokens) -> TestCaseResult {
    let tokens = &suited(objective, tokens);
    let (evaluated, gradient) = evaluate(objective, &tokens.per_token())?;
    let pairs = gradient.iter().zip(&tokens.advantages);
    let n_removed = pairs.filter(|(c, advantage)| **c == 0.0 && **advantage != 0.0).count();
    let n_with_advantage = tokens.advantages.iter().filter(|a| **a != 0.0).count();
    let stats = evaluated.stats;
    prop_assert_eq!(
        (stats.n_tokens, stats.n_with_advantage),
        (tokens.len(), n_with_advantage),
        "clip counts: {:?}: tokens, and tokens with an advantage",
        objective
    );
    let n_clipped = stats.n_clipped_low + stats.n_clipped_high + stats.n_clipped_dual;
    prop_assert_eq!(n_clipped, n_removed, "clip counts: {:?}: removed gradients", objective);
    Ok(())
}

/// Checks that a sequence of one token has the loss and gradient of PPO's clip, times the objective's weight.
///
/// # Errors
///
/// Fails with the loss or gradient that differs.
pub fn check_one_token(
    objective: &dyn Objective,
    clip: Clip,
    log_ratio: f64,
    advantage: f64,
) -> TestCaseResult {
    let tokens = Tokens::drifted(&[log_ratio], &[advantage]);
    let ratio = tokens.log_ratio().exp();
    let clipped = ratio.clamp(1.0 - clip.low(), 1.0 + clip.high());
    let weight = objective.token_weight(1);
    let loss = -weight * (ratio * advantage).min(clipped * advantage);
    let is_clipped = ratio * advantage > clipped * advantage;
    let coefficient = if is_clipped { 0.0 } else { -weight * ratio * advantage };
    let (evaluated, gradient) = evaluate(objective, &tokens.per_token())?;
    prop_assert!(
        close(evaluated.loss, loss, 1e-14) && close(gradient[0], coefficient, 1e-14),
        "one token: {objective:?}: loss {} and gradient {} instead of PPO's {loss} and {coefficient}",
        evaluated.loss,
        gradient[0]
    );
    Ok(())
}

/// Checks that a token with advantage 0 has no gradient, and that a sequence of such tokens has loss 0.
///
/// Not for objectives with a term that does not depend on the advantages, such as a KL to a reference. `silent` is the
/// position of the token that loses its advantage.
///
/// # Errors
///
/// Fails with the loss or gradient that is not 0.
///
/// # Panics
///
/// Panics if there is no token at position `silent`.
pub fn check_zero_advantage(
    objective: &dyn Objective,
    tokens: &Tokens,
    silent: usize,
) -> TestCaseResult {
    let flat = tokens.scaled(0.0);
    let (evaluated, gradient) = evaluate(objective, &flat.per_token())?;
    prop_assert!(
        evaluated.loss == 0.0 && gradient.iter().all(|coefficient| *coefficient == 0.0),
        "zero advantages: {objective:?}: loss {} and gradient {gradient:?}",
        evaluated.loss
    );
    if !objective.needs_uniform_advantages() {
        let mut tokens = tokens.clone();
        tokens.advantages[silent] = 0.0;
        let (_, gradient) = evaluate(objective, &tokens.per_token())?;
        let coefficient = gradient[silent];
        prop_assert!(
            coefficient == 0.0,
            "zero advantages: {objective:?}: token {silent} has advantage 0 and gradient {coefficient}"
        );
    }
    Ok(())
}

/// Checks that advantages multiplied by a number of at least 0 multiply loss and gradient by it.
///
/// # Errors
///
/// Fails with the losses or gradients that differ.
pub fn check_scaling(objective: &dyn Objective, tokens: &Tokens, scale: f64) -> TestCaseResult {
    let (plain, gradient) = evaluate(objective, &tokens.per_token())?;
    let (scaled, scaled_gradient) = evaluate(objective, &tokens.scaled(scale).per_token())?;
    let expected: Vec<f64> = gradient.iter().map(|coefficient| scale * coefficient).collect();
    prop_assert!(
        close(scaled.loss, scale * plain.loss, 1e-12)
            && all_close(&scaled_gradient, &expected, 1e-12),
        "scaling: {objective:?}: advantages times {scale} have loss {} and gradient {scaled_gradient:?} instead of {} \
         and {expected:?}",
        scaled.loss,
        scale * plain.loss
    );
    Ok(())
}

/// Checks that under the weights that sampled the tokens the gradient is REINFORCE's, −A_t times
/// [`Objective::token_weight`], and that nothing is clipped.
///
/// The log-probabilities of `tokens` are replaced by those of the behaviour policy.
///
/// # Errors
///
/// Fails with the gradients that differ, or the number of clipped tokens.
pub fn check_on_policy(objective: &dyn Objective, tokens: &Tokens) -> TestCaseResult {
    let mut tokens = suited(objective, tokens);
    tokens.logprobs.clone_from(&tokens.behavior_logprobs);
    let (evaluated, gradient) = evaluate(objective, &tokens.per_token())?;
    let weight = objective.token_weight(tokens.len());
    let expected: Vec<f64> = tokens.advantages.iter().map(|a| -weight * a).collect();
    prop_assert!(
        all_close(&gradient, &expected, 1e-14),
        "on policy: {objective:?}: the gradient is {gradient:?} instead of {expected:?}"
    );
    let stats = evaluated.stats;
    let n_cut =
        stats.n_clipped_low + stats.n_clipped_high + stats.n_clipped_dual + stats.n_truncated;
    prop_assert!(n_cut == 0, "on policy: {objective:?} clips {n_cut} tokens");
    Ok(())
}

/// Checks that a token with a positive advantage becomes more probable and one with a negative advantage less,
/// independently of the other tokens' advantages.
///
/// For tokens that no clip affects, such as those of [`tokens_near_policy`](super::tokens_near_policy).
///
/// # Errors
///
/// Fails with the first token whose gradient is 0 or has the wrong sign.
pub fn check_signs(objective: &dyn Objective, tokens: &Tokens) -> TestCaseResult {
    let tokens = &suited(objective, tokens);
    let (_, gradient) = evaluate(objective, &tokens.per_token())?;
    for (token, (&coefficient, &advantage)) in gradient.iter().zip(&tokens.advantages).enumerate() {
        prop_assert!(
            coefficient * advantage < 0.0 || advantage == 0.0,
            "signs: {objective:?}: token {token} has advantage {advantage} and gradient {coefficient}"
        );
    }
    Ok(())
}

/// Checks that the order of the tokens of a sequence changes nothing but their places.
///
/// For numbers whose sums do not depend on the order, such as those of [`f32_tokens`](super::f32_tokens), and for
/// objectives without a ratio per turn. `order` is a permutation of the positions of `tokens`.
///
/// # Errors
///
/// Fails with the losses or gradients that differ.
pub fn check_token_order(
    objective: &dyn Objective,
    tokens: &Tokens,
    order: &[usize],
) -> TestCaseResult {
    let (straight, gradient) = evaluate(objective, &tokens.per_token())?;
    let (shuffled, shuffled_gradient) = evaluate(objective, &tokens.pick(order).per_token())?;
    let expected: Vec<f64> = order.iter().map(|&position| gradient[position]).collect();
    // The means of advantages and which tokens share a vector may differ by a rounding.
    prop_assert!(
        close(straight.loss, shuffled.loss, 1e-14)
            && all_close(&shuffled_gradient, &expected, 1e-14),
        "token order: {objective:?}: in the order {order:?} the loss is {} and the gradient {shuffled_gradient:?} \
         instead of {} and {expected:?}",
        shuffled.loss,
        straight.loss
    );
    Ok(())
}

/// Checks that a constant log ratio has the same loss and gradient per unit of [`Objective::token_weight`] at a length
/// as with one token, up to a tolerance (1e-12 is generous for sums of a thousand tokens).
///
/// # Errors
///
/// Fails with the losses or gradients that differ.
///
/// # Panics
///
/// Panics if `length` is 0.
pub fn check_length(
    objective: &dyn Objective,
    log_ratio: f64,
    advantage: f64,
    length: usize,
    tolerance: f64,
) -> TestCaseResult {
    let per_weight = |length: usize| {
        let tokens = Tokens::drifted(&vec![log_ratio; length], &vec![advantage; length]);
        let (evaluated, gradient) = evaluate(objective, &tokens.uniform(advantage))?;
        let weight = objective.token_weight(length);
        Ok::<_, TestCaseError>((
            evaluated.loss / (weight * length as f64),
            gradient[length / 3] / weight,
        ))
    };
    let ((loss, gradient), (long_loss, long_gradient)) = (per_weight(1)?, per_weight(length)?);
    prop_assert!(
        close(long_loss, loss, tolerance) && close(long_gradient, gradient, tolerance),
        "length: {objective:?}: {length} tokens with a log ratio of {log_ratio} have loss {long_loss} and gradient \
         {long_gradient} per unit of weight, and one has {loss} and {gradient}"
    );
    Ok(())
}
