//! `turnwise simulate` and `turnwise bench orchestration`: the scheduler without a model.

use std::io::{self, Write};
use std::time::Duration;

use turnwise_simulation::{
    ManySettings, Mode, OrchestrationReport, OrchestrationSettings, Plan, Progress, Summary,
    measure_orchestration, simulate, simulate_many,
};

use crate::arguments::{BenchCommand, SimulateArguments, SimulationMode};
use crate::failure::{ExitCode, Failure};
use crate::say;

/// Runs one seed, or many.
pub(crate) fn simulate_seeds(arguments: &SimulateArguments) -> Result<(), Failure> {
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
        n => Err(Failure::new(ExitCode::Runtime, format!("{n} simulated runs violated something"))),
    }
}

fn one(seed: u64, mode: Mode) -> Result<(), Failure> {
    let plan = Plan::new(seed, mode);
    match simulate(plan, None) {
        Ok(report) => say(&format!("{report:#?}\n")),
        Err(failure) => Err(Failure::new(ExitCode::Runtime, failure.to_string())),
    }
}

fn show(progress: Progress) {
    let Progress { done, of, failures } = progress;
    let _ = write!(io::stderr(), "\r{done} of {of} seeds, {failures} failures");
}

fn describe(summary: &Summary) -> String {
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

/// Measures what a turn costs when the engine costs nothing.
pub(crate) fn bench(command: &BenchCommand) -> Result<(), Failure> {
    let BenchCommand::Orchestration { json, episodes, turns, repetitions } = *command;
    let settings = OrchestrationSettings { episodes, turns, repetitions };
    let report = measure_orchestration(settings).map_err(|error| Failure::refused_by(&error))?;
    if json {
        let line = serde_json::to_string(&report).map_err(|error| Failure::runtime(&error))?;
        return say(&format!("{line}\n"));
    }
    say(&describe_cost(&report))
}

fn describe_cost(report: &OrchestrationReport) -> String {
    let OrchestrationReport { episodes, turns, .. } = report;
    let line = |what: &str, values: &[f64], unit: &str| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let median = values[values.len() / 2];
        let (least, most) = (values[0], values[values.len() - 1]);
        format!("  {what:<34}{median:>9.2} {unit:<6} ({least:.2} to {most:.2})\n")
    };
    format!("{episodes} episodes of {turns} turns, {} times\n", report.cpu_us_per_turn.len())
        + &line("processor time per turn", &report.cpu_us_per_turn, "us")
        + &line("wall time per turn", &report.wall_us_per_turn, "us")
        + &line("the same, suspended half way", &report.suspended_cpu_us_per_turn, "us")
        + &line("memory per suspended episode", &report.resident_bytes_per_suspended, "bytes")
        + &line("snapshot of one", &[report.serialised_bytes_per_suspended], "bytes")
}
