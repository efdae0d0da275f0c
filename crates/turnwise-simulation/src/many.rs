use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{
    Counterexample, FaultKind, Invariant, Mode, SimulationPlan, SimulationReport, Violation,
    simulate,
};

/// The settings of a series of simulations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManySettings {
    /// The seeds.
    pub seeds: Range<u64>,
    /// The modes; each seed runs once in each.
    pub modes: Vec<Mode>,
    /// The number of threads.
    pub jobs: usize,
    /// Every n-th seed runs twice, and both traces must be equal; 0 repeats none.
    pub repeat_every: u64,
    /// The real time after which a run counts as hung.
    pub watchdog: Duration,
}

impl ManySettings {
    /// Returns both modes on two threads; each 20th seed runs twice, and a run hangs after a minute.
    #[must_use]
    pub fn new(seeds: Range<u64>) -> Self {
        Self {
            seeds,
            modes: vec![Mode::Safety, Mode::Liveness],
            jobs: 2,
            repeat_every: 20,
            watchdog: Duration::from_mins(1),
        }
    }
}

/// The progress of a series of simulations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesProgress {
    /// The number of finished seeds.
    pub done: u64,
    /// The total number of seeds.
    pub of: u64,
    /// The number of runs with a violation.
    pub failures: u64,
}

/// The results of a series of simulations.
#[derive(Clone, Debug, Default)]
pub struct SeriesSummary {
    /// The number of seeds.
    pub seeds: u64,
    /// The number of runs; a seed runs once in each mode.
    pub runs: u64,
    /// The number of runs that were repeated to compare their traces.
    pub repeated: u64,
    /// The number of optimiser steps.
    pub steps: u64,
    /// The number of started rollouts.
    pub rollouts: u64,
    /// The number of trained rollouts.
    pub trained: u64,
    /// The number of dropped rollouts.
    pub dropped: u64,
    /// The number of faults, by kind.
    pub faults: BTreeMap<FaultKind, u64>,
    /// The number of halts in the middle of a step.
    pub halts: u64,
    /// The number of kills in the middle of a step.
    pub kills: u64,
    /// The number of restores from a snapshot.
    pub restores: u64,
    /// The longest time that a call exceeded its deadline.
    pub max_stall: Duration,
    /// The virtual time of all runs.
    pub virtual_time: Duration,
    /// The real time.
    pub wall_time: Duration,
    /// The first 100 runs with a violation.
    pub failures: Vec<Counterexample>,
}

impl SeriesSummary {
    /// Returns the number of faults of all kinds.
    #[must_use]
    pub fn n_faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Returns the number of runs that hung, on their own clock or on a real one.
    #[must_use]
    pub fn n_hangs(&self) -> usize {
        self.n_violating(Invariant::Liveness)
    }

    /// Returns the number of runs whose books did not balance.
    #[must_use]
    pub fn n_unaccounted(&self) -> usize {
        self.n_violating(Invariant::Conservation)
    }

    fn n_violating(&self, invariant: Invariant) -> usize {
        self.failures.iter().filter(|failure| failure.violation.invariant == invariant).count()
    }

    fn add(&mut self, report: &SimulationReport) {
        self.runs += 1;
        self.steps += report.steps;
        self.rollouts += report.rollouts;
        self.trained += report.trained;
        self.dropped += report.dropped;
        for (kind, n) in &report.faults {
            *self.faults.entry(*kind).or_default() += n;
        }
        self.halts += report.halts;
        self.kills += report.kills;
        self.restores += report.restores;
        self.max_stall = self.max_stall.max(report.max_stall);
        self.virtual_time += report.virtual_time;
    }

    fn fail(&mut self, failure: Counterexample) {
        self.runs += 1;
        if self.failures.len() < MAX_FAILURES {
            self.failures.push(failure);
        }
    }
}

const MAX_FAILURES: usize = 100;

/// The state shared by the threads.
struct Shared {
    next: AtomicU64,
    summary: Mutex<SeriesSummary>,
    /// The current run of each thread, and its start.
    current: Vec<Mutex<Option<(SimulationPlan, Instant)>>>,
}

/// Runs many simulations, each on one thread with its own runtime, and reports the progress about once a second.
///
/// A run that hangs on a real clock cannot be stopped: it is reported, and its thread's other runs are given up.
pub fn simulate_many(settings: &ManySettings, show: impl Fn(SeriesProgress)) -> SeriesSummary {
    let started = Instant::now();
    let shared: &'static Shared = Box::leak(Box::new(Shared {
        next: AtomicU64::new(settings.seeds.start),
        summary: Mutex::default(),
        current: (0..settings.jobs.max(1)).map(|_| Mutex::default()).collect(),
    }));
    let start = |job| {
        let settings = settings.clone();
        std::thread::Builder::new().spawn(move || work(&settings, shared, job))
    };
    // If the system starts fewer threads, the series takes longer.
    let threads: Vec<_> = (0..shared.current.len()).map_while(|job| start(job).ok()).collect();
    if threads.is_empty() {
        work(settings, shared, 0);
    }
    let mut lost = vec![false; threads.len()];
    loop {
        let is_over =
            |(thread, lost): (&std::thread::JoinHandle<()>, &bool)| *lost || thread.is_finished();
        if threads.iter().zip(&lost).all(is_over) {
            break;
        }
        watch(settings, shared, &mut lost);
        show(progress(settings, shared));
        std::thread::sleep(Duration::from_millis(if started.elapsed().as_secs() < 2 {
            20
        } else {
            500
        }));
    }
    let mut summary = shared.summary.lock().expect("no run panics with it").clone();
    summary.wall_time = started.elapsed();
    summary
}

fn progress(settings: &ManySettings, shared: &Shared) -> SeriesProgress {
    let summary = shared.summary.lock().expect("no run panics with it");
    let of = settings.seeds.end - settings.seeds.start;
    SeriesProgress { done: summary.seeds, of, failures: summary.failures.len() as u64 }
}

/// Reports runs that exceed the limit on a real clock.
fn watch(settings: &ManySettings, shared: &Shared, lost: &mut [bool]) {
    for (current, lost) in shared.current.iter().zip(lost) {
        let current = current.lock().expect("no run panics with it").clone();
        let Some((plan, _)) = current.filter(|(_, since)| since.elapsed() > settings.watchdog)
        else {
            continue;
        };
        if !std::mem::replace(lost, true) {
            let found = format!("no end after {:?} of real time", settings.watchdog);
            let violation = Violation { invariant: Invariant::Liveness, found };
            let mut summary = shared.summary.lock().expect("no run panics with it");
            summary.fail(Counterexample { violation, plan });
        }
    }
}

fn work(settings: &ManySettings, shared: &Shared, job: usize) {
    loop {
        let seed = shared.next.fetch_add(1, Ordering::Relaxed);
        if seed >= settings.seeds.end {
            return;
        }
        for mode in &settings.modes {
            let plan = SimulationPlan::new(seed, *mode);
            let now = Some((plan.clone(), Instant::now()));
            *shared.current[job].lock().expect("no run panics with it") = now;
            let twice = settings.repeat_every > 0 && seed.is_multiple_of(settings.repeat_every);
            let result = if twice { run_twice(plan) } else { simulate(plan, None) };
            *shared.current[job].lock().expect("no run panics with it") = None;
            let mut summary = shared.summary.lock().expect("no run panics with it");
            summary.repeated += u64::from(twice);
            match result {
                Ok(report) => summary.add(&report),
                Err(failure) => summary.fail(*failure),
            }
        }
        shared.summary.lock().expect("no run panics with it").seeds += 1;
    }
}

/// Runs a plan twice and compares the traces.
fn run_twice(plan: SimulationPlan) -> Result<SimulationReport, Box<Counterexample>> {
    let first = simulate(plan.clone(), None)?;
    let second = simulate(plan.clone(), None)?;
    if first == second {
        return Ok(first);
    }
    let found = format!("traces {} and {}", first.trace, second.trace);
    let violation = Violation { invariant: Invariant::Determinism, found };
    Err(Box::new(Counterexample { violation, plan }))
}
