//! Attention of a step's tokens over the pages of their sequences.
//!
//! Neighbouring tokens of a step that share pages are computed together: a page that 32 sequences begin with is
//! multiplied by a dozen queries at a time, instead of being read for each.

use std::iter::repeat_n;
use std::ops::Range;

use turnwise_kernels::math;
use turnwise_kernels::matrix::Write;
use turnwise_kernels::number_tile::{self, ColumnVectors, NumberFactors};
use turnwise_kernels::panels::padded;
use turnwise_kernels::tile::{Half, LANES, MAX_VECTORS, TileTarget};
use turnwise_kernels::vectorized;

use super::compute::{EngineBatch, EngineToken};
use super::pages::{PAGE, PageNumber, Pages};
use super::tree::PageId;
use crate::ComputePrecision;
use crate::dimensions::{Dimensions, Heads};

/// The number of query rows that are computed together.
const ROWS: usize = 12;

/// A plan for each sliding window of a model, and for layers without one.
#[derive(Debug, Default)]
pub(super) struct AttentionPlans(Vec<AttentionPlan>);

impl AttentionPlans {
    /// Plans a step, replacing the plans of the previous one.
    pub(super) fn make(&mut self, step: &EngineBatch, dimensions: &Dimensions) {
        let Self(plans) = self;
        plans.resize_with(dimensions.windows.len(), AttentionPlan::default);
        for (plan, window) in plans.iter_mut().zip(&dimensions.windows) {
            plan.window = *window;
            plan.make(step, dimensions.heads);
        }
    }

    /// # Panics
    /// When the model has no layer with this window.
    pub(super) fn of(&self, window: Option<usize>) -> &AttentionPlan {
        let plan = self.0.iter().find(|plan| plan.window == window);
        plan.expect("there is a plan for every window of the model")
    }
}

/// The tokens that read pages together, computed once for each step.
#[derive(Debug, Default)]
pub(super) struct AttentionPlan {
    /// The number of latest tokens that a token attends to, itself included; all tokens if `None`.
    window: Option<usize>,
    groups: Vec<QueryGroup>,
    spans: Vec<PageSpan>,
}

/// Tokens that are computed together.
#[derive(Clone, Debug)]
struct QueryGroup {
    tokens: Range<usize>,
    spans: Range<usize>,
}

/// Some tokens of a group, and pages that all of them read, as ranges of their page tables, which agree there.
#[derive(Clone, Debug)]
struct PageSpan {
    /// Relative to the group's first token.
    tokens: Range<usize>,
    pages: Range<usize>,
}

/// Scratch memory of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `[rows, head_dim]`
    queries: Vec<f32>,
    /// `[rows, length in whole pages]`
    scores: Vec<f32>,
    /// The reciprocal of each row's sum of exponentials. `[rows]`
    factors: Vec<f32>,
    /// `[rows, padded head_dim]`
    mixed: Vec<f32>,
}

impl AttentionPlan {
    fn make(&mut self, step: &EngineBatch, heads: Heads) {
        self.groups.clear();
        self.spans.clear();
        let count = (ROWS / heads.group()).max(1);
        for start in (0..step.tokens.len()).step_by(count) {
            let end = step.tokens.len().min(start + count);
            let first_span = self.spans.len();
            self.cut(step, &step.tokens[start..end], 0..end - start, 0);
            self.groups
                .push(QueryGroup { tokens: start..end, spans: first_span..self.spans.len() });
        }
    }

    /// Returns the number of groups.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// Returns the positions that a token attends to.
    fn positions(&self, token: &EngineToken) -> Range<usize> {
        let end = token.position + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Returns the pages that a token reads, as a range of its page table.
    fn pages(&self, token: &EngineToken) -> Range<usize> {
        let Range { start, end } = self.positions(token);
        start / PAGE..end.div_ceil(PAGE)
    }

    /// Splits the pages that some tokens read, from the given page on, at the places where their page tables differ.
    fn cut(
        &mut self,
        step: &EngineBatch,
        tokens: &[EngineToken],
        range: Range<usize>,
        first: usize,
    ) {
        let pages = |index: usize| self.pages(&tokens[index]);
        let read = |index: usize, page: usize| {
            pages(index).contains(&page).then(|| step.tables[tokens[index].table][page])
        };
        // Some may be done, and others begin later.
        let begins = range.clone().map(pages).filter(|pages| pages.end > first);
        let Some(begin) = begins.map(|pages| pages.start.max(first)).min() else { return };
        let mut end = begin;
        let mut runs: Vec<Range<usize>> = Vec::new();
        loop {
            runs.clear();
            for index in range.clone() {
                match runs.last_mut() {
                    Some(run) if read(run.start, end) == read(index, end) => run.end = index + 1,
                    _ => runs.push(index..index + 1),
                }
            }
            if runs.len() > 1 || read(range.start, end).is_none() {
                break;
            }
            end += 1;
        }
        if end > begin {
            self.spans.push(PageSpan { tokens: range, pages: begin..end });
        }
        for run in runs {
            self.cut(step, tokens, run, end);
        }
    }
}

/// The inputs of a layer, common to all groups.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer<'a> {
    pub(super) step: &'a EngineBatch,
    pub(super) pages: &'a Pages,
    pub(super) heads: Heads,
    pub(super) index: usize,
    /// Queries are first in each row. `[N, stride]`
    pub(super) qkv: &'a [f32],
    pub(super) stride: usize,
}

/// One group and one key head.
#[derive(Clone, Copy)]
struct Work<'a> {
    layer: Layer<'a>,
    head: usize,
    tokens: &'a [EngineToken],
    /// Width of a row of scores.
    length: usize,
}

impl Layer<'_> {
    /// Computes attention of a group with one key head. Calls `write` with each token, query head and output.
    /// `[head_dim]`
    pub(super) fn attend(
        &self,
        plan: &AttentionPlan,
        group: usize,
        head: usize,
        scratch: &mut Scratch,
        mut write: impl FnMut(usize, usize, &[f32]),
    ) {
        let QueryGroup { tokens, spans } = &plan.groups[group];
        let spans = &plan.spans[spans.clone()];
        let of_group = &self.step.tokens[tokens.clone()];
        let pages = of_group.iter().map(|token| token.position / PAGE + 1).max().unwrap_or(0);
        let work = Work { layer: *self, head, tokens: of_group, length: pages * PAGE };
        let (n_queries, head_dim) = (self.heads.group(), self.heads.head_dim);

        scratch.queries.clear();
        for token in tokens.clone() {
            let queries = &self.qkv[token * self.stride + head * n_queries * head_dim..];
            scratch.queries.extend_from_slice(&queries[..n_queries * head_dim]);
        }
        scale(&mut scratch.queries, self.heads.scale);
        scratch.scores.resize(of_group.len() * n_queries * work.length, 0.0);
        for span in spans {
            match self.pages.layout().precision() {
                ComputePrecision::F32 => work.score::<f32>(span, scratch),
                ComputePrecision::Bf16 => work.score::<Half>(span, scratch),
            }
        }

        scratch.mixed.clear();
        scratch.mixed.resize(of_group.len() * n_queries * padded(head_dim), 0.0);
        let rows = scratch.scores.chunks_exact_mut(work.length);
        let seen = of_group.iter().map(|token| (plan.positions(token), plan.pages(token)));
        let seen = seen.flat_map(|seen| repeat_n(seen, n_queries));
        scratch.factors.clear();
        scratch.factors.extend(rows.zip(seen).map(|(scores, (seen, pages))| {
            scores[seen.end..].fill(0.0);
            scores[pages.start * PAGE..seen.start].fill(0.0);
            weigh(&mut scores[seen])
        }));
        for span in spans {
            match self.pages.layout().precision() {
                ComputePrecision::F32 => work.mix::<f32>(span, scratch),
                ComputePrecision::Bf16 => work.mix::<Half>(span, scratch),
            }
        }
        let rows = scratch.mixed.chunks_exact_mut(padded(head_dim));
        for ((row, mixed), factor) in rows.enumerate().zip(&scratch.factors) {
            scale(mixed, *factor);
            let (token, query) = (row / n_queries, row % n_queries);
            write(tokens.start + token, head * n_queries + query, &mixed[..head_dim]);
        }
    }
}

impl Work<'_> {
    /// Iterates over the tiles of a span's rows: the first row and the number of rows.
    fn tiles(
        &self,
        span: &PageSpan,
    ) -> (usize, impl Iterator<Item = (usize, usize)> + Clone + use<>) {
        let group = self.layer.heads.group();
        let (start, end) = (span.tokens.start * group, span.tokens.end * group);
        let (most, vectors) = number_tile::shape(end - start);
        let cuts = (end - start).div_ceil(most);
        let at = move |cut: usize| start + (end - start) * cut / cuts;
        (vectors, (0..cuts).map(move |cut| (at(cut), at(cut + 1) - at(cut))))
    }

    /// Computes scores: products of queries and keys.
    fn score<T: PageNumber>(&self, span: &PageSpan, scratch: &mut Scratch) {
        let Layer { step, pages, heads, index: layer, .. } = self.layer;
        let table = &step.tables[self.tokens[span.tokens.start].table];
        let (most_vectors, tiles) = self.tiles(span);
        let mut page = span.pages.start;
        while page < span.pages.end {
            let mut vectors = most_vectors;
            while vectors * LANES > (span.pages.end - page) * PAGE {
                vectors /= 2;
            }
            let columns = |first: usize| {
                let mut b: ColumnVectors<'_, T> = [&[]; MAX_VECTORS];
                for (vector, b) in b[..vectors].iter_mut().enumerate() {
                    let place = (first + vector * LANES / PAGE).min(span.pages.end - 1);
                    let keys = pages.get(table[place]).keys(pages.layout(), layer, self.head);
                    *b = &keys[vector * LANES % PAGE..];
                }
                b
            };
            let b = columns(page);
            let next = columns(page + vectors * LANES / PAGE);
            for (row, rows) in tiles.clone() {
                let factors = NumberFactors {
                    a: &scratch.queries[row * heads.head_dim..],
                    a_stride: heads.head_dim,
                    a_step: 1,
                    rows,
                    b: &[b],
                    terms_each: heads.head_dim,
                    b_stride: PAGE,
                    vectors,
                    terms: heads.head_dim,
                    next: &next[..vectors],
                };
                let data = &mut scratch.scores[row * self.length + page * PAGE..];
                let write = Write::Replace;
                number_tile::multiply(
                    &mut TileTarget { data, stride: self.length, write },
                    &factors,
                );
            }
            page += vectors * LANES / PAGE;
        }
    }

    /// Adds the weighted values, in order of position.
    fn mix<T: PageNumber>(&self, span: &PageSpan, scratch: &mut Scratch) {
        let Layer { step, pages, heads, index: layer, .. } = self.layer;
        let of_span = &self.tokens[span.tokens.clone()];
        let longest = of_span.iter().map(|token| token.position + 1).max().unwrap_or(0);
        let table = &step.tables[of_span[0].table][span.pages.clone()];
        let values = |page: &PageId| pages.get(*page).values::<T>(pages.layout(), layer, self.head);
        let width = padded(heads.head_dim);
        let (most_vectors, tiles) = self.tiles(span);
        let mut b: Vec<ColumnVectors<'_, T>> = vec![[&[]; MAX_VECTORS]; table.len()];
        let mut column = 0;
        while column < width {
            let mut vectors = most_vectors;
            while column + vectors * LANES > width {
                vectors /= 2;
            }
            for (columns, page) in b.iter_mut().zip(table) {
                let values = &values(page)[column..];
                for (vector, columns) in columns[..vectors].iter_mut().enumerate() {
                    *columns = &values[vector * LANES..];
                }
            }
            for (row, rows) in tiles.clone() {
                let factors = NumberFactors {
                    a: &scratch.scores[row * self.length + span.pages.start * PAGE..],
                    a_stride: self.length,
                    a_step: 1,
                    rows,
                    b: &b,
                    terms_each: PAGE,
                    b_stride: width,
                    vectors,
                    terms: longest.min(span.pages.end * PAGE) - span.pages.start * PAGE,
                    next: &[],
                };
                let data = &mut scratch.mixed[row * width + column..];
                number_tile::multiply(
                    &mut TileTarget { data, stride: width, write: Write::Add },
                    &factors,
                );
            }
            column += vectors * LANES;
        }
    }
}

vectorized! {
    fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }

    /// Replaces scores by their exponentials; returns the reciprocal of the sum.
    fn weigh(scores: &mut [f32]) -> f32 {
        let highest = math::maximum(scores);
        1.0 / math::exponentials(scores, highest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each token reads the pages of its window once, whatever the tokens next to it read.
    #[test]
    fn every_token_reads_the_pages_of_its_window_alone() {
        // Sequences of other lengths, of which some share their first pages, and a prompt of several tokens.
        let lengths = [5 * PAGE + 3, 5 * PAGE + 9, 2 * PAGE, 9 * PAGE - 1, 7];
        let table = |sequence: usize| {
            let page =
                |page| PageId(if page < 2 && sequence < 3 { page } else { 100 * sequence + page });
            (0..lengths[sequence].div_ceil(PAGE)).map(page).collect()
        };
        let mut step = EngineBatch {
            tables: (0..lengths.len()).map(table).collect(),
            ..EngineBatch::default()
        };
        for (table, length) in lengths.iter().enumerate() {
            let first = if table == 3 { length - 40 } else { length - 1 };
            step.tokens.extend((first..*length).map(|position| EngineToken {
                table,
                id: 0,
                position,
                wants_logits: false,
            }));
        }
        let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 8, scale: 1.0 };
        for window in [None, Some(1), Some(PAGE), Some(PAGE + 5), Some(4 * PAGE), Some(999)] {
            let mut plan = AttentionPlan { window, ..AttentionPlan::default() };
            plan.make(&step, heads);
            let mut read = vec![Vec::new(); step.tokens.len()];
            for QueryGroup { tokens, spans } in &plan.groups {
                for span in &plan.spans[spans.clone()] {
                    for token in span.tokens.clone() {
                        read[tokens.start + token].extend(span.pages.clone());
                    }
                }
            }
            for (token, read) in step.tokens.iter().zip(read) {
                assert_eq!(read, plan.pages(token).collect::<Vec<_>>(), "{window:?} {token:?}");
            }
        }
    }
}
