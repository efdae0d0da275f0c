//! Operands of attention's products: heads copied out of the rows of tokens.

use std::ops::Range;
use std::sync::Arc;

use turnwise_kernels::buffer::{Buffer, BufferPool};
use turnwise_kernels::matrix::{Accuracy, Matrix, MatrixMut, PackedSides, Parallelism, Write};
use turnwise_kernels::small::{self, LeftFactor, RightFactor};
use turnwise_kernels::tile::LANES;
use turnwise_kernels::vectorized;

use super::blocks::{KeyBlock, KeyHead, QueryBlock};
use super::scratch::room;
use crate::batch::AttentionSpan;
use crate::dimensions::Heads;

/// Padding after a copy that a tile may read without using it.
const BEYOND: usize = 8 * LANES;

/// The orientation of keys or values as the right factor of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Orientation {
    /// A key is a column: `[head_dim, n]`.
    Transposed,
    /// A key is a row: `[n, head_dim]`.
    RowMajor,
}

/// A head's keys or values in a tree, laid out as the right factor of products.
#[derive(Debug)]
pub(super) struct Operand {
    orientation: Orientation,
    /// The tree's first token.
    start: usize,
    head_dim: usize,
    accuracy: Accuracy,
    numbers: Storage,
}

#[derive(Debug)]
enum Storage {
    /// For vector units: rows of whole vectors, at this distance.
    Rows(Buffer, usize),
    /// For the matrix unit or in bf16, span by span.
    Packed(PackedSides),
}

impl Operand {
    /// Lays out a head; `head` counts query heads, then key heads, then value heads.
    pub(super) fn new(
        qkv: &[f32],
        key_head: &KeyHead<'_>,
        heads: Heads,
        head: usize,
        (orientation, accuracy): (Orientation, Accuracy),
        pool: &Arc<BufferPool>,
    ) -> Self {
        let (stride, head_dim) = (heads.width(), heads.head_dim);
        let numbers = if key_head.is_packed {
            let side = |span: &AttentionSpan| {
                let rows = &qkv[span.own.start * stride + head * head_dim..];
                let rows = Matrix::strided(rows, span.own.len(), head_dim, stride);
                if orientation == Orientation::Transposed { rows.transposed() } else { rows }
            };
            let sides: Vec<Matrix<'_>> = key_head.spans.iter().map(side).collect();
            Storage::Packed(PackedSides::new(&sides, accuracy, Parallelism::Serial))
        } else {
            let copy = HeadColumns { rows: qkv, stride, tokens: key_head.tokens.clone() };
            match orientation {
                Orientation::Transposed => copy.transposed(head, head_dim, pool),
                Orientation::RowMajor => copy.row_major(head, head_dim, pool),
            }
        };
        Self { orientation, start: key_head.tokens.start, head_dim, accuracy, numbers }
    }

    /// Multiplies rows by a block of keys or values; rows of the target are `stride` apart. NaN in a key or value may
    /// spread to queries that attend to others of its span.
    pub(super) fn multiply(
        &self,
        target: &mut [f32],
        stride: usize,
        write: Write,
        left: LeftFactor<'_>,
        key_block: &KeyBlock,
    ) {
        let columns = match self.orientation {
            Orientation::Transposed => key_block.keys.len(),
            Orientation::RowMajor => self.head_dim,
        };
        match &self.numbers {
            Storage::Packed(packed) => {
                let mut target = MatrixMut::strided(target, left.rows, columns, stride);
                let (left, span) = (left.matrix(), key_block.span);
                packed.multiply_first(&mut target, write, left, span, Parallelism::Serial);
            }
            Storage::Rows(rows, apart) => {
                let first = key_block.keys.start - self.start;
                let data = match self.orientation {
                    Orientation::Transposed => &rows[first..],
                    Orientation::RowMajor => &rows[first * apart..],
                };
                let right = RightFactor { data, stride: *apart, columns };
                small::multiply(target, stride, write, left, right, self.accuracy);
            }
        }
    }
}

/// Multiplies rows by all keys or values that a block attends to. `[rows, head_dim]` times `[head_dim, n]`
pub(super) fn score(
    operand: &Operand,
    block: &QueryBlock,
    rows: &[f32],
    heads: Heads,
    scores: &mut [f32],
) {
    let left = LeftFactor {
        data: rows,
        stride: heads.head_dim.next_multiple_of(LANES),
        step: 1,
        rows: heads.group() * block.queries.len(),
        terms: heads.head_dim,
    };
    for key_block in &block.visible {
        let scores = &mut scores[key_block.column..];
        operand.multiply(scores, block.stride(), Write::Replace, left, key_block);
    }
}

/// Copies the query heads of a key head, one after another, scaled. `[group * queries, head_dim]`, padded to whole
/// vectors
pub(super) fn queries<'a>(
    memory: &'a mut Vec<f32>,
    qkv: &[f32],
    block: &QueryBlock,
    kv_head: usize,
    heads: Heads,
) -> &'a [f32] {
    let copy = HeadColumns { rows: qkv, stride: heads.width(), tokens: block.queries.clone() };
    heads_of(memory, &copy, kv_head, heads, heads.scale)
}

/// Copies heads of a key head's group, one after another.
pub(super) fn heads_of<'a>(
    memory: &'a mut Vec<f32>,
    copy: &HeadColumns<'_>,
    kv_head: usize,
    heads: Heads,
    scale: f32,
) -> &'a [f32] {
    let (group, head_dim) = (heads.group(), heads.head_dim);
    let each = copy.tokens.len() * head_dim.next_multiple_of(LANES);
    let joined = room(memory, group * each + BEYOND);
    for (index, joined) in joined.chunks_exact_mut(each).take(group).enumerate() {
        copy.along(kv_head * group + index, head_dim, scale, joined);
    }
    joined
}

/// Heads of some tokens, as columns of their rows.
#[derive(Clone, Debug)]
pub(super) struct HeadColumns<'a> {
    pub(super) rows: &'a [f32],
    pub(super) stride: usize,
    pub(super) tokens: Range<usize>,
}

impl HeadColumns<'_> {
    /// Copies a head, token by token, times `scale`. `[n, head_dim]`, padded to whole vectors
    pub(super) fn along(&self, head: usize, head_dim: usize, scale: f32, copy: &mut [f32]) {
        let rows = &self.rows[self.tokens.start * self.stride + head * head_dim..];
        copy_rows(rows, self.stride, head_dim, scale, copy);
    }

    /// Copies a head, token by token, into a new buffer.
    fn row_major(&self, head: usize, head_dim: usize, pool: &Arc<BufferPool>) -> Storage {
        let width = head_dim.next_multiple_of(LANES);
        let length = self.tokens.len() * width;
        let mut copy = pool.take(length + BEYOND);
        self.along(head, head_dim, 1.0, &mut copy[..length]);
        Storage::Rows(copy, width)
    }

    /// Copies the transpose of a head. `[head_dim, n]`, padded to whole vectors
    fn transposed(&self, head: usize, head_dim: usize, pool: &Arc<BufferPool>) -> Storage {
        let (n, length) = (self.tokens.len(), self.tokens.len().next_multiple_of(LANES));
        let mut copy = pool.take(head_dim * length + BEYOND);
        let rows = &self.rows[self.tokens.start * self.stride + head * head_dim..];
        transpose_rows(rows, self.stride, n, head_dim, &mut copy);
        Storage::Rows(copy, length)
    }
}

vectorized! {
    /// Copies rows of `count` numbers that are `stride` apart, times `scale`, each padded to whole vectors.
    fn copy_rows(rows: &[f32], stride: usize, count: usize, scale: f32, copy: &mut [f32]) {
        let width = count.next_multiple_of(LANES);
        for (copy, row) in copy.chunks_exact_mut(width).zip(rows.chunks(stride)) {
            let (copy, beyond) = copy.split_at_mut(count);
            copy.iter_mut().zip(row).for_each(|(copy, number)| *copy = number * scale);
            beyond.fill(0.0);
        }
    }

    /// Copies the columns of `n` such rows, each padded to whole vectors.
    fn transpose_rows(rows: &[f32], stride: usize, n: usize, count: usize, copy: &mut [f32]) {
        let length = n.next_multiple_of(LANES);
        for row in (0..n).step_by(LANES) {
            for column in (0..count).step_by(LANES) {
                // In squares, so that cache lines are read and written whole.
                let mut square = [[0.0; LANES]; LANES];
                let width = LANES.min(count - column);
                for (i, row) in (row..n.min(row + LANES)).enumerate() {
                    let numbers = &rows[row * stride + column..][..width];
                    for (square, number) in square.iter_mut().zip(numbers) {
                        square[i] = *number;
                    }
                }
                for (i, square) in square[..width].iter().enumerate() {
                    copy[(column + i) * length + row..][..LANES].copy_from_slice(square);
                }
            }
        }
    }
}
