//! KV cache: keys and values of all layers, in pages of a fixed number of tokens.

use std::ops::Range;

use turnwise_kernels::number_tile::StoredNumber;
use turnwise_kernels::pairs::rounded;
use turnwise_kernels::panels::padded;
use turnwise_kernels::tile::{self, CacheLine, Half, LANES};

use super::tree::PageId;
use crate::{ComputePrecision, DecoderConfig};

/// Tokens per page. A page holds the same positions in every sequence that shares it, so that sums over a sequence are
/// divided at the same places.
pub(crate) const PAGE: usize = 2 * LANES;

/// Offsets inside a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageLayout {
    n_layers: usize,
    n_kv_heads: usize,
    head_dim: usize,
    precision: ComputePrecision,
}

/// The memory of pages, which free pages keep.
#[derive(Debug)]
pub(super) struct Pages {
    layout: PageLayout,
    pages: Vec<Page>,
}

/// For each layer and head: keys `[head_dim, PAGE]`, then values `[PAGE, head_dim padded to whole vectors]`, in the
/// precision of the layout. Empty until it is needed.
#[derive(Clone, Debug, Default)]
pub(super) struct Page(Vec<CacheLine>);

/// A number of a page.
pub(super) trait PageNumber: StoredNumber {
    fn of(x: f32) -> Self;
    fn numbers(lines: &[CacheLine]) -> &[Self];
    fn numbers_mut(lines: &mut [CacheLine]) -> &mut [Self];
}

impl PageNumber for f32 {
    fn of(x: f32) -> Self {
        x
    }

    fn numbers(lines: &[CacheLine]) -> &[Self] {
        tile::numbers(lines)
    }

    fn numbers_mut(lines: &mut [CacheLine]) -> &mut [Self] {
        tile::numbers_mut(lines)
    }
}

impl PageNumber for Half {
    fn of(x: f32) -> Self {
        Self(rounded(x))
    }

    fn numbers(lines: &[CacheLine]) -> &[Self] {
        tile::halves(lines)
    }

    fn numbers_mut(lines: &mut [CacheLine]) -> &mut [Self] {
        tile::halves_mut(lines)
    }
}

impl PageLayout {
    pub(super) fn new(config: &DecoderConfig, precision: ComputePrecision) -> Self {
        let DecoderConfig { n_layers, n_kv_heads, head_dim, .. } = *config;
        Self { n_layers, n_kv_heads, head_dim, precision }
    }

    pub(super) fn precision(self) -> ComputePrecision {
        self.precision
    }

    fn n_keys(self) -> usize {
        self.head_dim * PAGE
    }

    fn n_values(self) -> usize {
        PAGE * padded(self.head_dim)
    }

    /// Returns the cache lines of a page.
    fn lines(self) -> usize {
        let numbers = self.n_layers * self.n_kv_heads * (self.n_keys() + self.n_values());
        match self.precision {
            ComputePrecision::F32 => numbers / LANES,
            ComputePrecision::Bf16 => numbers / (2 * LANES),
        }
    }

    /// Returns the bytes of a page.
    pub(super) fn bytes(self) -> u64 {
        (self.lines() * size_of::<CacheLine>()) as u64
    }

    fn keys(self, layer: usize, head: usize) -> Range<usize> {
        let start = (layer * self.n_kv_heads + head) * (self.n_keys() + self.n_values());
        start..start + self.n_keys()
    }

    fn values(self, layer: usize, head: usize) -> Range<usize> {
        let start = self.keys(layer, head).end;
        start..start + self.n_values()
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
        let Page(lines) = &mut self.pages[page.0];
        if lines.is_empty() {
            *lines = vec![CacheLine::ZERO; self.layout.lines()];
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
    pub(super) fn keys<T: PageNumber>(
        &self,
        layout: PageLayout,
        layer: usize,
        head: usize,
    ) -> &[T] {
        &T::numbers(&self.0)[layout.keys(layer, head)]
    }

    /// `[PAGE, padded head_dim]`
    pub(super) fn values<T: PageNumber>(
        &self,
        layout: PageLayout,
        layer: usize,
        head: usize,
    ) -> &[T] {
        &T::numbers(&self.0)[layout.values(layer, head)]
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
        let (lines, row) = (&mut self.0[..], [keys, values]);
        match layout.precision {
            ComputePrecision::F32 => write(f32::numbers_mut(lines), layout, layer, position, row),
            ComputePrecision::Bf16 => write(Half::numbers_mut(lines), layout, layer, position, row),
        }
    }
}

fn write<T: PageNumber>(
    numbers: &mut [T],
    layout: PageLayout,
    layer: usize,
    position: usize,
    [keys, values]: [&[f32]; 2],
) {
    let row = position % PAGE;
    let heads = keys.chunks_exact(layout.head_dim).zip(values.chunks_exact(layout.head_dim));
    for (head, (key, value)) in heads.enumerate() {
        let columns = &mut numbers[layout.keys(layer, head)];
        for (column, key) in columns.chunks_exact_mut(PAGE).zip(key) {
            column[row] = T::of(*key);
        }
        let rows = &mut numbers[layout.values(layer, head)];
        let row = &mut rows[row * padded(layout.head_dim)..];
        for (place, value) in row.iter_mut().zip(value) {
            *place = T::of(*value);
        }
    }
}
