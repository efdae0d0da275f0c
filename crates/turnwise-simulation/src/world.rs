use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use turnwise_rollout::SessionId;

use tokio::time::Instant;
use turnwise_environment::{Random, derive_seed};
use turnwise_trajectory::PolicyVersion;

use crate::trace::Trace;
use crate::witness::Witness;
use crate::{FaultKind, Invariant, Mutation, SimulationPlan, Violation};

/// The granularity of the timer, by which a call may exceed its deadline.
const GRACE: Duration = Duration::from_secs(1);

/// The state shared by all scripted parts: the random numbers, the trace, and the witness.
pub(crate) struct World {
    pub(crate) plan: SimulationPlan,
    pub(crate) mutation: Option<Mutation>,
    started: Instant,
    state: Mutex<State>,
}

/// The mutable part.
pub(crate) struct State {
    random: Random,
    pub(crate) trace: Trace,
    pub(crate) witness: Witness,
    pub(crate) faults: BTreeMap<FaultKind, u64>,
    pub(crate) sessions: BTreeSet<SessionId>,
    pub(crate) environments: usize,
    pub(crate) running: usize,
    pub(crate) max_stall: Duration,
    pub(crate) violation: Option<Violation>,
    /// The version at which the newest batch was trained.
    pub(crate) trained_at: PolicyVersion,
    is_quiet: bool,
}

impl World {
    pub(crate) fn new(plan: SimulationPlan, mutation: Option<Mutation>) -> Arc<Self> {
        let state = State {
            random: Random::new(derive_seed(plan.seed, 7)),
            trace: Trace::default(),
            witness: Witness::new(derive_seed(plan.seed, 8)),
            faults: BTreeMap::new(),
            sessions: BTreeSet::new(),
            environments: 0,
            running: 0,
            max_stall: Duration::ZERO,
            violation: None,
            trained_at: PolicyVersion(0),
            is_quiet: false,
        };
        Arc::new(Self { plan, mutation, started: Instant::now(), state: Mutex::new(state) })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A simulated panic may unwind through a holder of the lock; the guarded counters stay valid.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Returns the virtual time since the run began.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn event(&self, word: &str, numbers: &[u64]) {
        let now = self.now();
        let mut state = self.state();
        state.trace.event("at", &[now.as_nanos() as u64]);
        state.trace.event(word, numbers);
    }

    /// Returns a random number below `n`.
    pub(crate) fn below(&self, n: u64) -> u64 {
        self.state().random.below(n)
    }

    /// Returns whether an event with this chance in thousandths happens; never once the world is quiet.
    pub(crate) fn happens(&self, thousandths: u64) -> bool {
        let mut state = self.state();
        thousandths > 0 && !state.is_quiet && state.random.below(1000) < thousandths
    }

    /// Returns the one of these faults that happens here, if any.
    pub(crate) fn fault(&self, kinds: &[FaultKind]) -> Option<FaultKind> {
        for (kind, rate) in &self.plan.faults {
            if kinds.contains(kind) && self.happens(*rate) {
                *self.state().faults.entry(*kind).or_default() += 1;
                self.event("fault", &[*kind as u64]);
                return Some(*kind);
            }
        }
        None
    }

    /// Returns the latency of a healthy call.
    pub(crate) fn latency(&self, most_ms: u64) -> Duration {
        let jitter = if self.is(Mutation::ReadsTheClock) {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |now| u64::from(now.subsec_nanos()) % 50)
        } else {
            0
        };
        // The runtime's timer counts in milliseconds.
        Duration::from_millis(self.below(most_ms + 1) + jitter)
    }

    /// Stops all faults from here on.
    pub(crate) fn quiet(&self) {
        self.state().is_quiet = true;
    }

    /// Keeps the first violation, because later ones may be its consequences.
    pub(crate) fn violate(&self, violation: Violation) {
        self.state().violation.get_or_insert(violation);
    }

    /// Returns the first violation so far, or this one.
    pub(crate) fn first_of(&self, violation: Violation) -> Violation {
        self.state().violation.take().unwrap_or(violation)
    }

    /// Records the start of a call; the call ends when the guard is dropped.
    pub(crate) fn call(self: &Arc<Self>, what: &'static str, limit: Duration) -> Call {
        let running = {
            let mut state = self.state();
            state.running += 1;
            state.running
        };
        let most = self.plan.trainer.rollout.max_concurrent;
        if running > most {
            let found = format!("{running} calls at once, allowed are {most}");
            self.violate(Violation::new(Invariant::Concurrency, found));
        }
        Call { world: self.clone(), what, limit, began: Instant::now() }
    }
}

/// A call of an environment or an engine, alive as long as its future.
pub(crate) struct Call {
    world: Arc<World>,
    what: &'static str,
    limit: Duration,
    began: Instant,
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let stall = took.saturating_sub(self.limit);
        {
            let mut state = self.world.state();
            state.running -= 1;
            state.max_stall = state.max_stall.max(stall);
        }
        if stall > GRACE {
            let found = format!("{} took {took:?}, its deadline was {:?}", self.what, self.limit);
            self.world.violate(Violation::new(Invariant::Deadlines, found));
        }
    }
}
