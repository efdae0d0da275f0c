//! Workers run a trainer's episodes, and it does not matter how many, or whether they live.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use turnwise_environment::TaskSet;
use turnwise_rollout::{
    AgentFactory, ChatAgents, Episode, Group, Limits, Policy, PoolSettings, RolloutPool,
    StopSignal, stop_signal,
};
use turnwise_serve::{
    HubSettings, RolloutWorker, RunDescription, WorkEnd, WorkerHub, WorkerReport,
};
use turnwise_testkit::{AlphabetRenderer, Echo, TabularModel};
use turnwise_trajectory::GroupId;

use crate::support::send;

/// The tasks, agents and engine of a run.
struct Run {
    tasks: Arc<dyn TaskSet>,
    agents: Arc<dyn AgentFactory>,
    policy: Arc<dyn Policy>,
}

fn run() -> Run {
    let renderer = Arc::new(AlphabetRenderer::new("abc"));
    let policy = Arc::new(TabularModel::new(renderer.n_ids()));
    let tasks = Arc::new((2..6).map(|n| Echo::new(n, true)).collect::<Vec<_>>());
    Run { tasks, agents: Arc::new(ChatAgents::new(renderer)), policy }
}

fn settings(tokens: Option<u64>) -> PoolSettings {
    PoolSettings {
        group_size: 4,
        tokens_per_iteration: tokens,
        limits: Limits { max_turn_tokens: 4, ..Limits::default() },
        ..PoolSettings::default()
    }
}

async fn hub(run: &Run, lease_s: f64) -> Arc<WorkerHub> {
    let (tasks, agents) = (run.tasks.clone(), run.agents.clone());
    let restore = Arc::new(move |snapshot| Episode::restore(snapshot, &*tasks, &*agents));
    let settings = HubSettings { lease_s, ..HubSettings::default() };
    Arc::new(WorkerHub::bind(settings, RunDescription::default(), restore).await.unwrap())
}

fn worker(hub: &WorkerHub, n: usize, stop: &StopSignal) -> JoinHandle<WorkerReport> {
    let (url, stop) = (hub.url(), stop.clone());
    tokio::spawn(async move {
        let Run { tasks, agents, .. } = run();
        let worker = RolloutWorker::join(&url, None).await.unwrap();
        worker.work(tasks, agents, n, &stop).await
    })
}

/// Plays four groups to their end.
async fn play(run: &Run, tokens: Option<u64>, hub: Option<Arc<WorkerHub>>) -> Vec<Group> {
    let pool = RolloutPool::new(run.tasks.clone(), run.agents.clone(), None, settings(tokens), 7);
    let mut pool = match hub {
        Some(hub) => pool.with_runner(hub),
        None => pool,
    };
    (0..4).for_each(|n| pool.start(GroupId(n), n as usize));
    let mut groups = Vec::new();
    while pool.n_open() > 0 {
        groups.extend(pool.iterate(&run.policy, &StopSignal::never()).await.unwrap().groups);
    }
    groups.sort_by_key(|group| group.id);
    groups
}

/// Compares what was sampled and rewarded; wall times differ.
fn assert_same(one: &[Group], other: &[Group]) {
    let told = |groups: &[Group]| {
        let members = groups.iter().flat_map(|group| &group.members);
        let of = |member: &turnwise_trajectory::Trajectory| {
            let turns = member.turns.iter().map(|turn| (turn.node, turn.stop, turn.reward));
            (
                member.identity.clone(),
                member.graph.clone(),
                turns.collect::<Vec<_>>(),
                member.outcome.clone(),
            )
        };
        members.map(of).collect::<Vec<_>>()
    };
    assert_eq!(told(one), told(other));
}

#[tokio::test]
async fn episodes_on_workers_are_those_of_this_process() {
    let run = run();
    for tokens in [None, Some(24)] {
        let alone = play(&run, tokens, None).await;
        let hub = hub(&run, 20.0).await;
        let (stop, stopped) = stop_signal();
        let workers = [worker(&hub, 3, &stopped), worker(&hub, 2, &stopped)];
        let shared = play(&run, tokens, Some(hub.clone())).await;
        assert_same(&alone, &shared);
        stop.stop();
        let mut finished = 0;
        for worker in workers {
            let report = worker.await.unwrap();
            assert_eq!(report.lost, 0);
            finished += report.finished;
        }
        assert_eq!(finished, 16);
        assert_eq!(hub.n_lost(), 0);
    }
}

#[tokio::test]
async fn killed_workers_cost_no_episode() {
    let run = run();
    let alone = play(&run, None, None).await;
    let hub = hub(&run, 0.4).await;
    let playing = tokio::spawn({
        let (hub, run) = (hub.clone(), self::run());
        async move { play(&run, None, Some(hub)).await }
    });
    // Each worker takes episodes, and is gone before it can end most of them.
    for _ in 0..6 {
        let killed = worker(&hub, 8, &StopSignal::never());
        tokio::time::sleep(Duration::from_millis(15)).await;
        killed.abort();
        let _ = killed.await;
    }
    let (stop, stopped) = stop_signal();
    let last = worker(&hub, 8, &stopped);
    assert_same(&alone, &playing.await.unwrap());
    stop.stop();
    last.await.unwrap();
}

#[tokio::test]
async fn a_stop_brings_every_episode_back_and_nothing_is_sampled_twice() {
    let run = run();
    let alone = play(&run, None, None).await;
    let hub = hub(&run, 20.0).await;
    let pool = RolloutPool::new(run.tasks.clone(), run.agents.clone(), None, settings(None), 7);
    let mut pool = pool.with_runner(hub.clone());
    (0..4).for_each(|n| pool.start(GroupId(n), n as usize));
    let (quit, quitted) = stop_signal();
    let worker = worker(&hub, 2, &quitted);
    let mut groups = Vec::new();
    let mut n_stops = 0;
    while pool.n_open() > 0 {
        let (stop, stopped) = stop_signal();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            stop.stop();
        });
        groups.extend(pool.iterate(&run.policy, &stopped).await.unwrap().groups);
        timer.abort();
        n_stops += 1;
        assert!(n_stops < 1_000, "no progress");
    }
    groups.sort_by_key(|group| group.id);
    assert_same(&alone, &groups);
    quit.stop();
    worker.await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_run_ends_its_workers_at_once() {
    let run = run();
    let hub = hub(&run, 20.0).await;
    let workers = [1, 2, 3].map(|n| worker(&hub, n, &StopSignal::never()));
    play(&run, None, Some(hub.clone())).await;
    let began = std::time::Instant::now();
    hub.dismiss(Duration::from_secs(20)).await;
    let mut finished = 0;
    for worker in workers {
        let report = worker.await.unwrap();
        assert_eq!((report.end, report.lost), (WorkEnd::Over, 0));
        finished += report.finished;
    }
    assert_eq!(finished, 16);
    assert!(began.elapsed() < Duration::from_secs(10));
}

/// A worker that dies with all waiting episodes would have its group wait for a whole lease.
#[tokio::test]
async fn no_worker_gets_all_episodes_while_others_ask() {
    let run = run();
    let alone = play(&run, None, None).await;
    let hub = hub(&run, 0.4).await;
    let address = hub.url().strip_prefix("http://").unwrap().to_owned();
    let post = async |route: &str, body: Value| -> Value {
        let body = body.to_string();
        let head = format!(
            "POST {route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json"
        );
        let length = body.len();
        let request = format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}");
        let (status, answer) = send(&address, &request).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    };
    let mut names = Vec::new();
    for _ in 0..2 {
        names.push(post("/workers", json!({})).await["worker"].clone());
    }
    let playing = tokio::spawn({
        let (hub, run) = (hub.clone(), self::run());
        async move { play(&run, None, Some(hub)).await }
    });
    let mut given = 0_usize;
    for name in names.iter().cycle().take(4) {
        let leases = post("/leases", json!({"worker": name, "n": 16})).await;
        let n = leases["given"].as_array().unwrap().len();
        assert!(n > 0 && n <= (16 - given).div_ceil(2), "{n} of {}", 16 - given);
        given += n;
    }
    let (stop, stopped) = stop_signal();
    let last = worker(&hub, 8, &stopped);
    assert_same(&alone, &playing.await.unwrap());
    assert!(hub.n_lost() >= given as u64);
    stop.stop();
    last.await.unwrap();
}

#[tokio::test]
async fn a_worker_that_was_silent_for_too_long_hears_of_it_and_joins_again() {
    let run = run();
    let hub = hub(&run, 0.2).await;
    let silent = RolloutWorker::join(&hub.url(), None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let (stop, stopped) = stop_signal();
    let other = RolloutWorker::join(&hub.url(), None).await.unwrap();
    assert_eq!(hub.n_workers(), 2);
    let Run { tasks, agents, .. } = self::run();
    let other = tokio::spawn({
        let stopped = stopped.clone();
        async move { other.work(tasks, agents, 1, &stopped).await }
    });
    while hub.n_workers() != 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let Run { tasks, agents, .. } = self::run();
    let report = silent.work(tasks, agents, 1, &StopSignal::never()).await;
    assert_eq!(report.end, WorkEnd::Forgotten);
    let again = worker(&hub, 1, &stopped);
    play(&run, None, Some(hub.clone())).await;
    stop.stop();
    for worker in [other, again] {
        assert_eq!(worker.await.unwrap().end, WorkEnd::Stopped);
    }
}

#[tokio::test]
async fn a_worker_without_the_token_stays_outside() {
    let run = run();
    let restore = {
        let (tasks, agents) = (run.tasks.clone(), run.agents.clone());
        Arc::new(move |snapshot| Episode::restore(snapshot, &*tasks, &*agents))
    };
    let token = Some("t-secret".to_owned());
    let settings = HubSettings { token, ..HubSettings::default() };
    let hub = WorkerHub::bind(settings, RunDescription::default(), restore).await.unwrap();
    let error = RolloutWorker::join(&hub.url(), None).await.unwrap_err();
    let said = std::error::Error::source(&error).unwrap().to_string();
    assert!(said.contains("401"), "{said}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "t-secret\n").unwrap();
    assert!(RolloutWorker::join(&hub.url(), Some(&file)).await.is_ok());
    assert!(!format!("{hub:?}").contains("t-secret"));
}

#[tokio::test]
async fn a_worker_with_another_renderer_gets_nothing_to_do_and_the_run_goes_on() {
    let run = run();
    let alone = play(&run, None, None).await;
    let hub = hub(&run, 20.0).await;
    let (stop, stopped) = stop_signal();
    let other = tokio::spawn({
        let (url, stopped) = (hub.url(), stopped.clone());
        async move {
            let agents = Arc::new(ChatAgents::new(Arc::new(AlphabetRenderer::new("xyz"))));
            let worker = RolloutWorker::join(&url, None).await.unwrap();
            worker.work(self::run().tasks, agents, 4, &stopped).await
        }
    });
    let right = worker(&hub, 4, &stopped);
    assert_same(&alone, &play(&run, None, Some(hub.clone())).await);
    stop.stop();
    assert_eq!(other.await.unwrap().finished, 0);
    assert_eq!(right.await.unwrap().finished, 16);
}
