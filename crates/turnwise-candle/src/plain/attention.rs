use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax;

use crate::batch::Batch;
use crate::forward::Heads;
use crate::rope::Rope;

/// Turns every head of every token to its position. `[N, heads * head_dim]`
pub(super) fn turn(x: &Tensor, rope: &Rope, positions: &[u32]) -> Result<Tensor> {
    let (n, half) = (x.dim(0)?, rope.half());
    let (mut cos, mut sin) = (Vec::with_capacity(n * half), Vec::with_capacity(n * half));
    for position in positions {
        let (c, s) = rope.at(*position as usize);
        cos.extend_from_slice(c);
        sin.extend_from_slice(s);
    }
    let table = |values: Vec<f32>| {
        Tensor::from_vec(values, (n, 1, half), &Device::Cpu)?
            .to_device(x.device())?
            .to_dtype(x.dtype())
    };
    let (cos, sin) = (table(cos)?, table(sin)?);
    let heads = x.reshape((n, (), 2 * half))?;
    let (a, b) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 2)?.reshape(x.shape())
}

/// Attention of spans padded to the longest over their pasts padded to the longest. Queries, keys and values side by side.
pub(super) fn attention(qkv: &Tensor, batch: &Batch, heads: Heads) -> Result<Tensor> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let (queries, keys) = (n_heads * head_dim, n_kv_heads * head_dim);
    let padding = Padding::new(batch, qkv.device())?;
    let Padding { spans, n_queries, n_keys, .. } = padding;
    let group = heads.group();
    // [spans, Q, KV, G, hd] -> [spans * KV, G * Q, hd]: the query heads of a key head lie one after another.
    let query = qkv.narrow(1, 0, queries)?.contiguous()?.index_select(&padding.queries, 0)?;
    let query = query.reshape((spans, n_queries, n_kv_heads, group, head_dim))?;
    let query = query.permute((0, 2, 3, 1, 4))?;
    let query = query.reshape((spans * n_kv_heads, group * n_queries, head_dim))?;
    let spread = |start| {
        let x = qkv.narrow(1, start, keys)?.contiguous()?.index_select(&padding.keys, 0)?;
        let x = x.reshape((spans, n_keys, n_kv_heads, head_dim))?.transpose(1, 2)?;
        x.reshape((spans * n_kv_heads, n_keys, head_dim))
    };
    let (key, value) = (spread(queries)?, spread(queries + keys)?);
    let scores = (query.matmul(&key.t()?)? * f64::from(heads.scale()))?;
    let scores = scores.reshape((spans, n_kv_heads * group, n_queries, n_keys))?;
    let weights = softmax(&scores.broadcast_add(&padding.mask.to_dtype(qkv.dtype())?)?, D::Minus1)?;
    let weights = weights.reshape((spans * n_kv_heads, group * n_queries, n_keys))?;
    let mixed = weights.matmul(&value)?;
    let mixed = mixed.reshape((spans, n_kv_heads, group, n_queries, head_dim))?;
    let mixed = mixed.permute((0, 3, 1, 2, 4))?.reshape((spans * n_queries, queries))?;
    mixed.index_select(&padding.back, 0)
}

/// Where tokens are in padded spans. Padding repeats some token: nobody reads what becomes of it.
#[derive(Debug)]
struct Padding {
    spans: usize,
    n_queries: usize,
    n_keys: usize,
    /// `[spans * Q]`
    queries: Tensor,
    /// `[spans * K]`
    keys: Tensor,
    /// Where each token lies in the padded spans. `[N]`
    back: Tensor,
    /// 0 where a query may look and minus infinity where it may not. `[spans, 1, Q, K]`
    mask: Tensor,
}

impl Padding {
    fn new(batch: &Batch, device: &Device) -> Result<Self> {
        let spans = batch.spans.len();
        let n_queries = batch.spans.iter().map(|span| span.own.len()).max().unwrap_or(0);
        let lengths = batch.spans.iter().map(|span| span.n_before() + span.own.len());
        let n_keys = lengths.max().unwrap_or(0);
        let (mut queries, mut keys, mut back) = (Vec::new(), Vec::new(), Vec::new());
        let mut mask = Vec::with_capacity(spans * n_queries * n_keys);
        for (index, span) in batch.spans.iter().enumerate() {
            let (own, n_before) = (span.own.clone(), span.n_before());
            back.extend((0..own.len()).map(|i| (index * n_queries + i) as u32));
            queries.extend(own.clone().map(|token| token as u32));
            queries.resize((index + 1) * n_queries, own.start as u32);
            keys.extend(span.before.iter().cloned().flatten().chain(own.clone()).map(|t| t as u32));
            keys.resize((index + 1) * n_keys, own.start as u32);
            for i in 0..n_queries {
                // A padded query looks where the last one does, so that its softmax is one.
                let seen = n_before + i.min(own.len() - 1) + 1;
                mask.extend((0..n_keys).map(|j| if j < seen { 0.0 } else { f32::NEG_INFINITY }));
            }
        }
        let ids = |ids: Vec<u32>| Tensor::from_slice(&ids, ids.len(), device);
        Ok(Self {
            spans,
            n_queries,
            n_keys,
            queries: ids(queries)?,
            keys: ids(keys)?,
            back: ids(back)?,
            mask: Tensor::from_vec(mask, (spans, 1, n_queries, n_keys), device)?
                .to_dtype(DType::F32)?,
        })
    }
}
