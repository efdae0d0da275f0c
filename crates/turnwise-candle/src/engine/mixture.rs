use rayon::prelude::*;

use super::compute::{MIN_TOKENS_PER_THREAD, product, swiglu_rows};
use crate::math;
use crate::matrix::{Threads, Write};
use crate::routing::Routing;
use crate::weights::{MixtureWeights, MlpWeights};

/// Memory for experts, kept between steps.
#[derive(Debug, Default)]
pub(super) struct MixtureMemory {
    /// `[N, E]`
    probabilities: Vec<f32>,
    /// What each expert makes of its rows, grouped by expert. `[M, D]`
    outputs: Vec<f32>,
}

/// Memory for one expert.
#[derive(Debug, Default)]
struct ExpertMemory {
    /// `[n, D]`
    rows: Vec<f32>,
    /// `[n, 2 I]`
    gate_up: Vec<f32>,
    /// `[n, I]`
    inner: Vec<f32>,
    /// `[n, D]`
    outputs: Vec<f32>,
}

impl MixtureMemory {
    /// Adds to each row of `x` the weighted sum of what its experts make of the same row of `normed`. `[N, d]` both
    pub(super) fn add(
        &mut self,
        x: &mut [f32],
        normed: &[f32],
        d: usize,
        mixture: &MixtureWeights,
    ) {
        let choice = mixture.choice;
        let probabilities = &mut self.probabilities;
        let router = &mixture.router;
        let threads = Threads::Pool;
        product(probabilities, Write::Replace, normed, d, router, choice.n_experts, threads);
        let rows = probabilities.par_chunks_exact_mut(choice.n_experts);
        rows.with_min_len(4 * MIN_TOKENS_PER_THREAD).for_each(math::softmax);
        let routing = Routing::new(probabilities, choice);

        self.outputs.resize(routing.origins.len() * d, 0.0);
        let mut rest = &mut self.outputs[..];
        let work = routing.starts.windows(2).zip(&mixture.experts).filter_map(|(pair, expert)| {
            let target = rest.split_off_mut(..(pair[1] - pair[0]) * d)?;
            let tokens = &routing.origins[pair[0]..pair[1]];
            (!target.is_empty()).then_some((target, tokens, expert))
        });
        let work: Vec<_> = work.collect();
        work.into_par_iter().for_each_init(ExpertMemory::default, |memory, work| {
            let (target, origins, expert) = work;
            memory.rows.clear();
            for origin in origins {
                let token = *origin as usize / choice.n_chosen;
                memory.rows.extend_from_slice(&normed[token * d..][..d]);
            }
            memory.run(target, d, expert);
        });

        let rows = x.par_chunks_exact_mut(d).zip(self.probabilities.par_chunks(choice.n_experts));
        let rows = rows.zip(routing.chosen.par_chunks_exact(choice.n_chosen));
        let rows = rows.zip(routing.places.par_chunks_exact(choice.n_chosen));
        let outputs = &self.outputs;
        rows.with_min_len(MIN_TOKENS_PER_THREAD).for_each(
            |(((x, probabilities), chosen), places)| {
                let weights = chosen.iter().map(|expert| probabilities[*expert as usize]);
                let sum: f32 = if choice.renormalize { weights.clone().sum() } else { 1.0 };
                for (weight, place) in weights.zip(places) {
                    math::add_scaled(x, weight / sum, &outputs[*place as usize * d..][..d]);
                }
            },
        );
    }
}

impl ExpertMemory {
    fn run(&mut self, target: &mut [f32], d: usize, expert: &MlpWeights) {
        let Self { rows, gate_up, inner, outputs } = self;
        let width = expert.down.matrix.len() / d;
        // A lone row gets a companion: products need two.
        if rows.len() == d {
            rows.resize(2 * d, 0.0);
        }
        let threads = Threads::One;
        product(gate_up, Write::Replace, rows, d, &expert.gate_up.matrix, 2 * width, threads);
        swiglu_rows(inner, gate_up, width);
        product(outputs, Write::Replace, inner, width, &expert.down.matrix, d, threads);
        target.copy_from_slice(&outputs[..target.len()]);
    }
}
