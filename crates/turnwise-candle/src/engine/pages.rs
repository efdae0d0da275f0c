//! KV cache: keys and values of all layers, in pages of a fixed number of tokens.

use std::ops::Range;

use turnwise_kernels::panels::padded;
use turnwise_kernels::tile::{CacheLine, LANES, numbers, numbers_mut};

use super::tree::PageId;
use crate::DecoderConfig;

/// Tokens per page. A page holds the same positions in every sequence that shares it, so that sums over a sequence are
/// divided at the same places.
pub(crate) const PAGE: usize = 2 * LANES;

/// Offsets inside a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageLayout {
    n_layers: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

/// The memory of pages, which free pages keep.
#[derive(Debug)]
pub(super) struct Pages {
    layout: PageLayout,
    pages: Vec<Page>,
}

/// For each layer and head: keys `[head_dim, PAGE]`, then values `[PAGE, head_dim padded to whole vectors]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Page(Vec<CacheLine>);

impl PageLayout {
    pub(super) fn new(config: &DecoderConfig) -> Self {
        let DecoderConfig { n_layers, n_kv_heads, head_dim, .. } = *config;
        Self { n_layers, n_kv_heads, head_dim }
    }

    fn key_blocks(self) -> usize {
        self.head_dim * PAGE / LANES
    }

    fn value_blocks(self) -> usize {
        PAGE * padded(self.head_dim) / LANES
    }

    fn blocks(self) -> usize {
        self.n_layers * self.n_kv_heads * (self.key_blocks() + self.value_blocks())
    }

    /// Returns the bytes of a page.
    pub(super) fn bytes(self) -> u64 {
        (self.blocks() * size_of::<CacheLine>()) as u64
    }

    fn keys(self, layer: usize, head: usize) -> Range<usize> {
        let start = (layer * self.n_kv_heads + head) * (self.key_blocks() + self.value_blocks());
        start..start + self.key_blocks()
    }

    fn values(self, layer: usize, head: usize) -> Range<usize> {
        let start = self.keys(layer, head).end;
        start..start + self.value_blocks()
    }
}

impl Pages {
    pub(super) fn new(layout: PageLayout) -> Self {
        Self { layout, pages: Vec::new() }
    }

    pub(super) fn layout(&self) -> PageLayout {
        self.layout
    }

    /// Allocates the memory of a page if it has none.
    pub(super) fn provide(&mut self, page: PageId) {
        if page.0 >= self.pages.len() {
            self.pages.resize_with(page.0 + 1, Page::default);
        }
        let Page(blocks) = &mut self.pages[page.0];
        if blocks.is_empty() {
            *blocks = vec![CacheLine::ZERO; self.layout.blocks()];
        }
    }

    pub(super) fn copy(&mut self, from: PageId, to: PageId) {
        self.provide(to);
        if let Ok([Page(from), Page(to)]) = self.pages.get_disjoint_mut([from.0, to.0]) {
            to.copy_from_slice(from);
        }
    }

    pub(super) fn get(&self, page: PageId) -> &Page {
        &self.pages[page.0]
    }

    /// Returns mutable references to all pages, each to be taken once.
    pub(super) fn all_mut(&mut self) -> Vec<Option<&mut Page>> {
        self.pages.iter_mut().map(Some).collect()
    }
}

impl Page {
    /// `[head_dim, PAGE]`
    pub(super) fn keys(&self, layout: PageLayout, layer: usize, head: usize) -> &[f32] {
        numbers(&self.0[layout.keys(layer, head)])
    }

    /// `[PAGE, padded head_dim]`
    pub(super) fn values(&self, layout: PageLayout, layer: usize, head: usize) -> &[f32] {
        numbers(&self.0[layout.values(layer, head)])
    }

    /// Writes the keys and values of a token in one layer. `[n_kv_heads * head_dim]` each
    pub(super) fn write(
        &mut self,
        layout: PageLayout,
        layer: usize,
        position: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let row = position % PAGE;
        let heads = keys.chunks_exact(layout.head_dim).zip(values.chunks_exact(layout.head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let columns = numbers_mut(&mut self.0[layout.keys(layer, head)]);
            for (column, key) in columns.chunks_exact_mut(PAGE).zip(key) {
                column[row] = *key;
            }
            let rows = numbers_mut(&mut self.0[layout.values(layer, head)]);
            rows[row * padded(layout.head_dim)..][..value.len()].copy_from_slice(value);
        }
    }
}
