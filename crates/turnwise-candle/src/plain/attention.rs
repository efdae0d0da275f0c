use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::softmax;

use super::Arithmetic;
use crate::architecture::RopeKind;
use crate::batch::PackedBatch;
use crate::dimensions::{Heads, Ropes};
use crate::rope::Rope;

/// Cosines and sines of tokens' positions. `[N, 1, half]` each
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

/// The rotations of tokens' positions in a model's layers.
#[derive(Clone, Debug)]
pub(crate) struct Rotations {
    global: Rotation,
    local: Option<Rotation>,
}

impl Rotations {
    pub(crate) fn new(ropes: &Ropes, positions: &[u32], device: &Device) -> Result<Self> {
        let of = |rope| Rotation::new(rope, positions, device);
        Ok(Self {
            global: of(ropes.of(RopeKind::Global))?,
            local: ropes.local.as_ref().map(of).transpose()?,
        })
    }

    /// Returns the rotation of layers of a kind; `None` for those without one.
    pub(crate) fn of(&self, kind: RopeKind) -> Option<&Rotation> {
        match kind {
            RopeKind::Global => Some(&self.global),
            RopeKind::Local => self.local.as_ref().or(Some(&self.global)),
            RopeKind::Absent => None,
        }
    }
}

impl Rotation {
    fn new(rope: &Rope, positions: &[u32], device: &Device) -> Result<Self> {
        let (n, half) = (positions.len(), rope.half());
        let (mut cos, mut sin) = (Vec::with_capacity(n * half), Vec::with_capacity(n * half));
        for position in positions {
            let (c, s) = rope.at(*position as usize);
            cos.extend_from_slice(c);
            sin.extend_from_slice(s);
        }
        let table = |values| Tensor::from_vec(values, (n, 1, half), device);
        Ok(Self { cos: table(cos)?, sin: table(sin)? })
    }

    /// Rotates every head of every token by its position. `[N, heads * head_dim]`
    pub(super) fn rotate_heads(&self, x: &Tensor, head_dim: usize) -> Result<Tensor> {
        let (n, _, half) = self.cos.dims3()?;
        let heads = x.reshape((n, (), head_dim))?;
        let (a, b) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
        let first = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let second = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        let mut parts = vec![first, second];
        if head_dim > 2 * half {
            parts.push(heads.narrow(2, 2 * half, head_dim - 2 * half)?);
        }
        Tensor::cat(&parts, 2)?.reshape(x.shape())
    }
}

/// Computes attention with spans padded to the longest, and their prefixes padded to the longest. Queries, keys and
/// values are side by side.
pub(super) fn attention(
    qkv: &Tensor,
    padding: &Padding,
    window: Option<usize>,
    arithmetic: Arithmetic,
) -> Result<Tensor> {
    let [query, key, value] = arithmetic.split(qkv)?;
    let query = query.contiguous()?.index_select(&padding.queries, 0)?;
    let spread = |x: Tensor| x.contiguous()?.index_select(&padding.keys, 0);
    let mixed = attend(&query, &spread(key)?, &spread(value)?, padding.mask(window)?, arithmetic)?;
    mixed.index_select(&padding.back, 0)
}

/// Computes attention of several lists of queries, each over its own keys and values. Shapes: queries
/// `[lists * Q, n_heads * head_dim]`, keys and values `[lists * K, n_kv_heads * head_dim]`, and the mask, which is 0 where
/// a query attends and minus infinity elsewhere, `[lists, 1, Q, K]`.
pub(crate) fn attend(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: &Tensor,
    arithmetic: Arithmetic,
) -> Result<Tensor> {
    let Arithmetic { heads, precision, .. } = arithmetic;
    let Heads { n_heads, n_kv_heads, head_dim, scale } = heads;
    let (lists, _, n_queries, n_keys) = mask.dims4()?;
    let group = heads.group();
    // [lists, Q, KV, G, hd] -> [lists * KV, G * Q, hd]: the query heads of a key head are consecutive.
    let query = query.reshape((lists, n_queries, n_kv_heads, group, head_dim))?;
    let query = query.permute((0, 2, 3, 1, 4))?;
    let query = query.reshape((lists * n_kv_heads, group * n_queries, head_dim))?;
    let by_head = |x: &Tensor| {
        let x = x.reshape((lists, n_keys, n_kv_heads, head_dim))?.transpose(1, 2)?;
        x.reshape((lists * n_kv_heads, n_keys, head_dim))
    };
    let (key, value) = (by_head(key)?, by_head(value)?);
    let scores = (precision.matmul(&query, &key.t()?)? * f64::from(scale))?;
    let scores = scores.reshape((lists, n_kv_heads * group, n_queries, n_keys))?;
    let weights = softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
    let weights = weights.reshape((lists * n_kv_heads, group * n_queries, n_keys))?;
    let mixed = precision.matmul(&weights, &value)?;
    let mixed = mixed.reshape((lists, n_kv_heads, group, n_queries, head_dim))?;
    let mixed = mixed.permute((0, 3, 1, 2, 4))?;
    mixed.reshape((lists * n_queries, n_heads * head_dim))
}

/// The indices of tokens in padded spans. Padding repeats a token, and its results are dropped.
#[derive(Debug)]
pub(super) struct Padding {
    /// `[spans * Q]`
    queries: Tensor,
    /// `[spans * K]`
    keys: Tensor,
    /// The index of each token in the padded spans. `[N]`
    back: Tensor,
    /// For each sliding window of the model, 0 where a query attends and minus infinity elsewhere. `[spans, 1, Q, K]`
    masks: Vec<(Option<usize>, Tensor)>,
}

impl Padding {
    pub(super) fn new(
        batch: &PackedBatch,
        windows: &[Option<usize>],
        device: &Device,
    ) -> Result<Self> {
        let n_queries = batch.spans.iter().map(|span| span.own.len()).max().unwrap_or(0);
        let lengths = batch.spans.iter().map(|span| span.n_before() + span.own.len());
        let n_keys = lengths.max().unwrap_or(0);
        let (mut queries, mut keys, mut back) = (Vec::new(), Vec::new(), Vec::new());
        for (index, span) in batch.spans.iter().enumerate() {
            let own = span.own.clone();
            back.extend((0..own.len()).map(|i| (index * n_queries + i) as u32));
            queries.extend(own.clone().map(|token| token as u32));
            queries.resize((index + 1) * n_queries, own.start as u32);
            keys.extend(span.before.iter().cloned().flatten().chain(own.clone()).map(|t| t as u32));
            keys.resize((index + 1) * n_keys, own.start as u32);
        }
        let ids = |ids: Vec<u32>| Tensor::from_slice(&ids, ids.len(), device);
        let masks = windows.iter().map(|window| {
            let mask = mask(batch, [n_queries, n_keys], *window);
            let shape = (batch.spans.len(), 1, n_queries, n_keys);
            Ok((*window, Tensor::from_vec(mask, shape, device)?))
        });
        Ok(Self {
            masks: masks.collect::<Result<_>>()?,
            queries: ids(queries)?,
            keys: ids(keys)?,
            back: ids(back)?,
        })
    }

    fn mask(&self, window: Option<usize>) -> Result<&Tensor> {
        match self.masks.iter().find(|(own, _)| *own == window) {
            Some((_, mask)) => Ok(mask),
            None => candle_core::bail!("there is no mask for the window {window:?}"),
        }
    }
}

/// Returns the mask of a window. `[spans, 1, Q, K]`
fn mask(batch: &PackedBatch, [n_queries, n_keys]: [usize; 2], window: Option<usize>) -> Vec<f32> {
    let mut mask = Vec::with_capacity(batch.spans.len() * n_queries * n_keys);
    for span in &batch.spans {
        for i in 0..n_queries {
            // A padded query has the mask of the last one, so that its softmax is finite.
            let seen = span.n_before() + i.min(span.own.len() - 1) + 1;
            let first = window.map_or(0, |window| seen.saturating_sub(window));
            let look = |j| if (first..seen).contains(&j) { 0.0 } else { f32::NEG_INFINITY };
            mask.extend((0..n_keys).map(look));
        }
    }
    mask
}
