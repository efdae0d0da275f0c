//! Vector maths: arithmetic on slices in a fixed order, so that a result depends on the numbers alone.
//!
//! Functions take on the instruction set of their caller: call them inside [`vectorized`](crate::vectorized).

#![allow(
    clippy::inline_always,
    reason = "they are the bodies of functions compiled for several instruction sets"
)]

/// The number of parallel partial sums, enough to fill the processor's registers.
const LANES: usize = 16;

/// Returns the exponential to about two units in the last place, with arguments clamped to −87 and 88. It has no
/// branch, so that it vectorises (after Cephes' `expf`, S. Moshier).
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    exp_within(x)
}

/// Returns the exponential of a number between −87 and 88.
#[inline(always)]
fn exp_within(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves a whole number in the low bits
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    let p = 1.987_569_1e-4_f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let p = p * r * r + r + 1.0;
    let power = (shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits());
    p * f32::from_bits(power)
}

/// Returns the exponential of a number that is at most 0, to about two units in the last place; 0 where the result
/// would be below `exp(-87)`, and for NaN. It has no branch, so that it vectorises, and no fused operations, so that
/// every processor computes the same bits.
#[inline(always)]
#[must_use]
pub fn exp_flushed(x: f32) -> f32 {
    let is_enough = x > -87.0; // never of NaN
    let exponential = exp_within(if is_enough { x } else { -87.0 });
    if is_enough { exponential } else { 0.0 }
}

/// Returns `x / (1 + exp(-x))`.
#[inline(always)]
#[must_use]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Returns the approximation of `GeLU` by a hyperbolic tangent (Hendrycks and Gimpel, *Gaussian error linear units*, 2016,
/// section 2): with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, `x (1 + tanh u) / 2`, which is `x sigmoid(2 u)`.
#[must_use]
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    x / (1.0 + exp(-gelu_argument(x)))
}

/// Returns [`gelu_tanh`] and its derivative.
#[must_use]
#[inline(always)]
pub fn gelu_tanh_slope(x: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + exp(-gelu_argument(x)));
    let slope = 2.0 * ROOT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x);
    (x * sigmoid, sigmoid + x * sigmoid * (1.0 - sigmoid) * slope)
}

const ROOT_2_OVER_PI: f32 = 0.797_884_6;

#[inline(always)]
fn gelu_argument(x: f32) -> f32 {
    2.0 * ROOT_2_OVER_PI * (x + 0.044_715 * x * x * x)
}

/// Adds up lanes as a fixed tree.
#[inline(always)]
fn gather(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Returns the sum of products.
#[inline(always)]
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for (i, (a, b)) in rest_a.iter().zip(rest_b).enumerate() {
        lanes[i] += a * b;
    }
    gather(lanes)
}

/// Returns the sum of products of three.
#[inline(always)]
#[must_use]
pub fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    let (whole_c, rest_c) = c.as_chunks::<LANES>();
    for ((a, b), c) in whole_a.iter().zip(whole_b).zip(whole_c) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i] * c[i];
        }
    }
    for (i, ((a, b), c)) in rest_a.iter().zip(rest_b).zip(rest_c).enumerate() {
        lanes[i] += a * b * c;
    }
    gather(lanes)
}

/// Returns the sum of a function of each number.
#[inline(always)]
#[must_use]
pub fn sum_of(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] += of(x[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += of(*x);
    }
    gather(lanes)
}

/// Adds `factor * x` to `target`.
#[inline(always)]
pub fn add_scaled(target: &mut [f32], factor: f32, x: &[f32]) {
    for (target, x) in target.iter_mut().zip(x) {
        *target += factor * x;
    }
}

/// Returns the largest number, or minus infinity for an empty slice. NaN is skipped.
#[inline(always)]
#[must_use]
pub fn maximum(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], x[i]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| larger(a, *b))
}

/// Replaces each value by `exp(x - highest)` and returns their sum.
#[inline(always)]
pub fn exponentials(x: &mut [f32], highest: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for x in whole {
        for i in 0..LANES {
            x[i] = exp(x[i] - highest);
            lanes[i] += x[i];
        }
    }
    for (i, x) in rest.iter_mut().enumerate() {
        *x = exp(*x - highest);
        lanes[i] += *x;
    }
    gather(lanes)
}

/// Returns the sums of `exp(x - highest)` and of `exp(x - highest) x`.
#[inline(always)]
#[must_use]
pub fn exponential_sums(x: &[f32], highest: f32) -> (f32, f32) {
    let (mut sums, mut weighted) = ([0.0; LANES], [0.0; LANES]);
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            let weight = exp(x[i] - highest);
            sums[i] += weight;
            weighted[i] += weight * x[i];
        }
    }
    for (i, x) in rest.iter().enumerate() {
        let weight = exp(x - highest);
        sums[i] += weight;
        weighted[i] += weight * x;
    }
    (gather(sums), gather(weighted))
}

/// Replaces numbers by their softmax.
#[inline(always)]
pub fn softmax(x: &mut [f32]) {
    let highest = maximum(x);
    let factor = 1.0 / exponentials(x, highest);
    for x in x {
        *x *= factor;
    }
}

/// Returns one over the root of the mean square, with `eps` added to the mean.
#[inline(always)]
#[must_use]
pub fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// Writes `x * inverse_rms(x) * gain` to `target`.
#[inline(always)]
pub fn rms_norm(target: &mut [f32], x: &[f32], gain: &[f32], eps: f32) {
    let factor = inverse_rms(x, eps);
    for ((target, x), gain) in target.iter_mut().zip(x).zip(gain) {
        *target = x * factor * gain;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_two_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for i in -86_999..88_000 {
            let x = i as f32 * 1e-3;
            let right = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - right) / right).abs());
        }
        assert!(worst < 2.4e-7, "{worst}");
        assert!(exp(-1e30) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_cover_every_length() {
        for length in 0..40 {
            let x: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let squares: f32 = x.iter().map(|x| x * x).sum();
            assert_eq!(dot(&x, &x), squares);
            let highest = x.last().copied().unwrap_or(f32::NEG_INFINITY);
            assert_eq!(maximum(&x), highest);
            let mut weights = x.clone();
            softmax(&mut weights);
            if length > 0 {
                assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
    }
}
