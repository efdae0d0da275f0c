//! Sliding windows of attention.

use proptest::prelude::*;
use turnwise_rollout::Policy;

use super::block_on;
use super::engine::{ids, request};
use super::fixture::distance;
use super::forward::BOTH;
use super::variants::perturbed;
use crate::{CandlePolicy, Decoder, DecoderConfig, EngineCompute, EngineSettings, SlidingWindow};

/// Returns a model with the window in some of its layers.
fn model(length: usize, layers: &[usize]) -> Decoder {
    let sliding_window = Some(SlidingWindow { length, layers: layers.to_vec() });
    perturbed(DecoderConfig { sliding_window, n_layers: 3, ..DecoderConfig::small(53) }, 4)
}

fn without() -> Decoder {
    perturbed(DecoderConfig { n_layers: 3, ..DecoderConfig::small(53) }, 4)
}

fn tokens(most: usize) -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(0_u32..53, 2..most)
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_window_as_long_as_the_sequence_is_no_window(prompt in tokens(90), more in 0_usize..9) {
        let length = prompt.len() + more;
        for kernels in BOTH {
            let [ours, theirs] = [model(length, &[0, 2]), without()]
                .map(|model| model.with_kernels(kernels).logits(&prompt).unwrap());
            prop_assert!(ours == theirs, "{kernels:?}");
        }
        for compute in [EngineCompute::Buffers, EngineCompute::Tensors] {
            let settings = EngineSettings { compute, ..EngineSettings::default() };
            let [ours, theirs] = [model(length + 5, &[0, 2]), without()].map(|model| {
                let policy = CandlePolicy::new(&model, settings).unwrap();
                block_on(policy.sample(request(0, prompt.clone(), 5))).unwrap()
            });
            prop_assert_eq!(ours, theirs);
        }
    }

    /// Prompts begin alike, so that pages are shared; some windows begin inside a page and some at its start.
    #[test]
    fn an_engine_with_a_window_gives_what_recomputation_gives(
        shared in tokens(80),
        own in proptest::collection::vec(tokens(50), 1..5),
        length in 1_usize..100,
        max_step_tokens in 1_usize..90,
        tensors: bool,
    ) {
        let model = model(length, &[0, 1]);
        let compute = if tensors { EngineCompute::Tensors } else { EngineCompute::Buffers };
        let settings = EngineSettings { max_step_tokens, compute, ..EngineSettings::default() };
        let policy = CandlePolicy::new(&model, settings).unwrap();
        let asked: Vec<_> = own.iter().enumerate().map(|(session, own)| {
            request(session as u64, [shared.clone(), own.clone()].concat(), 1 + session * 11)
        }).collect();
        let samples = block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for (index, asked) in asked.iter().cloned().enumerate() {
                let policy = policy.clone();
                tasks.spawn(async move { (index, policy.sample(asked).await.unwrap()) });
            }
            tasks.join_all().await
        });
        for (index, sample) in samples {
            let prompt = &asked[index].prompt;
            let whole = [prompt.clone(), ids(&sample.tokens)].concat();
            let theirs = model.score(&[whole]).unwrap().concat();
            let ours: Vec<f32> = sample.tokens.iter().map(|token| token.logprob).collect();
            let apart = distance(&ours, &doubles(&theirs[prompt.len() - 1..]));
            prop_assert!(apart < 3e-5, "window {length}: {apart}");
        }
    }

    /// In one layer with a window, a token does not depend on those before the window, to the last bit.
    #[test]
    fn what_is_before_the_window_changes_nothing(prompt in tokens(100), length in 1_usize..60) {
        let config = DecoderConfig {
            n_layers: 1,
            sliding_window: Some(SlidingWindow { length, layers: vec![0] }),
            ..DecoderConfig::small(53)
        };
        let mut other = prompt.clone();
        let n_before = prompt.len().saturating_sub(length);
        other[..n_before].iter_mut().for_each(|id| *id = (*id + 7) % 53);
        for kernels in BOTH {
            let model = perturbed(config.clone(), 4).with_kernels(kernels);
            let [ours, theirs] = [&prompt, &other].map(|ids| model.logits(ids).unwrap());
            prop_assert_eq!(ours.last(), theirs.last());
            if n_before > 0 {
                prop_assert_ne!(&ours[n_before - 1], &theirs[n_before - 1]);
            }
        }
    }
}
