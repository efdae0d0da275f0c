//! QK-norm (in families that have it) and rotary position embedding, in place. Queries, keys and values of a token are
//! side by side; values do not change. `[N, (n_heads + 2 n_kv_heads) * head_dim]`

use rayon::prelude::*;
use turnwise_kernels::math;
use turnwise_kernels::vectorized;

use super::{PIECE_ROWS, rms_norm};
use crate::dimensions::Heads;
use crate::layout::HeadNorms;
use crate::rope::Rope;

/// QK-norm and rotary position embedding of a batch's heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadRotation<'a> {
    pub(crate) heads: Heads,
    /// Gains of QK-norm. `[head_dim]` each
    pub(crate) norms: Option<&'a HeadNorms<&'a [f32]>>,
    pub(crate) eps: f32,
    pub(crate) rope: &'a Rope,
    /// The position of each token. `[N]`
    pub(crate) positions: &'a [u32],
}

pub(crate) fn forward(y: &mut [f32], x: &[f32], rotation: HeadRotation<'_>) {
    let width = rotation.heads.width();
    let pieces = y.par_chunks_mut(PIECE_ROWS * width).zip(x.par_chunks(PIECE_ROWS * width));
    pieces
        .zip(rotation.positions.par_chunks(PIECE_ROWS))
        .for_each(|((y, x), positions)| rotate_rows(y, x, positions, &rotation));
}

/// Replaces the output gradient by the input gradient, in place. Returns the gradients of the gains of queries and
/// keys, if there are any.
pub(crate) fn backward(
    dy: &mut [f32],
    x: &[f32],
    rotation: HeadRotation<'_>,
) -> Option<HeadNorms<Vec<f32>>> {
    let Heads { head_dim, .. } = rotation.heads;
    let piece = PIECE_ROWS * rotation.heads.width();
    let pieces = dy.par_chunks_mut(piece).zip(x.par_chunks(piece));
    let parts: Vec<Vec<f32>> = pieces
        .zip(rotation.positions.par_chunks(PIECE_ROWS))
        .map(|((dy, x), positions)| {
            let mut dgains = vec![0.0; 2 * head_dim];
            pull_rows(dy, &mut dgains, x, positions, &rotation);
            dgains
        })
        .collect();
    rotation.norms?;
    let mut dgains = vec![0.0; 2 * head_dim];
    for part in parts {
        math::add_scaled(&mut dgains, 1.0, &part);
    }
    let key = dgains.split_off(head_dim);
    Some(HeadNorms { query: dgains, key })
}

vectorized! {
    fn rotate_rows(y: &mut [f32], x: &[f32], positions: &[u32], rotation: &HeadRotation<'_>) {
        let HeadRotation { heads, norms, eps, rope, .. } = rotation;
        let Heads { n_heads, n_kv_heads, head_dim } = *heads;
        let rows = y.chunks_exact_mut(heads.width()).zip(x.chunks_exact(heads.width()));
        for ((y, x), position) in rows.zip(positions) {
            let (cos, sin) = rope.at(*position as usize);
            let turned = (n_heads + n_kv_heads) * head_dim;
            y[turned..].copy_from_slice(&x[turned..]);
            let each = y[..turned].chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim));
            for (head, (y, x)) in each.enumerate() {
                match norms {
                    Some(norms) => {
                        let gain = if head < n_heads { norms.query } else { norms.key };
                        math::rms_norm(y, x, gain, *eps);
                    }
                    None => y.copy_from_slice(x),
                }
                rotate(y, cos, sin, 1.0);
            }
        }
    }

    fn pull_rows(
        dy: &mut [f32],
        dgains: &mut [f32],
        x: &[f32],
        positions: &[u32],
        rotation: &HeadRotation<'_>,
    ) {
        let HeadRotation { heads, norms, eps, rope, .. } = rotation;
        let Heads { n_heads, n_kv_heads, head_dim } = *heads;
        let mut above = vec![0.0; head_dim];
        let rows = dy.chunks_exact_mut(heads.width()).zip(x.chunks_exact(heads.width()));
        for ((dy, x), position) in rows.zip(positions) {
            let (cos, sin) = rope.at(*position as usize);
            let turned = (n_heads + n_kv_heads) * head_dim;
            let each = dy[..turned].chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim));
            for (head, (dy, x)) in each.enumerate() {
                // The transpose of a rotation is the inverse rotation.
                rotate(dy, cos, sin, -1.0);
                let Some(norms) = norms else { continue };
                let (dquery, dkey) = dgains.split_at_mut(head_dim);
                let (gain, dgain) =
                    if head < n_heads { (norms.query, dquery) } else { (norms.key, dkey) };
                above.copy_from_slice(dy);
                rms_norm::pull_row(dy, dgain, false, x, gain, &above, *eps);
            }
        }
    }
}

/// Rotates a head: element `i` with element `i + head_dim / 2`.
#[inline(always)]
#[allow(clippy::inline_always, reason = "it takes on the width of its caller")]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let (first, second) = head.split_at_mut(cos.len());
    for ((a, b), (c, s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        let s = s * direction;
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}
