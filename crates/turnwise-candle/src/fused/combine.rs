use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::math;
use crate::numbers::{like, numbers, stored, stored_numbers};
use crate::routing::Routing;

/// The weighted sum of each token's experts: `[M, D]` in the order of the routing and `[N, n_chosen]` to `[N, D]`.
pub(crate) fn combine(
    outputs: &Tensor,
    weights: &Tensor,
    routing: &Arc<Routing>,
) -> Result<Tensor> {
    outputs.apply_op2(&weights.contiguous()?, Combine { routing: routing.clone() })
}

struct Combine {
    routing: Arc<Routing>,
}

impl CustomOp2 for Combine {
    fn name(&self) -> &'static str {
        "combine-experts"
    }

    fn cpu_fwd(
        &self,
        outputs: &CpuStorage,
        outputs_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width) = outputs_layout.shape().dims2()?;
        let (n, n_chosen) = weights_layout.shape().dims2()?;
        let outputs = stored_numbers(outputs, outputs_layout)?;
        let weights = stored_numbers(weights, weights_layout)?.par_chunks_exact(n_chosen);
        let places = self.routing.places.par_chunks_exact(n_chosen);
        let mut y = vec![0.0; n * width];
        y.par_chunks_exact_mut(width).zip(weights).zip(places).for_each(
            |((y, weights), places)| {
                for (weight, place) in weights.iter().zip(places) {
                    math::add_scaled(y, *weight, &outputs[*place as usize * width..][..width]);
                }
            },
        );
        Ok(stored(y, (n, width)))
    }

    fn bwd(
        &self,
        outputs: &Tensor,
        weights: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, width) = outputs.dims2()?;
        let n_chosen = self.routing.n_chosen;
        let gradient = gradient.contiguous()?;
        let (gradient, output_numbers, weight_numbers) =
            (numbers(&gradient)?, numbers(outputs)?, numbers(weights)?);
        let gradient: &[f32] = &gradient;
        let mut doutputs = vec![0.0; output_numbers.len()];
        let rows = doutputs.par_chunks_exact_mut(width).zip(&self.routing.origins);
        rows.for_each(|(row, origin)| {
            let token = *origin as usize / n_chosen;
            math::add_scaled(row, weight_numbers[*origin as usize], &gradient[token * width..]);
        });
        let mut dweights = vec![0.0; weight_numbers.len()];
        let each = dweights.par_iter_mut().zip(&self.routing.places).enumerate();
        each.for_each(|(origin, (dweight, place))| {
            let output = &output_numbers[*place as usize * width..][..width];
            *dweight = math::dot(&gradient[origin / n_chosen * width..][..width], output);
        });
        Ok((Some(like(doutputs, outputs)?), Some(like(dweights, weights)?)))
    }
}
