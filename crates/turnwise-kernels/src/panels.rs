//! Panels: weight matrices in the order in which products of few rows read them.

use std::marker::PhantomData;
use std::ops::Range;

use crate::math;
use crate::matrix::Write;
use crate::team::Team;
use crate::tile::{
    self, CacheLine, ColumnVectors, LANES, MAX_TILE, MAX_VECTORS, TileFactors, TileTarget, numbers,
    shape,
};
use crate::vectorized;

/// A matrix `[in, out]` packed into consecutive panels of 16 columns; the last panel is padded with zeros. `[panels,
/// in, LANES]`
#[derive(Debug)]
pub struct Panels {
    blocks: Vec<CacheLine>,
    width: usize,
    /// The bias of each row of a product. `[16 panels]`
    bias: Option<Vec<f32>>,
}

/// A weight matrix as a checkpoint stores it, with its bias.
#[derive(Clone, Copy, Debug)]
pub struct StoredMatrix<'a> {
    /// `[out, in]`
    pub matrix: &'a [f32],
    /// `[out]`
    pub bias: Option<&'a [f32]>,
}

/// Epilogue of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Overwrites the target.
    Replace,
    /// Adds to the target.
    Add,
    /// Overwrites the target, which is half as wide, with `silu(gate) * up`; gate and up panels alternate
    /// ([`Panels::interleaved`]).
    SwiGlu,
    /// Like `SwiGlu`, with `gelu_tanh(gate) * up`.
    GeGlu,
}

impl Epilogue {
    /// Returns whether it combines pairs of panels.
    fn is_gated(self) -> bool {
        matches!(self, Self::SwiGlu | Self::GeGlu)
    }
}

/// Rows of numbers: row `i` starts at `i * stride`.
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
    /// The number of rows.
    pub count: usize,
}

/// Rounds a width up to whole vectors.
#[must_use]
pub fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

impl Panels {
    /// Packs matrices with a common input of `width` numbers, side by side.
    #[must_use]
    pub fn side_by_side(matrices: &[StoredMatrix<'_>], width: usize) -> Self {
        let rows = matrices.iter().flat_map(|stored| stored.matrix.chunks_exact(width));
        let rows: Vec<&[f32]> = rows.collect();
        let biases: Option<Vec<&[f32]>> = matrices.iter().map(|stored| stored.bias).collect();
        let bias = biases.map(|biases| {
            let mut bias = biases.concat();
            bias.resize(padded(bias.len()), 0.0);
            bias
        });
        let mut blocks = Vec::with_capacity(rows.len().div_ceil(LANES) * width);
        rows.chunks(LANES).for_each(|rows| blocks.extend(panel(rows, width)));
        Self { blocks, width, bias }
    }

    /// Packs the gate and up matrices of a SwiGLU layer as alternating panels, for [`Epilogue::SwiGlu`].
    #[must_use]
    pub fn interleaved<'a>(gate: StoredMatrix<'a>, up: StoredMatrix<'a>, width: usize) -> Self {
        let rows = |stored: StoredMatrix<'a>| -> Vec<&'a [f32]> {
            stored.matrix.chunks_exact(width).collect()
        };
        let (gates, ups) = (rows(gate), rows(up));
        let mut blocks = Vec::with_capacity(2 * gates.len().div_ceil(LANES) * width);
        for (gates, ups) in gates.chunks(LANES).zip(ups.chunks(LANES)) {
            blocks.extend(panel(gates, width));
            blocks.extend(panel(ups, width));
        }
        let bias = gate.bias.zip(up.bias).map(|(gate, up)| {
            let mut bias = vec![0.0; 2 * padded(gate.len())];
            let pairs = bias.chunks_exact_mut(2 * LANES);
            for ((pair, gate), up) in pairs.zip(gate.chunks(LANES)).zip(up.chunks(LANES)) {
                pair[..gate.len()].copy_from_slice(gate);
                pair[LANES..][..up.len()].copy_from_slice(up);
            }
            bias
        });
        Self { blocks, width, bias }
    }

    /// Returns the number of panels.
    #[must_use]
    pub fn count(&self) -> usize {
        self.blocks.len() / self.width
    }

    /// Returns the width of a product, rounded up to whole vectors.
    #[must_use]
    pub fn columns(&self, then: Epilogue) -> usize {
        let columns = self.count() * LANES;
        if then.is_gated() { columns / 2 } else { columns }
    }

    /// Iterates over a column, which is a row of the stored matrix.
    pub fn column(&self, column: usize) -> impl Iterator<Item = f32> {
        let panel = column / LANES * self.width;
        self.blocks[panel..panel + self.width].iter().map(move |block| block.0[column % LANES])
    }

    /// Returns the bias, padded to whole panels.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    fn panel(&self, index: usize) -> &[f32] {
        numbers(&self.blocks[index * self.width..(index + 1) * self.width])
    }

    /// Multiplies `rows` by the matrix, into the same rows of `target`. `[count, columns]`
    ///
    /// # Panics
    /// When rows or target are too small.
    pub fn multiply(
        &self,
        team: &mut Team,
        rows: StridedRows<'_>,
        target: &mut [f32],
        then: Epilogue,
    ) {
        let piece = piece(self.count(), team.size());
        let target = ColumnTarget::new(target, self.columns(then), rows.count);
        team.each(self.count().div_ceil(piece), |_, index| {
            let end = ((index + 1) * piece).min(self.count());
            self.columns_of(rows, &target, then, index * piece..end);
        });
    }

    /// Like [`multiply`](Self::multiply), on the calling thread alone.
    ///
    /// # Panics
    /// When rows or target are too small.
    pub fn multiply_alone(&self, rows: StridedRows<'_>, target: &mut [f32], then: Epilogue) {
        let target = ColumnTarget::new(target, self.columns(then), rows.count);
        self.columns_of(rows, &target, then, 0..self.count());
    }

    /// Computes some panels of a product.
    fn columns_of(
        &self,
        rows: StridedRows<'_>,
        target: &ColumnTarget<'_>,
        then: Epilogue,
        panels: Range<usize>,
    ) {
        let (most, most_vectors) = shape(rows.count);
        let cuts = rows.count.div_ceil(most);
        let mut start = panels.start;
        let mut sums = [0.0; MAX_TILE];
        while start < panels.end {
            let mut vectors = most_vectors;
            while vectors > panels.end - start {
                vectors /= 2;
            }
            let mut b: ColumnVectors<'_> = [&[]; MAX_VECTORS];
            let columns = b.iter_mut().zip(start..start + vectors);
            columns.for_each(|(b, panel)| *b = self.panel(panel));
            let mut next = b;
            let columns = next.iter_mut().zip((start + vectors..self.count()).take(vectors));
            columns.for_each(|(next, panel)| *next = self.panel(panel));
            for cut in 0..cuts {
                let (first, end) = (rows.count * cut / cuts, rows.count * (cut + 1) / cuts);
                let factors = TileFactors {
                    a: &rows.data[first * rows.stride..],
                    a_stride: rows.stride,
                    a_step: 1,
                    rows: end - first,
                    b: &[b],
                    terms_each: self.width,
                    b_stride: LANES,
                    vectors,
                    terms: self.width,
                    // With several tiles, each two vectors wide, every tile prefetches a part of the next columns: even
                    // requests keep memory fast.
                    next: match cuts {
                        1 => &next[..vectors],
                        _ => next[..vectors].get(cut..=cut).unwrap_or_default(),
                    },
                };
                let mut product =
                    TileTarget { data: &mut sums, stride: vectors * LANES, write: Write::Replace };
                tile::multiply(&mut product, &factors);
                let bias = self.bias.as_deref().map_or(&[][..], |bias| &bias[start * LANES..]);
                target.check(end, start + vectors, then);
                write(target, &TileSums { sums: &sums, first, end, start, vectors, bias, then });
            }
            start += vectors;
        }
    }
}

/// Returns the panels of a piece: an even number, and small enough for several pieces per member.
fn piece(panels: usize, members: usize) -> usize {
    (panels / (4 * members)).clamp(1, 16).next_multiple_of(2)
}

/// Packs rows of an `[out, in]` matrix as a panel.
fn panel(rows: &[&[f32]], width: usize) -> Vec<CacheLine> {
    let mut blocks = vec![CacheLine::ZERO; width];
    for (lane, row) in rows.iter().enumerate() {
        for (block, value) in blocks.iter_mut().zip(*row) {
            block.0[lane] = *value;
        }
    }
    blocks
}

/// A matrix whose columns are written by several threads.
struct ColumnTarget<'a> {
    data: *mut f32,
    stride: usize,
    rows: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads write disjoint columns: `columns_of` is called once for each piece, and pieces are disjoint.
unsafe impl Sync for ColumnTarget<'_> {}

/// The sums of some rows and panels, and their epilogue.
#[derive(Clone, Copy)]
struct TileSums<'a> {
    /// `[end - first, vectors, LANES]`
    sums: &'a [f32; MAX_TILE],
    first: usize,
    end: usize,
    /// The first panel.
    start: usize,
    vectors: usize,
    /// The bias of these columns; empty without a bias.
    bias: &'a [f32],
    then: Epilogue,
}

impl<'a> ColumnTarget<'a> {
    fn new(data: &'a mut [f32], stride: usize, rows: usize) -> Self {
        assert!(data.len() >= stride * rows, "a product needs room for its rows");
        Self { data: data.as_mut_ptr(), stride, rows, lifetime: PhantomData }
    }

    /// # Panics
    /// If rows up to `row` or columns of panels up to `panel` are not all inside the target.
    fn check(&self, row: usize, panel: usize, then: Epilogue) {
        let columns = if then.is_gated() { panel * LANES / 2 } else { panel * LANES };
        assert!(row <= self.rows && columns <= self.stride, "a tile lies inside its target");
    }

    /// Returns sixteen numbers of a row.
    #[allow(clippy::mut_from_ref, reason = "threads have columns of their own")]
    #[allow(clippy::inline_always, reason = "it is called in compiled loops")]
    #[inline(always)]
    fn vector(&self, row: usize, vector: usize) -> &mut [f32; LANES] {
        // SAFETY: `check` ensures that the vector lies inside the slice, which stays borrowed as long as `self`. No
        // other thread has these columns, and this thread holds one vector at a time.
        unsafe { &mut *self.data.add(row * self.stride + vector * LANES).cast() }
    }
}

vectorized! {
    /// Applies the epilogue to a tile and writes it to its checked place.
    fn write(target: &ColumnTarget<'_>, tile: &TileSums<'_>) {
        let TileSums { sums, first, end, start, vectors, bias, then } = *tile;
        let (sums, _) = sums.as_chunks::<LANES>();
        let (bias, _) = bias.as_chunks::<LANES>();
        for (row, sums) in (first..end).zip(sums.chunks_exact(vectors)) {
            let with_bias = |vector: usize| {
                let mut sums = sums[vector];
                if let Some(bias) = bias.get(vector) {
                    math::add_scaled(&mut sums, 1.0, bias);
                }
                sums
            };
            match then {
                Epilogue::Replace => {
                    for vector in 0..vectors {
                        *target.vector(row, start + vector) = with_bias(vector);
                    }
                }
                Epilogue::Add => {
                    for vector in 0..vectors {
                        math::add_scaled(target.vector(row, start + vector), 1.0, &with_bias(vector));
                    }
                }
                Epilogue::SwiGlu | Epilogue::GeGlu => {
                    for pair in 0..vectors / 2 {
                        let (mut gate, up) = (with_bias(2 * pair), with_bias(2 * pair + 1));
                        if then == Epilogue::SwiGlu {
                            gate = gate.map(math::silu);
                        } else {
                            gate = gate.map(math::gelu_tanh);
                        }
                        let target = target.vector(row, start / 2 + pair);
                        for lane in 0..LANES {
                            target[lane] = gate[lane] * up[lane];
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use proptest::prelude::*;

    use super::*;

    fn uneven(length: usize, seed: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 37 + seed * 11) % 23) as f32 * 0.125 - 1.0).collect()
    }

    /// Returns `rows` times the transpose of an `[out, in]` matrix, in double precision.
    fn plain(rows: &[f32], stored: StoredMatrix<'_>, width: usize) -> Vec<Vec<f64>> {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let row = |row: &[f32]| {
            let columns = stored.matrix.chunks_exact(width).enumerate();
            let bias = |column: usize| stored.bias.map_or(0.0, |bias| f64::from(bias[column]));
            columns.map(|(column, by)| dot(row, by) + bias(column)).collect()
        };
        rows.chunks_exact(width).map(row).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

        /// The product is right, and a row has the same bits alone and among others, with one thread or several.
        #[test]
        fn a_product_is_right_and_its_rows_do_not_know_of_each_other(
            count in 1_usize..40,
            width in 1_usize..70,
            columns in 1_usize..150,
            with_bias: bool,
            threads in 1_usize..4,
        ) {
            let mut team = Team::new(threads, "test").unwrap();
            let (a, matrix, bias) =
                (uneven(count * width, 1), uneven(columns * width, 2), uneven(columns, 3));
            let stored = StoredMatrix { matrix: &matrix, bias: with_bias.then_some(&bias[..]) };
            let right = plain(&a, stored, width);
            let (panels, turns) = (
                Panels::side_by_side(&[stored], width),
                Panels::interleaved(stored, stored, width),
            );
            let rows = StridedRows { data: &a, stride: width, count };
            for then in [Epilogue::Replace, Epilogue::Add, Epilogue::SwiGlu, Epilogue::GeGlu] {
                let panels = if then.is_gated() { &turns } else { &panels };
                let stride = panels.columns(then);
                let mut target = vec![0.5; count * stride];
                panels.multiply(&mut team, rows, &mut target, then);
                for row in 0..count {
                    let ours = &target[row * stride..][..columns];
                    for (ours, x) in ours.iter().zip(&right[row]) {
                        let expected = match then {
                            Epilogue::Replace => *x,
                            Epilogue::Add => x + 0.5,
                            Epilogue::SwiGlu => x / (1.0 + (-x).exp()) * x,
                            Epilogue::GeGlu => {
                                let u = (2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3));
                                0.5 * x * (1.0 + u.tanh()) * x
                            }
                        };
                        prop_assert!((f64::from(*ours) - expected).abs() < 1e-3, "{ours} {expected}");
                    }
                    let mut alone = vec![0.5; stride];
                    let lone = StridedRows { data: &a[row * width..], stride: width, count: 1 };
                    panels.multiply_alone(lone, &mut alone, then);
                    prop_assert_eq!(&alone[..], &target[row * stride..][..stride]);
                }
            }
        }
    }
}
