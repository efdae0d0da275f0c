//! Measures a step of 4096 sequences of 1024 tokens on one core, in milliseconds: the best of seven
//! runs.

// Benchmarks print, and a failed unwrap is a failed benchmark.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use turnwise_objective::{Advantages, Clip, Grpo, GspoToken, LengthWeight, Objective, Sequence};

const N_SEQUENCES: usize = 4096;
const N_TOKENS: usize = 1024;

/// Returns pseudo-random numbers in 0..1.
fn uniforms(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..n).map(|_| next()).collect()
}

fn time(label: &str, objective: &dyn Objective, columns: &[Vec<f64>; 3], per_token: bool) {
    let [logprobs, behavior_logprobs, advantages] = columns;
    let mut gradient = vec![0.0; N_TOKENS];
    let mut best = f64::INFINITY;
    for _ in 0..7 {
        let start = Instant::now();
        for sequence in 0..N_SEQUENCES {
            let here = sequence * N_TOKENS..(sequence + 1) * N_TOKENS;
            let credit = if per_token {
                Advantages::PerToken(&advantages[here.clone()])
            } else {
                Advantages::Uniform(advantages[here.start])
            };
            let sequence =
                Sequence::new(&logprobs[here.clone()], &behavior_logprobs[here], credit).unwrap();
            black_box(objective.evaluate(&sequence, &mut gradient).unwrap());
            black_box(&mut gradient);
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{label:<24} {:6.1} ms", best * 1e3);
}

fn main() {
    let n = N_SEQUENCES * N_TOKENS;
    let behavior_logprobs: Vec<f64> = uniforms(n, 1).iter().map(|u| -4.0 * u).collect();
    let drifts = uniforms(n, 2);
    let logprobs =
        behavior_logprobs.iter().zip(drifts).map(|(b, u)| b + 0.02 * (u - 0.5)).collect();
    let advantages = uniforms(n, 3).iter().map(|u| 2.0 * u - 1.0).collect();
    let columns = [logprobs, behavior_logprobs, advantages];
    let gspo_token = GspoToken { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
    time("gspo_token, uniform", &gspo_token, &columns, false);
    time("gspo_token, per token", &gspo_token, &columns, true);
    time("grpo, per token", &Grpo { clip: Clip::PAPER_GRPO }, &columns, true);
}
