//! Rotary position embedding.

mod scaling;

use std::sync::OnceLock;

pub use scaling::RopeScaling;

/// The number of positions whose values are computed together, when one of them is first needed.
const BLOCK: usize = 1024;

/// Cosines and sines of rotary position embedding (Su et al., *`RoFormer`*, 2021, section 3.4.2), for the pairing of
/// Hugging Face's checkpoints: of the numbers of a head that rotate, element `i` rotates with element `i + half`. All
/// numbers of a head rotate, or its first ones, or none.
#[derive(Debug)]
pub(crate) struct Rope {
    /// Radians per position. `[half]`
    frequencies: Vec<f64>,
    amplitude: f64,
    /// Cosines, then sines, of each position, computed block by block: models of a million positions are rarely used
    /// beyond the first few thousand. `[BLOCK, 2 * half]` each
    blocks: Vec<OnceLock<Vec<f32>>>,
}

impl Rope {
    /// Returns the embedding that rotates the first `rotary_dim` numbers of each head.
    pub(crate) fn new(
        scaling: &RopeScaling,
        theta: f64,
        rotary_dim: usize,
        max_positions: usize,
    ) -> Self {
        let blocks = max_positions.div_ceil(BLOCK);
        Self {
            frequencies: scaling.frequencies(theta, rotary_dim),
            amplitude: scaling.amplitude(),
            blocks: (0..blocks).map(|_| OnceLock::new()).collect(),
        }
    }

    pub(crate) fn half(&self) -> usize {
        self.frequencies.len()
    }

    /// Returns the cosines and sines of a position. `[half]` each
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let (block, row) = (position / BLOCK, position % BLOCK);
        let table = self.blocks[block].get_or_init(|| self.block(block));
        let width = 2 * self.half();
        table[row * width..(row + 1) * width].split_at(self.half())
    }

    fn block(&self, block: usize) -> Vec<f32> {
        let mut table = Vec::with_capacity(BLOCK * 2 * self.half());
        for position in block * BLOCK..(block + 1) * BLOCK {
            let angles = self.frequencies.iter().map(|frequency| position as f64 * frequency);
            table.extend(angles.clone().map(|angle| (angle.cos() * self.amplitude) as f32));
            table.extend(angles.map(|angle| (angle.sin() * self.amplitude) as f32));
        }
        table
    }
}
