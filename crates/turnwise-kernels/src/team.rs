//! Thread team: threads that share parallel regions of a few tens of microseconds.
//!
//! A decoding step of a small model has about sixty such regions. Members wait for the next region actively while
//! regions usually follow each other, and sleep after that, so that an idle engine costs nothing.

use std::any::Any;
use std::fmt;
use std::io;
use std::iter;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::PoisonError;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use sync::{Arc, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, JoinHandle, Mutex, thread};

/// Threads, locks and atomics: those of the standard library, or of `loom` in a build that checks every interleaving.
mod sync {
    #[cfg(loom)]
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize};
    #[cfg(loom)]
    pub(super) use loom::sync::{Arc, Mutex};
    #[cfg(loom)]
    pub(super) use loom::thread::{self, JoinHandle};
    #[cfg(not(loom))]
    pub(super) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize};
    #[cfg(not(loom))]
    pub(super) use std::sync::{Arc, Mutex};
    #[cfg(not(loom))]
    pub(super) use std::thread::{self, JoinHandle};
}

/// Says to a model what sequentially consistent accesses give: loom takes them for acquire and release, and knows the total
/// order of fences alone.
fn between_seq_cst_accesses() {
    #[cfg(loom)]
    loom::sync::atomic::fence(SeqCst);
}

/// The time that a member waits actively.
#[cfg(not(loom))]
const AWAKE: std::time::Duration = std::time::Duration::from_micros(300);

/// Polls of a flag before a yield to another thread, which may be the awaited one.
#[cfg(not(loom))]
const LOOKS: u32 = 20_000;

/// The calling thread and its helpers.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
///
/// use turnwise_kernels::team::Team;
///
/// let mut team = Team::new(2, "example")?;
/// let sum = AtomicUsize::new(0);
/// team.each(100, |_member, piece| {
///     sum.fetch_add(piece, Ordering::Relaxed);
/// });
/// assert_eq!(sum.into_inner(), 4950);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// One share for each member.
    shares: Vec<Share>,
}

/// A parallel region: calls `work` with (member, piece).
struct Region<'a> {
    work: &'a (dyn Fn(usize, usize) + Sync),
    /// One share for each member.
    shares: &'a [Share],
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// The remaining pieces of a member: the next from the front in the upper half, the end in the lower. The owner takes
/// from the front, so that a piece is followed by its neighbour, whose memory may be prefetched; members without pieces
/// steal from the end. A share has a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn deal(&self, pieces: Range<usize>) {
        self.0.store(Self::packed(&pieces), Relaxed);
    }

    fn first(&self) -> Option<usize> {
        self.take(Range::next)
    }

    fn last(&self) -> Option<usize> {
        self.take(Range::next_back)
    }

    fn take(&self, from: impl Fn(&mut Range<usize>) -> Option<usize>) -> Option<usize> {
        let mut taken = None;
        let rest = |packed: u64| {
            let mut pieces = (packed >> 32) as usize..(packed & u64::from(u32::MAX)) as usize;
            taken = from(&mut pieces);
            taken.map(|_| Self::packed(&pieces))
        };
        self.0.fetch_update(Relaxed, Relaxed, rest).ok().and(taken)
    }

    fn packed(pieces: &Range<usize>) -> u64 {
        let half = |piece: usize| u32::try_from(piece).expect("there are fewer pieces than 2^32");
        (u64::from(half(pieces.start)) << 32) | u64::from(half(pieces.end))
    }
}

struct Shared {
    /// The open region, or null.
    region: AtomicPtr<Region<'static>>,
    /// Counts regions, so that a helper notices a new one.
    epoch: AtomicU64,
    /// The number of helpers that may be looking at the open region.
    inside: AtomicUsize,
    /// The number of helpers that sleep or are about to.
    asleep: AtomicUsize,
    is_over: AtomicBool,
}

impl Team {
    /// Starts a team of this many threads, the caller included; 0 means one per processor. Helpers are named `NAME-1`
    /// and so on.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: usize, name: &str) -> io::Result<Self> {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { available() } else { threads };
        let shared = Arc::new(Shared {
            region: AtomicPtr::default(),
            epoch: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        });
        // If a thread is refused, dropping the team ends the threads that were started.
        let mut team = Self {
            shared,
            helpers: Vec::new(),
            shares: iter::repeat_with(Share::default).take(threads).collect(),
        };
        for member in 1..threads {
            let shared = team.shared.clone();
            let thread = thread::Builder::new().name(format!("{name}-{member}"));
            let helper = thread.spawn(move || shared.help(member));
            team.helpers.push(helper?);
        }
        Ok(team)
    }

    /// Returns the number of threads.
    #[must_use]
    pub fn size(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` with (member, piece) once for each piece, and returns when all calls have returned. The assignment
    /// of pieces to members is not deterministic, though each member begins with neighbouring pieces; a member does one
    /// piece at a time.
    ///
    /// # Panics
    /// When `work` does.
    pub fn each(&mut self, pieces: usize, work: impl Fn(usize, usize) + Sync) {
        if self.helpers.is_empty() || pieces <= 1 {
            return (0..pieces).for_each(|piece| work(0, piece));
        }
        let members = self.size();
        for (member, share) in self.shares.iter().enumerate() {
            share.deal(pieces * member / members..pieces * (member + 1) / members);
        }
        let region = Region { work: &work, shares: &self.shares, panic: Mutex::new(None) };
        self.open(&region);
        region.join(0);
        self.close();
        let panic = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `work` with (member, index of a chunk, chunk) once for each chunk of `length` items.
    ///
    /// # Panics
    /// When `work` does, and when `length` is 0.
    pub fn chunks<T: Send>(
        &mut self,
        items: &mut [T],
        length: usize,
        work: impl Fn(usize, usize, &mut [T]) + Sync,
    ) {
        let chunks = Chunks { start: items.as_mut_ptr(), count: items.len(), length };
        self.each(items.len().div_ceil(length), |member, index| {
            // SAFETY: each index is given out once.
            let chunk = unsafe { chunks.get(index) };
            work(member, index, chunk);
        });
    }

    fn open(&self, region: &Region<'_>) {
        let Shared { region: place, epoch, asleep, .. } = &*self.shared;
        let pointer: *const Region<'_> = region;
        place.store(pointer.cast_mut().cast(), SeqCst);
        epoch.fetch_add(1, SeqCst);
        between_seq_cst_accesses();
        if asleep.load(SeqCst) > 0 {
            self.helpers.iter().for_each(|helper| helper.thread().unpark());
        }
    }

    /// Waits until no helper looks at the region.
    fn close(&self) {
        self.shared.region.store(std::ptr::null_mut(), SeqCst);
        between_seq_cst_accesses();
        let mut looks = 0;
        while self.shared.inside.load(SeqCst) > 0 {
            wait(&mut looks);
        }
    }
}

#[cfg(not(loom))]
fn wait(looks: &mut u32) {
    *looks += 1;
    if *looks < LOOKS {
        std::hint::spin_loop();
    } else {
        *looks = 0;
        thread::yield_now();
    }
}

/// Lets another thread go on, because a model has no time that passes.
#[cfg(loom)]
fn wait(_looks: &mut u32) {
    thread::yield_now();
}

/// A slice that is handed out in pieces.
struct Chunks<T> {
    start: *mut T,
    count: usize,
    length: usize,
}

// SAFETY: threads that share it get disjoint chunks, of items that are `Send`.
unsafe impl<T: Send> Sync for Chunks<T> {}

impl<T> Chunks<T> {
    /// # Safety
    /// Nobody else has the chunk, and the slice stays borrowed as long as the result.
    #[allow(clippy::mut_from_ref, reason = "each chunk has one owner")]
    unsafe fn get(&self, index: usize) -> &mut [T] {
        let start = index * self.length;
        assert!(start < self.count, "there is such a chunk");
        let length = self.length.min(self.count - start);
        // SAFETY: the lines above keep the chunk inside the slice, and the caller guarantees exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) }
    }
}

/// Rows of a slice, each written once by one thread.
pub struct WriteOnceRows<'a> {
    chunks: Chunks<f32>,
    taken: Vec<AtomicBool>,
    lifetime: PhantomData<&'a mut [f32]>,
}

impl<'a> WriteOnceRows<'a> {
    /// Splits a slice into rows of `length` numbers.
    ///
    /// # Panics
    /// When `length` is 0.
    #[must_use]
    pub fn new(data: &'a mut [f32], length: usize) -> Self {
        let taken = (0..data.len() / length).map(|_| AtomicBool::new(false)).collect();
        let chunks = Chunks { start: data.as_mut_ptr(), count: data.len(), length };
        Self { chunks, taken, lifetime: PhantomData }
    }

    /// Writes a row.
    ///
    /// # Panics
    /// When there is no such row, it was written before, or the lengths differ.
    #[inline]
    pub fn write(&self, row: usize, numbers: &[f32]) {
        assert!(!self.taken[row].swap(true, Relaxed), "a row is written once");
        // SAFETY: the line above lets one caller through for each row.
        let target = unsafe { self.chunks.get(row) };
        target.copy_from_slice(numbers);
    }
}

impl Region<'_> {
    /// Does pieces until none are left.
    fn join(&self, member: usize) {
        let next = || {
            let mut others = self.shares[member + 1..].iter().chain(&self.shares[..member]);
            self.shares[member].first().or_else(|| others.find_map(Share::last))
        };
        let work = || {
            while let Some(piece) = next() {
                (self.work)(member, piece);
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            self.shares.iter().for_each(|share| share.deal(0..0));
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }
}

impl Shared {
    fn help(&self, member: usize) {
        let mut seen = 0;
        while self.wait_for_region(&mut seen) {
            self.inside.fetch_add(1, SeqCst);
            between_seq_cst_accesses();
            let region = self.region.load(SeqCst);
            // SAFETY: `open` stores the pointer and `close` removes it, then waits until `inside` is 0. All three
            // accesses are sequentially consistent: a pointer read after `inside` was raised is valid until `inside` is
            // lowered, because `close` either removed the pointer before, or sees the raised count.
            if let Some(region) = unsafe { region.as_ref() } {
                region.join(member);
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// Returns false when the team ends.
    fn wait_for_region(&self, seen: &mut u64) -> bool {
        #[cfg(not(loom))]
        if self.sees_region_awake(seen) {
            return !self.is_over.load(Acquire);
        }
        self.asleep.fetch_add(1, SeqCst);
        between_seq_cst_accesses();
        // `open` counts up before it looks for sleepers, and a sleeper registers before it looks again.
        while !self.is_new(seen) {
            thread::park();
        }
        self.asleep.fetch_sub(1, SeqCst);
        !self.is_over.load(Acquire)
    }

    /// Waits actively for some time; returns false if no region was opened.
    #[cfg(not(loom))]
    fn sees_region_awake(&self, seen: &mut u64) -> bool {
        let start = std::time::Instant::now();
        let mut looks = 0_u32;
        loop {
            if self.is_new(seen) {
                return true;
            }
            std::hint::spin_loop();
            looks += 1;
            if looks.is_multiple_of(1024) && start.elapsed() > AWAKE {
                return false;
            }
        }
    }

    fn is_new(&self, seen: &mut u64) -> bool {
        let epoch = self.epoch.load(SeqCst);
        std::mem::replace(seen, epoch) != epoch
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Release);
        self.shared.epoch.fetch_add(1, SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper catches panics of its work, so there is no panic to propagate.
            let _ = helper.join();
        }
    }
}

impl fmt::Debug for WriteOnceRows<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n_rows = self.taken.len();
        formatter.debug_struct("WriteOnceRows").field("n_rows", &n_rows).finish_non_exhaustive()
    }
}

impl fmt::Debug for Team {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Team").field("size", &self.size()).finish_non_exhaustive()
    }
}

/// Checks of every interleaving of the threads of a small team, up to a number of preemptions: in a model, a region that
/// closes too early is a data race, and a team that does not end is a deadlock.
///
/// ```sh
/// RUSTFLAGS="--cfg loom" cargo test --release -p turnwise-kernels --features products --lib models
/// ```
#[cfg(all(test, loom))]
mod models {
    use loom::cell::UnsafeCell;

    use super::*;

    /// Cells that pieces write without a lock, as matrix products write rows.
    struct Cells(Vec<UnsafeCell<usize>>);

    // SAFETY: each piece writes its own cell, and the caller reads after the region is closed. The model verifies both.
    unsafe impl Sync for Cells {}

    fn check(threads: usize, regions: &'static [usize]) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(move || {
            let mut team = Team::new(threads, "model").unwrap();
            for pieces in regions {
                let cells = Cells((0..*pieces).map(|_| UnsafeCell::new(0)).collect());
                let cells = &cells;
                team.each(*pieces, move |_, piece| {
                    // SAFETY: no other piece has this cell.
                    cells.0[piece].with_mut(|cell| unsafe { *cell += 1 + piece });
                });
                for (piece, cell) in cells.0.iter().enumerate() {
                    // SAFETY: the region is closed.
                    assert_eq!(cell.with(|cell| unsafe { *cell }), 1 + piece);
                }
            }
        });
    }

    #[test]
    fn every_piece_is_done_once_and_seen() {
        check(2, &[2]);
        check(2, &[3, 2]);
        check(3, &[2]);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_awake_and_asleep() {
        for threads in [1, 2, 5] {
            let mut team = Team::new(threads, "test").unwrap();
            for round in 0..300 {
                if round % 100 == 99 {
                    thread::sleep(2 * AWAKE);
                }
                let counts: Vec<AtomicUsize> =
                    (0..round % 37).map(|_| AtomicUsize::new(0)).collect();
                team.each(counts.len(), |member, piece| {
                    assert!(member < threads);
                    counts[piece].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let mut team = Team::new(3, "test").unwrap();
        for _ in 0..20 {
            let call = || team.each(50, |_, piece| assert_ne!(piece, 31, "on purpose"));
            assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
            team.each(10, |_, _| ());
        }
    }
}
