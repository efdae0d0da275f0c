//! Causal attention over a forest: each token attends to its ancestors and to itself, or to the latest of them in a layer
//! with a sliding window. Keys before the window of a block of queries are not read.
//!
//! Queries, keys and values of a token are side by side: `[N, (n_heads + 2 n_kv_heads) * head_dim]`; the output is `[N,
//! n_heads * head_dim]`. A key head of a tree is packed for products once, as a whole or span by span; its query heads
//! are computed with it, one block of queries at a time (Dao et al., *`FlashAttention`*, 2022). Unlike the paper, the
//! scores of a block against all visible keys are held at once: a block has few queries, and its rows fit in the cache.
//!
//! | symbol | here | |
//! |---|---|---|
//! | S | `scores` | scaled products of queries and keys |
//! | m | `highest` | maximum of a row of S |
//! | L | `log_sum_exp` | `m + ln(sum exp(S - m))`, all that the forward pass keeps of S |
//! | P | `probabilities` | `exp(S - L)`, recomputed in the backward pass |
//! | O | `output` | `P V` |
//! | D | `delta` | `rowsum(dO * O)` |

use turnwise_kernels::matrix::Accuracy;

use crate::batch::PackedBatch;
use crate::dimensions::Heads;

mod backward;
mod blocks;
mod forward;
mod operand;
mod scratch;

pub(crate) use backward::{Saved, backward};
pub(crate) use forward::forward;

/// The tokens that attend, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionSetting<'a> {
    pub(crate) batch: &'a PackedBatch,
    pub(crate) heads: Heads,
    /// The number of latest tokens that a token attends to, itself included; all tokens if `None`.
    pub(crate) window: Option<usize>,
    /// That of products.
    pub(crate) accuracy: Accuracy,
}
