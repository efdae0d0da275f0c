//! `turnwise simulate`: the scheduler without a model.

pub(crate) mod cluster;
mod hub;

use std::io::{self, Write};
use std::time::Duration;

use turnwise_simulation::{
    ManySettings, Mode, SeriesProgress, SeriesSummary, SimulationPlan, simulate, simulate_many,
};

use crate::arguments::{SimulateArguments, SimulateCommand, SimulationMode};
use crate::say;
use turnwise_run::{ExitCode, Failure};

/// Runs one seed, many, or workers.
pub(crate) fn run(arguments: &SimulateArguments) -> Result<(), Failure> {
    match &arguments.command {
        Some(SimulateCommand::Cluster(arguments)) => cluster::run(arguments),
        None => simulate_seeds(arguments),
    }
}

fn simulate_seeds(arguments: &SimulateArguments) -> Result<(), Failure> {
    let modes = match arguments.mode {
        SimulationMode::Safety => vec![Mode::Safety],
        SimulationMode::Liveness => vec![Mode::Liveness],
        SimulationMode::Both => vec![Mode::Safety, Mode::Liveness],
    };
    if let Some(seed) = arguments.seed {
        return modes.into_iter().try_for_each(|mode| one(seed, mode));
    }
    let seeds = arguments.from..arguments.from.saturating_add(arguments.seeds);
    let jobs = arguments.jobs.max(1);
    let summary = simulate_many(&ManySettings { modes, jobs, ..ManySettings::new(seeds) }, show);
    let _ = writeln!(io::stderr());
    say(&describe(&summary))?;
    match summary.failures.len() {
        0 => Ok(()),
        n => Err(Failure::new(
            ExitCode::Runtime,
            format!("{n} simulated runs violated an invariant"),
        )),
    }
}

fn one(seed: u64, mode: Mode) -> Result<(), Failure> {
    let plan = SimulationPlan::new(seed, mode);
    match simulate(plan, None) {
        Ok(report) => say(&format!("{report:#?}\n")),
        Err(failure) => Err(Failure::new(ExitCode::Runtime, failure.to_string())),
    }
}

fn show(progress: SeriesProgress) {
    let SeriesProgress { done, of, failures } = progress;
    let _ = write!(io::stderr(), "\r{done} of {of} seeds, {failures} failures");
}

fn describe(summary: &SeriesSummary) -> String {
    let failures = summary.failures.iter().map(|failure| format!("{failure}\n\n"));
    let faults = summary.faults.iter().map(|(kind, n)| format!("  {:<24}{n:>10}\n", kind.label()));
    let text: String = failures.chain(faults).collect();
    text + &format!(
        "simulated  {} seeds  {} runs  {} rollouts  {} faults  {} halts  {} kills  {} restores  {} run twice\n           {} hangs  {} unaccounted  {} other violations  max stall {:.3} s past deadline  {} of virtual time in {:.1} s\n",
        summary.seeds,
        summary.runs,
        summary.rollouts,
        summary.n_faults(),
        summary.halts,
        summary.kills,
        summary.restores,
        summary.repeated,
        summary.n_hangs(),
        summary.n_unaccounted(),
        summary.failures.len() - summary.n_hangs() - summary.n_unaccounted(),
        summary.max_stall.as_secs_f64(),
        days(summary.virtual_time),
        summary.wall_time.as_secs_f64(),
    )
}

fn days(time: Duration) -> String {
    format!("{:.1} days", time.as_secs_f64() / 86_400.0)
}
