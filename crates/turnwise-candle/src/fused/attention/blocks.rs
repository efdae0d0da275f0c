//! Blocks of queries and the blocks of keys that they attend to.

use std::iter;
use std::ops::Range;

use turnwise_kernels::matrix::{self, Accuracy};
use turnwise_kernels::tile::LANES;

use super::AttentionSetting;
use crate::batch::AttentionSpan;
use crate::dimensions::Heads;

/// Queries per block.
pub(super) const BLOCK: usize = 64;

/// Returns the key heads of each tree, one tree after another.
pub(super) fn key_heads(setting: AttentionSetting<'_>) -> Vec<KeyHead<'_>> {
    let AttentionSetting { batch, heads, window, accuracy } = setting;
    let trees = batch
        .trees()
        .filter_map(|spans| Some((spans, spans.first()?.own.start..spans.last()?.own.end)));
    let of = |(spans, tokens): (_, Range<usize>)| {
        // A window that no sequence of the tree fills changes nothing.
        let window = window.filter(|window| *window < longest(spans));
        // A span's packed keys are read from its first one on, and a window begins anywhere.
        let is_packed = window.is_none() && packing_pays(spans, tokens.len(), heads, accuracy);
        let key_head =
            move |kv_head| KeyHead { spans, tokens: tokens.clone(), kv_head, is_packed, window };
        (0..heads.n_kv_heads).map(key_head)
    };
    trees.flat_map(of).collect()
}

/// Returns the length of the longest sequence of a tree.
fn longest(spans: &[AttentionSpan]) -> usize {
    spans.iter().map(|span| span.n_before() + span.own.len()).max().unwrap_or(0)
}

/// A key head in a tree.
#[derive(Clone, Debug)]
pub(super) struct KeyHead<'a> {
    pub(super) spans: &'a [AttentionSpan],
    pub(super) tokens: Range<usize>,
    pub(super) kv_head: usize,
    /// Whether its keys and values are packed for products, span by span.
    pub(super) is_packed: bool,
    /// The number of latest tokens that a token attends to, itself included; all tokens if `None`.
    window: Option<usize>,
}

impl KeyHead<'_> {
    pub(super) fn blocks(&self) -> impl Iterator<Item = QueryBlock> {
        self.spans.iter().flat_map(move |span| {
            let Range { start, end } = span.own;
            (start..end).step_by(BLOCK).map(move |first| {
                let queries = first..(first + BLOCK).min(end);
                let n_seen = span.n_before() + first - start + 1;
                let window = self.window.unwrap_or(usize::MAX);
                QueryBlock {
                    visible: self.key_blocks(span, n_seen.saturating_sub(window), queries.end),
                    queries,
                    n_until_full: window.saturating_sub(n_seen),
                }
            })
        })
    }

    /// Returns the keys before `end` that tokens of a span attend to, without the first `n_skipped`.
    fn key_blocks(&self, span: &AttentionSpan, n_skipped: usize, end: usize) -> Vec<KeyBlock> {
        let (mut key_blocks, mut column, mut n_skipped) = (Vec::new(), 0, n_skipped);
        let own = span.own.start..end;
        for range in span.before.iter().chain(iter::once(&own)) {
            let mut start = range.start + n_skipped.min(range.len());
            n_skipped -= start - range.start;
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
        if !self.is_packed {
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

/// Returns whether packing a tree's keys and values pays, judged by its mean block and span.
fn packing_pays(
    spans: &[AttentionSpan],
    n_tokens: usize,
    heads: Heads,
    accuracy: Accuracy,
) -> bool {
    const LEAST: usize = 16;
    let n_blocks: usize = spans.iter().map(|span| span.own.len().div_ceil(BLOCK)).sum();
    let rows = n_tokens / n_blocks.max(1);
    let is_finely_cut = rows < LEAST || n_tokens / spans.len().max(1) < LEAST;
    !is_finely_cut && matrix::packing_pays(heads.group() * rows, heads.head_dim, n_tokens, accuracy)
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
    /// The number of queries after the first until the window is full; each later query leaves out one more of the
    /// first keys.
    n_until_full: usize,
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

    /// Returns the columns of the keys that each query attends to, by its number in the block.
    pub(super) fn seen(&self) -> Seen {
        Seen { by_first: self.n_keys() - self.queries.len() + 1, n_until_full: self.n_until_full }
    }
}

/// The columns of the keys that each query of a block attends to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The end of those of the first query; each later query has one more.
    by_first: usize,
    n_until_full: usize,
}

impl Seen {
    pub(super) fn by(self, query: usize) -> Range<usize> {
        query.saturating_sub(self.n_until_full)..self.by_first + query
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DecoderConfig;
    use crate::batch::{PackedBatch, ScoredSequence};

    /// Keys outside the window of a whole block are not read, and each query sees as many keys as its window has.
    #[test]
    fn a_block_reads_the_keys_of_its_windows_alone() {
        let row = |seed: usize| (0..400).map(move |i| if i < 150 { i } else { i * seed } as u32);
        let rows: Vec<Vec<u32>> = [1, 3, 5].map(|seed| row(seed).collect()).to_vec();
        let sequences: Vec<ScoredSequence<'_>> =
            rows.iter().map(|ids| ScoredSequence::whole(ids)).collect();
        let batch = PackedBatch::new(&sequences);
        let heads = Heads::of(&DecoderConfig::small(29));
        for window in [1, 40, 64, 100, 151, 399, 400] {
            let setting = AttentionSetting {
                batch: &batch,
                heads,
                window: Some(window),
                accuracy: Accuracy::Full,
            };
            for head in key_heads(setting) {
                for block in head.blocks() {
                    assert!(block.n_keys() < window + BLOCK);
                    let seen = block.seen();
                    for (query, token) in block.queries.clone().enumerate() {
                        let position = batch.positions[token] as usize;
                        assert_eq!(seen.by(query).len(), window.min(position + 1));
                        assert_eq!(
                            seen.by(query).end,
                            block.n_keys() - (block.queries.end - 1 - token)
                        );
                    }
                }
            }
        }
    }
}
