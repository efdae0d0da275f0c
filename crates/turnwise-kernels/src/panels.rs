//! Panels: weight matrices in the order in which products of few rows read them.

mod unpack;

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use crate::byte_tile::{self, BLOCK_LINES, BLOCK_WORDS, ByteFactors};
use crate::matrix::Write;
use crate::number_tile::{self, NumberFactors};
use crate::pair_tile::{self, PairFactors};
use crate::pairs::{self, PairLine};
use crate::team::Team;
use crate::tile::{CacheLine, LANES, MAX_TILE, MAX_VECTORS, TileTarget, numbers};
use crate::{math, vectorized};

/// A matrix `[in, out]` packed into consecutive panels of 16 columns; the last panel is padded with zeros.
#[derive(Debug)]
pub struct Panels {
    lines: Lines,
    width: usize,
    /// The bias of each row of a product. `[16 panels]`
    bias: Option<Vec<f32>>,
}

/// The numbers of packed matrices, and of the rows that they multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanelFormat {
    /// f32.
    #[default]
    F32,
    /// bf16, rounded to the nearest; rows are rounded before a product, and sums are f32. Biases and epilogues stay f32.
    Bf16,
    /// int8, rounded to 127 steps of a scale for each [`BLOCK`](crate::byte_tile::BLOCK) terms of a column; rows are
    /// rounded alike before a product. Sums over blocks, biases and epilogues are f32.
    Int8,
}

/// A line of each panel holds one term of sixteen columns, or a pair of terms, or four.
#[derive(Debug)]
enum Lines {
    /// `[panels, in, LANES]`
    F32(Vec<CacheLine>),
    /// `[panels, pairs of in, LANES]`
    Bf16(Vec<PairLine>),
    /// `[panels, blocks of in, BLOCK_LINES, LANES]`
    Int8(Vec<PairLine>),
}

impl Lines {
    fn new(format: PanelFormat) -> Self {
        match format {
            PanelFormat::F32 => Self::F32(Vec::new()),
            PanelFormat::Bf16 => Self::Bf16(Vec::new()),
            PanelFormat::Int8 => Self::Int8(Vec::new()),
        }
    }

    /// Returns the lines of a panel.
    fn each(&self, width: usize) -> usize {
        match self {
            Self::F32(_) => width,
            Self::Bf16(_) => pairs::count(width),
            Self::Int8(_) => byte_tile::blocks(width) * BLOCK_LINES,
        }
    }

    /// Appends at most sixteen rows of an `[out, in]` matrix as a panel.
    fn push(&mut self, rows: &[&[f32]], width: usize) {
        match self {
            Self::F32(lines) => {
                let start = lines.len();
                lines.resize(start + width, CacheLine::ZERO);
                for (lane, row) in rows.iter().enumerate() {
                    for (line, value) in lines[start..].iter_mut().zip(*row) {
                        line.0[lane] = *value;
                    }
                }
            }
            Self::Bf16(lines) => {
                let start = lines.len();
                lines.resize(start + pairs::count(width), PairLine::ZERO);
                let mut packed = vec![0; pairs::count(width)];
                for (lane, row) in rows.iter().enumerate() {
                    pairs::round_rows(&mut packed, row, width, width);
                    for (line, pair) in lines[start..].iter_mut().zip(&packed) {
                        line.0[lane] = *pair;
                    }
                }
            }
            Self::Int8(lines) => {
                let start = lines.len();
                lines.resize(start + byte_tile::blocks(width) * BLOCK_LINES, PairLine::ZERO);
                for (lane, row) in rows.iter().enumerate() {
                    byte_tile::round_column(&mut lines[start..], lane, row);
                }
            }
        }
    }
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
    pub fn side_by_side(matrices: &[StoredMatrix<'_>], width: usize, format: PanelFormat) -> Self {
        let rows = matrices.iter().flat_map(|stored| stored.matrix.chunks_exact(width));
        let rows: Vec<&[f32]> = rows.collect();
        let biases: Option<Vec<&[f32]>> = matrices.iter().map(|stored| stored.bias).collect();
        let bias = biases.map(|biases| {
            let mut bias = biases.concat();
            bias.resize(padded(bias.len()), 0.0);
            bias
        });
        let mut lines = Lines::new(format);
        rows.chunks(LANES).for_each(|rows| lines.push(rows, width));
        Self { lines, width, bias }
    }

    /// Packs the gate and up matrices of a SwiGLU layer as alternating panels, for [`Epilogue::SwiGlu`].
    #[must_use]
    pub fn interleaved<'a>(
        gate: StoredMatrix<'a>,
        up: StoredMatrix<'a>,
        width: usize,
        format: PanelFormat,
    ) -> Self {
        let rows = |stored: StoredMatrix<'a>| -> Vec<&'a [f32]> {
            stored.matrix.chunks_exact(width).collect()
        };
        let (gates, ups) = (rows(gate), rows(up));
        let mut lines = Lines::new(format);
        for (gates, ups) in gates.chunks(LANES).zip(ups.chunks(LANES)) {
            lines.push(gates, width);
            lines.push(ups, width);
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
        Self { lines, width, bias }
    }

    /// Returns the number of panels.
    #[must_use]
    pub fn count(&self) -> usize {
        let lines = match &self.lines {
            Lines::F32(lines) => lines.len(),
            Lines::Bf16(lines) | Lines::Int8(lines) => lines.len(),
        };
        lines / self.lines.each(self.width)
    }

    /// Returns the width of a product, rounded up to whole vectors.
    #[must_use]
    pub fn columns(&self, then: Epilogue) -> usize {
        let columns = self.count() * LANES;
        if then.is_gated() { columns / 2 } else { columns }
    }

    /// Returns a column, which is a row of the stored matrix, as it was rounded.
    #[must_use]
    pub fn column(&self, column: usize) -> Vec<f32> {
        let (panel, lane) = (column / LANES, column % LANES);
        let each = self.lines.each(self.width);
        let own = panel * each..(panel + 1) * each;
        match &self.lines {
            Lines::F32(lines) => lines[own].iter().map(|line| line.0[lane]).collect(),
            Lines::Bf16(lines) => {
                let terms = lines[own].iter().flat_map(|line| pairs::terms(line.0[lane]));
                terms.take(self.width).collect()
            }
            Lines::Int8(lines) => byte_tile::column(&lines[own], lane).take(self.width).collect(),
        }
    }

    /// Returns the bias, padded to whole panels.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
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
        self.with_operand(rows, |rows| {
            team.each(self.count().div_ceil(piece), |_, index| {
                let end = ((index + 1) * piece).min(self.count());
                self.columns_of(rows, &target, then, index * piece..end);
            });
        });
    }

    /// Like [`multiply`](Self::multiply), on the calling thread alone.
    ///
    /// # Panics
    /// When rows or target are too small.
    pub fn multiply_alone(&self, rows: StridedRows<'_>, target: &mut [f32], then: Epilogue) {
        let target = ColumnTarget::new(target, self.columns(then), rows.count);
        self.with_operand(rows, |rows| self.columns_of(rows, &target, then, 0..self.count()));
    }

    /// Calls a function with rows in the format of the panels.
    fn with_operand(&self, rows: StridedRows<'_>, multiply: impl FnOnce(RowOperand<'_>)) {
        match &self.lines {
            Lines::F32(_) => multiply(RowOperand::F32(rows)),
            Lines::Bf16(_) => {
                let mut memory = ROUNDED.take();
                memory.resize(rows.count * pairs::count(self.width), 0);
                pairs::round_rows(&mut memory, rows.data, rows.stride, self.width);
                multiply(RowOperand::Bf16 { pairs: &memory, count: rows.count });
                ROUNDED.set(memory);
            }
            Lines::Int8(_) => {
                let mut memory = ROUNDED.take();
                let each = byte_tile::blocks(self.width) * BLOCK_WORDS;
                memory.resize(rows.count * each, 0);
                byte_tile::round_rows(&mut memory, rows.data, rows.stride, self.width);
                multiply(RowOperand::Int8 { words: &memory, count: rows.count });
                ROUNDED.set(memory);
            }
        }
    }

    /// Computes some panels of a product.
    fn columns_of(
        &self,
        rows: RowOperand<'_>,
        target: &ColumnTarget<'_>,
        then: Epilogue,
        panels: Range<usize>,
    ) {
        let bias = self.bias.as_deref().unwrap_or_default();
        let walk = PanelWalk { panels, count: self.count(), bias, target, then };
        match (&self.lines, rows) {
            (Lines::F32(lines), RowOperand::F32(rows)) => {
                let shape = number_tile::shape(rows.count);
                walk.run(lines, rows.count, shape, |product, tile| {
                    let factors = NumberFactors {
                        a: &rows.data[tile.first * rows.stride..],
                        a_stride: rows.stride,
                        a_step: 1,
                        rows: tile.end - tile.first,
                        b: &[tile.columns.map(numbers)],
                        terms_each: self.width,
                        b_stride: LANES,
                        vectors: tile.vectors,
                        terms: self.width,
                        next: &tile.next.map(numbers)[..tile.n_next],
                    };
                    number_tile::multiply(product, &factors);
                });
            }
            (Lines::Bf16(lines), RowOperand::Bf16 { pairs, count }) => {
                multiply_pairs(&walk, lines, pairs, count, self.width);
            }
            (Lines::Int8(lines), RowOperand::Int8 { words, count }) => {
                multiply_bytes(&walk, lines, words, count, self.width);
            }
            _ => unreachable!("rows have the format of the panels"),
        }
    }
}

/// Multiplies rows of pairs. `[count, pairs of width]`
fn multiply_pairs(
    walk: &PanelWalk<'_>,
    lines: &[PairLine],
    pairs: &[u32],
    count: usize,
    width: usize,
) {
    let each = pairs::count(width);
    walk.run(lines, count, pair_tile::shape(count), |product, tile| {
        let factors = PairFactors {
            a: &pairs[tile.first * each..],
            a_stride: each,
            a_step: 1,
            rows: tile.end - tile.first,
            b: tile.columns,
            vectors: tile.vectors,
            pairs: each,
            next: &tile.next[..tile.n_next],
        };
        pair_tile::multiply(product, &factors);
    });
}

/// Multiplies rows of bytes. `[count, blocks of width, BLOCK_WORDS]`
fn multiply_bytes(
    walk: &PanelWalk<'_>,
    lines: &[PairLine],
    words: &[u32],
    count: usize,
    width: usize,
) {
    let blocks = byte_tile::blocks(width);
    walk.run(lines, count, byte_tile::shape(count), |product, tile| {
        let factors = ByteFactors {
            a: &words[tile.first * blocks * BLOCK_WORDS..],
            rows: tile.end - tile.first,
            b: tile.columns,
            vectors: tile.vectors,
            blocks,
            next: &tile.next[..tile.n_next],
        };
        byte_tile::multiply(product, &factors);
    });
}

thread_local! {
    /// Memory for rounded rows.
    static ROUNDED: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// Rows in the format of panels.
#[derive(Clone, Copy, Debug)]
enum RowOperand<'a> {
    F32(StridedRows<'a>),
    /// `[count, pairs]`
    Bf16 {
        pairs: &'a [u32],
        count: usize,
    },
    /// `[count, blocks, BLOCK_WORDS]`
    Int8 {
        words: &'a [u32],
        count: usize,
    },
}

/// A walk over some panels.
struct PanelWalk<'a> {
    panels: Range<usize>,
    /// The panels of the matrix.
    count: usize,
    /// The bias of all columns; empty without a bias.
    bias: &'a [f32],
    target: &'a ColumnTarget<'a>,
    then: Epilogue,
}

/// Some rows, and the columns that they are multiplied by.
#[derive(Clone, Copy)]
struct PanelTile<'a, L> {
    first: usize,
    end: usize,
    columns: [&'a [L]; MAX_VECTORS],
    vectors: usize,
    /// Columns to prefetch.
    next: [&'a [L]; MAX_VECTORS],
    n_next: usize,
}

impl PanelWalk<'_> {
    /// Computes each tile with a function, and writes its sums.
    fn run<L>(
        &self,
        lines: &[L],
        n_rows: usize,
        (most, most_vectors): (usize, usize),
        multiply: impl Fn(&mut TileTarget<'_>, PanelTile<'_, L>),
    ) {
        let Self { panels, count, bias, target, then } = self;
        let each = lines.len() / count;
        let panel = |index: usize| &lines[index * each..(index + 1) * each];
        let cuts = n_rows.div_ceil(most);
        let mut start = panels.start;
        let mut sums = [0.0; MAX_TILE];
        while start < panels.end {
            let vectors = fitting(most_vectors, panels.end - start);
            let mut columns: [&[L]; MAX_VECTORS] = [&[]; MAX_VECTORS];
            let indices = start..start + vectors;
            columns.iter_mut().zip(indices).for_each(|(column, index)| *column = panel(index));
            let mut all_next: [&[L]; MAX_VECTORS] = [&[]; MAX_VECTORS];
            let mut n_next = 0;
            for (next, index) in all_next.iter_mut().zip((start + vectors..*count).take(vectors)) {
                *next = panel(index);
                n_next += 1;
            }
            for cut in 0..cuts {
                let (first, end) = (n_rows * cut / cuts, n_rows * (cut + 1) / cuts);
                // With several tiles, each two vectors wide, every tile prefetches a part of the next columns: even
                // requests keep memory fast.
                let (next, n_next) = match cuts {
                    1 => (all_next, n_next),
                    _ if cut < n_next => ([all_next[cut]; MAX_VECTORS], 1),
                    _ => (all_next, 0),
                };
                let stride = vectors * LANES;
                let mut product = TileTarget { data: &mut sums, stride, write: Write::Replace };
                multiply(&mut product, PanelTile { first, end, columns, vectors, next, n_next });
                let bias = bias.get(start * LANES..).unwrap_or_default();
                target.check(end, start + vectors, *then);
                write(
                    target,
                    &TileSums { sums: &sums, first, end, start, vectors, bias, then: *then },
                );
            }
            start += vectors;
        }
    }
}

/// Returns the most vectors, of `most` and its halves, that fit.
fn fitting(most: usize, left: usize) -> usize {
    let mut vectors = most;
    while vectors > left {
        vectors /= 2;
    }
    vectors
}

/// Returns the panels of a piece: an even number, and small enough for several pieces per member.
fn piece(panels: usize, members: usize) -> usize {
    (panels / (4 * members)).clamp(1, 16).next_multiple_of(2)
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
                        let (gate, up) = (with_bias(2 * pair), with_bias(2 * pair + 1));
                        gate_vector(target.vector(row, start / 2 + pair), gate, &up, then);
                    }
                }
            }
        }
    }

    /// Applies a gated epilogue to rows with alternating vectors of gate and up. The target is half as long.
    pub fn gate_rows(target: &mut [f32], rows: &[f32], then: Epilogue) {
        let (target, _) = target.as_chunks_mut::<LANES>();
        let (rows, _) = rows.as_chunks::<LANES>();
        for (target, pair) in target.iter_mut().zip(rows.chunks_exact(2)) {
            gate_vector(target, pair[0], &pair[1], then);
        }
    }
}

/// Multiplies the activation of a gate by `up`.
#[inline(always)]
#[allow(clippy::inline_always, reason = "it takes on the width of its caller")]
fn gate_vector(target: &mut [f32; LANES], gate: [f32; LANES], up: &[f32; LANES], then: Epilogue) {
    let gate = match then {
        Epilogue::GeGlu => gate.map(math::gelu_tanh),
        _ => gate.map(math::silu),
    };
    for lane in 0..LANES {
        target[lane] = gate[lane] * up[lane];
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

    /// Rounds rows as a product does: a column of panels that hold them.
    fn as_multiplied(rows: &[f32], width: usize, format: PanelFormat) -> Vec<f32> {
        let stored = StoredMatrix { matrix: rows, bias: None };
        let panels = Panels::side_by_side(&[stored], width, format);
        (0..rows.len() / width).flat_map(|row| panels.column(row)).collect()
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
            format in prop_oneof![
                Just(PanelFormat::F32), Just(PanelFormat::Bf16), Just(PanelFormat::Int8),
            ],
        ) {
            let mut team = Team::new(threads, "test").unwrap();
            let (a, matrix, bias) =
                (uneven(count * width, 1), uneven(columns * width, 2), uneven(columns, 3));
            let stored = StoredMatrix { matrix: &matrix, bias: with_bias.then_some(&bias[..]) };
            let (panels, turns) = (
                Panels::side_by_side(&[stored], width, format),
                Panels::interleaved(stored, stored, width, format),
            );
            let kept: Vec<f32> = (0..columns).flat_map(|column| panels.column(column)).collect();
            let right = plain(&as_multiplied(&a, width, format), StoredMatrix { matrix: &kept, ..stored }, width);
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
