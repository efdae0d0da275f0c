//! Memory for a block of queries, reused by a thread.

use std::cell::RefCell;

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Memory for a block of queries.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `[group * queries, head_dim]`, padded to whole vectors; so are `output`, `doutput` and `dqueries`.
    pub(super) queries: Vec<f32>,
    /// Scores S, then probabilities P. `[group * queries, stride]`
    pub(super) scores: Vec<f32>,
    pub(super) dscores: Vec<f32>,
    pub(super) output: Vec<f32>,
    pub(super) doutput: Vec<f32>,
    pub(super) dqueries: Vec<f32>,
    /// `[group * queries]`
    pub(super) log_sum_exp: Vec<f32>,
}

/// Returns the first `count` numbers, with arbitrary contents.
pub(super) fn room(numbers: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if numbers.len() < count {
        numbers.resize(count, 0.0);
    }
    &mut numbers[..count]
}
