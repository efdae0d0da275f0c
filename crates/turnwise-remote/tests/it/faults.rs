//! Replicas that break, lie, stall or ask to wait.

use turnwise_remote::{RemotePolicy, RemoteSettings, Secret, Server};
use turnwise_rollout::{Policy, PolicyError};

use crate::sampling::{check_logprobs, policy, request};
use crate::server::{Conduct, Running, Served};

/// Returns two servers, a policy over them, and a session of the first.
async fn two() -> (Running, Running, RemotePolicy, u64, tempfile::TempDir) {
    let (one, two) =
        (Running::start(Served::default()).await, Running::start(Served::default()).await);
    let (policy, directory) = policy(&[&one, &two], 7).await;
    for session in 0..64 {
        let before = one.n_asked();
        policy.sample(request(session, 1)).await.unwrap();
        if one.n_asked() > before {
            return (one, two, policy, session, directory);
        }
    }
    panic!("no session goes to the first replica");
}

#[tokio::test]
async fn a_replica_that_breaks_in_mid_stream_costs_no_token() {
    let (one, two, policy, session, _directory) = two().await;
    one.conduct(Conduct::BreakAfter(3));
    let ask = request(session, 8);
    let n = two.n_asked();
    let sample = policy.sample(ask.clone()).await.unwrap();
    check_logprobs(&ask, &sample, &[7]);
    assert_eq!(sample.tokens.len(), 8);
    assert_eq!(two.n_asked(), n + 1);
    // Its sessions stay with the other one for a time.
    one.conduct(Conduct::Serve);
    let n = one.n_asked();
    policy.sample(ask).await.unwrap();
    assert_eq!(one.n_asked(), n);
}

#[tokio::test]
async fn a_replica_that_is_gone_is_replaced() {
    let (one, two, policy, session, _directory) = two().await;
    one.stop();
    drop(one);
    let ask = request(session, 4);
    check_logprobs(&ask, &policy.sample(ask.clone()).await.unwrap(), &[7]);
    drop(two);
    let error = policy.sample(ask).await.unwrap_err();
    assert!(matches!(&error, PolicyError::Unavailable(_) | PolicyError::Failed(_)), "{error}");
}

#[tokio::test]
async fn what_a_lying_replica_sends_is_forgotten() {
    for conduct in
        [Conduct::Positive, Conduct::Misaligned, Conduct::Html, Conduct::Endless, Conduct::Redirect]
    {
        let (one, _two, policy, session, _directory) = two().await;
        one.conduct(conduct.clone());
        let ask = request(session, 4);
        let sample = policy.sample(ask.clone()).await;
        let sample = sample.unwrap_or_else(|error| panic!("{conduct:?}: {error}"));
        check_logprobs(&ask, &sample, &[7]);
    }
}

#[tokio::test]
async fn a_lie_of_the_only_replica_is_an_error_and_never_a_token() {
    let server = Running::start(Served::default()).await;
    let (policy, _directory) = policy(&[&server], 7).await;
    server.conduct(Conduct::Positive);
    let error = policy.sample(request(1, 4)).await.unwrap_err();
    let PolicyError::Unavailable(reason) = &error else { panic!("{error}") };
    assert!(reason.contains("log-probability 0.5 of token"), "{reason}");
}

#[tokio::test]
async fn a_busy_replica_is_asked_again() {
    let server = Running::start(Served::default()).await;
    let (policy, _directory) = policy(&[&server], 7).await;
    server.conduct(Conduct::Busy(5));
    let ask = request(1, 4);
    check_logprobs(&ask, &policy.sample(ask.clone()).await.unwrap(), &[7]);
}

#[tokio::test]
async fn log_probabilities_that_are_not_those_of_sampling_are_refused() {
    let server = Running::start(Served { raw_logprobs: true, ..Served::default() }).await;
    let error = connect(&server, None).await.unwrap_err().to_string();
    assert!(error.contains("--logprobs-mode processed_logprobs"), "{error}");
}

#[tokio::test]
async fn a_key_opens_a_server_and_stays_out_of_errors() {
    let server = Running::start(Served { key: Some("k-secret"), ..Served::default() }).await;
    let error = connect(&server, None).await.unwrap_err().to_string();
    assert!(error.contains("status 401: Unauthorized"), "{error}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    std::fs::write(&file, "k-secret\n").unwrap();
    let policy = connect(&server, Some(Secret::from_file(&file).unwrap())).await.unwrap();
    assert!(!format!("{policy:?}").contains("k-secret"));
    std::fs::write(&file, "k-other\n").unwrap();
    let error = connect(&server, Some(Secret::from_file(&file).unwrap())).await.unwrap_err();
    assert!(!error.to_string().contains("k-other"), "{error}");
}

#[tokio::test]
async fn another_model_and_another_place_are_named_in_the_error() {
    let server = Running::start(Served::default()).await;
    let model = Some("other".to_owned());
    let settings = RemoteSettings { urls: vec![server.url.clone()], model, ..Default::default() };
    let error = RemotePolicy::connect(Server::Vllm, settings, None).await.unwrap_err().to_string();
    assert!(error.contains("it does not serve other, but base"), "{error}");
    let error = RemotePolicy::connect(Server::Vllm, RemoteSettings::default(), None).await;
    assert!(error.unwrap_err().to_string().contains("no URL is given"));
}

async fn connect(
    server: &Running,
    key: Option<Secret>,
) -> Result<RemotePolicy, turnwise_remote::RemoteError> {
    let settings = RemoteSettings { urls: vec![server.url.clone()], ..RemoteSettings::default() };
    RemotePolicy::connect(Server::Vllm, settings, key).await
}

#[tokio::test]
async fn many_requests_that_meet_one_failure_count_once() {
    let server = Running::start(Served::default()).await;
    let (policy, _directory) = policy(&[&server], 7).await;
    server.conduct(Conduct::BreakAfter(0));
    let asked: Vec<_> = (0..16)
        .map(|session| {
            let policy = policy.clone();
            tokio::spawn(async move { policy.sample(request(session, 2)).await })
        })
        .collect();
    server.served.stalled.notified().await;
    server.conduct(Conduct::Serve);
    // The first pause is a second: were it doubled by each request, they would wait for longer than `max_wait_s`.
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
}
