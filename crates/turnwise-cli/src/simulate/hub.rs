//! What a turn on a worker costs the trainer's process.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use turnwise_rollout::{Episode, PoolSettings, RolloutPool, StopSignal, stop_signal};
use turnwise_run::Failure;
use turnwise_serve::{HubSettings, RolloutWorker, RunDescription, WorkerHub};
use turnwise_simulation::{ClusterSettings, ClusterWorld, cluster_world};
use turnwise_trajectory::GroupId;

/// The costs of a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct HubCosts {
    /// Processor seconds of the trainer's process.
    pub(super) turn_s: f64,
    /// Seconds from the beginning of a turn to that of the next, beyond the trainer's own, with an engine and an environment
    /// that answer at once.
    pub(super) message_s: f64,
}

/// The episodes that run at a time while processor time is measured.
const EPISODES: usize = 64;
/// The episodes of which each is alone, for the time of messages.
const ALONE: u64 = 8;

/// The longest time that the worker is waited for at the end.
const FAREWELL: Duration = Duration::from_secs(5);

/// Measures with a real hub and a real worker, each on a thread of its own, that talk over this machine's loopback.
pub(super) fn measure(settings: &ClusterSettings) -> Result<HubCosts, Failure> {
    let failed = |error: &(dyn std::error::Error + 'static)| Failure::runtime(error);
    let settings = *settings;
    let (send_url, url) = mpsc::channel::<String>();
    let (handle, stop) = stop_signal();
    let worker = thread::spawn(move || work(&settings, &url, &stop));
    let measured = runtime()?.block_on(async {
        let ClusterWorld { tasks, agents, policy, limits } = cluster_world(&settings);
        let (of_tasks, of_agents) = (tasks.clone(), agents.clone());
        let restore = Arc::new(move |snapshot| Episode::restore(snapshot, &*of_tasks, &*of_agents));
        let hub = WorkerHub::bind(HubSettings::default(), RunDescription::default(), restore);
        let hub = Arc::new(hub.await.map_err(|error| failed(&error))?);
        let _ = send_url.send(hub.url());
        let pool = |episodes: usize| {
            let settings = PoolSettings {
                group_size: episodes,
                min_group_size: 1,
                max_concurrent: episodes,
                limits: limits.clone(),
                ..PoolSettings::default()
            };
            RolloutPool::new(tasks.clone(), agents.clone(), None, settings, 7)
                .with_runner(hub.clone())
        };
        let mut turns = Vec::new();
        for (episodes, n_groups) in [(1, 1), (EPISODES, 1), (1, ALONE)] {
            let mut pool = pool(episodes);
            let (cpu, wall, mut n_turns) = (cpu_time(), Instant::now(), 0);
            for group in 0..n_groups {
                pool.start(GroupId(group), 0);
                let iteration = pool.iterate(&policy, &StopSignal::never()).await;
                let groups = iteration.map_err(|error| failed(&error))?.groups;
                let members = groups.iter().flat_map(|group| &group.members);
                n_turns += members.map(|member| member.turns.len()).sum::<usize>();
            }
            let n_turns = n_turns.max(1) as f64;
            let cpu = cpu_time().saturating_sub(cpu).as_secs_f64() / n_turns;
            turns.push((cpu, wall.elapsed().as_secs_f64() / n_turns));
        }
        hub.dismiss(FAREWELL).await;
        let (_, busy, alone) = (turns[0], turns[1], turns[2]);
        Ok(HubCosts { turn_s: busy.0, message_s: (alone.1 - alone.0).max(0.0) })
    });
    handle.stop();
    // It has nothing that could be lost.
    let _ = worker.join();
    measured
}

/// Works at the hub whose URL arrives.
fn work(settings: &ClusterSettings, url: &mpsc::Receiver<String>, stop: &StopSignal) {
    let (Ok(url), Ok(runtime)) = (url.recv(), runtime()) else { return };
    runtime.block_on(async {
        let ClusterWorld { tasks, agents, .. } = cluster_world(settings);
        if let Ok(worker) = RolloutWorker::join(&url, None).await {
            worker.work(tasks, agents, EPISODES / 4, stop).await;
        }
    });
}

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread().enable_all().build().map_err(|error| Failure::runtime(&error))
}

/// Returns the processor time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}
