//! The moments of a parameter, in the precision that the settings name.
//!
//! A second moment changes by a thousandth of itself in a step, which is less than half a step between neighbours of bf16 or
//! of 8 bits: rounded to the nearest, it would never move. So numbers are rounded up or down by chance, with the probability
//! that keeps their mean. The chance is a hash of the step and the place, so that a run can be repeated.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_kernels::pairs::number;
use turnwise_kernels::vectorized;

use super::Rates;
use crate::checkpoint::Decode;

/// The precision of the optimiser's moments in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MomentPrecision {
    /// Single precision: 8 bytes for each trained number.
    #[default]
    F32,
    /// bfloat16, rounded by chance so that means are kept: 4 bytes for each trained number.
    Bf16,
    /// Floating point of 8 bits with a scale for each 256 numbers, rounded in the same way: 2 bytes for each trained number.
    Fp8,
}

impl MomentPrecision {
    /// Returns the bytes of both moments of some numbers in a checkpoint.
    pub(crate) fn file_bytes(self, numbers: u64) -> u64 {
        match self {
            Self::F32 => numbers.saturating_mul(8),
            Self::Bf16 | Self::Fp8 => numbers.saturating_mul(4),
        }
    }

    /// Returns the bytes of both moments of some numbers in memory.
    pub(crate) fn bytes(self, numbers: u64) -> u64 {
        match self {
            Self::F32 => numbers.saturating_mul(8),
            Self::Bf16 => numbers.saturating_mul(4),
            // Two scales of four bytes for each block.
            Self::Fp8 => numbers.saturating_mul(2).saturating_add(numbers / BLOCK as u64 * 8),
        }
    }
}

/// The numbers that one thread takes at a time.
const PIECE: usize = 1 << 15;

/// The numbers that are decoded at a time; with 8 bits they have a common scale.
const BLOCK: usize = 256;

/// The first and the second moments of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Moments {
    F32([Vec<f32>; 2]),
    Bf16([Vec<u16>; 2]),
    Fp8([Bytes; 2]),
}

/// Numbers of 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bytes {
    kind: ByteKind,
    codes: Vec<u8>,
    /// A power of two for each block.
    scales: Vec<f32>,
}

/// What the bits of a byte mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteKind {
    /// A sign, four bits of exponent and three of mantissa.
    Signed,
    /// Five bits of exponent and three of mantissa.
    Positive,
}

impl Moments {
    pub(super) fn zeros(precision: MomentPrecision, length: usize) -> Self {
        match precision {
            MomentPrecision::F32 => Self::F32([vec![0.0; length], vec![0.0; length]]),
            MomentPrecision::Bf16 => Self::Bf16([vec![0; length], vec![0; length]]),
            MomentPrecision::Fp8 => Self::Fp8([ByteKind::Signed, ByteKind::Positive].map(|kind| {
                Bytes { kind, codes: vec![0; length], scales: vec![0.0; length.div_ceil(BLOCK)] }
            })),
        }
    }

    /// Writes the zeros of new moments. Memory that is read before it is written shares a page of zeros, and every page
    /// then interrupts all threads when it gets memory of its own: seconds for a model of 135 million weights.
    pub(super) fn write_zeros(&mut self) {
        match self {
            Self::F32(numbers) => numbers.iter_mut().for_each(|numbers| numbers.fill(0.0)),
            Self::Bf16(halves) => halves.iter_mut().for_each(|halves| halves.fill(0)),
            Self::Fp8(bytes) => {
                for Bytes { codes, scales, .. } in bytes {
                    codes.fill(0);
                    scales.fill(0.0);
                }
            }
        }
    }

    /// Encodes numbers; those that were decoded keep their values.
    pub(super) fn encode(precision: MomentPrecision, [first, second]: [Vec<f32>; 2]) -> Self {
        if precision == MomentPrecision::F32 {
            return Self::F32([first, second]);
        }
        let mut moments = Self::zeros(precision, first.len());
        match &mut moments {
            Self::F32(_) => {}
            Self::Bf16(halves) => {
                for (halves, numbers) in halves.iter_mut().zip([&first, &second]) {
                    encode_halves(halves, numbers, 0);
                }
            }
            Self::Fp8(bytes) => {
                for (bytes, numbers) in bytes.iter_mut().zip([&first, &second]) {
                    let Bytes { kind, codes, scales } = bytes;
                    let blocks = codes.chunks_mut(BLOCK).zip(numbers.chunks(BLOCK));
                    for (scale, (codes, numbers)) in scales.iter_mut().zip(blocks) {
                        *scale = encode_bytes(*kind, codes, numbers, 0);
                    }
                }
            }
        }
        moments
    }

    /// Returns the first and the second moments, for a file.
    pub(super) fn halves(&self) -> [&dyn Decode; 2] {
        match self {
            Self::F32([first, second]) => [first, second],
            Self::Bf16([first, second]) => [first, second],
            Self::Fp8([first, second]) => [first, second],
        }
    }

    /// Moves weights and moments, and returns whether all of them are finite afterwards.
    pub(super) fn step(&mut self, weights: &mut [f32], gradient: &[f32], rates: Rates) -> bool {
        let pieces = weights.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE)).enumerate();
        // Every piece is updated, even after one that is not finite.
        match self {
            Self::F32([first, second]) => {
                let state = first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE));
                let moved = pieces.zip(state).map(|((_, (weights, gradient)), (first, second))| {
                    move_numbers(weights, first, second, gradient, rates)
                });
                moved.reduce(|| true, |a, b| a & b)
            }
            Self::Bf16([first, second]) => {
                let state = first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE));
                let moved =
                    pieces.zip(state).map(|((index, (weights, gradient)), (first, second))| {
                        move_halves(weights, first, second, gradient, rates, seed(rates, index))
                    });
                moved.reduce(|| true, |a, b| a & b)
            }
            Self::Fp8([first, second]) => {
                let state = first.pieces().zip(second.pieces());
                let moved =
                    pieces.zip(state).map(|((index, (weights, gradient)), (first, second))| {
                        move_bytes(weights, first, second, gradient, rates, seed(rates, index))
                    });
                moved.reduce(|| true, |a, b| a & b)
            }
        }
    }
}

/// Codes and scales of a piece.
type BytePiece<'a> = (&'a mut [u8], &'a mut [f32]);

impl Bytes {
    fn pieces(&mut self) -> impl IndexedParallelIterator<Item = BytePiece<'_>> {
        self.codes.par_chunks_mut(PIECE).zip(self.scales.par_chunks_mut(PIECE / BLOCK))
    }
}

impl Decode for Vec<f32> {
    fn decoded(&self) -> Vec<f32> {
        self.clone()
    }
}

impl Decode for Vec<u16> {
    fn decoded(&self) -> Vec<f32> {
        self.iter().map(|half| number(*half)).collect()
    }
}

impl Decode for Bytes {
    fn decoded(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.codes.len()];
        let blocks = numbers.chunks_mut(BLOCK).zip(self.codes.chunks(BLOCK));
        for ((numbers, codes), scale) in blocks.zip(&self.scales) {
            decode_bytes(self.kind, numbers, codes, *scale);
        }
        numbers
    }
}

/// Returns a hash of a place, whose bits are the chance of rounding.
#[allow(clippy::inline_always, reason = "it is called in compiled loops")]
#[inline(always)]
fn hash(seed: u32, place: u32) -> u32 {
    // The finaliser of MurmurHash3.
    let mut bits = seed ^ place.wrapping_mul(0x9e37_79b9);
    bits = (bits ^ (bits >> 16)).wrapping_mul(0x85eb_ca6b);
    bits = (bits ^ (bits >> 13)).wrapping_mul(0xc2b2_ae35);
    bits ^ (bits >> 16)
}

/// Returns the chance of a piece in a step.
fn seed(rates: Rates, piece: usize) -> u32 {
    hash(rates.step, piece as u32)
}

/// Encodes finite numbers, rounded by chance.
#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
#[inline(always)]
fn encode_halves(halves: &mut [u16], numbers: &[f32], seed: u32) {
    for (place, (half, number)) in (0..).zip(halves.iter_mut().zip(numbers)) {
        // Half the place of the last bit that is kept would round to the nearest.
        let chance = hash(seed, place) & 0xffff;
        *half = (number.to_bits().wrapping_add(chance) >> 16) as u16;
    }
}

/// The bits of a code's mantissa.
const MANTISSA: u32 = 3;
/// What is cut from the bits of an f32.
const CUT: u32 = 23 - MANTISSA;

impl ByteKind {
    /// Returns the largest code, which is 1.875.
    #[allow(clippy::inline_always, reason = "it is called in compiled loops")]
    #[inline(always)]
    fn largest(self) -> i32 {
        match self {
            Self::Signed => 0x7f,
            Self::Positive => 0xff,
        }
    }

    /// Returns the distance between a code and the bits of its f32, in units of a code's last bit.
    #[allow(clippy::inline_always, reason = "it is called in compiled loops")]
    #[inline(always)]
    fn offset(self) -> i32 {
        (127 << MANTISSA) + (1 << MANTISSA) - 1 - self.largest()
    }
}

/// Encodes the finite numbers of a block, rounded by chance, and returns their scale.
#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
#[inline(always)]
fn encode_bytes(kind: ByteKind, codes: &mut [u8], numbers: &[f32], seed: u32) -> f32 {
    let largest = numbers.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    // The least power of two with which the largest number is at most 1.875.
    let scale = f32::from_bits((largest.to_bits() + (1 << CUT) - 1) & 0x7f80_0000);
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (place, (code, number)) in (0..).zip(codes.iter_mut().zip(numbers)) {
        let bits = (number * inverse).to_bits();
        let chance = hash(seed, place) & ((1 << CUT) - 1);
        let magnitude = (bits & 0x7fff_ffff).wrapping_add(chance) >> CUT;
        let magnitude = magnitude.cast_signed() - kind.offset();
        let code_of = match kind {
            ByteKind::Signed => {
                magnitude.clamp(0, kind.largest()) | (bits >> 24 & 0x80).cast_signed()
            }
            // A square that is not 0 stays so: a gradient is divided by its root.
            ByteKind::Positive => magnitude.clamp(i32::from(*number > 0.0), kind.largest()),
        };
        *code = code_of.cast_unsigned() as u8;
    }
    scale
}

#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
#[inline(always)]
fn decode_bytes(kind: ByteKind, numbers: &mut [f32], codes: &[u8], scale: f32) {
    for (number, code) in numbers.iter_mut().zip(codes) {
        let code = i32::from(*code);
        let magnitude = code & kind.largest();
        let sign = (code & !kind.largest()).cast_unsigned() << 24;
        let bits = ((magnitude + kind.offset()) << CUT).cast_unsigned();
        let bits = if magnitude == 0 { 0 } else { bits };
        *number = f32::from_bits(bits | sign) * scale;
    }
}

/// The bits of infinity: a finite number without its sign is below.
const INFINITY: u32 = f32::INFINITY.to_bits();

/// The sign bit.
const SIGN: u32 = 1 << 31;

/// Applies the formula of [`AdamW`](super::AdamW), and returns whether all numbers are finite afterwards.
#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
#[inline(always)]
fn moved(
    weights: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    gradient: &[f32],
    rates: &Rates,
) -> bool {
    let mut largest = 0;
    let state = first.iter_mut().zip(second).zip(gradient);
    for (weight, ((first, second), gradient)) in weights.iter_mut().zip(state) {
        let gradient = gradient * rates.scale;
        *first += (1.0 - rates.beta1) * (gradient - *first);
        *second += (1.0 - rates.beta2) * (gradient * gradient - *second);
        let root = (*second * rates.second_correction).sqrt() + rates.epsilon;
        *weight = *weight * rates.kept - rates.rate * *first / root;
        // Compared as integers, the bits of numbers without their sign have the order of the numbers, with NaN
        // above infinity.
        for number in [*weight, *first, *second] {
            largest = largest.max(number.to_bits() & !SIGN);
        }
    }
    largest < INFINITY
}

vectorized! {
    /// Moves a piece with moments in f32.
    fn move_numbers(
        weights: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
        gradient: &[f32],
        rates: Rates,
    ) -> bool {
        moved(weights, first, second, gradient, &rates)
    }

    /// Moves a piece with moments in bf16.
    fn move_halves(
        weights: &mut [f32],
        first: &mut [u16],
        second: &mut [u16],
        gradient: &[f32],
        rates: Rates,
        seed: u32,
    ) -> bool {
        let mut is_finite = true;
        let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
        let state = first.chunks_mut(BLOCK).zip(second.chunks_mut(BLOCK));
        let blocks = weights.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK));
        for (block, ((weights, gradient), (first, second))) in (0..).zip(blocks.zip(state)) {
            let n = weights.len();
            for (m, first) in m.iter_mut().zip(&*first) {
                *m = number(*first);
            }
            for (v, second) in v.iter_mut().zip(&*second) {
                *v = number(*second);
            }
            is_finite &= moved(weights, &mut m[..n], &mut v[..n], gradient, &rates);
            encode_halves(first, &m[..n], hash(seed, 2 * block));
            encode_halves(second, &v[..n], hash(seed, 2 * block + 1));
        }
        is_finite
    }

    /// Moves a piece with moments of 8 bits.
    fn move_bytes(
        weights: &mut [f32],
        first: BytePiece<'_>,
        second: BytePiece<'_>,
        gradient: &[f32],
        rates: Rates,
        seed: u32,
    ) -> bool {
        let mut is_finite = true;
        let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
        let first = first.0.chunks_mut(BLOCK).zip(first.1);
        let second = second.0.chunks_mut(BLOCK).zip(second.1);
        let blocks = weights.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK));
        for (block, ((weights, gradient), (first, second))) in (0..).zip(blocks.zip(first.zip(second))) {
            let n = weights.len();
            decode_bytes(ByteKind::Signed, &mut m[..n], first.0, *first.1);
            decode_bytes(ByteKind::Positive, &mut v[..n], second.0, *second.1);
            is_finite &= moved(weights, &mut m[..n], &mut v[..n], gradient, &rates);
            *first.1 = encode_bytes(ByteKind::Signed, first.0, &m[..n], hash(seed, 2 * block));
            *second.1 = encode_bytes(ByteKind::Positive, second.0, &v[..n], hash(seed, 2 * block + 1));
        }
        is_finite
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What encoding makes of numbers on average.
    fn mean(numbers: &[f32], encoded: impl Fn(u32) -> Vec<f32>) -> Vec<f64> {
        let mut sums = vec![0.0; numbers.len()];
        for seed in 0..4096 {
            for (sum, x) in sums.iter_mut().zip(encoded(seed)) {
                *sum += f64::from(x) / 4096.0;
            }
        }
        sums
    }

    fn through_bytes(kind: ByteKind, numbers: &[f32], seed: u32) -> Vec<f32> {
        let (mut codes, mut same) = (vec![0; numbers.len()], vec![0.0; numbers.len()]);
        let scale = encode_bytes(kind, &mut codes, numbers, seed);
        decode_bytes(kind, &mut same, &codes, scale);
        same
    }

    fn through_halves(numbers: &[f32], seed: u32) -> Vec<f32> {
        let mut halves = vec![0; numbers.len()];
        encode_halves(&mut halves, numbers, seed);
        halves.decoded()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..Default::default() })]

        /// Rounding keeps the mean: the error of 4,096 means is a 64th of a step's.
        #[test]
        fn rounding_by_chance_keeps_the_mean(
            numbers in proptest::collection::vec(0.01_f32..1.0, 1..30),
            power in -40_i32..10,
        ) {
            let numbers: Vec<f32> = numbers.iter().map(|x| x * 2.0_f32.powi(power)).collect();
            let halves = mean(&numbers, |seed| through_halves(&numbers, seed));
            let [signed, positive] = [ByteKind::Signed, ByteKind::Positive]
                .map(|kind| mean(&numbers, |seed| through_bytes(kind, &numbers, seed)));
            for (place, x) in numbers.iter().enumerate() {
                let x = f64::from(*x);
                prop_assert!((halves[place] / x - 1.0).abs() < 0.001);
                prop_assert!((signed[place] / x - 1.0).abs() < 0.01, "{} {x}", signed[place]);
                prop_assert!((positive[place] / x - 1.0).abs() < 0.01, "{} {x}", positive[place]);
            }
        }

        /// A state that was written and read is the same, whatever the chance.
        #[test]
        fn what_was_decoded_is_encoded_exactly(
            numbers in proptest::collection::vec(-2.0_f32..2.0, 1..600),
            seeds: [u32; 2],
        ) {
            for (kind, numbers) in [
                (ByteKind::Signed, numbers.clone()),
                (ByteKind::Positive, numbers.iter().map(|x| x * x).collect()),
            ] {
                let once = through_bytes(kind, &numbers, seeds[0]);
                prop_assert_eq!(&through_bytes(kind, &once, seeds[1]), &once);
                let largest = numbers.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                for (x, same) in numbers.iter().zip(&once) {
                    let step = (x.abs() / 8.0).max(largest * 2.0_f32.powi(-14));
                    prop_assert!((x - same).abs() <= step, "{x} {same}");
                    prop_assert!(*x == 0.0 || kind == ByteKind::Signed || *same > 0.0);
                }
            }
            let once = through_halves(&numbers, seeds[0]);
            prop_assert_eq!(through_halves(&once, seeds[1]), once);
        }
    }

    /// With gradients of a constant size, weights go the same way in every precision, and the second moment arrives at the
    /// gradient's square, though a step changes it by less than its last bit.
    #[test]
    fn moments_move_in_every_precision() {
        let n = 1000;
        let gradient: Vec<f32> = (0..n).map(|i| 0.01 * (1 + i % 50) as f32).collect();
        let settled = |precision| {
            let (mut moments, mut weights) = (Moments::zeros(precision, n), vec![1.0_f32; n]);
            for step in 1..=4000 {
                let correction = |beta: f64| (1.0 - beta.powi(step)) as f32;
                let rates = Rates {
                    scale: 1.0,
                    beta1: 0.9,
                    beta2: 0.999,
                    epsilon: 1e-8,
                    rate: 1e-3 / correction(0.9),
                    second_correction: 1.0 / correction(0.999),
                    kept: 1.0,
                    step: step.cast_unsigned(),
                };
                assert!(moments.step(&mut weights, &gradient, rates));
            }
            let [first, second] = moments.halves().map(Decode::decoded);
            let off = |have: &[f32], want: &dyn Fn(f32) -> f32| {
                let ratios = have.iter().zip(&gradient).map(|(x, g)| f64::from(x / want(*g)));
                ratios.sum::<f64>() / n as f64 - 1.0
            };
            let path = weights.iter().map(|w| f64::from(1.0 - w)).sum::<f64>() / n as f64;
            (off(&first, &|g| g), off(&second, &|g| g * g * 0.9817), path)
        };
        let (_, _, right) = settled(MomentPrecision::F32);
        for (precision, error) in [
            (MomentPrecision::F32, 1e-3),
            (MomentPrecision::Bf16, 0.01),
            (MomentPrecision::Fp8, 0.03),
        ] {
            let (first, second, path) = settled(precision);
            assert!(first.abs() < error && second.abs() < error, "{precision:?} {first} {second}");
            assert!((path / right - 1.0).abs() < error, "{precision:?} {path} {right}");
        }
    }
}
