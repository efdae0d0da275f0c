//! Tokens are drawn from the distribution that their log-probability says.

use proptest::prelude::*;
use turnwise_rollout::{Sampler, uniform_at};
use turnwise_trajectory::Sampling;

/// Eighths, so that ties are common and differences are exact; some tokens are impossible.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        8 => (-40_i16..40).prop_map(|eighths| f32::from(eighths) / 8.0),
        1 => Just(f32::NEG_INFINITY),
    ];
    prop::collection::vec(logit, 1..12)
        .prop_filter("something is possible", |logits| logits.iter().any(|one| one.is_finite()))
}

fn settings() -> impl Strategy<Value = Sampling> {
    (0.2_f32..3.0, prop_oneof![Just(1.0_f32), 0.05_f32..0.99], 0_u32..8, 0.0_f32..0.5).prop_map(
        |(temperature, top_p, top_k, min_p)| Sampling { temperature, top_p, top_k, min_p },
    )
}

/// The distribution by its definition: softmax, then each restriction in turn on what the one before left.
fn distribution(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let scaled: Vec<f64> =
        logits.iter().map(|logit| f64::from(*logit) / f64::from(sampling.temperature)).collect();
    let highest = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut p = normalised(scaled.iter().map(|logit| (logit - highest).exp()).collect());
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]).then(a.cmp(b)));
    if sampling.top_k > 0 {
        order.iter().skip(sampling.top_k as usize).for_each(|id| p[*id] = 0.0);
        p = normalised(p);
    }
    if sampling.top_p < 1.0 {
        let mut sum = 0.0;
        for id in &order {
            let is_enough = sum >= f64::from(sampling.top_p);
            sum += p[*id];
            if is_enough {
                p[*id] = 0.0;
            }
        }
        p = normalised(p);
    }
    let floor = f64::from(sampling.min_p) * p[order[0]];
    normalised(p.into_iter().map(|p| if p >= floor { p } else { 0.0 }).collect())
}

fn normalised(weights: Vec<f64>) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// How often each token comes when the unit interval is swept evenly.
fn swept(logits: &[f32], sampling: &Sampling, n: usize) -> Vec<usize> {
    let mut sampler = Sampler::default();
    let mut counts = vec![0; logits.len()];
    for step in 0..n {
        let uniform = (step as f64 + 0.5) / n as f64;
        counts[sampler.draw(logits, sampling, uniform).0 as usize] += 1;
    }
    counts
}

proptest! {
    /// The whole distribution, by sweeping the random number through its range.
    #[test]
    fn tokens_are_as_likely_as_the_definition_says(logits in logits(), sampling in settings()) {
        const N: usize = 1000;
        let counts = swept(&logits, &sampling, N);
        for (p, count) in distribution(&logits, &sampling).into_iter().zip(counts) {
            prop_assert!((count as f64 - p * N as f64).abs() <= 1.0 + 1e-6, "{p} {count}");
        }
    }

    /// Rollouts 11.19: of the distribution actually sampled from, after temperature and truncation.
    #[test]
    fn the_log_probability_is_that_of_the_draw(
        logits in logits(),
        sampling in settings(),
        uniform in 0.0_f64..1.0,
    ) {
        let (id, logprob) = Sampler::default().draw(&logits, &sampling, uniform);
        let p = distribution(&logits, &sampling)[id as usize];
        prop_assert!(p > 0.0);
        prop_assert!(logprob <= 0.0 && (f64::from(logprob) - p.ln()).abs() < 1e-5, "{logprob} {p}");
    }

    /// At both ends of the unit interval too.
    #[test]
    fn what_is_impossible_is_never_drawn(logits in logits(), sampling in settings()) {
        let p = distribution(&logits, &sampling);
        for uniform in [0.0, f64::MIN_POSITIVE, 0.5, 1.0 - f64::EPSILON / 2.0] {
            let (id, logprob) = Sampler::default().draw(&logits, &sampling, uniform);
            prop_assert!(p[id as usize] > 0.0 && logprob.is_finite());
        }
    }

    /// Scratch memory of one draw does not leak into the next.
    #[test]
    fn a_sampler_can_be_used_again(
        first in logits(),
        second in logits(),
        sampling in settings(),
        uniform in 0.0_f64..1.0,
    ) {
        let mut used = Sampler::default();
        used.draw(&first, &sampling, uniform);
        let fresh = Sampler::default().draw(&second, &sampling, uniform);
        prop_assert_eq!(used.draw(&second, &sampling, uniform), fresh);
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest(logits in logits(), uniform in 0.0_f64..1.0) {
        let (id, logprob) = Sampler::default().draw(&logits, &Sampling::greedy(), uniform);
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        prop_assert_eq!(logits.iter().position(|logit| *logit == highest), Some(id as usize));
        prop_assert_eq!(logprob, 0.0);
    }

    /// A very low temperature and one candidate are greedy in all but name.
    #[test]
    fn one_candidate_is_certain(logits in logits(), uniform in 0.0_f64..1.0) {
        let greedy = Sampler::default().draw(&logits, &Sampling::greedy(), uniform);
        let one = Sampling { top_k: 1, ..Sampling::default() };
        prop_assert_eq!(Sampler::default().draw(&logits, &one, uniform), greedy);
        let narrow = Sampling { top_p: 1e-6, ..Sampling::default() };
        prop_assert_eq!(Sampler::default().draw(&logits, &narrow, uniform), greedy);
    }
}

/// The random numbers themselves: an episode's draws follow the distribution (chi-square, fixed seeds).
#[test]
fn the_draws_of_an_episode_follow_the_distribution() {
    const N: u64 = 20_000;
    let logits = [0.0, 1.0, -1.0, 0.5, 2.0, -3.0];
    let restricted = Sampling { temperature: 0.8, top_p: 0.9, top_k: 4, min_p: 0.05 };
    for sampling in [Sampling::default(), restricted] {
        for seed in 0..4 {
            let mut sampler = Sampler::default();
            let mut counts = [0_u32; 6];
            for index in 0..N {
                let (id, _) = sampler.draw(&logits, &sampling, uniform_at(seed, index));
                counts[id as usize] += 1;
            }
            let p = distribution(&logits, &sampling);
            let chi_square: f64 = p
                .iter()
                .zip(counts)
                .filter(|(p, _)| **p > 0.0)
                .map(|(p, n)| (f64::from(n) - p * N as f64).powi(2) / (p * N as f64))
                .sum();
            // 99.99 % of a chi-square with 5 degrees of freedom lie below 25.7.
            assert!(chi_square < 25.7, "seed {seed}: {chi_square}");
            assert!(p.iter().zip(counts).all(|(p, n)| *p > 0.0 || n == 0));
        }
    }
}

/// Neighbouring seeds and indices have nothing to do with each other.
#[test]
fn random_numbers_of_neighbours_are_not_correlated() {
    let n = 10_000;
    let correlation = |pair: &dyn Fn(u64) -> (f64, f64)| {
        let product = |(a, b): (f64, f64)| (a - 0.5) * (b - 0.5) * 12.0;
        (0..n).map(pair).map(product).sum::<f64>() / n as f64
    };
    assert!(correlation(&|i| (uniform_at(1, i), uniform_at(1, i + 1))).abs() < 0.04);
    assert!(correlation(&|i| (uniform_at(i, 5), uniform_at(i + 1, 5))).abs() < 0.04);
    assert!(correlation(&|i| (uniform_at(i, i), uniform_at(i, i + 1))).abs() < 0.04);
}
