//! Mixture-of-experts layers of the engine.

use turnwise_kernels::math;
use turnwise_kernels::panels::{Epilogue, StridedRows, padded};
use turnwise_kernels::team::Team;
use turnwise_kernels::vectorized;

use super::compute::{MIN_TOKENS_PER_THREAD, product};
use crate::layout::Choice;
use crate::routing::Routing;
use crate::weights::{MixtureWeights, MlpWeights};

/// Memory for experts, reused across steps. Rows are padded to whole vectors.
#[derive(Debug, Default)]
pub(super) struct MixtureMemory {
    /// `[N, E]`, padded
    scores: Vec<f32>,
    /// `[N, E]`, not padded
    probabilities: Vec<f32>,
    /// The output of experts, grouped by expert. `[M, D]`
    outputs: Vec<f32>,
}

/// Rows that one expert computes.
struct Work<'a> {
    /// `[n, D]`
    target: &'a mut [f32],
    origins: &'a [u32],
    expert: &'a MlpWeights,
}

impl MixtureMemory {
    /// Adds to each row of `x` the weighted sum of its experts' outputs for the same row of `normed`. `[N, d]` both
    pub(super) fn add(
        &mut self,
        team: &mut Team,
        x: &mut [f32],
        normed: &[f32],
        d: usize,
        mixture: &MixtureWeights,
    ) {
        let (choice, width) = (mixture.choice, padded(d));
        product(team, &mixture.router, normed, width, &mut self.scores, Epilogue::Replace);
        self.probabilities.clear();
        for scores in self.scores.chunks_exact(padded(choice.n_experts)) {
            self.probabilities.extend_from_slice(&scores[..choice.n_experts]);
        }
        let length = MIN_TOKENS_PER_THREAD * choice.n_experts;
        team.chunks(&mut self.probabilities, length, |_, _, rows| {
            softmax_rows(rows, choice.n_experts);
        });
        let routing = Routing::new(&self.probabilities, choice);

        self.outputs.clear();
        self.outputs.resize(routing.origins.len() * width, 0.0);
        let mut rest = &mut self.outputs[..];
        let work = routing.starts.windows(2).zip(&mixture.experts).filter_map(|(pair, expert)| {
            let target = rest.split_off_mut(..(pair[1] - pair[0]) * width)?;
            let origins = &routing.origins[pair[0]..pair[1]];
            (!target.is_empty()).then_some(Work { target, origins, expert })
        });
        let mut work: Vec<Work<'_>> = work.collect();
        team.chunks(&mut work, 1, |_, _, work| {
            for work in work {
                work.run(normed, width, choice.n_chosen);
            }
        });

        let (outputs, probabilities) = (&self.outputs, &self.probabilities);
        let length = MIN_TOKENS_PER_THREAD * width;
        team.chunks(x, length, |_, index, x| {
            let first = index * MIN_TOKENS_PER_THREAD;
            gather(x, width, outputs, probabilities, &routing, choice, first);
        });
    }
}

impl Work<'_> {
    fn run(&mut self, normed: &[f32], width: usize, n_chosen: usize) {
        let tokens = self.origins.iter().map(|origin| *origin as usize / n_chosen);
        let rows: Vec<f32> =
            tokens.flat_map(|token| &normed[token * width..][..width]).copied().collect();
        let count = self.origins.len();
        let MlpWeights { gate, gate_up, down, .. } = self.expert;
        let width_inside = gate_up.columns(*gate);
        let mut inner = vec![0.0; count * width_inside];
        gate_up.multiply_alone(
            StridedRows { data: &rows, stride: width, count },
            &mut inner,
            *gate,
        );
        let inner = StridedRows { data: &inner, stride: width_inside, count };
        down.multiply_alone(inner, self.target, Epilogue::Replace);
    }
}

vectorized! {
    fn softmax_rows(rows: &mut [f32], width: usize) {
        for row in rows.chunks_exact_mut(width) {
            math::softmax(row);
        }
    }

    /// Adds the outputs of experts for the rows from `first` on.
    fn gather(
        x: &mut [f32],
        width: usize,
        outputs: &[f32],
        probabilities: &[f32],
        routing: &Routing,
        choice: Choice,
        first: usize,
    ) {
        for (x, token) in x.chunks_exact_mut(width).zip(first..) {
            let probabilities = &probabilities[token * choice.n_experts..][..choice.n_experts];
            let entries = token * choice.n_chosen..(token + 1) * choice.n_chosen;
            let chosen = &routing.chosen[entries.clone()];
            let mut sum = 1.0;
            if choice.renormalize {
                sum = chosen.iter().map(|expert| probabilities[*expert as usize]).sum();
            }
            for (expert, place) in chosen.iter().zip(&routing.places[entries]) {
                let weight = probabilities[*expert as usize] / sum;
                math::add_scaled(x, weight, &outputs[*place as usize * width..][..width]);
            }
        }
    }
}
