//! The model's operations out of the tensor library's differentiable ones.
//!
//! Its fused norms, softmax and rotary embedding have no gradient, silently: none of them may appear here.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::{log_softmax, softmax};

use crate::batch::Batch;
use crate::forward::Heads;
use crate::rope::Rope;
use crate::routing::Routing;

pub(crate) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let width = gain.dim(0)?;
    let pieces = x.reshape(((), width))?;
    let root = (pieces.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    pieces.broadcast_div(&root)?.broadcast_mul(gain)?.reshape(x.shape())
}

pub(crate) fn rope(x: &Tensor, rope: &Rope, batch: &Batch) -> Result<Tensor> {
    let (n, half) = (x.dim(0)?, rope.half());
    let (mut cos, mut sin) = (Vec::with_capacity(n * half), Vec::with_capacity(n * half));
    for position in batch.positions.iter() {
        let (c, s) = rope.at(*position as usize);
        cos.extend_from_slice(c);
        sin.extend_from_slice(s);
    }
    let cos = Tensor::from_vec(cos, (n, 1, half), &Device::Cpu)?;
    let sin = Tensor::from_vec(sin, (n, 1, half), &Device::Cpu)?;
    let heads = x.reshape((n, (), 2 * half))?;
    let (a, b) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 2)?.reshape(x.shape())
}

/// Causal attention over rows padded to the longest. Padding is at the end, where no real token looks.
pub(crate) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    batch: &Batch,
    heads: Heads,
) -> Result<Tensor> {
    let Heads { n_kv_heads, head_dim, .. } = heads;
    let (rows, group) = (batch.starts.len() - 1, heads.group());
    let lengths = batch.starts.windows(2).map(|pair| pair[1] - pair[0]);
    let t = lengths.max().unwrap_or(0);
    let (into, back) = padding(&batch.starts, t)?;
    // [rows, T, KV, G, hd] -> [rows * KV, G * T, hd]: the query heads of a key head lie one after another.
    let query = query.index_select(&into, 0)?.reshape((rows, t, n_kv_heads, group, head_dim))?;
    let query =
        query.permute((0, 2, 3, 1, 4))?.reshape((rows * n_kv_heads, group * t, head_dim))?;
    let spread = |x: &Tensor| {
        let x = x.index_select(&into, 0)?.reshape((rows, t, n_kv_heads, head_dim))?;
        x.transpose(1, 2)?.reshape((rows * n_kv_heads, t, head_dim))
    };
    let (key, value) = (spread(key)?, spread(value)?);
    let scores = (query.matmul(&key.t()?)? * f64::from(heads.scale()))?;
    let weights = softmax(&scores.broadcast_add(&causal_mask(t, group)?)?, D::Minus1)?;
    let mixed = weights.matmul(&value)?.reshape((rows, n_kv_heads, group, t, head_dim))?;
    let mixed =
        mixed.permute((0, 3, 1, 2, 4))?.reshape((rows * t, n_kv_heads * group * head_dim))?;
    mixed.index_select(&back, 0)
}

/// Which token each padded place holds, and where each token lies in the padded places.
fn padding(starts: &[usize], t: usize) -> Result<(Tensor, Tensor)> {
    let (mut into, mut back) = (Vec::new(), Vec::new());
    for (row, pair) in starts.windows(2).enumerate() {
        let length = pair[1] - pair[0];
        back.extend((0..length).map(|i| (row * t + i) as u32));
        // Padding repeats some token: any will do, because nobody reads what becomes of it.
        into.extend((0..t).map(|i| if i < length { (pair[0] + i) as u32 } else { 0 }));
    }
    let tensor = |ids: Vec<u32>| Tensor::from_vec(ids.clone(), ids.len(), &Device::Cpu);
    Ok((tensor(into)?, tensor(back)?))
}

/// 0 where a query may look and minus infinity where it may not. `[group * T, T]`
fn causal_mask(t: usize, group: usize) -> Result<Tensor> {
    let row = |i: usize| (0..t).map(move |j| if j <= i { 0.0 } else { f32::NEG_INFINITY });
    let mask: Vec<f32> = (0..group * t).flat_map(|i| row(i % t)).collect();
    Tensor::from_vec(mask, (group * t, t), &Device::Cpu)
}

/// `[M]` for hidden states `[M, D]` and a head `[V, D]`.
pub(crate) fn logprobs(hidden: &Tensor, head: &Tensor, batch: &Batch) -> Result<Tensor> {
    let m = batch.n_targets();
    let scales = Tensor::from_slice(&batch.scales, (m, 1), &Device::Cpu)?;
    let logits = hidden.matmul(&head.t()?)?.broadcast_mul(&scales)?;
    let targets = Tensor::from_slice(&batch.targets, (m, 1), &Device::Cpu)?;
    log_softmax(&logits, D::Minus1)?.gather(&targets, 1)?.squeeze(1)
}

/// Each row times the transpose of its expert's matrix: `[M, in]` and `[E, out, in]` to `[M, out]`.
pub(crate) fn grouped(x: &Tensor, weight: &Tensor, routing: &Routing) -> Result<Tensor> {
    let products = routing.starts.windows(2).enumerate().filter(|(_, pair)| pair[1] > pair[0]);
    let products = products.map(|(expert, pair)| {
        x.narrow(0, pair[0], pair[1] - pair[0])?.matmul(&weight.get(expert)?.t()?)
    });
    Tensor::cat(&products.collect::<Result<Vec<_>>>()?, 0)
}

/// The weighted sum of each token's experts: `[M, D]` in the order of the routing and `[N, n_chosen]` to `[N, D]`.
pub(crate) fn combine(outputs: &Tensor, weights: &Tensor, routing: &Routing) -> Result<Tensor> {
    let (m, width) = outputs.dims2()?;
    let places = Tensor::from_slice(&routing.places, m, &Device::Cpu)?;
    let outputs = outputs.index_select(&places, 0)?.reshape(((), routing.n_chosen, width))?;
    outputs.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)
}
