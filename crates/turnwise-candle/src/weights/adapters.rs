//! Adapters packed for the inference engine, beside weights that they do not change: a publication is the adapters alone.

use turnwise_kernels::panels::{PanelFormat, Panels, StoredMatrix};

use crate::layout::{Adapter, FeedForward, Layer, Linear};

/// The packed adapters of a layer. A mixture of experts has none.
#[derive(Debug)]
pub(crate) struct LayerAdapters {
    pub(crate) qkv: Option<PackedAdapter>,
    pub(crate) output: Option<PackedAdapter>,
    pub(crate) gate_up: Option<PackedAdapter>,
    pub(crate) down: Option<PackedAdapter>,
}

/// The adapters of joined matrices, joined alike: the first matrices side by side, and the second ones each in the rows of
/// its own ranks, with zeros elsewhere.
#[derive(Debug)]
pub(crate) struct PackedAdapter {
    /// `[in, ranks]`
    pub(crate) down: Panels,
    /// `[ranks, out]`
    pub(crate) up: Panels,
    /// The factor of the first product.
    pub(crate) scale: f32,
}

/// The width of a matrix's product, and its adapter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AdaptedLinear<'a> {
    pub(crate) out: usize,
    pub(crate) adapter: Option<Adapter<&'a [f32]>>,
}

impl LayerAdapters {
    /// Packs the adapters of a layer whose values say how wide a product is, and hold its adapter.
    pub(crate) fn new(layer: &Layer<AdaptedLinear<'_>>, format: PanelFormat) -> Self {
        let joined = |linears: &[Linear<AdaptedLinear<'_>>], is_gated| {
            let linears: Vec<_> = linears.iter().map(|linear| linear.weight).collect();
            PackedAdapter::new(&linears, is_gated, format)
        };
        let single = |linear: &Linear<_>| PackedAdapter::new(&[linear.weight], false, format);
        let (gate_up, down) = match &layer.feed_forward {
            FeedForward::Dense(mlp) => (joined(&mlp.gate_up, true), single(&mlp.down)),
            FeedForward::Mixture(_) => (None, None),
        };
        Self { qkv: joined(&layer.qkv, false), output: single(&layer.output), gate_up, down }
    }
}

impl PackedAdapter {
    /// Joins the adapters of matrices with a common input: side by side, or gate and up in alternating panels. Returns
    /// `None` if none has one.
    fn new(linears: &[AdaptedLinear<'_>], is_gated: bool, format: PanelFormat) -> Option<Self> {
        let adapters = linears.iter().filter_map(|linear| linear.adapter);
        let ranks = adapters.clone().map(|adapter| adapter.rank).sum();
        let Adapter { down, rank, scale, .. } = adapters.clone().next()?;
        let width = down.len() / rank;
        let stored = |matrix| StoredMatrix { matrix, bias: None };
        let downs: Vec<_> = adapters.map(|adapter| stored(adapter.down)).collect();
        let mut first = 0;
        let spread: Vec<Vec<f32>> = linears
            .iter()
            .map(|linear| {
                let rows = linear.spread(first, ranks);
                first += linear.adapter.map_or(0, |adapter| adapter.rank);
                rows
            })
            .collect();
        let up = match &spread[..] {
            [gate, up] if is_gated => Panels::interleaved(stored(gate), stored(up), ranks, format),
            [joined] if is_gated => {
                let (gate, up) = joined.split_at(joined.len() / 2);
                Panels::interleaved(stored(gate), stored(up), ranks, format)
            }
            matrices => {
                let ups: Vec<_> = matrices.iter().map(|matrix| stored(matrix)).collect();
                Panels::side_by_side(&ups, ranks, format)
            }
        };
        Some(Self { down: Panels::side_by_side(&downs, width, format), up, scale })
    }
}

impl AdaptedLinear<'_> {
    /// Returns the second matrix in the columns of its own ranks, with zeros elsewhere. `[out, ranks]`
    fn spread(&self, first: usize, ranks: usize) -> Vec<f32> {
        let mut rows = vec![0.0; self.out * ranks];
        if let Some(Adapter { up, rank, .. }) = self.adapter {
            for (row, up) in rows.chunks_exact_mut(ranks).zip(up.chunks_exact(rank)) {
                row[first..first + rank].copy_from_slice(up);
            }
        }
        rows
    }
}
