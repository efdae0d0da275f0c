//! Products by the matrix unit: sides are packed, and multiplied block by block.
//!
//! An element is one chain of sums over its terms, whatever the number of threads.

use std::cell::{Cell, RefCell};

use rayon::prelude::*;

use super::amx::{self, SIDE, Unit};
use super::split::{Parts, Side, Tile};
use super::{Accuracy, Matrix, MatrixMut, Threads, Write};

/// Terms that are packed at once.
const TERMS: usize = 512;

/// Tiles of the right side that are packed at once: they lie in the second cache while all rows are multiplied with them.
const RIGHT_TILES: usize = 768;

/// The most rows that a thread takes at once: what is packed of them lies in the second cache.
const ROWS: usize = 128;

/// Multiply-adds from which several threads gain.
const SHARED: usize = 1 << 21;

thread_local! {
    static LEFT: RefCell<Vec<Tile>> = const { RefCell::new(Vec::new()) };
    static RIGHT: Cell<Vec<Tile>> = const { Cell::new(Vec::new()) };
}

/// Whether there is a matrix unit, and the product large enough to fill it.
pub(super) fn suit(a: Matrix<'_>, b: Matrix<'_>) -> bool {
    const LEAST: usize = SIDE / 2;
    let (rows, terms, columns) = (a.shape.rows, a.shape.columns, b.shape.columns);
    rows >= LEAST && terms >= LEAST && columns >= LEAST && amx::is_available()
}

/// As [`multiply`](super::multiply), whose shapes have been found to fit.
pub(super) fn multiply(
    target: &mut MatrixMut<'_>,
    write: Write,
    scale: f32,
    [a, b]: [Matrix<'_>; 2],
    accuracy: Accuracy,
    threads: Threads,
) {
    let parts = match accuracy {
        Accuracy::Full => Parts::Three,
        Accuracy::Gradient => Parts::Two,
    };
    let (left, right) = (Side::left(a), Side::right(b));
    let size = left.count() * left.terms() * right.count();
    let threads = if size < SHARED { Threads::One } else { threads };
    let (stride, columns) = (target.shape.row_stride, target.shape.columns);
    let rows = rows_at_once(left.count(), threads);
    let mut memory = RIGHT.take();
    for term in (0..left.terms()).step_by(TERMS) {
        let adds = write == Write::Add || term > 0;
        let terms = (left.terms() - term).min(TERMS);
        let panel = parts.tiles(SIDE, terms);
        let at_once = (RIGHT_TILES / panel).max(1) * SIDE;
        for column in (0..columns).step_by(at_once) {
            let columns = (columns - column).min(at_once);
            let tiles = room(&mut memory, parts.tiles(columns, terms));
            each(tiles, panel, threads, |index, tiles| {
                right.pack(tiles, parts, column + index * SIDE, term, 1.0);
            });
            let packed = Packed { tiles, parts, panel };
            each(target.data, rows * stride, threads, |index, target| {
                let first = index * rows;
                let rows = rows.min(left.count() - first);
                let target = &mut target[column..];
                LEFT.with_borrow_mut(|tiles| {
                    let tiles = room(tiles, parts.tiles(rows, terms));
                    for (index, tiles) in tiles.chunks_exact_mut(panel).enumerate() {
                        left.pack(tiles, parts, first + index * SIDE, term, scale);
                    }
                    let packed_left = Packed { tiles, parts, panel };
                    Block { target, stride, rows, columns }.put(adds, packed_left, packed);
                });
            });
        }
    }
    RIGHT.set(memory);
}

/// Few enough that every thread of the pool has several pieces.
fn rows_at_once(rows: usize, threads: Threads) -> usize {
    match threads {
        Threads::One => ROWS,
        Threads::Pool => {
            (rows / (4 * rayon::current_num_threads())).next_multiple_of(SIDE).clamp(SIDE, ROWS)
        }
    }
}

/// The first so many tiles, whose contents may be anything.
fn room(tiles: &mut Vec<Tile>, count: usize) -> &mut [Tile] {
    if tiles.len() < count {
        tiles.resize(count, Tile::ZERO);
    }
    &mut tiles[..count]
}

/// Pieces of a slice, one by one or side by side.
fn each<T: Send>(
    slice: &mut [T],
    piece: usize,
    threads: Threads,
    work: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    match threads {
        Threads::One => slice.chunks_mut(piece).enumerate().for_each(|(i, piece)| work(i, piece)),
        Threads::Pool => {
            slice.par_chunks_mut(piece).enumerate().for_each(|(i, piece)| work(i, piece));
        }
    }
}

/// A side, packed: panels of 32 rows or columns.
#[derive(Clone, Copy, Debug)]
struct Packed<'a> {
    tiles: &'a [Tile],
    parts: Parts,
    /// Tiles of a panel.
    panel: usize,
}

impl<'a> Packed<'a> {
    fn panels(&self) -> impl Iterator<Item = &'a [Tile]> {
        self.tiles.chunks_exact(self.panel)
    }
}

/// Some rows of the target.
#[derive(Debug)]
struct Block<'a> {
    target: &'a mut [f32],
    stride: usize,
    rows: usize,
    columns: usize,
}

impl Block<'_> {
    fn put(&mut self, adds: bool, left: Packed<'_>, right: Packed<'_>) {
        let mut unit = Unit::new();
        for (j, right) in right.panels().enumerate() {
            for (i, left_panel) in left.panels().enumerate() {
                let sides = [left_panel, right];
                self.put_square(&mut unit, adds, left.parts, [i * SIDE, j * SIDE], sides);
            }
        }
    }

    /// A square of 32 rows and columns, or what of it lies inside the target.
    fn put_square(
        &mut self,
        unit: &mut Unit,
        adds: bool,
        parts: Parts,
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

#[cfg(test)]
mod timing {
    use super::*;
    #[test]
    #[ignore]
    fn pieces() {
        let best = |name: &str, flops: f64, work: &mut dyn FnMut()| {
            let mut all = Vec::new();
            for _ in 0..301 { let t = std::time::Instant::now(); work(); all.push(t.elapsed().as_secs_f64()); }
            all.sort_by(f64::total_cmp);
            println!("{name} {:.1} us, best {:.1} median {:.1} G/s", all[150] * 1e6, flops / all[0] / 1e9, flops/all[150]/1e9);
        };
        let x = vec![0.3_f32; 2048 * 512];
        for parts in [Parts::Two, Parts::Three] {
        println!("{parts:?}");
        let mut tiles = vec![Tile::ZERO; parts.tiles(128, 256)];
        let mut wide = vec![Tile::ZERO; parts.tiles(512, 256)];
        let side = Side::left(Matrix::strided(&x, 128, 256, 256));
        let mut all = |name: &str, side: Side<'_>| best(name, 128.0 * 256.0, &mut || for (i, t) in tiles.chunks_exact_mut(parts.tiles(32, 256)).enumerate() { side.pack(t, parts, i * 32, 0, 1.0); });
        all("rows", side);
        all("rows transposed", Side::left(Matrix::strided(&x, 256, 128, 128).transposed()));
        all("terms", Side::right(Matrix::strided(&x, 256, 128, 128)));
        all("terms transposed", Side::right(Matrix::strided(&x, 128, 256, 256).transposed()));
        let side = Side::right(Matrix::strided(&x, 512, 256, 256).transposed());
        for (i, t) in wide.chunks_exact_mut(parts.tiles(32, 256)).enumerate() { side.pack(t, parts, i * 32, 0, 1.0); }
        let mut c = vec![0.0; 128 * 512];
        best("put", 2.0 * 128.0 * 256.0 * 512.0, &mut || {
            let block = Block { target: &mut c, stride: 512, rows: 128, columns: 512 };
            let panel = parts.tiles(32, 256);
            {block}.put(false, Packed { tiles: &tiles, parts, panel }, Packed { tiles: &wide, parts, panel });
        });
        let mut unit = Unit::new();
        for (steps, stride) in [(1, 32), (2, 32), (4, 32), (8, 32), (8, 512)] {
            let n = steps * parts.step_tiles();
            let (a, b) = (&tiles[..n], &wide[..n]);
            best(&format!("square {steps} {stride}"), 2.0 * 32.0 * 32.0 * 32.0 * steps as f64 *100.0, &mut || for _ in 0..100 { unit.multiply(&mut c, stride, true, parts, [a, b]) });
        }
        }
    }
}
