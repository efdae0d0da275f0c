//! QK-norm (in families that have it) and rotary position embedding, in place. Queries, keys and values of a token are
//! side by side; values do not change. `[N, (n_heads + 2 n_kv_heads) * head_dim]`

use rayon::prelude::*;
use turnwise_kernels::{math, pairs, vectorized};

use super::{PIECE_ROWS, rms_norm};
use crate::dimensions::Heads;
use crate::layout::HeadNorms;
use crate::rope::Rope;

/// QK-norm and rotary position embedding of a batch's heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadRotation<'a> {
    pub(crate) heads: Heads,
    /// Gains of QK-norm. `[head_dim]` each, or one for all query heads and one for all key heads.
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

/// Rounds keys and values to bf16, in place.
pub(crate) fn round_keys_and_values(y: &mut [f32], heads: Heads) {
    let width = heads.width();
    let first = heads.n_heads * heads.head_dim;
    y.par_chunks_mut(PIECE_ROWS * width).for_each(|rows| round_from(rows, width, first));
}

/// Replaces the output gradient by the input gradient, in place. Returns the gradients of the gains of queries and
/// keys, if there are any; without them the input is not read, and may be empty.
pub(crate) fn backward(
    dy: &mut [f32],
    x: &[f32],
    rotation: HeadRotation<'_>,
) -> Option<HeadNorms<Vec<f32>>> {
    let piece = PIECE_ROWS * rotation.heads.width();
    if rotation.norms.is_none() {
        let pieces = dy.par_chunks_mut(piece).zip(rotation.positions.par_chunks(PIECE_ROWS));
        pieces.for_each(|(dy, positions)| turn_back(dy, positions, &rotation));
        return None;
    }
    let pieces = dy.par_chunks_mut(piece).zip(x.par_chunks(piece));
    let none = || {
        let length = |gain: &[f32]| vec![0.0; gain.len()];
        rotation.norms.map(|norms| HeadNorms { query: length(norms.query), key: length(norms.key) })
    };
    let parts: Vec<Option<HeadNorms<Vec<f32>>>> = pieces
        .zip(rotation.positions.par_chunks(PIECE_ROWS))
        .map(|((dy, x), positions)| {
            let mut dgains = none();
            pull_rows(dy, dgains.as_mut(), x, positions, &rotation);
            dgains
        })
        .collect();
    let mut dgains = none()?;
    for part in parts.into_iter().flatten() {
        math::add_scaled(&mut dgains.query, 1.0, &part.query);
        math::add_scaled(&mut dgains.key, 1.0, &part.key);
    }
    Some(dgains)
}

vectorized! {
    /// Rounds the columns from `first` on.
    fn round_from(rows: &mut [f32], width: usize, first: usize) {
        for row in rows.chunks_exact_mut(width) {
            for x in &mut row[first..] {
                *x = pairs::number(pairs::rounded(*x));
            }
        }
    }

    fn rotate_rows(y: &mut [f32], x: &[f32], positions: &[u32], rotation: &HeadRotation<'_>) {
        let HeadRotation { heads, norms, eps, rope, .. } = rotation;
        let Heads { n_heads, n_kv_heads, head_dim, .. } = *heads;
        let (queries, turned) = (n_heads * head_dim, (n_heads + n_kv_heads) * head_dim);
        let rows = y.chunks_exact_mut(heads.width()).zip(x.chunks_exact(heads.width()));
        for ((y, x), position) in rows.zip(positions) {
            let (cos, sin) = rope.at(*position as usize);
            match norms {
                Some(norms) => {
                    y[turned..].copy_from_slice(&x[turned..]);
                    for (range, gain) in [(0..queries, norms.query), (queries..turned, norms.key)] {
                        let pieces = y[range.clone()].chunks_exact_mut(gain.len());
                        for (y, x) in pieces.zip(x[range].chunks_exact(gain.len())) {
                            math::rms_norm(y, x, gain, *eps);
                        }
                    }
                }
                None => y.copy_from_slice(x),
            }
            for head in y[..turned].chunks_exact_mut(head_dim) {
                rotate(head, cos, sin, 1.0);
            }
        }
    }

    /// The transpose of a rotation is the inverse rotation.
    fn turn_back(dy: &mut [f32], positions: &[u32], rotation: &HeadRotation<'_>) {
        let HeadRotation { heads, rope, .. } = rotation;
        let turned = (heads.n_heads + heads.n_kv_heads) * heads.head_dim;
        for (dy, position) in dy.chunks_exact_mut(heads.width()).zip(positions) {
            let (cos, sin) = rope.at(*position as usize);
            for head in dy[..turned].chunks_exact_mut(heads.head_dim) {
                rotate(head, cos, sin, -1.0);
            }
        }
    }

    fn pull_rows(
        dy: &mut [f32],
        dgains: Option<&mut HeadNorms<Vec<f32>>>,
        x: &[f32],
        positions: &[u32],
        rotation: &HeadRotation<'_>,
    ) {
        let HeadRotation { heads, norms, eps, rope, .. } = rotation;
        let Heads { n_heads, n_kv_heads, head_dim, .. } = *heads;
        let (queries, turned) = (n_heads * head_dim, (n_heads + n_kv_heads) * head_dim);
        let (mut above, mut dgains) = (vec![0.0; turned], dgains);
        let rows = dy.chunks_exact_mut(heads.width()).zip(x.chunks_exact(heads.width()));
        for ((dy, x), position) in rows.zip(positions) {
            let (cos, sin) = rope.at(*position as usize);
            for head in dy[..turned].chunks_exact_mut(head_dim) {
                rotate(head, cos, sin, -1.0);
            }
            let (Some(norms), Some(dgains)) = (norms, dgains.as_mut()) else { continue };
            above.copy_from_slice(&dy[..turned]);
            let sides = [
                (0..queries, norms.query, &mut dgains.query),
                (queries..turned, norms.key, &mut dgains.key),
            ];
            for (range, gain, dgain) in sides {
                let pieces = dy[range.clone()].chunks_exact_mut(gain.len());
                let pieces = pieces.zip(x[range.clone()].chunks_exact(gain.len()));
                for ((dy, x), above) in pieces.zip(above[range].chunks_exact(gain.len())) {
                    rms_norm::pull_row(dy, dgain, false, x, gain, above, *eps);
                }
            }
        }
    }
}

/// Rotates a head: element `i` with element `i + half`, as far as there are cosines.
#[inline(always)]
#[allow(clippy::inline_always, reason = "it takes on the width of its caller")]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let (first, second) = head.split_at_mut(cos.len());
    for ((a, b), (c, s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        let s = s * direction;
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}
