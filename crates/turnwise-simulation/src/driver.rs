use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{sleep, timeout};
use turnwise_objective::{Clip, GspoToken, LengthWeight};
use turnwise_rollout::{ChatAgents, stop_signal};
use turnwise_training::{Parts, StepReport, TrainError, Trainer, TrainerSettings};

use crate::books::SnapshotBooks;
use crate::checks::{WatchedCredit, check_books, check_empty, check_report};
use crate::engine::Engine;
use crate::environment::{Agents, SimulatedTasks};
use crate::learner::Scripted;
use crate::letters::Letters;
use crate::rubric::Scores;
use crate::trace::TraceHash;
use crate::witness::Witness;
use crate::world::World;
use crate::{FaultKind, Invariant, Mode, Mutation, SimulationPlan, Violation};

/// The report of a simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulationReport {
    /// The hash of all events, in order.
    pub trace: TraceHash,
    /// The number of events.
    pub n_events: u64,
    /// The number of finished optimiser steps; a step that was repeated after a crash counts once.
    pub steps: u64,
    /// The number of started rollouts in the surviving history.
    pub rollouts: u64,
    /// The number of trained rollouts.
    pub trained: u64,
    /// The number of dropped rollouts.
    pub dropped: u64,
    /// The number of faults, by kind.
    pub faults: BTreeMap<FaultKind, u64>,
    /// The number of halts before the end of a step.
    pub halts: u64,
    /// The number of kills in the middle of a step.
    pub kills: u64,
    /// The number of restores from a snapshot.
    pub restores: u64,
    /// The number of errors that ended a step, each explained by a fault.
    pub errors: u64,
    /// The longest time that a call exceeded its deadline.
    pub max_stall: Duration,
    /// The duration of the run on its own clock.
    pub virtual_time: Duration,
    /// Whether the run reached its last step; in safety mode faults may stop it before.
    pub is_complete: bool,
}

/// A violation found by a simulation, and the command that replays it.
#[derive(Clone, Debug, PartialEq)]
pub struct Counterexample {
    /// The violated invariant.
    pub violation: Violation,
    /// The plan of the run.
    pub plan: SimulationPlan,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SimulationPlan { seed, mode, .. } = &self.plan;
        writeln!(formatter, "violated {}", self.violation)?;
        writeln!(formatter, "replay   turnwise simulate --seed {seed} --mode {mode}")?;
        write!(formatter, "settings {}", self.plan)
    }
}

impl std::error::Error for Counterexample {}

/// Runs a plan from its first step to its last, with a mutation in the scheduler if one is given.
///
/// # Errors
/// The first violation.
///
/// # Panics
/// Panics if the runtime cannot be created.
pub fn simulate(
    plan: SimulationPlan,
    mutation: Option<Mutation>,
) -> Result<SimulationReport, Box<Counterexample>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime on one thread needs nothing that can be missing");
    let kept = plan.clone();
    // Log messages only report injected faults, which the report counts.
    let silent = tracing::subscriber::NoSubscriber::default();
    let run = || runtime.block_on(async { SimulatedRun::new(plan, mutation).run().await });
    let caught = || catch_unwind(AssertUnwindSafe(run));
    tracing::subscriber::with_default(silent, caught)
        .unwrap_or_else(|panic| Err(Violation::new(Invariant::Panics, panic_text(&*panic))))
        .map_err(|violation| Box::new(Counterexample { violation, plan: kept }))
}

/// The state of a run at a step boundary.
#[derive(Clone)]
struct SavedRun {
    snapshot: String,
    witness: Witness,
}

/// The end of a step.
enum Ended {
    Stepped(Box<StepReport>),
    Halted,
    Killed,
    Failed(TrainError),
}

struct SimulatedRun {
    world: Arc<World>,
    halts: u64,
    kills: u64,
    restores: u64,
    errors: u64,
    /// The time at which faults stopped, and the number of steps left.
    quiet: Option<(Duration, u64)>,
}

/// The number of errors after which a safety run is given up: it is broken throughout, and its errors say so.
const MAX_ERRORS: u64 = 6;
/// The maximal number of halts and kills of one run.
const MAX_INCIDENTS: u64 = 8;

impl SimulatedRun {
    fn new(plan: SimulationPlan, mutation: Option<Mutation>) -> Self {
        let world = World::new(plan, mutation);
        Self { world, halts: 0, kills: 0, restores: 0, errors: 0, quiet: None }
    }

    async fn run(mut self) -> Result<SimulationReport, Violation> {
        let mut trainer = self.trainer();
        let mut checkpoint = self.checkpoint(&mut trainer).await?;
        while trainer.next_step() < self.world.plan.steps && !self.is_given_up() {
            self.quieten(trainer.next_step());
            let goes_on = match self.step(&mut trainer).await? {
                Ended::Stepped(report) => {
                    let version = self.world.state().trained_at;
                    check_report(&self.world, &report, version)?;
                    true
                }
                Ended::Halted => true,
                Ended::Killed => false,
                Ended::Failed(error) => self.explain(error)?,
            };
            self.check_world()?;
            if goes_on {
                self.check_running(&trainer)?;
            }
            // A snapshot halts what runs; between most steps the run continues.
            if goes_on && self.world.below(2) == 0 {
                checkpoint = self.checkpoint(&mut trainer).await?;
            }
            if !goes_on || self.world.happens(self.world.plan.restarts) {
                drop(trainer);
                trainer = self.restore(&checkpoint).await?;
                checkpoint = self.checkpoint(&mut trainer).await?;
            }
        }
        checkpoint = self.checkpoint(&mut trainer).await?;
        let steps = trainer.next_step();
        drop(trainer);
        self.report(&checkpoint, steps).await
    }

    fn is_given_up(&self) -> bool {
        self.errors >= MAX_ERRORS && self.quiet.is_none()
    }

    /// In liveness mode, stops faults halfway, or when they have stopped too many steps.
    fn quieten(&mut self, step: u64) {
        let plan = &self.world.plan;
        let is_time = step >= plan.quiet_step || self.errors + 1 >= MAX_ERRORS;
        if plan.mode == Mode::Liveness && self.quiet.is_none() && is_time {
            self.world.quiet();
            self.quiet = Some((self.world.now(), plan.steps - step));
        }
    }

    async fn step(&mut self, trainer: &mut Trainer<Scripted>) -> Result<Ended, Violation> {
        let bound = self.bound();
        let (handle, signal) = stop_signal();
        let plan = &self.world.plan;
        let may_interrupt = self.halts + self.kills < MAX_INCIDENTS;
        let halt = self.incident(may_interrupt, plan.halts);
        let kill = self.incident(may_interrupt, plan.kills);
        let halted = async {
            sleep(halt).await;
            self.world.event("halt", &[]);
            handle.stop();
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            biased;
            ended = timeout(bound, trainer.step(&signal)) => ended,
            () = halted => unreachable!("a halt waits for the step"),
            () = sleep(kill) => {
                self.kills += 1;
                return Ok(Ended::Killed);
            }
        };
        let Ok(ended) = ended else {
            let found = format!("a step was not over after {bound:?}");
            return Err(self.world.first_of(Violation::new(Invariant::Liveness, found)));
        };
        Ok(match ended {
            Ok(Some(report)) => Ended::Stepped(Box::new(report)),
            Ok(None) => {
                self.halts += 1;
                Ended::Halted
            }
            Err(error) => Ended::Failed(error),
        })
    }

    /// Returns the time of the next incident in the step; far beyond the end of the step if there is none.
    fn incident(&self, may: bool, thousandths: u64) -> Duration {
        if may && self.world.happens(thousandths) {
            self.world.latency(40_000)
        } else {
            Duration::from_secs(1 << 40)
        }
    }

    /// Returns the virtual time after which a step counts as hung: every attempt of every episode one after the other,
    /// all at their deadlines.
    fn bound(&self) -> Duration {
        let plan = &self.world.plan;
        let limits = plan.limits();
        let replaced = plan.trainer.dynamic_sampling.map_or(0, |sampling| sampling.max_groups);
        let episodes = 2 * plan.max_open() + replaced * plan.trainer.rollout.group_size as u64;
        let attempts = episodes * u64::from(plan.trainer.rollout.max_retries + 1);
        let attempt = limits.episode_timeout_s + limits.environment_timeout_s;
        Duration::from_secs_f64(1000.0 + attempts as f64 * attempt)
    }

    /// Returns whether the run can continue with the same trainer after an error, if a fault explains it.
    fn explain(&mut self, error: TrainError) -> Result<bool, Violation> {
        self.errors += 1;
        let injected = |kind| self.world.state().faults.contains_key(&kind);
        let has_faults = !self.world.state().faults.is_empty();
        self.world.event("error", &[self.errors]);
        match error {
            // The breaker loses nothing, so the same trainer can continue.
            TrainError::Rollout(_) if has_faults => Ok(self.world.below(2) == 0),
            TrainError::Learner(_) if injected(FaultKind::LearnerError) => Ok(false),
            TrainError::NotFinite { .. } if injected(FaultKind::GradientNotFinite) => Ok(false),
            error => Err(Violation::new(Invariant::Errors, error_text(&error))),
        }
    }

    fn check_world(&self) -> Result<(), Violation> {
        self.world.state().violation.take().map_or(Ok(()), Err)
    }

    /// Checks the books while rollouts may run.
    fn check_running(&self, trainer: &Trainer<Scripted>) -> Result<(), Violation> {
        let books = trainer.books();
        let state = self.world.state();
        let n_seen = state.witness.dispatched.len() as u64;
        let n_trained = state.witness.trained.len() as u64;
        if books.unaccounted() == 0 && books.dispatched == n_seen && books.trained == n_trained {
            return Ok(());
        }
        let found = format!("{books:?} where {n_seen} were seen to start and {n_trained} to train");
        Err(Violation::new(Invariant::Conservation, found))
    }

    /// Takes the run's snapshot and checks the books in it.
    async fn checkpoint(&mut self, trainer: &mut Trainer<Scripted>) -> Result<SavedRun, Violation> {
        let bound = self.bound();
        let Ok(snapshot) = timeout(bound, trainer.snapshot()).await else {
            let found = format!("a halt was not over after {bound:?}");
            return Err(Violation::new(Invariant::Liveness, found));
        };
        self.check_world()?;
        let snapshot = serde_json::to_string(&snapshot)
            .map_err(|error| Violation::new(Invariant::Restore, error.to_string()))?;
        check_books(&self.world, &SnapshotBooks::read(&snapshot)?)?;
        Ok(SavedRun { snapshot, witness: self.world.state().witness.clone() })
    }

    /// Starts a new process, which has only the checkpoint of the old one.
    async fn restore(&mut self, checkpoint: &SavedRun) -> Result<Trainer<Scripted>, Violation> {
        self.restores += 1;
        self.settle().await?;
        self.world.state().witness = checkpoint.witness.clone();
        self.world.state().sessions.clear();
        self.world.event("restore", &[self.restores]);
        let mut snapshot: Value = serde_json::from_str(&checkpoint.snapshot)
            .map_err(|error| Violation::new(Invariant::Restore, error.to_string()))?;
        self.mutate(&mut snapshot);
        let snapshot = serde_json::from_value(snapshot)
            .map_err(|error| Violation::new(Invariant::Restore, error.to_string()))?;
        let mut trainer = self.trainer();
        trainer
            .restore(snapshot)
            .map_err(|error| Violation::new(Invariant::Restore, error_text(&error)))?;
        Ok(trainer)
    }

    fn mutate(&self, snapshot: &mut Value) {
        let Some(waiting) = snapshot["scheduler"]["pool"]["waiting"].as_array_mut() else { return };
        if self.world.is(Mutation::LosesEpisode) {
            waiting.pop();
        }
        if self.world.is(Mutation::DoublesEpisode) {
            waiting.extend(waiting.first().cloned());
        }
        let Some(ready) = snapshot["scheduler"]["ready"].as_array_mut() else { return };
        if self.world.is(Mutation::LosesGroup) {
            ready.pop();
        }
        if self.world.is(Mutation::DoublesGroup) {
            ready.extend(ready.first().cloned());
        }
    }

    /// Waits until everything that was dropped is gone, and checks that it is.
    async fn settle(&self) -> Result<(), Violation> {
        // The runtime drops cancelled tasks when it next polls.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        check_empty(&self.world)?;
        self.check_world()
    }

    fn trainer(&self) -> Trainer<Scripted> {
        let world = &self.world;
        let inner = ChatAgents::new(Arc::new(Letters));
        let rubric = Scores { world: world.clone() };
        let parts = Parts {
            tasks: Arc::new(SimulatedTasks { world: world.clone() }),
            agents: Arc::new(Agents { world: world.clone(), inner }),
            rubric: if world.plan.has_rubric { Some(Arc::new(rubric)) } else { None },
            policy: Arc::new(Engine { world: world.clone() }),
            learner: Scripted { world: world.clone() },
            objective: Box::new(GspoToken {
                clip: Clip::PAPER_GRPO,
                length_weight: LengthWeight::Mean,
            }),
            credit: Box::new(WatchedCredit { world: world.clone() }),
        };
        Trainer::new(parts, self.settings())
    }

    fn settings(&self) -> TrainerSettings {
        let mut settings = self.world.plan.trainer.clone();
        if self.world.is(Mutation::TrainsTooOld) {
            settings.admission.max_staleness += 1;
        }
        if self.world.is(Mutation::RunsTooMany) {
            settings.rollout.max_concurrent += 1;
        }
        settings
    }

    async fn report(self, last: &SavedRun, steps: u64) -> Result<SimulationReport, Violation> {
        self.settle().await?;
        let books = SnapshotBooks::read(&last.snapshot)?;
        let is_complete = steps == self.world.plan.steps;
        self.check_liveness(is_complete)?;
        let virtual_time = self.world.now();
        let state = self.world.state();
        Ok(SimulationReport {
            trace: state.trace.hash(),
            n_events: state.trace.n_events(),
            steps,
            rollouts: books.ledger().dispatched,
            trained: books.progress.trained,
            dropped: books.dropped(),
            faults: state.faults.clone(),
            halts: self.halts,
            kills: self.kills,
            restores: self.restores,
            errors: self.errors,
            max_stall: state.max_stall,
            virtual_time,
            is_complete,
        })
    }

    /// Checks that, once faults have stopped, the rest of the run takes no longer than its episodes one after the
    /// other.
    fn check_liveness(&self, is_complete: bool) -> Result<(), Violation> {
        let Some((since, steps)) = self.quiet else { return Ok(()) };
        let took = self.world.now().saturating_sub(since);
        let bound = self.bound() * (steps + self.errors + MAX_INCIDENTS) as u32;
        if is_complete && took <= bound {
            return Ok(());
        }
        let found = format!("{steps} steps without a fault took {took:?}, complete: {is_complete}");
        Err(Violation::new(Invariant::Liveness, found))
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

/// Formats an error and its causes.
fn error_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
