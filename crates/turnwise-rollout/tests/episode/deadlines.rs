use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use turnwise_environment::{Action, Environment, EnvironmentError, Observation, Step, async_trait};
use turnwise_rollout::{
    Allowance, BlockingThreads, Deadline, Episode, Limits, Policy, PoolSettings, Progress,
    RolloutPool, StopSignal,
};
use turnwise_testkit::{Blocking, Echo, Sessions};
use turnwise_trajectory::{CancelReason, GroupId, InfraReason, Outcome, PolicyVersion};

use crate::support::{
    ENGINE, Made, agents, block_on, episode, finished, identity, limits, message, reason, suspended,
};

proptest! {
    // Rollouts 13.25: for every chain of limits.
    #[test]
    fn a_childs_deadline_never_exceeds_what_its_parent_has_left(
        limits in prop::collection::vec(
            prop_oneof![
                (0_u64..10_000).prop_map(Duration::from_millis),
                Just(Duration::MAX),
            ],
            1..6,
        ),
        waits in prop::collection::vec(0_u64..3_000, 6),
    ) {
        block_on(async {
            let mut parent = Deadline::never();
            for (limit, wait) in limits.iter().zip(waits) {
                let child = parent.child(*limit);
                prop_assert!(child.remaining() <= parent.remaining());
                prop_assert!(child.remaining() <= *limit);
                prop_assert!(
                    child.remaining() == parent.remaining() || child.remaining() == *limit
                );
                tokio::time::sleep(Duration::from_millis(wait)).await;
                prop_assert!(child.remaining() <= parent.remaining());
                prop_assert_eq!(child.is_over(), child.remaining().is_zero());
                parent = child;
            }
            Ok(())
        })?;
    }

    // Rollouts 13.24: an episode ends with the deadline of its parent.
    #[test]
    fn an_advance_does_not_outlive_its_parent(limit in 1_u64..40, own in 1_u64..40) {
        let tasks = Made(|| -> Box<dyn Environment> { Box::new(Slow(Duration::from_secs(7))) });
        block_on(async {
            let limits = Limits { episode_timeout_s: own as f64, ..limits() };
            let episode = Episode::new(identity(&tasks, 3), tasks.0(), &agents(), limits);
            let started = tokio::time::Instant::now();
            let parent = Deadline::after(Duration::from_secs(limit));
            let allowance = Allowance::unlimited();
            let Progress::Finished(ended) =
                episode.advance_within(&ENGINE, &allowance, parent).await
            else {
                panic!("nobody suspends it");
            };
            prop_assert_eq!(reason(&ended), Some(InfraReason::EpisodeTimeout));
            let took = started.elapsed();
            let expected = Duration::from_secs(limit.min(own));
            prop_assert!(took >= expected && took <= expected + Duration::from_millis(10));
            Ok(())
        })?;
    }
}

/// An environment that waits in each step, and never ends.
struct Slow(Duration);

#[async_trait]
impl Environment for Slow {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("Wait.".into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        tokio::time::sleep(self.0).await;
        Ok(Step::next("Wait."))
    }
}

/// An environment that waits once in every call, and counts its instances.
struct Counted {
    inner: Echo,
    alive: Arc<AtomicUsize>,
}

impl Counted {
    fn new(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self { inner: Echo::new(3, true), alive: alive.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Environment for Counted {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        tokio::task::yield_now().await;
        self.inner.reset(seed).await
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        tokio::task::yield_now().await;
        self.inner.step(action).await
    }
}

/// Polls a future `n_polls` times, then drops it; returns whether it was ready before.
fn dropped_after(n_polls: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..n_polls).any(|_| matches!(future.as_mut().poll(&mut context), Poll::Ready(_)))
}

// Rollouts 13.24: dropped at every await.
#[test]
fn an_advance_that_is_dropped_anywhere_leaves_nothing_behind() {
    let alive = Arc::new(AtomicUsize::new(0));
    let mut n_awaits = 0;
    for n_polls in 0.. {
        let engine = Sessions::new(ENGINE);
        let tasks = Made({
            let alive = alive.clone();
            move || -> Box<dyn Environment> { Box::new(Counted::new(&alive)) }
        });
        let is_over = block_on(async {
            let episode = episode(&tasks, 3);
            assert_eq!(alive.load(Ordering::SeqCst), 1);
            dropped_after(n_polls, episode.advance(&engine, &Allowance::unlimited()))
        });
        assert_eq!(alive.load(Ordering::SeqCst), 0, "an environment after {n_polls} polls");
        assert!(engine.open().is_empty(), "a session after {n_polls} polls");
        if is_over {
            break;
        }
        n_awaits = n_polls;
    }
    assert!(n_awaits > 10, "{n_awaits} awaits are too few to have seen them all");
}

/// Returns a pool of two groups whose environments and sessions are counted.
fn pool_of_counted(alive: &Arc<AtomicUsize>) -> RolloutPool {
    let tasks = Made({
        let alive = alive.clone();
        move || -> Box<dyn Environment> { Box::new(Counted::new(&alive)) }
    });
    let settings = PoolSettings {
        group_size: 3,
        max_concurrent: 4,
        tokens_per_iteration: Some(60),
        limits: limits(),
        ..PoolSettings::default()
    };
    let mut pool = RolloutPool::new(Arc::new(tasks), Arc::new(agents()), None, settings, 3);
    (0..2).for_each(|group| pool.start(GroupId(group), 0));
    pool
}

/// Polls a future `n_polls` times, with spawned tasks running in between; returns whether it was ready before.
async fn dropped_among_tasks(n_polls: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    for _ in 0..n_polls {
        if poll_once(future.as_mut()).is_ready() {
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

// Rollouts 13.24: a whole iteration, dropped at every await, with the pool and without; no task keeps running.
#[test]
fn an_iteration_that_is_dropped_anywhere_leaves_nothing_behind() {
    let alive = Arc::new(AtomicUsize::new(0));
    let mut n_awaits = 0;
    for n_polls in 0.. {
        let engine = Arc::new(Sessions::new(ENGINE));
        let policy: Arc<dyn Policy> = engine.clone();
        let is_over = block_on(async {
            let mut pool = pool_of_counted(&alive);
            let never = StopSignal::never();
            let is_over = dropped_among_tasks(n_polls, pool.iterate(&policy, &never)).await;
            // Dropping the future loses nothing: running episodes continue or are stopped, and are in the books.
            pool.halt().await;
            let census = pool.census();
            assert_eq!(census.running, 0, "after {n_polls} polls");
            let found = census.suspended + census.fresh + census.gathered;
            let ledger = pool.ledger();
            assert_eq!(ledger.open(), found, "after {n_polls} polls: {pool:?}");
            assert_eq!(alive.load(Ordering::SeqCst) as u64, census.suspended + census.fresh);
            assert!(engine.open().len() as u64 <= census.suspended, "after {n_polls} polls");

            // Dropping the pool too leaves nothing at all.
            let mut pool = pool_of_counted(&alive);
            dropped_among_tasks(n_polls, pool.iterate(&policy, &never)).await;
            drop(pool);
            tokio::task::yield_now().await;
            is_over
        });
        assert_eq!(alive.load(Ordering::SeqCst), 0, "an environment after {n_polls} polls");
        assert!(engine.open().is_empty(), "a session after {n_polls} polls");
        // No task holds the engine any more, even for requests that were never answered.
        drop(policy);
        assert_eq!(Arc::strong_count(&engine), 1, "a task after {n_polls} polls");
        if is_over {
            break;
        }
        n_awaits = n_polls;
    }
    assert!(n_awaits > 10, "{n_awaits} awaits are too few to have seen them all");
}

// Rollouts 13.24: a suspended episode keeps its session, a cancelled one does not.
#[test]
fn cancelling_a_suspended_episode_gives_its_session_back() {
    let tasks = vec![Echo::new(9, true)];
    let engine = Sessions::new(ENGINE);
    block_on(async {
        let progress = episode(&tasks, 3).advance(&engine, &Allowance::tokens(3)).await;
        let Progress::Suspended(episode) = progress else { panic!("nine turns") };
        assert_eq!(engine.open().len(), 1);
        let cancelled = episode.cancel(CancelReason::Stale, &engine);
        assert_eq!(cancelled.outcome, Outcome::Cancelled(CancelReason::Stale));
        assert_eq!((cancelled.n_sampled(), cancelled.reward()), (3, None));
        assert!(engine.open().is_empty());
        assert_eq!(engine.version(), PolicyVersion(0));
    });
}

/// Runs a future on a runtime with a running clock.
fn on_threads<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().build().expect("a runtime");
    let result = runtime.block_on(future);
    // Some of these tests leave a stuck thread behind, which the runtime must not wait for.
    runtime.shutdown_background();
    result
}

fn blocking(pause: Duration, threads: &BlockingThreads, timeout: f64) -> Episode {
    let tasks = vec![Blocking::new(pause)];
    let limits = Limits { environment_timeout_s: timeout, ..limits() };
    let environment = Box::new(tasks[0].clone());
    let episode = Episode::new(identity(&tasks, 3), environment, &agents(), limits);
    episode.with_threads(threads.clone())
}

// A declared blocking environment delays no other.
#[test]
fn a_blocking_environment_does_not_hold_up_the_others() {
    let threads = BlockingThreads::new(2);
    on_threads(async {
        let slow = finished(blocking(Duration::from_millis(150), &threads, 60.0), &ENGINE);
        let ticks = async {
            let started = Instant::now();
            let mut longest = Duration::ZERO;
            while started.elapsed() < Duration::from_millis(250) {
                let before = Instant::now();
                tokio::time::sleep(Duration::from_millis(5)).await;
                longest = longest.max(before.elapsed());
            }
            longest
        };
        let (ended, longest) = tokio::join!(slow, ticks);
        assert_eq!((ended.outcome, threads.stuck_threads()), (Outcome::Done, 0));
        assert!(longest < Duration::from_millis(120), "a timer waited {longest:?}");
    });
}

// Rollouts 13.24: if a call on a thread is dropped while it waits for a thread, runs on one or returns, the only place
// becomes free again, and no thread stays lost.
#[test]
fn a_call_that_is_dropped_anywhere_gives_its_thread_back() {
    let threads = BlockingThreads::new(1);
    on_threads(async {
        for n_polls in 0..24 {
            let pause = Duration::from_millis(2);
            let (first, second) =
                (blocking(pause, &threads, 60.0), blocking(pause, &threads, 60.0));
            {
                let allowance = Allowance::unlimited();
                let mut both = pin!(async {
                    tokio::join!(
                        first.advance(&ENGINE, &allowance),
                        second.advance(&ENGINE, &allowance)
                    )
                });
                for _ in 0..n_polls {
                    if poll_once(both.as_mut()).is_ready() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            let next = finished(blocking(Duration::ZERO, &threads, 60.0), &ENGINE);
            let next = tokio::time::timeout(Duration::from_secs(20), next).await;
            assert_eq!(next.expect("there is a place").outcome, Outcome::Done, "{n_polls} polls");
            let started = Instant::now();
            while threads.stuck_threads() > 0 {
                assert!(started.elapsed() < Duration::from_secs(20), "lost after {n_polls} polls");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
}

// A thread that ignores its deadline is counted as stuck until it returns.
#[test]
fn a_thread_that_ignores_its_deadline_is_lost_counted_and_found_again() {
    let threads = BlockingThreads::new(1);
    on_threads(async {
        let stuck = blocking(Duration::from_millis(600), &threads, 0.05);
        let started = Instant::now();
        let ended = finished(stuck, &ENGINE).await;
        assert!(started.elapsed() < Duration::from_millis(500), "nobody waits for it");
        assert_eq!(reason(&ended), Some(InfraReason::EnvTimeout), "{}", message(&ended));
        assert_eq!(threads.stuck_threads(), 1);
        // The only place has been given to the next call.
        let next = finished(blocking(Duration::ZERO, &threads, 60.0), &ENGINE).await;
        assert_eq!(next.outcome, Outcome::Done);
        while threads.stuck_threads() > 0 {
            assert!(started.elapsed() < Duration::from_secs(20), "it comes back some time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The late result is dropped, because its episode ended before.
        assert_eq!(ended.turns.len(), 1);
    });
}

// More calls than threads wait for a thread, without spending their own deadline.
#[test]
fn waiting_for_a_thread_costs_nobody_its_deadline() {
    let threads = BlockingThreads::new(1);
    on_threads(async {
        let play = || finished(blocking(Duration::from_millis(60), &threads, 0.5), &ENGINE);
        let all = tokio::join!(play(), play(), play(), play(), play(), play());
        for ended in [all.0, all.1, all.2, all.3, all.4, all.5] {
            assert_eq!(ended.outcome, Outcome::Done);
        }
    });
}

// The time of an episode runs only while the episode runs.
#[test]
fn time_spent_suspended_is_nobodys() {
    let tasks = Made(|| -> Box<dyn Environment> { Box::new(Slow(Duration::from_secs(1))) });
    block_on(async {
        let limits = Limits { episode_timeout_s: 30.0, ..limits() };
        let mut episode = Episode::new(identity(&tasks, 3), tasks.0(), &agents(), limits);
        for _ in 0..5 {
            episode = suspended(episode, 4).await.expect("it has no end");
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        assert_eq!(episode.suspensions(), 5);
    });
}
