use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

/// Scaling of rotary frequencies for sequences beyond the original training length, as in `modeling_rope_utils.py` of
/// transformers 5.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RopeScaling {
    /// No scaling.
    #[default]
    None,
    /// All frequencies divided by a factor (Chen et al., *Extending context window of large language models via positional
    /// interpolation*, 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies are divided by a factor, high ones are kept, with interpolation between them (*The Llama 3 Herd
    /// of Models*, section 3.2).
    Llama3 {
        /// The factor of low frequencies.
        factor: f64,
        /// Frequencies with fewer periods than this in the original length are low.
        low_freq_factor: f64,
        /// Frequencies with more periods than this in the original length are high.
        high_freq_factor: f64,
        /// The original training length, in tokens.
        original_max_positions: usize,
    },
    /// Interpolation over the pairs of a head, and a factor of cosines and sines (Peng et al., *`YaRN`*, 2023, sections
    /// 3.2 to 3.4).
    Yarn {
        /// The factor of low frequencies.
        factor: f64,
        /// The number of periods in the original length above which a pair is kept.
        beta_fast: f64,
        /// The number of periods in the original length below which a pair is divided by the factor.
        beta_slow: f64,
        /// The factor of cosines and sines.
        attention_factor: f64,
        /// Whether the ends of the interpolation are rounded outwards to whole pairs.
        truncate: bool,
        /// The original training length, in tokens.
        original_max_positions: usize,
    },
    /// The base grows with sequences beyond `max_positions`, so that it has no effect on those that a model accepts here
    /// (NTK-aware scaling, as described in *`YaRN`*, section 3.1).
    Dynamic {
        /// The factor of the base's growth.
        factor: f64,
    },
    /// A factor for each pair of a head, and a factor of cosines and sines (Ding et al., *`LongRoPE`*, 2024). Sequences
    /// have at most the original length, for which `short_factor` is meant: with other factors for longer ones, a token's
    /// keys would depend on the tokens after it.
    LongRope {
        /// The factors of sequences up to the original length. `[rotary dimension / 2]`
        short_factor: Vec<f64>,
        /// The factors of longer sequences, which are only kept. `[rotary dimension / 2]`
        long_factor: Vec<f64>,
        /// The factor of cosines and sines.
        attention_factor: f64,
        /// The original training length, in tokens.
        original_max_positions: usize,
    },
}

impl RopeScaling {
    /// Returns the factor of cosines and sines.
    pub(crate) fn amplitude(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. } | Self::LongRope { attention_factor, .. } => {
                *attention_factor
            }
            _ => 1.0,
        }
    }

    /// Returns the rotation of each pair of a head per position, in radians, for a base of `theta`. `[head_dim / 2]`
    #[must_use]
    pub fn frequencies(&self, theta: f64, head_dim: usize) -> Vec<f64> {
        let plain: Vec<f64> =
            (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        match *self {
            Self::None | Self::Dynamic { .. } => plain,
            Self::LongRope { ref short_factor, .. } => plain
                .iter()
                .zip(short_factor)
                .map(|(frequency, factor)| frequency / factor)
                .collect(),
            Self::Linear { factor } => plain.iter().map(|frequency| frequency / factor).collect(),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let scaled = |frequency: f64| {
                    let turns = original_max_positions as f64 * frequency / TAU;
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    between(frequency / factor, frequency, kept)
                };
                plain.into_iter().map(scaled).collect()
            }
            Self::Yarn {
                factor, beta_fast, beta_slow, truncate, original_max_positions, ..
            } => {
                // The pair, as a real number, with this number of periods in the original length.
                let pair = |turns: f64| {
                    let length = original_max_positions as f64 / (turns * TAU);
                    head_dim as f64 * length.ln() / (2.0 * theta.ln())
                };
                let (low, high) = (pair(beta_fast), pair(beta_slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                let scaled = |(i, frequency): (usize, f64)| {
                    between(frequency, frequency / factor, (i as f64 - low) / width)
                };
                plain.into_iter().enumerate().map(scaled).collect()
            }
        }
    }
}

/// Interpolates from `a` to `b`, with `share` clamped to 0 to 1.
fn between(a: f64, b: f64, share: f64) -> f64 {
    let share = share.clamp(0.0, 1.0);
    a + (b - a) * share
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values are those of transformers 5.19, in single precision.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        let expected = [
            1.0,
            0.193_922_758_102_417,
            0.037_606_030_702_590_94,
            0.007_292_665_075_510_74,
            0.000_524_846_022_017_300_1,
            3.428_102_354_519_069e-5,
            6.647_869_668_086_059e-6,
            1.289_173_155_782_919e-6,
        ];
        check(&llama3, 5e5, expected);

        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.138_629_436_111_989,
            truncate: true,
            original_max_positions: 32_768,
        };
        let expected = [
            1.0,
            0.177_827_939_391_136_17,
            0.031_622_778_624_296_19,
            0.004_217_559_937_387_705,
            0.000_500_000_023_748_725_7,
            4.445_698_505_151_085e-5,
            7.905_693_564_680_405e-6,
            1.405_853_367_941_745e-6,
        ];
        check(&yarn, 1e6, expected);

        assert_eq!(RopeScaling::Linear { factor: 2.0 }.frequencies(1e4, 4), [0.5, 0.005]);
    }

    #[test]
    fn the_passage_between_long_and_short_waves_may_start_inside_a_pair() {
        let untruncated = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 8.0,
            beta_slow: 2.0,
            attention_factor: 1.0,
            truncate: false,
            original_max_positions: 64,
        };
        let expected = [
            1.0,
            0.160_589_158_535_003_66,
            0.025_000_000_372_529_03,
            0.007_905_694_656_074_047,
            0.002_499_999_944_120_645_5,
            0.000_790_569_465_607_404_7,
            0.000_250_000_011_874_362_8,
            7.905_694_656_074_047e-5,
        ];
        check(&untruncated, 1e4, expected);
    }

    fn check(scaling: &RopeScaling, theta: f64, expected: [f64; 8]) {
        for (ours, theirs) in scaling.frequencies(theta, 16).iter().zip(expected) {
            assert!((ours / theirs - 1.0).abs() < 1e-6, "{scaling:?}: {ours} {theirs}");
        }
    }
}
