use std::num::NonZero;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, spawn_blocking};

/// A bounded pool of threads for environments that compute or block.
///
/// A call that ignores its deadline cannot be stopped. Its thread counts as stuck until the call returns, its place is
/// given to the next call, and its result is dropped. Clones share the threads.
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
    /// The number of stuck threads above which a run should stop and name the environment.
    pub const MAX_STUCK: usize = 8;

    /// Creates a pool that runs at most this many calls at a time.
    ///
    /// # Panics
    /// Panics if `n_threads` is 0.
    #[must_use]
    pub fn new(n_threads: usize) -> Self {
        assert!(n_threads > 0, "a pool has at least one thread");
        let permits = Arc::new(Semaphore::new(n_threads));
        Self { shared: Arc::new(Shared { permits, n_stuck: AtomicUsize::new(0) }) }
    }

    /// Returns the threads of this process, as many as the machine can run in parallel.
    #[must_use]
    pub fn of_process() -> Self {
        static SHARED: OnceLock<BlockingThreads> = OnceLock::new();
        let make = || Self::new(std::thread::available_parallelism().map_or(2, NonZero::get));
        SHARED.get_or_init(make).clone()
    }

    /// Returns the number of abandoned threads that have not returned: the gauge `stuck_threads`.
    #[must_use]
    pub fn stuck_threads(&self) -> usize {
        self.shared.n_stuck.load(Ordering::Acquire)
    }

    /// Waits until a thread is free.
    pub(crate) async fn permit(&self) -> OwnedSemaphorePermit {
        let permits = Arc::clone(&self.shared.permits);
        permits.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Runs a function on a thread; dropping the future abandons the thread. Returns `None` if the runtime shuts down.
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

/// The state shared by a thread and its caller.
#[derive(Clone, Debug)]
struct Lease {
    phase: Arc<AtomicU8>,
    shared: Arc<Shared>,
}

/// The thread's half of a lease, dropped when the work is over or will never begin.
struct OfThread(Lease);

impl Drop for OfThread {
    fn drop(&mut self) {
        if self.0.phase.swap(RETURNED, Ordering::AcqRel) == LOST {
            self.0.shared.n_stuck.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The caller's half of a lease.
struct Waiting {
    lease: Lease,
    task: AbortHandle,
    /// Released with this value, so that an abandoned thread takes no place.
    _permit: OwnedSemaphorePermit,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // The count goes up first, because the thread subtracts only if it finds itself abandoned.
        self.lease.shared.n_stuck.fetch_add(1, Ordering::AcqRel);
        let phase = &self.lease.phase;
        if phase.compare_exchange(RUNNING, LOST, Ordering::AcqRel, Ordering::Acquire).is_err() {
            self.lease.shared.n_stuck.fetch_sub(1, Ordering::AcqRel);
        }
        // An abort does not affect a running thread, and work that has not begun never begins.
        self.task.abort();
    }
}
