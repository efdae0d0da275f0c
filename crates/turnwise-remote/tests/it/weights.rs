//! New weights: adapters, whole models, and servers that do not take them up.

use turnwise_remote::{RemoteError, RemotePolicy, RemoteSettings, Server, WeightFiles};
use turnwise_rollout::Policy;
use turnwise_trajectory::{PolicyVersion, StopReason};

use crate::model::Model;
use crate::sampling::{check_logprobs, policy, publish, request};
use crate::server::{Conduct, Running, Served, write};

#[tokio::test]
async fn an_open_request_ends_with_the_adapter_that_it_began_with() {
    let server = Running::start(Served::default()).await;
    let (policy, directory) = policy(&[&server], 7).await;
    server.conduct(Conduct::StallAfter(2));
    let ask = request(3, 6);
    let asked = tokio::spawn({
        let (policy, ask) = (policy.clone(), ask.clone());
        async move { policy.sample(ask).await }
    });
    server.served.stalled.notified().await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    server.conduct(Conduct::Serve);
    // Its files are still needed.
    assert_eq!(publish(&policy, directory.path(), 1, 8).await, []);
    assert!(policy.interrupt(ask.session));
    let sample = asked.await.unwrap().unwrap();
    check_logprobs(&ask, &sample, &[7, 8]);
    assert_eq!(sample.stop, StopReason::Interrupted);
    assert!(sample.tokens.iter().all(|token| token.version == PolicyVersion(0)));
    // Now they are not.
    let retired = publish(&policy, directory.path(), 2, 9).await;
    assert_eq!(retired, [PolicyVersion(0), PolicyVersion(1)]);
    assert_eq!(*server.served.unloaded.lock().unwrap(), ["turnwise-v0", "turnwise-v1"]);
}

#[tokio::test]
async fn whole_weights_cut_open_requests_which_go_on_under_them() {
    let server = Running::start(Served::default()).await;
    let policy = whole(&[&server]).await;
    let directory = tempfile::tempdir().unwrap();
    publish_whole(&policy, directory.path(), 0, 7).await.unwrap();
    server.conduct(Conduct::StallAfter(2));
    let ask = request(3, 6);
    let asked = tokio::spawn({
        let (policy, ask) = (policy.clone(), ask.clone());
        async move { policy.sample(ask).await }
    });
    server.served.stalled.notified().await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    server.conduct(Conduct::Serve);
    publish_whole(&policy, directory.path(), 1, 8).await.unwrap();
    let sample = asked.await.unwrap().unwrap();
    check_logprobs(&ask, &sample, &[7, 8]);
    let versions: Vec<u32> = sample.tokens.iter().map(|token| token.version.0).collect();
    assert_eq!(versions, [0, 0, 1, 1, 1, 1]);
}

#[tokio::test]
async fn a_server_that_keeps_its_old_weights_is_refused_and_the_old_version_stays() {
    let server =
        Running::start(Served { base: 7.into(), keeps_weights: true, ..Served::default() });
    let server = server.await;
    let policy = whole(&[&server]).await;
    let directory = tempfile::tempdir().unwrap();
    publish_whole(&policy, directory.path(), 0, 7).await.unwrap();
    let error = publish_whole(&policy, directory.path(), 1, 8).await.unwrap_err();
    let said = error.to_string();
    assert!(said.starts_with("cannot publish v1 to vLLM: http://127.0.0.1:"), "{said}");
    assert!(said.contains("nats from the trainer's after v1 was loaded"), "{said}");
    assert_eq!(policy.version(), PolicyVersion(0));
}

#[tokio::test]
async fn a_replica_that_forgets_its_adapters_gets_the_newest_again() {
    let server = Running::start(Served::default()).await;
    let (policy, directory) = policy(&[&server], 7).await;
    publish(&policy, directory.path(), 1, 8).await;
    server.restart();
    let ask = request(3, 4);
    let sample = policy.sample(ask.clone()).await.unwrap();
    check_logprobs(&ask, &sample, &[7, 8]);
}

#[tokio::test]
async fn a_server_without_adapters_is_refused_with_the_options_that_it_lacks() {
    let server = Running::start(Served::default()).await;
    server.conduct(Conduct::NoAdapters);
    let policy = whole(&[&server]).await;
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "v0", 7);
    let (files, probe) = (WeightFiles::Adapter(path), Model(7).probe());
    let error = policy.publish(PolicyVersion(0), files, directory.path(), probe).await;
    let said = error.unwrap_err().to_string();
    assert!(said.contains("start it with  --enable-lora --max-lora-rank RANK"), "{said}");
}

#[tokio::test]
async fn tokens_of_other_weights_than_the_published_ones_are_never_used() {
    let server = Running::start(Served::default()).await;
    let policy = whole(&[&server]).await;
    let directory = tempfile::tempdir().unwrap();
    publish_whole(&policy, directory.path(), 3, 7).await.unwrap();
    // Another trainer takes the server over.
    let other = whole(&[&server]).await;
    publish_whole(&other, directory.path(), 4, 8).await.unwrap();
    let ask = request(3, 4);
    let error = policy.sample(ask).await.unwrap_err().to_string();
    assert!(error.contains("tokens of v4 instead of v3"), "{error}");
}

async fn whole(servers: &[&Running]) -> RemotePolicy {
    let urls = servers.iter().map(|server| server.url.clone()).collect();
    let settings = RemoteSettings { urls, max_wait_s: 1.0, ..RemoteSettings::default() };
    RemotePolicy::connect(Server::Vllm, settings, None).await.unwrap()
}

async fn publish_whole(
    policy: &RemotePolicy,
    directory: &std::path::Path,
    version: u32,
    weights: u64,
) -> Result<Vec<PolicyVersion>, RemoteError> {
    let path = write(directory, &format!("v{version}"), weights);
    let (files, probe) = (WeightFiles::Model(path), Model(weights).probe());
    policy.publish(PolicyVersion(version), files, directory, probe).await
}
