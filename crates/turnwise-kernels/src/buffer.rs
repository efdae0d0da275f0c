//! Reusable buffers.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A pool of free buffers. A training step asks for the same lengths as the step before, so that after the first step no memory
/// is taken from the system, which would have to clear it. Where lengths differ from step to step, free buffers make room for
/// new ones, those that were not used for longest first, so that memory is never far above what was in use at the same time.
///
/// ```
/// use std::sync::Arc;
///
/// use turnwise_kernels::buffer::BufferPool;
///
/// let pool = Arc::new(BufferPool::default());
/// assert_eq!(pool.zeros(3)[..], [0.0; 3]);
/// ```
#[derive(Debug, Default)]
pub struct BufferPool {
    buffers: Mutex<FreeBuffers>,
}

/// The free buffers of a pool, and how much it has lent.
#[derive(Debug, Default)]
struct FreeBuffers {
    /// Oldest first.
    free: VecDeque<Vec<f32>>,
    /// The numbers that free buffers have room for.
    idle: usize,
    /// The numbers that lent buffers have room for.
    lent: usize,
    /// The most that was lent at the same time.
    most_lent: usize,
}

/// A buffer of numbers that returns to its pool when it is dropped.
pub struct Buffer {
    numbers: Vec<f32>,
    pool: Arc<BufferPool>,
}

impl BufferPool {
    /// Takes a buffer of `length` numbers with arbitrary contents.
    pub fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let size = size(length);
        let (found, dropped) = self.buffers().lend(length, size);
        drop(dropped);
        let mut numbers = found.unwrap_or_else(|| Vec::with_capacity(size));
        numbers.resize(length, 0.0);
        Buffer { numbers, pool: self.clone() }
    }

    fn buffers(&self) -> MutexGuard<'_, FreeBuffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a buffer with a copy of `numbers`.
    pub fn copy(self: &Arc<Self>, numbers: &[f32]) -> Buffer {
        let mut buffer = self.take(numbers.len());
        buffer.copy_from_slice(numbers);
        buffer
    }

    /// Takes a buffer of zeros.
    pub fn zeros(self: &Arc<Self>, length: usize) -> Buffer {
        let mut buffer = self.take(length);
        buffer.fill(0.0);
        buffer
    }
}

impl FreeBuffers {
    /// Returns the smallest free buffer that fits without wasting more than a third. If there is none, it counts a new one,
    /// and returns the buffers that make room for it.
    fn lend(&mut self, length: usize, size: usize) -> (Option<Vec<f32>>, Vec<Vec<f32>>) {
        let fits = |buffer: &Vec<f32>| (length..=size + size / 2).contains(&buffer.capacity());
        let fitting = (0..self.free.len()).filter(|index| fits(&self.free[*index]));
        let found = fitting.min_by_key(|index| self.free[*index].capacity());
        let found = found.and_then(|index| self.free.remove(index));
        let taken = found.as_ref().map_or(0, Vec::capacity);
        self.idle -= taken;
        self.lent += taken.max(size);
        self.most_lent = self.most_lent.max(self.lent);
        let mut dropped = Vec::new();
        if found.is_none() {
            let bound = self.most_lent + self.most_lent / 8;
            while self.idle + self.lent > bound
                && let Some(buffer) = self.free.pop_front()
            {
                self.idle -= buffer.capacity();
                dropped.push(buffer);
            }
        }
        (found, dropped)
    }

    fn give_back(&mut self, buffer: Vec<f32>) {
        self.lent = self.lent.saturating_sub(buffer.capacity());
        self.idle += buffer.capacity();
        self.free.push_back(buffer);
    }
}

/// Returns the capacity for a length: at most an eighth more, so that lengths that differ a little
/// from step to step reuse the same memory.
fn size(length: usize) -> usize {
    length.next_multiple_of(1 << length.checked_ilog2().unwrap_or(0).saturating_sub(3))
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.numbers
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.numbers
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let numbers = mem::take(&mut self.numbers);
        self.pool.buffers().give_back(numbers);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} numbers", self.numbers.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_is_used_again() {
        let pool = Arc::new(BufferPool::default());
        let first = pool.zeros(1000);
        let place = first.as_ptr();
        drop(first);
        assert_eq!(pool.take(900).as_ptr(), place);
        let other = pool.take(100);
        assert_ne!(other.as_ptr(), place);
        assert!(pool.zeros(1000).iter().all(|x| *x == 0.0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// Memory is at most an eighth above the most that was in use at the same time.
        #[test]
        fn other_lengths_do_not_add_up(
            steps in prop::collection::vec((1_usize..5000, 0_usize..6), 1..200),
        ) {
            let pool = Arc::new(BufferPool::default());
            let mut lent = Vec::new();
            for (length, kept) in steps {
                lent.push(pool.take(length));
                let (free, idle, in_use, most_lent) = {
                    let buffers = pool.buffers();
                    let free: usize = buffers.free.iter().map(Vec::capacity).sum();
                    (free, buffers.idle, buffers.lent, buffers.most_lent)
                };
                prop_assert_eq!(idle, free);
                let capacities = lent.iter().map(|buffer: &Buffer| buffer.numbers.capacity());
                prop_assert_eq!(in_use, capacities.sum::<usize>());
                prop_assert!(idle + in_use <= most_lent + most_lent / 8);
                lent.truncate(kept);
            }
        }
    }
}
