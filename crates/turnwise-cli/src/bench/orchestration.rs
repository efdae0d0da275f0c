//! `turnwise bench orchestration`: the cost of a turn without the model.

use clap::Args;
use turnwise_simulation::{OrchestrationReport, OrchestrationSettings, measure_orchestration};

use crate::say;
use turnwise_run::Failure;

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OrchestrationArguments {
    /// Print every repetition as JSON
    #[arg(long)]
    json: bool,
    /// The number of concurrent episodes
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    episodes: usize,
    /// The number of turns of each episode
    #[arg(long, value_name = "N", default_value_t = 8)]
    turns: usize,
    /// The number of repetitions
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
}

/// Measures the cost of a turn with a free engine.
pub(super) fn bench(arguments: &OrchestrationArguments) -> Result<(), Failure> {
    let OrchestrationArguments { json, episodes, turns, repetitions } = *arguments;
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
