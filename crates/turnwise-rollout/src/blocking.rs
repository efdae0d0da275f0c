use std::num::NonZero;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, spawn_blocking};

/// Threads for environments that compute or block: so many run at the same time, and no more.
///
/// A call that ignores its deadline cannot be stopped. Its thread counts as stuck until it comes back, its place is given to
/// the next call, and whatever it comes back with is dropped. A handle: clones share the threads.
#[derive(Clone, Debug)]
pub struct BlockingThreads {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    permits: Arc<Semaphore>,
    n_stuck: AtomicUsize,
}

impl BlockingThreads {
    /// With more stuck threads than these a run should stop and name the environment.
    pub const MAX_STUCK: usize = 8;

    /// At most this many calls at a time.
    ///
    /// # Panics
    /// When it is 0.
    #[must_use]
    pub fn new(n_threads: usize) -> Self {
        assert!(n_threads > 0, "nothing runs on no threads");
        let permits = Arc::new(Semaphore::new(n_threads));
        Self { shared: Arc::new(Shared { permits, n_stuck: AtomicUsize::new(0) }) }
    }

    /// The threads of this process, as many as the machine can run at a time.
    #[must_use]
    pub fn of_process() -> Self {
        static SHARED: OnceLock<BlockingThreads> = OnceLock::new();
        let make = || Self::new(std::thread::available_parallelism().map_or(2, NonZero::get));
        SHARED.get_or_init(make).clone()
    }

    /// How many threads were given up and have not come back: the gauge `stuck_threads`.
    #[must_use]
    pub fn stuck_threads(&self) -> usize {
        self.shared.n_stuck.load(Ordering::Acquire)
    }

    /// Waits until a thread is free.
    pub(crate) async fn permit(&self) -> OwnedSemaphorePermit {
        let permits = Arc::clone(&self.shared.permits);
        permits.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Runs a function on a thread; dropping the future gives the thread up. `None` when the runtime shuts down.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let lease = Lease { phase: Arc::new(AtomicU8::new(RUNNING)), shared: self.shared.clone() };
        let of_thread = OfThread(lease.clone());
        let task = spawn_blocking(move || {
            let _of_thread = of_thread;
            work()
        });
        let _waiting = Waiting { lease, task: task.abort_handle(), _permit: permit };
        task.await.ok()
    }
}

const RUNNING: u8 = 0;
const RETURNED: u8 = 1;
const LOST: u8 = 2;

/// What the thread and whoever waits for it know of each other.
#[derive(Clone, Debug)]
struct Lease {
    phase: Arc<AtomicU8>,
    shared: Arc<Shared>,
}

/// Held by the thread: dropped when the work is over, or will never begin.
struct OfThread(Lease);

impl Drop for OfThread {
    fn drop(&mut self) {
        if self.0.phase.swap(RETURNED, Ordering::AcqRel) == LOST {
            self.0.shared.n_stuck.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Held by who waits.
struct Waiting {
    lease: Lease,
    task: AbortHandle,
    /// Given back with this, so that a lost thread takes nobody's place.
    _permit: OwnedSemaphorePermit,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Counted first: the thread subtracts only what it finds lost.
        self.lease.shared.n_stuck.fetch_add(1, Ordering::AcqRel);
        let phase = &self.lease.phase;
        if phase.compare_exchange(RUNNING, LOST, Ordering::AcqRel, Ordering::Acquire).is_err() {
            self.lease.shared.n_stuck.fetch_sub(1, Ordering::AcqRel);
        }
        // Without effect on a thread that runs; work that has not begun never will.
        self.task.abort();
    }
}
