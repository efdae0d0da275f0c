use std::fmt::Write;

use crate::exact::ZERO;
use crate::{Measurement, Problem, Setup};

/// Formats the measurements of one problem as a table of at most 100 columns, smallest bend first.
#[must_use]
pub fn table(problem: &Problem, setup: Setup, measurements: &[Measurement]) -> String {
    let mut rows: Vec<&Measurement> = measurements.iter().collect();
    rows.sort_by(|a, b| {
        let key = |row: &Measurement| (rounded(row.bend), rounded(row.relative_bias));
        let variance = |row: &Measurement| row.relative_variance.unwrap_or(f64::INFINITY);
        key(a)
            .partial_cmp(&key(b))
            .expect("finite")
            .then(rounded(variance(a)).total_cmp(&rounded(variance(b))))
            .then_with(|| (a.credit, a.objective).cmp(&(b.credit, b.objective)))
    });
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{}: {}\n{} trajectories, groups of {}, {}",
        problem.name,
        problem.about,
        problem.trajectories().len(),
        setup.group_size,
        if setup.off_policy == 0.0 {
            "on policy".to_owned()
        } else {
            format!("behaviour at distance {}", setup.off_policy)
        }
    );
    let _ = writeln!(
        text,
        "  {:26} {:29} {:>7} {:>7} {:>7} {:>7} {:>8}",
        "objective", "credit", "bend", "bias", "scale", "cosine", "variance"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "  {:26} {:29} {:>7} {:>7} {:>7} {:>7} {:>8}",
            row.objective,
            row.credit,
            number(row.bend),
            number(row.relative_bias),
            number(row.scale),
            row.cosine.map_or_else(|| "-".to_owned(), number),
            row.relative_variance.map_or_else(|| "-".to_owned(), number),
        );
    }
    text
}

/// The legend of the table's columns.
pub const LEGEND: &str = "\
bend      |E g - a grad J| / |E g|: the bias that is left without the best scale a; 0 is exact
bias      |E g - grad J| / |grad J|: the bias as it is
scale     a, the multiple of the true gradient that is nearest to the expected one
cosine    of the angle between the expected gradient and the true one
variance  trace of the covariance over |E g|^2, for one group
w         weight of a sequence of n tokens: 1 (the paper's, 1/n for each token) unless it is named
";

/// Rounds to six digits, so that rounding errors do not decide the order.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// Formats a number in at most seven characters; 0 is what enumeration cannot tell from 0.
fn number(value: f64) -> String {
    let size = value.abs();
    if size <= ZERO {
        "0".to_owned()
    } else if size < 1e-3 {
        format!("{value:.0e}")
    } else if size < 100.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.1}")
    }
}
