//! Products in bf16: factors are rounded and packed in pairs, and multiplied tile by tile with sums in f32.
//!
//! Each element is one chain of sums over its pairs, whatever the number of threads.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::{Matrix, MatrixMut, Parallelism, Shape, Write};
use crate::pair_tile::{self, PairFactors};
use crate::pairs::{self, PairLine};
use crate::tile::{LANES, MAX_TILE, MAX_VECTORS, TileTarget};
use crate::vectorized;

/// The number of pairs of terms that are packed at once: the panels of a tile stay in the L2 cache.
const PAIRS: usize = 512;

/// The most rows that a thread takes at once.
const ROWS: usize = 120;

/// The number of multiply-adds from which several threads are faster than one.
const SHARED: usize = 1 << 19;

thread_local! {
    static LEFT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    static RIGHT: Cell<Vec<PairLine>> = const { Cell::new(Vec::new()) };
}

/// A right factor in panels of sixteen columns, with zeros behind the last column. `[panels, pairs, LANES]`
#[derive(Debug)]
pub(super) struct HalfSide {
    lines: Vec<PairLine>,
    terms: usize,
    columns: usize,
}

impl HalfSide {
    pub(super) fn new(b: Matrix<'_>, threads: Parallelism) -> Self {
        let Shape { rows: terms, columns, .. } = b.shape;
        let mut lines = vec![PairLine::ZERO; columns.div_ceil(LANES) * pairs::count(terms)];
        pack_right(&mut lines, b, 0..terms, threads);
        Self { lines, terms, columns }
    }

    /// Computes `target = a b`, or `target += a b`, with the first terms and columns of the factor: as many as `a` and the
    /// target have. If their number of terms is odd, the next term must be finite: it is multiplied by 0.
    pub(super) fn multiply_first(
        &self,
        target: &mut MatrixMut<'_>,
        write: Write,
        a: Matrix<'_>,
        threads: Parallelism,
    ) {
        let (terms, columns) = (a.shape.columns, target.shape.columns);
        debug_assert!(terms <= self.terms && columns <= self.columns, "a part of the factor");
        let each = pairs::count(self.terms);
        let lines = &self.lines[..columns.div_ceil(LANES) * each];
        let right = PanelRange { lines, each, columns };
        Product { a, scale: 1.0, terms: 0..terms, right, write }.put(target, threads);
    }
}

/// Computes `target = scale * a b`, or `target += scale * a b`.
pub(super) fn multiply(
    target: &mut MatrixMut<'_>,
    write: Write,
    scale: f32,
    [a, b]: [Matrix<'_>; 2],
    threads: Parallelism,
) {
    let (terms, columns) = (a.shape.columns, b.shape.columns);
    let size = a.shape.rows * terms * columns;
    let threads = if size < SHARED { Parallelism::Serial } else { threads };
    let mut memory = RIGHT.take();
    for first in (0..terms.max(1)).step_by(2 * PAIRS) {
        let some = first..(first + 2 * PAIRS).min(terms);
        let count = columns.div_ceil(LANES) * pairs::count(some.len());
        if memory.len() < count {
            memory.resize(count, PairLine::ZERO);
        }
        pack_right(&mut memory[..count], b, some.clone(), threads);
        let write = if first == 0 { write } else { Write::Add };
        let each = pairs::count(some.len());
        let right = PanelRange { lines: &memory[..count], each, columns };
        Product { a, scale, terms: some, right, write }.put(target, threads);
    }
    RIGHT.set(memory);
}

/// Packs some terms of all columns.
fn pack_right(lines: &mut [PairLine], b: Matrix<'_>, terms: Range<usize>, threads: Parallelism) {
    let each = pairs::count(terms.len()).max(1);
    let pack = |(index, lines): (usize, &mut [PairLine])| {
        let first = index * LANES;
        let columns = first..(first + LANES).min(b.shape.columns);
        pack_panel(lines, b, terms.clone(), columns);
    };
    match threads {
        Parallelism::Serial => lines.chunks_exact_mut(each).enumerate().for_each(pack),
        Parallelism::Pool => lines.par_chunks_exact_mut(each).enumerate().for_each(pack),
    }
}

fn pack_panel(lines: &mut [PairLine], b: Matrix<'_>, terms: Range<usize>, columns: Range<usize>) {
    let Shape { row_stride, column_stride, .. } = b.shape;
    let data = &b.data[terms.start * row_stride + columns.start * column_stride..];
    let steps = [row_stride, column_stride];
    if columns.len() < LANES {
        lines.fill(PairLine::ZERO);
    }
    if column_stride == 1 {
        join_lines(lines, data, row_stride, [terms.len(), columns.len()]);
    } else if row_stride == 1 {
        transpose_lines(lines, data, column_stride, [terms.len(), columns.len()]);
    } else {
        let at = |term: usize, column: usize| {
            if term < terms.len() { data[term * steps[0] + column * steps[1]] } else { 0.0 }
        };
        for (pair, line) in lines.iter_mut().enumerate() {
            for column in 0..columns.len() {
                line.0[column] = pairs::joined(at(2 * pair, column), at(2 * pair + 1, column));
            }
        }
    }
}

vectorized! {
    /// Joins each two rows of contiguous columns.
    fn join_lines(lines: &mut [PairLine], data: &[f32], stride: usize, shape: [usize; 2]) {
        let [terms, columns] = shape;
        for (pair, line) in lines.iter_mut().enumerate() {
            let first = &data[2 * pair * stride..][..columns];
            let has_second = 2 * pair + 1 < terms;
            let second = if has_second { &data[(2 * pair + 1) * stride..][..columns] } else { &[] };
            if let (Ok(first), Ok(second)) =
                (<&[f32; LANES]>::try_from(first), <&[f32; LANES]>::try_from(second))
            {
                for lane in 0..LANES {
                    line.0[lane] = pairs::joined(first[lane], second[lane]);
                }
            } else {
                for (lane, first) in first.iter().enumerate() {
                    let second = second.get(lane).copied().unwrap_or(0.0);
                    line.0[lane] = pairs::joined(*first, second);
                }
            }
        }
    }

    /// Joins each two terms of columns that are contiguous.
    fn transpose_lines(lines: &mut [PairLine], data: &[f32], stride: usize, shape: [usize; 2]) {
        const BLOCK: usize = 16;
        let [terms, columns] = shape;
        let mut square = [[0; BLOCK]; LANES];
        for (block, lines) in lines.chunks_mut(BLOCK).enumerate() {
            let start = block * 2 * BLOCK;
            let count = (terms - start).min(2 * BLOCK);
            for (column, pairs) in square.iter_mut().enumerate().take(columns) {
                let own = &data[column * stride + start..][..count];
                let (whole, rest) = own.as_chunks::<2>();
                for (pair, [first, second]) in pairs.iter_mut().zip(whole) {
                    *pair = pairs::joined(*first, *second);
                }
                if let [last] = rest {
                    pairs[count / 2] = pairs::joined(*last, 0.0);
                }
            }
            for (pair, line) in lines.iter_mut().enumerate() {
                for (slot, pairs) in line.0.iter_mut().zip(&square) {
                    *slot = pairs[pair];
                }
            }
        }
    }

    /// Joins terms of rows: term `k` of row `r` is at `r + k * step`. `[pairs, rows]`
    fn join_columns(target: &mut [u32], data: &[f32], step: usize, shape: [usize; 2], scale: f32) {
        let [rows, terms] = shape;
        for (pair, target) in target.chunks_exact_mut(rows).enumerate() {
            let first = &data[2 * pair * step..][..rows];
            if 2 * pair + 1 < terms {
                let second = &data[(2 * pair + 1) * step..][..rows];
                for ((target, first), second) in target.iter_mut().zip(first).zip(second) {
                    *target = pairs::joined(first * scale, second * scale);
                }
            } else {
                for (target, first) in target.iter_mut().zip(first) {
                    *target = pairs::joined(first * scale, 0.0);
                }
            }
        }
    }

    /// Joins terms of rows that are contiguous. `[rows, pairs]`
    fn join_rows(target: &mut [u32], data: &[f32], stride: usize, terms: usize, scale: f32) {
        for (target, row) in target.chunks_exact_mut(pairs::count(terms)).zip(data.chunks(stride)) {
            let (whole, rest) = row[..terms].as_chunks::<2>();
            for (pair, [first, second]) in target.iter_mut().zip(whole) {
                *pair = pairs::joined(first * scale, second * scale);
            }
            if let [last] = rest {
                target[terms / 2] = pairs::joined(*last * scale, 0.0);
            }
        }
    }
}

/// Some terms of a packed right factor.
#[derive(Clone, Copy, Debug)]
struct PanelRange<'a> {
    /// `[panels, each, LANES]`, of which the first pairs of each panel are multiplied.
    lines: &'a [PairLine],
    each: usize,
    columns: usize,
}

/// A product over some terms.
struct Product<'a> {
    a: Matrix<'a>,
    scale: f32,
    terms: Range<usize>,
    right: PanelRange<'a>,
    write: Write,
}

impl Product<'_> {
    fn put(&self, target: &mut MatrixMut<'_>, threads: Parallelism) {
        let Shape { rows, row_stride: stride, .. } = target.shape;
        if rows == 0 || self.right.columns == 0 {
            return;
        }
        if self.terms.is_empty() {
            if self.write == Write::Replace {
                let lines = target.data.chunks_mut(stride).take(rows);
                lines.for_each(|line| line[..self.right.columns].fill(0.0));
            }
            return;
        }
        let each = rows_at_once(rows, threads);
        let put = |(index, target): (usize, &mut [f32])| {
            let first = index * each;
            self.put_rows(target, stride, first..(first + each).min(rows));
        };
        let length = ((rows - 1) * stride + self.right.columns).min(target.data.len());
        let data = &mut target.data[..length];
        match threads {
            Parallelism::Serial => data.chunks_mut(each * stride).enumerate().for_each(put),
            Parallelism::Pool => data.par_chunks_mut(each * stride).enumerate().for_each(put),
        }
    }

    /// Computes some rows of the target.
    fn put_rows(&self, target: &mut [f32], stride: usize, rows: Range<usize>) {
        let mut memory = LEFT.take();
        let each = pairs::count(self.terms.len());
        let count = rows.len() * each;
        if memory.len() < count {
            memory.resize(count, 0);
        }
        let packed = &mut memory[..count];
        let Shape { row_stride, column_stride, .. } = self.a.shape;
        let data = &self.a.data[rows.start * row_stride + self.terms.start * column_stride..];
        let left = if column_stride == 1 {
            // A single row may have any distance to the next.
            let row_stride = row_stride.max(self.terms.len());
            join_rows(packed, data, row_stride, self.terms.len(), self.scale);
            PackedRows { pairs: packed, stride: each, step: 1 }
        } else {
            let shape = [rows.len(), self.terms.len()];
            if row_stride == 1 {
                join_columns(packed, data, column_stride, shape, self.scale);
            } else {
                self.join_scattered(packed, data, shape);
            }
            PackedRows { pairs: packed, stride: 1, step: rows.len() }
        };
        self.put_tiles(target, stride, rows.len(), left);
        LEFT.set(memory);
    }

    fn join_scattered(&self, target: &mut [u32], data: &[f32], [rows, terms]: [usize; 2]) {
        let Shape { row_stride, column_stride, .. } = self.a.shape;
        let at = |row: usize, term: usize| {
            let is_there = term < terms;
            if is_there { data[row * row_stride + term * column_stride] * self.scale } else { 0.0 }
        };
        for (pair, target) in target.chunks_exact_mut(rows).enumerate() {
            for (row, target) in target.iter_mut().enumerate() {
                *target = pairs::joined(at(row, 2 * pair), at(row, 2 * pair + 1));
            }
        }
    }

    fn put_tiles(&self, target: &mut [f32], stride: usize, rows: usize, left: PackedRows<'_>) {
        let PanelRange { lines, each, columns } = self.right;
        let pairs = pairs::count(self.terms.len());
        let n_panels = lines.len() / each;
        let (most, most_vectors) = pair_tile::shape(rows);
        let cuts = rows.div_ceil(most);
        let mut start = 0;
        while start < n_panels {
            let mut vectors = most_vectors;
            while vectors > n_panels - start {
                vectors /= 2;
            }
            let mut b: [&[PairLine]; MAX_VECTORS] = [&[]; MAX_VECTORS];
            for (b, panel) in b.iter_mut().zip(start..start + vectors) {
                *b = &lines[panel * each..][..pairs];
            }
            let (column, width) = (start * LANES, vectors * LANES);
            for cut in 0..cuts {
                let (first, end) = (rows * cut / cuts, rows * (cut + 1) / cuts);
                let factors = PairFactors {
                    a: &left.pairs[first * left.stride..],
                    a_stride: left.stride,
                    a_step: left.step,
                    rows: end - first,
                    b,
                    vectors,
                    pairs,
                    next: &[],
                };
                let target = &mut target[first * stride + column..];
                if column + width <= columns {
                    let mut target = TileTarget { data: target, stride, write: self.write };
                    pair_tile::multiply(&mut target, &factors);
                } else {
                    self.put_edge(target, stride, columns - column, &factors);
                }
            }
            start += vectors;
        }
    }

    /// Computes a tile that reaches beyond the target's columns.
    fn put_edge(
        &self,
        target: &mut [f32],
        stride: usize,
        columns: usize,
        factors: &PairFactors<'_>,
    ) {
        let width = factors.vectors * LANES;
        let mut sums = [0.0; MAX_TILE];
        if self.write == Write::Add {
            let lines = target.chunks(stride).zip(sums.chunks_mut(width)).take(factors.rows);
            lines.for_each(|(line, sums)| sums[..columns].copy_from_slice(&line[..columns]));
        }
        let mut tile = TileTarget { data: &mut sums, stride: width, write: self.write };
        pair_tile::multiply(&mut tile, factors);
        let lines = target.chunks_mut(stride).zip(sums.chunks(width)).take(factors.rows);
        lines.for_each(|(line, sums)| line[..columns].copy_from_slice(&sums[..columns]));
    }
}

/// A packed left factor: pair `k` of row `r` is at `r * stride + k * step`.
#[derive(Clone, Copy, Debug)]
struct PackedRows<'a> {
    pairs: &'a [u32],
    stride: usize,
    step: usize,
}

/// Returns the rows of a piece, so that every thread of the pool gets several pieces.
fn rows_at_once(rows: usize, threads: Parallelism) -> usize {
    const TILE: usize = 12;
    match threads {
        Parallelism::Serial => ROWS,
        Parallelism::Pool => {
            (rows / (4 * rayon::current_num_threads())).next_multiple_of(TILE).clamp(TILE, ROWS)
        }
    }
}
