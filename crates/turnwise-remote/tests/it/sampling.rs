//! Tokens, their log-probabilities and versions.

use std::path::Path;
use std::time::Duration;

use turnwise_remote::{RemotePolicy, RemoteSettings, Server, WeightFiles};
use turnwise_rollout::{Policy, SampleRequest, SessionId, check_sample};
use turnwise_trajectory::{PolicyVersion, Sampling, StopReason, TokenId};

use crate::model::{Model, N_IDS};
use crate::server::{Conduct, Running, Served, write};

/// Connects to servers, and publishes the adapter `weights` as a version.
pub(crate) async fn policy(
    servers: &[&Running],
    weights: u64,
) -> (RemotePolicy, tempfile::TempDir) {
    let urls = servers.iter().map(|server| server.url.clone()).collect();
    let settings =
        RemoteSettings { urls, seeds: true, max_wait_s: 5.0, ..RemoteSettings::default() };
    let policy = RemotePolicy::connect(Server::Vllm, settings, None).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    publish(&policy, directory.path(), 0, weights).await;
    (policy, directory)
}

pub(crate) async fn publish(
    policy: &RemotePolicy,
    directory: &Path,
    version: u32,
    weights: u64,
) -> Vec<PolicyVersion> {
    let path = write(directory, &format!("v{version}"), weights);
    let files = WeightFiles::Adapter(path);
    let probe = Model(weights).probe();
    policy.publish(PolicyVersion(version), files, directory, probe).await.unwrap()
}

pub(crate) fn request(session: u64, max_tokens: usize) -> SampleRequest {
    SampleRequest {
        prompt: vec![(session % 16) as TokenId, 2, 3],
        stop: vec![],
        max_tokens,
        sampling: Sampling::default(),
        seed: session,
        first_index: 0,
        min_version: PolicyVersion(0),
        session: SessionId(session),
    }
}

/// Checks that every token has the log-probability of the weights of its version; `weights` are those of version 0, 1, ….
pub(crate) fn check_logprobs(
    request: &SampleRequest,
    sample: &turnwise_rollout::Sample,
    weights: &[u64],
) {
    check_sample(sample, request).unwrap();
    let mut text = request.prompt.clone();
    for token in &sample.tokens {
        let model = Model(weights[token.version.0 as usize]);
        let temperature = f64::from(request.sampling.temperature);
        let expected = model.logprob(&text, token.id, temperature);
        assert!((f64::from(token.logprob) - expected).abs() < 1e-5, "{token:?}: {expected}");
        text.push(token.id);
    }
}

#[tokio::test]
async fn tokens_carry_the_log_probability_and_the_version_they_were_sampled_with() {
    for completions_only in [false, true] {
        let server = Running::start(Served { completions_only, ..Served::default() }).await;
        let (policy, directory) = policy(&[&server], 7).await;
        for temperature in [1.0, 0.5] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let request = SampleRequest { sampling, stop: vec![4], ..request(1, 40) };
            let sample = policy.sample(request.clone()).await.unwrap();
            check_logprobs(&request, &sample, &[7]);
            assert_eq!(sample.stop, StopReason::EndOfTurn);
        }
        publish(&policy, directory.path(), 1, 8).await;
        assert_eq!(policy.version(), PolicyVersion(1));
        let request = request(2, 5);
        let sample = policy.sample(request.clone()).await.unwrap();
        check_logprobs(&request, &sample, &[7, 8]);
        assert!(sample.tokens.iter().all(|token| token.version == PolicyVersion(1)));
    }
}

#[tokio::test]
async fn an_interruption_hands_over_what_has_arrived_and_the_turn_goes_on_from_there() {
    let server = Running::start(Served::default()).await;
    let (policy, _directory) = policy(&[&server], 7).await;
    server.conduct(Conduct::StallAfter(3));
    let ask = request(5, 8);
    let asked = tokio::spawn({
        let (policy, ask) = (policy.clone(), ask.clone());
        async move { policy.sample(ask).await }
    });
    server.served.stalled.notified().await;
    // What was sent before the stall is on its way.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(policy.interrupt(SessionId(5)));
    let sample = asked.await.unwrap().unwrap();
    check_logprobs(&ask, &sample, &[7]);
    assert_eq!((sample.stop, sample.tokens.len()), (StopReason::Interrupted, 3));
    assert!(!policy.interrupt(SessionId(5)), "nothing is open any more");

    server.conduct(Conduct::Serve);
    let mut rest = request(5, 5);
    rest.prompt.extend(sample.tokens.iter().map(|token| token.id));
    rest.first_index = 3;
    let sample = policy.sample(rest.clone()).await.unwrap();
    check_logprobs(&rest, &sample, &[7]);
    assert_eq!((sample.stop, sample.tokens.len()), (StopReason::MaxTokens, 5));
}

#[tokio::test]
async fn a_session_stays_with_a_replica_and_sessions_spread() {
    let servers =
        [Running::start(Served::default()).await, Running::start(Served::default()).await];
    let (policy, _directory) = policy(&[&servers[0], &servers[1]], 7).await;
    let mut places = Vec::new();
    for session in 0..16 {
        let before = servers[0].n_asked();
        for _ in 0..3 {
            policy.sample(request(session, 2)).await.unwrap();
        }
        let n = servers[0].n_asked() - before;
        assert!(n == 0 || n == 3, "session {session}");
        places.push(n);
    }
    assert!(places.contains(&0) && places.contains(&3), "{places:?}");
}

#[tokio::test]
async fn requests_that_no_server_could_serve_are_refused() {
    let server = Running::start(Served::default()).await;
    let (policy, _directory) = policy(&[&server], 7).await;
    turnwise_testkit::conformance::policy_refusals(
        std::sync::Arc::new(policy),
        N_IDS as TokenId,
        64,
    )
    .await;
}
