use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::math;
use crate::numbers::{like, numbers, stored, stored_numbers};

/// Numbers that one thread takes at a time.
const PIECE: usize = 8192;

/// `silu(gate) * up` (Shazeer, *GLU variants improve transformer*, 2020, equation 5).
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, SwiGlu)
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (stored_numbers(gate, gate_layout)?, stored_numbers(up, up_layout)?);
        let mut y = vec![0.0; gate.len()];
        let pieces = y.par_chunks_mut(PIECE).zip(gate.par_chunks(PIECE)).zip(up.par_chunks(PIECE));
        pieces.for_each(|((y, gate), up)| {
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = math::silu(*gate) * up;
            }
        });
        Ok(stored(y, gate_layout.shape()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (dgate, dup) = gradients(&numbers(gate)?, &numbers(up)?, &numbers(&gradient)?);
        Ok((Some(like(dgate, gate)?), Some(like(dup, up)?)))
    }
}

fn gradients(gate: &[f32], up: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut dgate, mut dup) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
    let outputs = dgate.par_chunks_mut(PIECE).zip(dup.par_chunks_mut(PIECE));
    let inputs = gate.par_chunks(PIECE).zip(up.par_chunks(PIECE)).zip(gradient.par_chunks(PIECE));
    outputs.zip(inputs).for_each(|((dgate, dup), ((gate, up), gradient))| {
        let inputs = gate.iter().zip(up).zip(gradient);
        for ((dgate, dup), ((gate, up), gradient)) in dgate.iter_mut().zip(dup).zip(inputs) {
            let sigmoid = 1.0 / (1.0 + math::exp(-gate));
            *dup = gradient * gate * sigmoid;
            *dgate = gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
        }
    });
    (dgate, dup)
}
