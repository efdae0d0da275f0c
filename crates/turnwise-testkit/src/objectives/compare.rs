/// Returns whether two numbers are equal up to `tolerance`, relative above 1 and absolute below.
#[must_use]
pub fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
}

/// Returns whether two slices have one length and numbers that are [`close`].
#[must_use]
pub fn all_close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(&a, &b)| close(a, b, tolerance))
}
