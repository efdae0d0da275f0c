//! Parameters as a tape reads them.

use std::ops::{Deref, Range};
use std::sync::Arc;

use turnwise_kernels::buffer::{Buffer, BufferPool};

use crate::weights::PackedMatrix;

/// A parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot<'a> {
    /// Its index in the order of parameters.
    pub(crate) index: usize,
    pub(crate) numbers: SlotNumbers<'a>,
    pub(crate) trainable: bool,
}

/// The numbers of a parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SlotNumbers<'a> {
    Held(&'a [f32]),
    /// A frozen matrix, or a stack of them, in the engine's panels.
    Packed(&'a [PackedMatrix<'a>]),
}

/// The numbers of a parameter, in memory.
#[derive(Debug)]
pub(crate) enum HeldNumbers<'a> {
    Lent(&'a [f32]),
    Unpacked(Buffer),
}

impl<'a> Slot<'a> {
    /// Returns the numbers of a parameter that is never packed: anything but a matrix.
    ///
    /// # Panics
    /// When it is packed.
    pub(crate) fn held(&self) -> &'a [f32] {
        self.numbers.held()
    }
}

impl<'a> SlotNumbers<'a> {
    /// Returns how many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Held(numbers) => numbers.len(),
            Self::Packed(matrices) => matrices.iter().map(PackedMatrix::len).sum(),
        }
    }

    fn held(&self) -> &'a [f32] {
        match self {
            Self::Held(numbers) => numbers,
            Self::Packed(_) => panic!("only matrices are packed"),
        }
    }

    /// Returns all numbers; packed ones are written to memory of the pool.
    pub(crate) fn all(&self, pool: &Arc<BufferPool>) -> HeldNumbers<'a> {
        match self {
            Self::Held(numbers) => HeldNumbers::Lent(numbers),
            Self::Packed(matrices) => {
                let mut numbers = pool.take(self.len());
                let mut rest = &mut numbers[..];
                for matrix in *matrices {
                    let (own, after) = rest.split_at_mut(matrix.len());
                    matrix.unpack(own);
                    rest = after;
                }
                HeldNumbers::Unpacked(numbers)
            }
        }
    }

    /// Returns some rows of a single matrix; packed ones are written to `memory`.
    pub(crate) fn rows<'m>(
        &self,
        rows: &Range<usize>,
        width: usize,
        memory: &'m mut Vec<f32>,
    ) -> &'m [f32]
    where
        'a: 'm,
    {
        match self {
            Self::Held(numbers) => &numbers[rows.start * width..rows.end * width],
            Self::Packed(matrices) => {
                memory.resize(rows.len() * width, 0.0);
                matrices[0].unpack_rows(rows.start, memory);
                memory
            }
        }
    }
}

impl Deref for HeldNumbers<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Lent(numbers) => numbers,
            Self::Unpacked(numbers) => numbers,
        }
    }
}
