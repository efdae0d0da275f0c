use crate::DecoderConfig;

/// Cosines and sines of rotary positions (Su et al., *`RoFormer`*, 2021, section 3.4.2), for the pairing of Hugging Face's
/// checkpoints: element `i` of a head turns with element `i + head_dim / 2`.
#[derive(Debug)]
pub(crate) struct Rope {
    half: usize,
    /// Cosines, then sines, of each position. `[max_positions, 2 * half]`
    table: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(config: &DecoderConfig) -> Self {
        let half = config.head_dim / 2;
        let exponents = (0..half).map(|i| -2.0 * i as f64 / config.head_dim as f64);
        let frequencies: Vec<f64> =
            exponents.map(|exponent| config.rope_theta.powf(exponent)).collect();
        let mut table = Vec::with_capacity(config.max_positions * 2 * half);
        for position in 0..config.max_positions {
            let angle = |frequency: &f64| position as f64 * frequency;
            table.extend(frequencies.iter().map(|frequency| angle(frequency).cos() as f32));
            table.extend(frequencies.iter().map(|frequency| angle(frequency).sin() as f32));
        }
        Self { half, table }
    }

    pub(crate) fn half(&self) -> usize {
        self.half
    }

    /// Cosines and sines of a position. `[half]` each
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let width = 2 * self.half;
        self.table[position * width..(position + 1) * width].split_at(self.half)
    }

    /// Turns every head of a token to its position.
    pub(crate) fn turn(&self, heads: &mut [f32], position: usize) {
        let (cos, sin) = self.at(position);
        for head in heads.chunks_exact_mut(2 * self.half) {
            let (first, second) = head.split_at_mut(self.half);
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }

    /// Turns every head back: the transpose of [`Self::turn`].
    pub(crate) fn turn_back(&self, heads: &mut [f32], position: usize) {
        let (cos, sin) = self.at(position);
        for head in heads.chunks_exact_mut(2 * self.half) {
            let (first, second) = head.split_at_mut(self.half);
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * c + *b * s, *b * c - *a * s);
            }
        }
    }
}
