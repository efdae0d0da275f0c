//! Panels as the stored matrices that they were packed from.

use std::ops::Range;

use rayon::prelude::*;

use super::{Lines, Panels};
use crate::pairs::{PairLine, terms};
use crate::tile::{CacheLine, LANES};
use crate::{byte_tile, vectorized};

impl Panels {
    /// Returns the numbers of a stored row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Writes stored rows as they were rounded. A row is a column of the panels: `column` returns it for each row of the
    /// target. `[rows, width]`
    ///
    /// # Panics
    /// When a column is not there.
    pub fn unpack(&self, target: &mut [f32], column: impl Fn(usize) -> usize + Sync) {
        let n_rows = target.len() / self.width;
        // Neighbours that share a panel.
        let mut stretches: Vec<(Range<usize>, &mut [f32])> = Vec::new();
        let (mut rest, mut start) = (target, 0);
        while start < n_rows {
            let first = column(start);
            let in_panel = LANES - first % LANES;
            let is_next =
                |count: &usize| start + count < n_rows && column(start + count) == first + count;
            let count = (1..in_panel).take_while(is_next).count() + 1;
            let (own, after) = rest.split_at_mut(count * self.width);
            stretches.push((first..first + count, own));
            (rest, start) = (after, start + count);
        }
        stretches.into_par_iter().with_min_len(4).for_each(|(columns, rows)| {
            self.unpack_panel(columns, rows);
        });
    }

    /// Writes columns of one panel.
    fn unpack_panel(&self, columns: Range<usize>, rows: &mut [f32]) {
        let (panel, first) = (columns.start / LANES, columns.start % LANES);
        let each = self.lines.each(self.width);
        let own = panel * each..(panel + 1) * each;
        match &self.lines {
            Lines::F32(lines) => transpose_numbers(rows, self.width, &lines[own], first),
            Lines::Bf16(lines) => transpose_pairs(rows, self.width, &lines[own], first),
            Lines::Int8(lines) => {
                for (lane, row) in (first..).zip(rows.chunks_exact_mut(self.width)) {
                    let numbers = byte_tile::column(&lines[own.clone()], lane);
                    row.iter_mut().zip(numbers).for_each(|(target, number)| *target = number);
                }
            }
        }
    }
}

vectorized! {
    /// Copies lanes from `first` on, each into a row.
    fn transpose_numbers(rows: &mut [f32], width: usize, lines: &[CacheLine], first: usize) {
        for (block, lines) in lines.chunks(LANES).enumerate() {
            let start = block * LANES;
            for (row, lane) in rows.chunks_exact_mut(width).zip(first..) {
                let row = &mut row[start..][..lines.len()];
                row.iter_mut().zip(lines).for_each(|(number, line)| *number = line.0[lane]);
            }
        }
    }

    /// Copies lanes of pairs from `first` on, each into a row.
    fn transpose_pairs(rows: &mut [f32], width: usize, lines: &[PairLine], first: usize) {
        for (block, lines) in lines.chunks(LANES).enumerate() {
            let start = 2 * block * LANES;
            for (row, lane) in rows.chunks_exact_mut(width).zip(first..) {
                let end = (start + 2 * lines.len()).min(width);
                for (numbers, line) in row[start..end].chunks_mut(2).zip(lines) {
                    numbers.copy_from_slice(&terms(line.0[lane])[..numbers.len()]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panels::{PanelFormat, StoredMatrix};

    #[test]
    fn columns_come_back_in_any_order_of_their_panels() {
        for format in [PanelFormat::F32, PanelFormat::Bf16, PanelFormat::Int8] {
            for width in [1, 15, 16, 33, 96] {
                let matrix: Vec<f32> = (0..70 * width).map(|i| (i as f32 * 0.7).sin()).collect();
                let stored = StoredMatrix { matrix: &matrix, bias: None };
                let panels = Panels::side_by_side(&[stored], width, format);
                let alternating = |row: usize| row / LANES * 2 * LANES + row % LANES;
                for (count, is_alternating, first) in
                    [(70, false, 0), (20, false, 23), (40, true, 0), (0, false, 0)]
                {
                    let column = |row| first + if is_alternating { alternating(row) } else { row };
                    let mut rows = vec![7.0; count * width];
                    panels.unpack(&mut rows, column);
                    let each = (0..count).flat_map(|row| panels.column(column(row)));
                    assert_eq!(rows, each.collect::<Vec<_>>(), "{format:?} {width} {count}");
                }
            }
        }
    }
}
