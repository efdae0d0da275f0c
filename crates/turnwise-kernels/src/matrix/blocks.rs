//! Products on the matrix unit: sides are packed, then multiplied block by block.
//!
//! Each element is one chain of sums over its terms, whatever the number of threads.

use std::cell::{Cell, RefCell};
use std::mem;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::amx::{self, SIDE, Unit};
use super::split::{STEP, Side, SplitCount, Tile};
use super::{Accuracy, Along, Matrix, MatrixMut, Parallelism, Shape, Write};

/// The number of terms that are packed at once.
const TERMS: usize = 1024;

/// The most rows that a thread takes at once: their packed form fits in the L2 cache.
const ROWS: usize = 128;

/// The number of multiply-adds from which several threads are faster than one.
const SHARED: usize = 1 << 21;

thread_local! {
    static LEFT: RefCell<Vec<Tile>> = const { RefCell::new(Vec::new()) };
    static RIGHT: Cell<Vec<Tile>> = const { Cell::new(Vec::new()) };
}

/// The right sides of a product that lie side by side, or one below the other.
#[derive(Clone, Debug)]
pub(super) struct JoinedRight<'a> {
    /// Each matrix with its first column or term in the joined matrix.
    pieces: Vec<(usize, Side<'a>)>,
    along: Along,
    columns: usize,
    terms: usize,
}

impl<'a> JoinedRight<'a> {
    /// Joins the matrices; `None` if a tile would cross two of them.
    pub(super) fn new(matrices: &[Matrix<'a>], along: Along) -> Option<Self> {
        let (mut pieces, mut length) = (Vec::with_capacity(matrices.len()), 0_usize);
        for matrix in matrices {
            if !length.is_multiple_of(SIDE) {
                return None;
            }
            pieces.push((length, Side::right(*matrix)));
            length += match along {
                Along::Columns => matrix.shape.columns,
                Along::Terms => matrix.shape.rows,
            };
        }
        let first = matrices.first()?.shape;
        let (columns, terms) = match along {
            Along::Columns => (length, first.rows),
            Along::Terms => (first.columns, length),
        };
        Some(Self { pieces, along, columns, terms })
    }

    /// Returns whether a product with this many rows should run on the matrix unit.
    pub(super) fn suits(&self, rows: usize) -> bool {
        suit(rows, self.terms, self.columns)
    }

    /// Returns the shape of the joined matrix.
    pub(super) fn shape(&self) -> Shape {
        Shape { rows: self.terms, columns: self.columns, row_stride: 0, column_stride: 0 }
    }

    /// Packs 32 columns from `column` on, and as many terms from `term` on as fit.
    fn pack(&self, tiles: &mut [Tile], parts: SplitCount, column: usize, term: usize) {
        if self.along == Along::Columns {
            let piece = self.pieces.iter().rev().find(|(start, _)| *start <= column);
            if let Some((start, side)) = piece {
                side.pack(tiles, parts, column - start, term, 1.0);
            }
            return;
        }
        let step = parts.step_tiles();
        for (start, side) in &self.pieces {
            let first = term.max(*start);
            let end = (start + side.terms()).min(term + tiles.len() / step * STEP);
            if first < end {
                let tiles = &mut tiles[(first - term) / STEP * step..];
                let length = (end - first).div_ceil(STEP) * step;
                side.pack(&mut tiles[..length], parts, column, first - start, 1.0);
            }
        }
    }

    /// Packs all columns and some terms, in panels of 32 columns.
    fn pack_all(
        &self,
        memory: &mut [Tile],
        parts: SplitCount,
        terms: Range<usize>,
        threads: Parallelism,
    ) {
        let panel = parts.tiles(SIDE, terms.len());
        let tiles = &mut memory[..parts.tiles(self.columns, terms.len())];
        let pack = |index: usize, tiles: &mut [Tile]| {
            self.pack(tiles, parts, index * SIDE, terms.start);
        };
        match threads {
            Parallelism::Serial => {
                tiles.chunks_mut(panel).enumerate().for_each(|(i, t)| pack(i, t));
            }
            Parallelism::Pool => {
                tiles.par_chunks_mut(panel).enumerate().for_each(|(i, t)| pack(i, t));
            }
        }
    }
}

/// Returns whether there is a matrix unit and a product of this shape fills it.
pub(super) fn suit(rows: usize, terms: usize, columns: usize) -> bool {
    const LEAST: usize = SIDE / 2;
    rows >= LEAST && terms >= LEAST && columns >= LEAST && amx::is_available()
}

/// Packed right factors, for several products each.
#[derive(Debug)]
pub(super) struct Kept {
    memory: Vec<Tile>,
    parts: SplitCount,
    sides: Vec<Place>,
}

/// The place of a packed side.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: usize,
    /// Tiles per 32 columns.
    panel: usize,
}

/// Memory of packed sides that were dropped.
static FREE: Mutex<Vec<Vec<Tile>>> = Mutex::new(Vec::new());

impl Kept {
    pub(super) fn new(
        rights: &[JoinedRight<'_>],
        accuracy: Accuracy,
        threads: Parallelism,
    ) -> Self {
        let (parts, mut count) = (SplitCount::of(accuracy), 0);
        let place = |right: &JoinedRight<'_>| {
            let first = count;
            count += parts.tiles(right.columns, right.terms);
            Place { first, panel: parts.tiles(SIDE, right.terms) }
        };
        let sides: Vec<Place> = rights.iter().map(place).collect();
        let mut memory = free(count);
        for (right, place) in rights.iter().zip(&sides) {
            right.pack_all(&mut memory[place.first..], parts, 0..right.terms, threads);
        }
        Self { memory, parts, sides }
    }
}

/// Returns `count` tiles with arbitrary contents, in the smallest free memory that fits without much waste.
fn free(count: usize) -> Vec<Tile> {
    let most = count + count / 4;
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let fitting = (0..free.len()).filter(|index| (count..=most).contains(&free[*index].len()));
    let found = fitting.min_by_key(|index| free[*index].len()).map(|index| free.swap_remove(index));
    drop(free);
    found.unwrap_or_else(|| vec![Tile::ZERO; count])
}

impl Drop for Kept {
    fn drop(&mut self) {
        let memory = mem::take(&mut self.memory);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

/// The right operand of a product.
#[derive(Clone, Copy, Debug)]
pub(super) enum RightOperand<'a> {
    /// Packed for this product.
    Loose(&'a JoinedRight<'a>, Accuracy),
    /// The first terms and columns of a side that is already packed.
    Kept { kept: &'a Kept, side: usize, terms: usize, columns: usize },
}

/// Multiplies into several targets, which hold consecutive rows of the left side's product. Otherwise like
/// [`multiply`](super::multiply).
pub(super) fn multiply(
    targets: &mut [MatrixMut<'_>],
    write: Write,
    left: Scaled<'_>,
    right: RightOperand<'_>,
    threads: Parallelism,
) {
    let (terms, columns, at_once, parts) = match right {
        RightOperand::Loose(right, accuracy) => {
            (right.terms, right.columns, TERMS, SplitCount::of(accuracy))
        }
        RightOperand::Kept { kept, terms, columns, .. } => (terms, columns, terms, kept.parts),
    };
    let size = left.side.count() * terms * columns;
    let threads = if size < SHARED { Parallelism::Serial } else { threads };
    let rows = rows_at_once(left.side.count(), threads);
    let mut memory = RIGHT.take();
    for term in (0..terms).step_by(at_once) {
        let terms = term..(term + at_once).min(terms);
        let used = parts.tiles(SIDE, terms.len());
        let (tiles, panel) = match right {
            RightOperand::Loose(right, _) => {
                let tiles = room(&mut memory, parts.tiles(columns, terms.len()));
                right.pack_all(tiles, parts, terms.clone(), threads);
                (&*tiles, used)
            }
            RightOperand::Kept { kept, side, .. } => {
                let Place { first, panel } = kept.sides[side];
                (&kept.memory[first..], panel)
            }
        };
        let tiles = &tiles[..columns.div_ceil(SIDE) * panel];
        let right = PackedPanels { tiles, parts, panel, used };
        let work = Work { left, right, terms, columns, adds: write == Write::Add || term > 0 };
        let pieces = pieces(targets, rows);
        match threads {
            Parallelism::Serial => pieces.into_iter().for_each(|piece| work.put(piece)),
            Parallelism::Pool => pieces.into_par_iter().for_each(|piece| work.put(piece)),
        }
    }
    RIGHT.set(memory);
}

/// A left side with a scalar factor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scaled<'a> {
    pub(super) side: Side<'a>,
    pub(super) by: f32,
}

/// Some rows of a target.
struct Piece<'a> {
    /// The rows of the left side.
    rows: Range<usize>,
    target: &'a mut [f32],
    stride: usize,
}

/// Splits targets into pieces of at most `rows` rows.
fn pieces<'a>(targets: &'a mut [MatrixMut<'_>], rows: usize) -> Vec<Piece<'a>> {
    let (mut pieces, mut first) = (Vec::new(), 0);
    for target in targets {
        let (stride, end) = (target.shape.row_stride, first + target.shape.rows);
        for target in target.data.chunks_mut(rows * stride) {
            let own = first..end.min(first + rows);
            first = own.end;
            if !own.is_empty() {
                pieces.push(Piece { rows: own, target, stride });
            }
        }
    }
    pieces
}

/// A product over some of its terms, with a packed right side.
#[derive(Clone, Debug)]
struct Work<'a> {
    left: Scaled<'a>,
    right: PackedPanels<'a>,
    terms: Range<usize>,
    columns: usize,
    adds: bool,
}

impl Work<'_> {
    fn put(&self, piece: Piece<'_>) {
        let PackedPanels { parts, used, .. } = self.right;
        let Piece { rows, target, stride } = piece;
        LEFT.with_borrow_mut(|tiles| {
            let tiles = room(tiles, parts.tiles(rows.len(), self.terms.len()));
            for (index, tiles) in tiles.chunks_exact_mut(used).enumerate() {
                let first = rows.start + index * SIDE;
                self.left.side.pack(tiles, parts, first, self.terms.start, self.left.by);
            }
            let left = PackedPanels { tiles, parts, panel: used, used };
            let mut block = TargetBlock { target, stride, rows: rows.len(), columns: self.columns };
            block.put(self.adds, left, self.right);
        });
    }
}

/// Returns the rows of a piece, so that every thread of the pool gets several pieces.
fn rows_at_once(rows: usize, threads: Parallelism) -> usize {
    match threads {
        Parallelism::Serial => ROWS,
        Parallelism::Pool => {
            (rows / (4 * rayon::current_num_threads())).next_multiple_of(SIDE).clamp(SIDE, ROWS)
        }
    }
}

/// Returns the first `count` tiles, with arbitrary contents.
fn room(tiles: &mut Vec<Tile>, count: usize) -> &mut [Tile] {
    if tiles.len() < count {
        tiles.resize(count, Tile::ZERO);
    }
    &mut tiles[..count]
}

/// A packed side: panels of 32 rows or columns.
#[derive(Clone, Copy, Debug)]
struct PackedPanels<'a> {
    tiles: &'a [Tile],
    parts: SplitCount,
    /// Tiles per panel.
    panel: usize,
    /// The tiles of a panel that belong to this product's terms.
    used: usize,
}

impl<'a> PackedPanels<'a> {
    fn count(&self) -> usize {
        self.tiles.len() / self.panel
    }

    /// Returns the tiles of a panel that belong to this product's terms.
    fn panel(&self, index: usize) -> &'a [Tile] {
        &self.tiles[index * self.panel..][..self.used]
    }
}

/// Some rows of the target.
#[derive(Debug)]
struct TargetBlock<'a> {
    target: &'a mut [f32],
    stride: usize,
    rows: usize,
    columns: usize,
}

impl TargetBlock<'_> {
    fn put(&mut self, adds: bool, left: PackedPanels<'_>, right: PackedPanels<'_>) {
        let mut unit = Unit::new();
        for j in 0..right.count() {
            for i in 0..left.count() {
                let sides = [left.panel(i), right.panel(j)];
                self.put_square(&mut unit, adds, left.parts, [i * SIDE, j * SIDE], sides);
            }
        }
    }

    /// Writes the part of a square of 32 rows and columns that lies inside the target.
    fn put_square(
        &mut self,
        unit: &mut Unit,
        adds: bool,
        parts: SplitCount,
        [row, column]: [usize; 2],
        sides: [&[Tile]; 2],
    ) {
        let (rows, columns) = (SIDE.min(self.rows - row), SIDE.min(self.columns - column));
        let target = &mut self.target[row * self.stride + column..];
        if (rows, columns) == (SIDE, SIDE) {
            return unit.multiply(target, self.stride, adds, parts, sides);
        }
        let mut square = [[0.0; SIDE]; SIDE];
        if adds {
            let lines = target.chunks(self.stride).take(rows).zip(&mut square);
            lines.for_each(|(line, square)| square[..columns].copy_from_slice(&line[..columns]));
        }
        unit.multiply(square.as_flattened_mut(), SIDE, adds, parts, sides);
        let lines = target.chunks_mut(self.stride).take(rows).zip(&square);
        lines.for_each(|(line, square)| line[..columns].copy_from_slice(&square[..columns]));
    }
}
