//! A line curve in braille characters, each of which holds two by four dots.

/// Dots per cell, horizontally.
const DOTS_WIDE: usize = 2;

/// Dots per cell, vertically.
const DOTS_HIGH: usize = 4;

/// The bits of a braille character, `[column][row]` from the top left (Unicode 16, section 21.1).
const BITS: [[u32; DOTS_HIGH]; DOTS_WIDE] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

/// The frame of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Frame {
    /// Width in character cells.
    pub(crate) width: usize,
    /// Height in character cells.
    pub(crate) height: usize,
    /// The value at the bottom.
    pub(crate) low: f64,
    /// The value at the top; values outside are drawn at the edge.
    pub(crate) high: f64,
    /// The number of values across the whole width, at least the length of the series.
    pub(crate) n: usize,
}

/// Draws a series, its first value at the left edge: one string for each row of cells, top row first.
///
/// Values in the same column of dots are averaged, and neighbouring columns joined. Values that are not finite are
/// skipped; the line connects their neighbours.
///
/// ```text
///        ⣀⡠⠔⠊
///  ⣀⠤⠤⠒⠊
/// ```
pub(crate) fn plot(frame: &Frame, series: &[f64]) -> Vec<String> {
    let mut dots = Dots::new(frame.width, frame.height);
    let mut before: Option<(usize, usize)> = None;
    for (column, value) in columns(frame, series) {
        let row = row_of(frame, value);
        dots.join(before.unwrap_or((column, row)), (column, row));
        before = Some((column, row));
    }
    dots.into_rows()
}

/// Draws a series with its axes; the name precedes the highest label.
///
/// ```text
/// reward 1.0┤
///           │
///        0.5┤       ⣀⡠⠔⠊
///           │ ⣀⠤⠤⠒⠊
///        0.0┼────────────
///           0          60
/// ```
pub(crate) fn chart(frame: &Frame, name: &str, series: &[f64]) -> Vec<String> {
    let middle = f64::midpoint(frame.low, frame.high);
    let [high, middle, low] = [frame.high, middle, frame.low].map(label);
    let (top, edge) = (format!("{name} {high}"), high.len().max(middle.len()).max(low.len()));
    let margin = top.chars().count().max(edge);
    let plotted = plot(frame, series).into_iter().enumerate();
    let mut lines: Vec<String> = plotted
        .map(|(row, cells)| match row {
            0 => format!("{top:>margin$}┤{cells}"),
            // With an odd number of rows, no row starts at the middle.
            _ if 2 * row == frame.height => format!("{middle:>margin$}┤{cells}"),
            _ => format!("{:margin$}│{cells}", ""),
        })
        .collect();
    lines.push(format!("{low:>margin$}┼{}", "─".repeat(frame.width)));
    let last = frame.n.max(series.len()).to_string();
    lines.push(format!("{:margin$} 0{last:>1$}", "", frame.width.saturating_sub(1)));
    lines
}

/// Formats a value of the axis, in few characters.
fn label(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// Returns the columns of dots with a value, from left to right, each with its mean.
fn columns(frame: &Frame, series: &[f64]) -> Vec<(usize, f64)> {
    let last_column = (frame.width * DOTS_WIDE).saturating_sub(1);
    let last_place = frame.n.max(series.len()).saturating_sub(1).max(1);
    let mut columns: Vec<(usize, f64, usize)> = Vec::new();
    for (place, value) in series.iter().enumerate().filter(|(_, value)| value.is_finite()) {
        // Rounds to the nearest column, so that the last place is the last column.
        let column = (2 * place * last_column + last_place) / (2 * last_place);
        match columns.last_mut() {
            Some((same, sum, n)) if *same == column => {
                *sum += value;
                *n += 1;
            }
            _ => columns.push((column, *value, 1)),
        }
    }
    columns.into_iter().map(|(column, sum, n)| (column, sum / n as f64)).collect()
}

/// Returns the row of dots of a value, counted from the top.
fn row_of(frame: &Frame, value: f64) -> usize {
    let last_row = (frame.height * DOTS_HIGH).saturating_sub(1);
    let range = frame.high - frame.low;
    let share = if range > 0.0 { ((value - frame.low) / range).clamp(0.0, 1.0) } else { 0.5 };
    interpolate((0, last_row), (1.0 - share) as f32)
}

/// Interpolates between two integers and rounds.
fn interpolate((from, to): (usize, usize), share: f32) -> usize {
    let value = from as f32 + (to as f32 - from as f32) * share;
    // The result is between two row or column numbers: neither negative nor large.
    #[expect(clippy::cast_sign_loss, reason = "neither end is negative")]
    let nearest = value.round() as usize;
    nearest
}

/// A grid of dots.
struct Dots {
    width: usize,
    cells: Vec<u32>,
}

impl Dots {
    fn new(width: usize, height: usize) -> Self {
        Self { width, cells: vec![0; width * height] }
    }

    fn set(&mut self, (column, row): (usize, usize)) {
        let cell = row / DOTS_HIGH * self.width + column / DOTS_WIDE;
        if let Some(cell) = self.cells.get_mut(cell) {
            *cell |= BITS[column % DOTS_WIDE][row % DOTS_HIGH];
        }
    }

    /// Draws a connected line between two `(column, row)`; the first is not to the right of the second.
    fn join(&mut self, from: (usize, usize), to: (usize, usize)) {
        let n = (to.0 - from.0).max(1) as f32;
        let mut above = from.1;
        for column in from.0..=to.0 {
            let row = interpolate((from.1, to.1), (column - from.0) as f32 / n);
            // The rows in between belong to the new column, except the one where the old column ended.
            let passed = if above < row { above + 1..row } else { row + 1..above };
            passed.for_each(|row| self.set((column, row)));
            self.set((column, row));
            above = row;
        }
    }

    fn into_rows(self) -> Vec<String> {
        let braille = |bits: &u32| char::from_u32(0x2800 + bits).unwrap_or(' ');
        // An empty cell is a space: some fonts draw the empty braille character.
        let cell = |bits: &u32| if *bits == 0 { ' ' } else { braille(bits) };
        self.cells.chunks(self.width.max(1)).map(|row| row.iter().map(cell).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Frame = Frame { width: 4, height: 2, low: 0.0, high: 1.0, n: 0 };

    fn check(frame: Frame, series: &[f64], expected: [&str; 2]) {
        assert_eq!(plot(&frame, series), expected, "{series:?}");
    }

    #[test]
    fn a_rising_series_rises_from_corner_to_corner() {
        let series: Vec<f64> = (0..8).map(|i| f64::from(i) / 7.0).collect();
        check(SMALL, &series, ["  ⡠⠊", "⡠⠊  "]);
    }

    #[test]
    fn two_values_are_joined() {
        check(SMALL, &[0.0, 1.0], ["  ⡠⠊", "⡠⠊  "]);
    }

    #[test]
    fn a_jump_has_no_gap() {
        check(SMALL, &[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], ["  ⡏⠉", "⣀⣀⠇ "]);
    }

    #[test]
    fn one_value_is_one_dot_at_the_left() {
        check(SMALL, &[0.0], ["    ", "⡀   "]);
        check(SMALL, &[1.0], ["⠁   ", "    "]);
    }

    #[test]
    fn an_empty_series_is_empty() {
        check(SMALL, &[], ["    ", "    "]);
        check(SMALL, &[f64::NAN], ["    ", "    "]);
    }

    #[test]
    fn more_values_than_columns_are_averaged() {
        let series: Vec<f64> = (0..800).map(|i| f64::from(i % 2)).collect();
        let rows = plot(&SMALL, &series);
        // Alternating 0 and 1 is a level line in the middle.
        let drawn: Vec<char> = rows.concat().chars().filter(|cell| *cell != ' ').collect();
        assert!(drawn.iter().all(|cell| "⠉⣀⠈⠁⡀⢀⢄⡠⠑⠊⢁⡈".contains(*cell)), "{rows:?}");
        assert_eq!(columns(&SMALL, &series).len(), 8);
    }

    #[test]
    fn values_that_are_not_finite_are_skipped() {
        let holes = [0.0, f64::NAN, f64::NAN, f64::INFINITY, f64::NAN, f64::NAN, f64::NAN, 1.0];
        check(SMALL, &holes, ["  ⡠⠊", "⡠⠊  "]);
    }

    #[test]
    fn values_outside_the_range_lie_at_the_edge() {
        check(SMALL, &[9.0, 9.0], ["⠉⠉⠉⠉", "    "]);
        check(SMALL, &[-9.0, -9.0], ["    ", "⣀⣀⣀⣀"]);
    }

    #[test]
    fn a_range_of_one_value_is_drawn_in_the_middle() {
        let rows = plot(&Frame { low: 1.0, ..SMALL }, &[1.0, 1.0]);
        assert_eq!(rows.concat().trim().chars().count(), 4);
    }

    #[test]
    fn a_series_that_is_not_over_fills_its_part() {
        check(Frame { n: 15, ..SMALL }, &[0.0; 8], ["    ", "⣀⣀⡀ "]);
    }

    #[test]
    fn no_size_panics() {
        for (width, height) in [(0, 0), (0, 3), (3, 0), (1, 1)] {
            let frame = Frame { width, height, ..SMALL };
            assert_eq!(plot(&frame, &[0.0, 1.0, 0.5]).len(), if width == 0 { 0 } else { height });
            let _ = chart(&frame, "reward", &[0.0, 1.0]);
        }
    }

    #[test]
    fn a_chart_has_axes() {
        let frame = Frame { width: 12, height: 4, low: 0.0, high: 1.0, n: 60 };
        let series: Vec<f64> = (0..30).map(|i| f64::from(i) / 30.0).collect();
        let expected = [
            "reward 1.0┤     ⡔      ",
            "          │   ⡠⠊       ",
            "       0.5┤ ⢀⠔⠁        ",
            "          │⡠⠊          ",
            "       0.0┼────────────",
            "           0         60",
        ];
        assert_eq!(chart(&frame, "reward", &series), expected);
    }
}
