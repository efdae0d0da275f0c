use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::batch::Batch;
use crate::numbers::{like, numbers, stored, stored_numbers};
use crate::rope::Rope;

/// Turns the heads of every token to its position. `[N, heads * head_dim]`
pub(crate) fn rope(x: &Tensor, rope: &Arc<Rope>, batch: &Batch) -> Result<Tensor> {
    x.apply_op1(Rotate { rope: rope.clone(), positions: batch.positions.clone() })
}

struct Rotate {
    rope: Arc<Rope>,
    positions: Arc<[u32]>,
}

impl Rotate {
    fn each(&self, x: &[f32], turn: impl Fn(&Rope, &mut [f32], usize) + Sync) -> Vec<f32> {
        let mut y = x.to_vec();
        let width = y.len() / self.positions.len().max(1);
        let rows = y.par_chunks_exact_mut(width.max(1)).zip(&*self.positions);
        rows.with_min_len(64).for_each(|(row, position)| turn(&self.rope, row, *position as usize));
        y
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(stored(self.each(stored_numbers(x, layout)?, Rope::turn), layout.shape()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        like(self.each(&numbers(&gradient)?, Rope::turn_back), x).map(Some)
    }
}
