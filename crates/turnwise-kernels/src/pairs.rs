//! Numbers as bf16, in pairs: the form in which processors multiply them, two terms of a sum at a time.
//!
//! A pair holds a term with an even index in its low half and the next term in its high half. The last pair of an odd
//! number of terms has 0 in its high half.

use crate::tile::LANES;
use crate::vectorized;

/// Pairs of sixteen columns, in a cache line of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct PairLine(pub [u32; LANES]);

impl PairLine {
    /// Zeros.
    pub const ZERO: Self = Self([0; LANES]);
}

/// Rounds to the nearest bf16; ties go to the even one.
///
/// ```
/// use turnwise_kernels::pairs::{number, rounded};
///
/// assert_eq!(number(rounded(1.0)), 1.0);
/// assert_eq!(number(rounded(1.003)), 1.0);
/// assert_eq!(number(rounded(1.006)), 1.0078125);
/// ```
#[allow(clippy::inline_always, reason = "it is called in compiled loops")]
#[inline(always)]
#[must_use]
pub fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    // A NaN must not become an infinity.
    let quiet = u32::from(x.is_nan()) << 22;
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let kept = if x.is_nan() { bits | quiet } else { nearest };
    (kept >> 16) as u16
}

/// Returns a bf16 as an f32.
#[allow(clippy::inline_always, reason = "it is called in compiled loops")]
#[inline(always)]
#[must_use]
pub fn number(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Returns the number of pairs for a number of terms.
#[must_use]
pub const fn count(terms: usize) -> usize {
    terms.div_ceil(2)
}

/// Joins two terms.
#[allow(clippy::inline_always, reason = "it is called in compiled loops")]
#[inline(always)]
#[must_use]
pub fn joined(first: f32, second: f32) -> u32 {
    u32::from(rounded(first)) | u32::from(rounded(second)) << 16
}

/// Returns the two terms of a pair.
#[allow(clippy::inline_always, reason = "it is called in compiled loops")]
#[inline(always)]
#[must_use]
pub fn terms(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

vectorized! {
    /// Rounds the first `width` numbers of each row of `stride` numbers, into rows of [`count`] pairs. The last row may
    /// be shorter than `stride`.
    pub fn round_rows(target: &mut [u32], rows: &[f32], stride: usize, width: usize) {
        for (target, row) in target.chunks_exact_mut(count(width)).zip(rows.chunks(stride)) {
            let (whole, rest) = row[..width].as_chunks::<2>();
            for (pair, [first, second]) in target.iter_mut().zip(whole) {
                *pair = joined(*first, *second);
            }
            if let [last] = rest {
                target[width / 2] = joined(*last, 0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_and_ties_go_to_the_even_one() {
        for (x, nearest) in [
            (0.0, 0.0),
            (-0.0, -0.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
            (1.0 + 1.1 / 256.0, 1.0 + 2.0 / 256.0),
            (f32::MAX, f32::INFINITY),
            (f32::INFINITY, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            let rounded = number(rounded(x));
            assert_eq!(rounded, nearest, "{x}");
            assert_eq!(rounded.is_sign_negative(), nearest.is_sign_negative());
        }
        for bits in [0x7f80_0001, 0xffff_ffff, 0x7fc0_0000] {
            assert!(number(rounded(f32::from_bits(bits))).is_nan());
        }
        for x in (0..100_000_u32).map(|i| f32::from_bits(i * 42_949)) {
            let error = f64::from(number(rounded(x))) - f64::from(x);
            assert!(
                x.is_nan()
                    || error.is_infinite()
                    || error.abs() <= f64::from(x).abs() / 256.0 + 1e-38
            );
        }
    }

    #[test]
    fn rows_become_pairs_of_their_terms() {
        let rows: Vec<f32> = (0..35).map(|i: u16| f32::from(i) * 0.5).collect();
        for width in [7, 8] {
            let mut target = vec![7; 4 * count(width)];
            round_rows(&mut target, &rows[..27 + width], 9, width);
            for (row, pairs) in target.chunks(count(width)).enumerate() {
                let mut all: Vec<f32> = pairs.iter().flat_map(|pair| terms(*pair)).collect();
                assert!(all.split_off(width).iter().all(|x| *x == 0.0));
                assert_eq!(all, rows[row * 9..][..width]);
            }
        }
    }
}
