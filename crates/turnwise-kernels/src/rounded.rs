//! Buffers of numbers that are rounded to bf16: half the memory, for what is kept until a backward pass.

use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;

use crate::buffer::{Buffer, BufferPool};
use crate::pairs::{joined, terms};
use crate::tile::LANES;
use crate::vectorized;

/// The numbers that one thread takes at a time.
const PIECE: usize = 1 << 14;

/// Numbers of a buffer, rounded to bf16.
///
/// ```
/// use std::sync::Arc;
///
/// use turnwise_kernels::buffer::BufferPool;
/// use turnwise_kernels::rounded::RoundedBuffer;
///
/// let pool = Arc::new(BufferPool::default());
/// let rounded = RoundedBuffer::new(&pool, &[0.5, 1.003]);
/// assert_eq!(rounded.widened(&pool)[..], [0.5, 1.0]);
/// ```
pub struct RoundedBuffer {
    /// Two numbers in each word: of 32 numbers, those that are 16 apart.
    words: Buffer,
    length: usize,
}

impl RoundedBuffer {
    /// Rounds numbers to the nearest bf16.
    #[must_use]
    pub fn new(pool: &Arc<BufferPool>, numbers: &[f32]) -> Self {
        let mut words = pool.take(numbers.len().div_ceil(2 * LANES) * LANES);
        let pieces = words.par_chunks_mut(PIECE / 2).zip(numbers.par_chunks(PIECE));
        pieces.for_each(|(words, numbers)| round(words, numbers));
        Self { words, length: numbers.len() }
    }

    /// Returns the rounded numbers as f32.
    #[must_use]
    pub fn widened(&self, pool: &Arc<BufferPool>) -> Buffer {
        let mut numbers = pool.take(self.length);
        let pieces = numbers.par_chunks_mut(PIECE).zip(self.words.par_chunks(PIECE / 2));
        pieces.for_each(|(numbers, words)| widen(numbers, words));
        numbers
    }
}

impl fmt::Debug for RoundedBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} rounded numbers", self.length)
    }
}

vectorized! {
    fn round(words: &mut [f32], numbers: &[f32]) {
        let (words, _) = words.as_chunks_mut::<LANES>();
        let (whole, rest) = numbers.as_chunks::<{ 2 * LANES }>();
        let mut last = [0.0; 2 * LANES];
        last[..rest.len()].copy_from_slice(rest);
        for (words, numbers) in words.iter_mut().zip(whole.iter().chain([&last])) {
            for (lane, word) in words.iter_mut().enumerate() {
                *word = f32::from_bits(joined(numbers[lane], numbers[lane + LANES]));
            }
        }
    }

    fn widen(numbers: &mut [f32], words: &[f32]) {
        let (words, _) = words.as_chunks::<LANES>();
        for (numbers, words) in numbers.chunks_mut(2 * LANES).zip(words) {
            let mut both = [0.0; 2 * LANES];
            for (lane, word) in words.iter().enumerate() {
                [both[lane], both[lane + LANES]] = terms(word.to_bits());
            }
            numbers.copy_from_slice(&both[..numbers.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::{number, rounded};

    #[test]
    fn numbers_come_back_rounded() {
        let pool = Arc::new(BufferPool::default());
        for length in [0, 1, 16, 31, 32, 33, 1000, PIECE, PIECE + 7, 3 * PIECE + 32] {
            let numbers: Vec<f32> = (0..length).map(|i| i as f32 * 0.37 - 100.0).collect();
            let nearest: Vec<f32> = numbers.iter().map(|x| number(rounded(*x))).collect();
            assert_eq!(RoundedBuffer::new(&pool, &numbers).widened(&pool)[..], nearest);
        }
    }
}
