//! Reusable buffers.

use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// A pool of free buffers. A training step asks for the same lengths as the step before, so that after the first step no memory
/// is taken from the system, which would have to clear it. Where lengths grow, smaller free buffers make room for a new one,
/// so that memory is not the sum over all lengths.
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
    free: Mutex<Vec<Vec<f32>>>,
}

/// A buffer of numbers that returns to its pool when it is dropped.
pub struct Buffer {
    numbers: Vec<f32>,
    pool: Arc<BufferPool>,
}

impl BufferPool {
    /// Takes a buffer of `length` numbers with arbitrary contents.
    pub fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let size = size(length);
        // The smallest buffer that fits without wasting more than a third.
        let fits = |buffer: &Vec<f32>| (length..=size + size / 2).contains(&buffer.capacity());
        let found = (0..free.len())
            .filter(|index| fits(&free[*index]))
            .min_by_key(|index| free[*index].capacity());
        let found = found.map(|index| free.swap_remove(index));
        let given_back =
            if found.is_none() { smaller(&mut free, length, size) } else { Vec::new() };
        drop(free);
        drop(given_back);
        let mut numbers = found.unwrap_or_else(|| Vec::with_capacity(size));
        numbers.resize(length, 0.0);
        Buffer { numbers, pool: self.clone() }
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

/// Takes free buffers out that have no room for `length` numbers, largest first, until they have `size` together.
fn smaller(free: &mut Vec<Vec<f32>>, length: usize, size: usize) -> Vec<Vec<f32>> {
    let (mut taken, mut count) = (Vec::new(), 0);
    while count < size
        && let Some(index) = (0..free.len())
            .filter(|index| free[*index].capacity() < length)
            .max_by_key(|index| free[*index].capacity())
    {
        let buffer = free.swap_remove(index);
        count += buffer.capacity();
        taken.push(buffer);
    }
    taken
}

/// Returns the capacity for a length: at most a quarter of a power of two more, so that lengths that differ a little
/// from step to step reuse the same memory.
fn size(length: usize) -> usize {
    length.next_multiple_of(1 << length.checked_ilog2().unwrap_or(0).saturating_sub(2))
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
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(numbers);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} numbers", self.numbers.len())
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn other_lengths_do_not_add_up() {
        let pool = Arc::new(BufferPool::default());
        let free = || {
            let free = pool.free.lock().expect("no test panics while it holds the lock");
            free.iter().map(Vec::capacity).sum::<usize>()
        };
        let mut longest = 0;
        for length in [4000, 1000, 300, 2000, 9000, 40, 9000] {
            longest = longest.max(length);
            drop([pool.take(length), pool.take(length)]);
            assert!(free() <= 3 * size(longest), "{length}: {}", free());
        }
    }
}
