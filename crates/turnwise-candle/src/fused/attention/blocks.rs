//! Blocks of queries and the blocks of keys that they attend to.

use std::iter;
use std::ops::Range;

use turnwise_kernels::matrix;
use turnwise_kernels::tile::LANES;

use crate::batch::{AttentionSpan, PackedBatch};
use crate::dimensions::Heads;

/// Queries per block.
pub(super) const BLOCK: usize = 64;

/// Returns the key heads of each tree, one tree after another.
pub(super) fn key_heads(batch: &PackedBatch, heads: Heads) -> Vec<KeyHead<'_>> {
    let trees = batch
        .trees()
        .filter_map(|spans| Some((spans, spans.first()?.own.start..spans.last()?.own.end)));
    let of = |(spans, tokens): (_, Range<usize>)| {
        let on_unit = suits_unit(spans, tokens.len(), heads);
        let key_head = move |kv_head| KeyHead { spans, tokens: tokens.clone(), kv_head, on_unit };
        (0..heads.n_kv_heads).map(key_head)
    };
    trees.flat_map(of).collect()
}

/// A key head in a tree.
#[derive(Clone, Debug)]
pub(super) struct KeyHead<'a> {
    pub(super) spans: &'a [AttentionSpan],
    pub(super) tokens: Range<usize>,
    pub(super) kv_head: usize,
    /// Whether products with its keys and values run on the matrix unit.
    pub(super) on_unit: bool,
}

impl KeyHead<'_> {
    pub(super) fn blocks(&self) -> impl Iterator<Item = QueryBlock> {
        self.spans.iter().flat_map(move |span| {
            let Range { start, end } = span.own;
            (start..end).step_by(BLOCK).map(move |first| {
                let queries = first..(first + BLOCK).min(end);
                QueryBlock { visible: self.key_blocks(span, queries.end), queries }
            })
        })
    }

    /// Returns the keys before `end` that tokens of a span attend to.
    fn key_blocks(&self, span: &AttentionSpan, end: usize) -> Vec<KeyBlock> {
        let (mut key_blocks, mut column) = (Vec::new(), 0);
        let own = span.own.start..end;
        for range in span.before.iter().chain(iter::once(&own)) {
            let mut start = range.start;
            while start < range.end {
                let (span, cut) = self.cut(start..range.end);
                key_blocks.push(KeyBlock { span, column, keys: start..cut });
                column += cut - start;
                start = cut;
            }
        }
        key_blocks
    }

    /// Returns the span in which a range begins, and where to split the range: at the end of that span if spans are
    /// packed one by one.
    fn cut(&self, range: Range<usize>) -> (usize, usize) {
        if !self.on_unit {
            return (0, range.end);
        }
        let span = self.spans.partition_point(|span| span.own.end <= range.start);
        let own = &self.spans[span].own;
        debug_assert_eq!(
            own.start, range.start,
            "the visible part of a span starts with its first token"
        );
        (span, range.end.min(own.end))
    }
}

/// Returns whether products with a tree's keys and values fill the matrix unit, judged by its median block and span.
fn suits_unit(spans: &[AttentionSpan], n_tokens: usize, heads: Heads) -> bool {
    const LEAST: usize = 16;
    let n_blocks: usize = spans.iter().map(|span| span.own.len().div_ceil(BLOCK)).sum();
    let rows = n_tokens / n_blocks.max(1);
    let is_finely_cut = rows < LEAST || n_tokens / spans.len().max(1) < LEAST;
    !is_finely_cut && matrix::unit_suits(heads.group() * rows, heads.head_dim, n_tokens)
}

/// A block of consecutive keys.
#[derive(Clone, Debug)]
pub(super) struct KeyBlock {
    /// Its span in the tree, if spans are packed one by one.
    pub(super) span: usize,
    /// The column of the first key's scores.
    pub(super) column: usize,
    pub(super) keys: Range<usize>,
}

/// A block of queries of a span, and the keys that they attend to.
#[derive(Clone, Debug)]
pub(super) struct QueryBlock {
    /// Keys in order of position; the queries' own tokens are last.
    pub(super) visible: Vec<KeyBlock>,
    pub(super) queries: Range<usize>,
}

impl QueryBlock {
    pub(super) fn n_keys(&self) -> usize {
        self.visible.last().map_or(0, |key_block| key_block.column + key_block.keys.len())
    }

    /// Returns the distance between rows of scores: an odd number of vectors, because caches map addresses by their
    /// middle bits.
    pub(super) fn stride(&self) -> usize {
        (self.n_keys().div_ceil(LANES) | 1) * LANES
    }

    /// Returns the number of keys that the first query attends to; each later query has one more.
    pub(super) fn n_seen_by_first(&self) -> usize {
        self.n_keys() - self.queries.len() + 1
    }
}
