use std::slice;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest, SessionId};
use turnwise_trajectory::{PolicyVersion, SampledToken, Sampling, StopReason};

use super::block_on;
use super::fixture::{Fixture, integers};
use super::variants::{perturbed, variants};
use crate::batch::PackedBatch;
use crate::engine::{Command, Counters, EngineScheduler, Job};
use crate::published::Published;
use crate::{Architecture, CandlePolicy, Decoder, DecoderConfig, EngineSettings, KvOnUpdate};

pub(super) fn config() -> DecoderConfig {
    DecoderConfig { max_positions: 160, ..DecoderConfig::small(97) }
}

/// An engine without a thread of its own, which a test drives step by step.
pub(super) fn scheduler(
    published: &Published,
    settings: EngineSettings,
    counters: Arc<Counters>,
) -> EngineScheduler {
    let first = published.newest().unwrap();
    EngineScheduler::new(published.clone(), first, settings, counters).unwrap()
}

pub(super) fn model(seed: u64) -> Decoder {
    // Larger weights than a new model's, so that a wrong context changes the samples.
    let model = Decoder::random(config(), seed).unwrap();
    let mut values = model.values().unwrap();
    values[0].iter_mut().for_each(|x| *x *= 25.0);
    model.set_values(values).unwrap();
    model
}

pub(super) fn policy(settings: EngineSettings) -> CandlePolicy {
    CandlePolicy::new(&model(1), settings).unwrap()
}

pub(super) fn prompt(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|i| (seed * 13 + i * i * 5 + i) % 97).collect()
}

pub(super) fn request(session: u64, prompt: Vec<u32>, max_tokens: usize) -> SampleRequest {
    SampleRequest {
        prompt,
        stop: Vec::new(),
        max_tokens,
        sampling: Sampling::default(),
        seed: 1000 + session,
        first_index: 0,
        min_version: PolicyVersion(0),
        session: SessionId(session),
    }
}

pub(super) fn ids(tokens: &[SampledToken]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

fn refusal(error: Result<Sample, PolicyError>) -> String {
    match error {
        Err(PolicyError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

/// Tokens sampled before an interruption are returned, and later tokens are the same as without it.
#[test]
fn an_interrupted_request_hands_over_what_it_has_drawn() {
    let published = Published::new(PolicyVersion(0), model(1).weights().unwrap());
    // A token for each step.
    let settings = EngineSettings { max_drafts: 0, ..EngineSettings::default() };
    let mut scheduler = scheduler(&published, settings, Arc::default());
    let mut drawn = |request: &SampleRequest, steps: usize| {
        let (reply, mut answer) = oneshot::channel();
        scheduler.take(Command::Sample(Job { request: request.clone(), constraint: None, reply }));
        (0..steps).for_each(|_| scheduler.advance());
        scheduler.take(Command::Interrupt(request.session));
        answer.try_recv().expect("it is answered at once").unwrap()
    };
    let asked = request(7, prompt(3, 20), 30);
    let whole = drawn(&asked, 40);
    assert_eq!((whole.stop, whole.tokens.len()), (StopReason::MaxTokens, 30));
    for n in [0, 1, 13, 29] {
        let first = drawn(&asked, n);
        assert_eq!((first.stop, first.tokens.len()), (StopReason::Interrupted, n));
        let rest = SampleRequest {
            prompt: [asked.prompt.clone(), ids(&first.tokens)].concat(),
            max_tokens: 30 - n,
            first_index: n as u64,
            ..asked.clone()
        };
        let rest = drawn(&rest, 40);
        assert_eq!([first.tokens, rest.tokens].concat(), whole.tokens);
    }
}

#[test]
fn greedy_continuations_are_those_of_the_reference() {
    block_on(async {
        for fixture in Fixture::all() {
            let policy = CandlePolicy::new(&fixture.model, EngineSettings::default()).unwrap();
            for (key, expected) in fixture.expected["greedy"].as_object().unwrap() {
                let request = SampleRequest {
                    sampling: Sampling::greedy(),
                    ..request(0, fixture.ids(key), 16)
                };
                let sample = policy.sample(request).await.unwrap();
                assert_eq!(ids(&sample.tokens), integers(&expected["tokens"]), "{key}");
                assert_eq!(sample.stop, StopReason::MaxTokens);
                assert!(sample.tokens.iter().all(|token| token.logprob == 0.0));
            }
        }
    });
}

// Rollouts 11.19: engine and learner agree on the same tokens, at a temperature of 1 and at another.
#[test]
fn sampled_log_probabilities_are_those_of_the_training_forward() {
    block_on(async {
        let model = model(1);
        let policy = CandlePolicy::new(&model, EngineSettings::default()).unwrap();
        let mut trainer = crate::CandleLearner::new(model, crate::AdamW::default()).unwrap();
        for temperature in [1.0, 0.7] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let asked = SampleRequest { sampling, ..request(0, prompt(3, 40), 100) };
            let sample = policy.sample(asked.clone()).await.unwrap();
            let all = [asked.prompt.clone(), ids(&sample.tokens)].concat();
            let targets =
                (40..140).map(|position| turnwise_training::Target { position, temperature });
            let row = turnwise_training::Row {
                ids: all,
                targets: targets.collect(),
                ..turnwise_training::Row::default()
            };
            let theirs = turnwise_training::Learner::logprobs(&mut trainer, &[row]).await.unwrap();
            let worst = sample.tokens.iter().zip(&theirs[0]);
            let worst = worst.map(|(token, logprob)| (token.logprob - logprob).abs());
            let worst = worst.fold(0.0, f32::max);
            assert!(worst < 1e-5, "temperature {temperature}: {worst}");
        }
    });
}

#[test]
fn a_request_is_answered_the_same_alone_and_among_others() {
    block_on(async {
        let alone = policy(EngineSettings::default()).sample(request(7, prompt(7, 33), 40)).await;
        let alone = alone.unwrap();
        // Small steps divide the prompts, too.
        for max_step_tokens in [1024, 48, 5] {
            let policy = policy(EngineSettings { max_step_tokens, ..EngineSettings::default() });
            let mut others = JoinSet::new();
            for session in 100..131 {
                let policy = policy.clone();
                let asked = request(session, prompt(session as u32, 1 + session as u32 % 60), 30);
                others.spawn(async move { policy.sample(asked).await.unwrap() });
            }
            tokio::task::yield_now().await;
            let among = policy.sample(request(7, prompt(7, 33), 40)).await.unwrap();
            assert_eq!(alone, among);
            others.join_all().await;
        }
    });
}

#[test]
fn kept_keys_and_values_change_nothing() {
    block_on(async {
        let (keeping, forgetting) =
            (policy(EngineSettings::default()), policy(EngineSettings::default()));
        let mut history = prompt(2, 12);
        for turn in 0..4 {
            let asked = SampleRequest { first_index: turn * 6, ..request(1, history.clone(), 6) };
            let kept = keeping.sample(asked.clone()).await.unwrap();
            forgetting.release(SessionId(1));
            let fresh = forgetting.sample(asked).await.unwrap();
            assert_eq!(kept, fresh);
            history.extend(ids(&kept.tokens));
            history.extend(prompt(turn as u32, 5));
        }
        assert!(keeping.stats().reused > 3 * 12);
        assert_eq!(forgetting.stats().reused, 0);
        // A session with a changed history shares only the common prefix.
        let asked = request(1, [&history[..10], &prompt(9, 10)].concat(), 6);
        forgetting.release(SessionId(1));
        assert_eq!(
            keeping.sample(asked.clone()).await.unwrap(),
            forgetting.sample(asked).await.unwrap()
        );
    });
}

#[test]
fn an_interrupted_request_is_an_uninterrupted_one() {
    block_on(async {
        let policy = policy(EngineSettings::default());
        let whole = policy.sample(request(1, prompt(5, 9), 20)).await.unwrap().tokens;
        for cut in 1..20 {
            let first = policy.sample(request(1, prompt(5, 9), cut)).await.unwrap().tokens;
            let rest = [prompt(5, 9), ids(&first)].concat();
            let rest = SampleRequest { first_index: cut as u64, ..request(1, rest, 20 - cut) };
            let rest = policy.sample(rest).await.unwrap().tokens;
            assert_eq!(whole, [first, rest].concat());
        }
    });
}

#[test]
fn drawing_ends_with_a_stop_token() {
    block_on(async {
        let policy = policy(EngineSettings::default());
        let whole = ids(&policy.sample(request(1, prompt(5, 9), 20)).await.unwrap().tokens);
        let stop = whole[7];
        let first = whole.iter().position(|id| *id == stop).unwrap();
        let asked = SampleRequest { stop: vec![stop], ..request(1, prompt(5, 9), 20) };
        let sample = policy.sample(asked).await.unwrap();
        assert_eq!(ids(&sample.tokens), whole[..=first]);
        assert_eq!(sample.stop, StopReason::EndOfTurn);
    });
}

/// Weights change between the tokens of one request. The test drives the scheduler by hand, without its thread.
#[test]
fn new_weights_are_taken_in_mid_request() {
    const DRAWN: usize = 20;
    for kv_on_update in [KvOnUpdate::Recompute, KvOnUpdate::Keep] {
        let published = Published::new(PolicyVersion(4), model(1).weights().unwrap());
        // A token for each step.
        let settings = EngineSettings { kv_on_update, max_drafts: 0, ..EngineSettings::default() };
        let mut scheduler = scheduler(&published, settings, Arc::default());
        let mut draw = |request: SampleRequest, steps: usize, publish: bool| {
            let (reply, mut answer) = oneshot::channel();
            scheduler.take(Command::Sample(Job { request, constraint: None, reply }));
            (0..steps).for_each(|_| scheduler.advance());
            if publish {
                published.publish(PolicyVersion(5), model(2).weights().unwrap());
            }
            loop {
                scheduler.advance();
                if let Ok(answer) = answer.try_recv() {
                    return answer.unwrap().tokens;
                }
            }
        };
        let asked = request(1, prompt(5, 9), 60);
        let tokens = draw(asked.clone(), DRAWN, true);
        let (before, after) = tokens.split_at(DRAWN);
        let stamps = |tokens: &[SampledToken], version, kv_version| {
            let (version, kv_version) = (PolicyVersion(version), PolicyVersion(kv_version));
            tokens.iter().all(|token| (token.version, token.kv_version) == (version, kv_version))
        };
        assert!(stamps(before, 4, 4));
        // Keys and values of older weights are not reused for the next request.
        let rest = SampleRequest {
            first_index: DRAWN as u64,
            ..request(1, [asked.prompt, ids(before)].concat(), 60 - DRAWN)
        };
        let fresh = draw(rest, 0, false);
        assert!(stamps(&fresh, 5, 5));
        match kv_on_update {
            KvOnUpdate::Recompute => assert_eq!(after, fresh),
            KvOnUpdate::Keep => {
                assert!(stamps(after, 5, 4));
                assert_ne!(after[0].logprob, fresh[0].logprob);
            }
        }
    }
}

/// The bytes of a page of these tests' model.
pub(super) const PAGE_BYTES: u64 = 32 * 2 * 2 * 2 * 16 * 4;

#[test]
fn memory_is_bounded_and_the_least_recently_used_goes() {
    block_on(async {
        let settings = EngineSettings { max_kv_bytes: 4 * PAGE_BYTES, ..EngineSettings::default() };
        let policy = policy(settings);
        for session in 0..10 {
            policy.sample(request(session, prompt(session as u32, 20), 10)).await.unwrap();
            assert!(policy.stats().kv_bytes <= 4 * PAGE_BYTES);
        }
        assert_eq!(policy.stats().evicted, 6 * 29);
        let before = policy.stats().reused;
        policy.sample(request(0, prompt(0, 20), 10)).await.unwrap();
        assert_eq!(policy.stats().reused, before, "session 0 was given up");
        policy.sample(request(9, prompt(9, 20), 10)).await.unwrap();
        assert_eq!(policy.stats().reused, before + 19, "session 9 was kept");
        assert!(
            refusal(policy.sample(request(1, prompt(1, 88), 41)).await).contains("max_kv_bytes")
        );

        // Requests beyond the capacity wait.
        let mut waiting = JoinSet::new();
        for session in 20..40 {
            let policy = policy.clone();
            let asked = request(session, prompt(session as u32, 20), 15);
            waiting.spawn(async move { policy.sample(asked).await.unwrap().tokens.len() });
        }
        assert_eq!(waiting.join_all().await.iter().sum::<usize>(), 20 * 15);
        assert_eq!(policy.stats().kv_bytes_peak, 4 * PAGE_BYTES);
    });
}

#[test]
fn a_dropped_request_frees_its_place() {
    block_on(async {
        let policy = policy(EngineSettings { max_batch: 1, ..EngineSettings::default() });
        for session in 0..50 {
            let asked = policy.sample(request(session, prompt(1, 5), 150));
            let _ = tokio::time::timeout(Duration::from_micros(50), asked).await;
        }
        let sample = policy.sample(request(99, prompt(1, 5), 3)).await.unwrap();
        assert_eq!(sample.tokens.len(), 3);
        for session in 0..100 {
            policy.release(SessionId(session));
        }
        policy.sample(request(100, prompt(1, 5), 1)).await.unwrap();
        policy.release(SessionId(100));
        while policy.stats().kv_tokens > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn what_cannot_be_served_is_refused() {
    block_on(async {
        let policy = policy(EngineSettings::default());
        let bad = |change: fn(&mut SampleRequest)| {
            let mut asked = request(1, prompt(1, 5), 5);
            change(&mut asked);
            let policy = policy.clone();
            async move { refusal(policy.sample(asked).await) }
        };
        assert_eq!(
            bad(|r| r.prompt[3] = 97).await,
            "token 97 at position 3 is beyond the vocabulary of 97"
        );
        assert_eq!(bad(|r| r.prompt.clear()).await, "the prompt is empty");
        assert!(bad(|r| r.max_tokens = 0).await.contains("at least 1"));
        assert!(bad(|r| r.max_tokens = 156).await.contains("160 positions"));
        assert!(bad(|r| r.max_tokens = usize::MAX).await.contains("160 positions"));
        assert_eq!(bad(|r| r.min_version.0 = 1).await, "v1 is requested, but v0 is served");
        assert!(bad(|r| r.sampling.top_p = 0.0).await.contains("top_p"));
        assert!(policy.sample(request(1, prompt(1, 5), 155)).await.is_ok());
    });
}

#[test]
fn numbers_that_are_none_are_an_error() {
    block_on(async {
        let model = model(1);
        let mut values = model.values().unwrap();
        values[1][0] = f32::NAN;
        model.set_values(values).unwrap();
        let policy = CandlePolicy::new(&model, EngineSettings::default()).unwrap();
        let answer = policy.sample(request(1, prompt(1, 5), 5)).await;
        assert!(matches!(answer, Err(PolicyError::NotFinite(_))), "{answer:?}");
    });
}

/// Returns models of every family: the reference models, and models whose sizes do not divide each other.
fn families() -> Vec<Decoder> {
    let fixtures = Fixture::all().map(|fixture| fixture.model);
    fixtures.chain(variants().into_iter().map(|config| perturbed(config, 2))).collect()
}

/// A request with a random prompt.
#[derive(Clone, Debug)]
struct Asked {
    prompt: Vec<u32>,
    max_tokens: usize,
}

fn asked() -> impl Strategy<Value = Asked> {
    let prompt = proptest::collection::vec(0_u32..53, 1..40);
    (prompt, 1_usize..20).prop_map(|(prompt, max_tokens)| Asked { prompt, max_tokens })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() })]

    /// Rollouts 11.21: the engine's log-probabilities, in mixed batches, equal those of the learner and those of the engine without
    /// other requests; also for mixtures of experts.
    #[test]
    fn engine_log_probabilities_are_those_of_the_training_forward(
        requests in proptest::collection::vec(asked(), 1..9),
        max_step_tokens in 1_usize..60,
        max_batch in 1_usize..8,
    ) {
        let settings =
            EngineSettings { max_batch, max_step_tokens, ..EngineSettings::default() };
        for model in families() {
            let answers = block_on(answer(&model, settings, &requests));
            for (asked, sample) in requests.iter().zip(&answers) {
                let whole = [asked.prompt.clone(), ids(&sample.tokens)].concat();
                let theirs = &model.score(slice::from_ref(&whole)).unwrap()[0];
                let own = asked.prompt.len() - 1..;
                let both = sample.tokens.iter().zip(&theirs[own.clone()]);
                for ((token, theirs), margin) in both.zip(&margins(&model, &whole)[own]) {
                    let error = (token.logprob - theirs).abs();
                    // Where two experts are equally probable up to the last bits, rounding decides.
                    prop_assert!(error < 5e-5 || *margin < 1e-6, "{:?}: {error}", model.config());
                }
            }
            let alone = block_on(answer(&model, EngineSettings::default(), &requests[..1]));
            prop_assert_eq!(&alone[0], &answers[0]);
        }
    }
}

/// Returns, up to each token, the smallest lead of a router's last chosen expert over the next.
fn margins(model: &Decoder, ids: &[u32]) -> Vec<f32> {
    let mut margins = vec![f32::INFINITY; ids.len()];
    let Architecture::Qwen3Moe { experts, .. } = &model.config().architecture else {
        return margins;
    };
    for routed in &model.routed(PackedBatch::inputs_only(&[ids])) {
        let tokens = routed.probabilities.chunks(experts.n_experts);
        for (margin, token) in margins.iter_mut().zip(tokens) {
            let mut sorted = token.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            *margin = margin.min(sorted[experts.n_chosen - 1] - sorted[experts.n_chosen]);
        }
    }
    let mut least = f32::INFINITY;
    for margin in &mut margins {
        least = least.min(*margin);
        *margin = least;
    }
    margins
}

/// Sends all requests at once.
async fn answer(model: &Decoder, settings: EngineSettings, requests: &[Asked]) -> Vec<Sample> {
    let policy = CandlePolicy::new(model, settings).unwrap();
    let asked = requests
        .iter()
        .enumerate()
        .map(|(session, asked)| request(session as u64, asked.prompt.clone(), asked.max_tokens));
    let mut answers = JoinSet::new();
    for (index, asked) in asked.enumerate() {
        let policy = policy.clone();
        answers.spawn(async move { (index, policy.sample(asked).await.unwrap()) });
    }
    let mut answers = answers.join_all().await;
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, sample)| sample).collect()
}
