//! `turnwise simulate cluster`: how many workers a trainer can feed on.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;
use serde_json::json;
use turnwise_run::Failure;
use turnwise_simulation::{ClusterReport, ClusterSettings, simulate_cluster};

use super::hub::{HubCosts, measure};
use crate::say;

#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterArguments {
    /// The numbers of workers that are simulated
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000])]
    workers: Vec<usize>,
    /// The episodes that a worker runs at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    slots: usize,
    /// The groups of a step
    #[arg(long, value_name = "N", default_value_t = 64)]
    groups: usize,
    /// The episodes of a group
    #[arg(long, value_name = "N", default_value_t = 8)]
    group: usize,
    /// The turns of an episode
    #[arg(long, value_name = "N", default_value_t = 6)]
    turns: usize,
    /// The tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 700)]
    prompt: usize,
    /// The tokens of a turn, on average
    #[arg(long, value_name = "N", default_value_t = 100)]
    turn_tokens: usize,
    /// The tokens that the environment adds between turns
    #[arg(long, value_name = "N", default_value_t = 100)]
    observation: usize,
    /// The seconds of the environment's answer, on average
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    environment: f64,
    /// The tokens per second of the engine, all replicas together
    #[arg(long, value_name = "N", default_value_t = 50_000.0)]
    engine: f64,
    /// The tokens per second of one request that has the engine to itself
    #[arg(long, value_name = "N", default_value_t = 60.0)]
    request: f64,
    /// The tokens per second of training
    #[arg(long, value_name = "N", default_value_t = 20_000.0)]
    training: f64,
    /// The seconds until the engine serves new weights
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    publication: f64,
    /// The largest staleness that trains, in versions
    #[arg(long, value_name = "N", default_value_t = 4)]
    staleness: u32,
    /// The milliseconds of the network for a turn's messages, there and back
    #[arg(long, value_name = "MS", default_value_t = 2.0)]
    network: f64,
    /// The threads of the trainer's machine that serve workers
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Kill each worker after so many minutes, on average
    #[arg(long, value_name = "MINUTES")]
    lifetime: Option<f64>,
    /// The milliseconds of a processor that a turn takes of the trainer; measured here by default
    #[arg(long, value_name = "MS")]
    hub: Option<f64>,
    /// The steps that are averaged
    #[arg(long, value_name = "N", default_value_t = 8)]
    steps: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ClusterArguments {
    fn settings(&self, workers: usize, costs: HubCosts) -> ClusterSettings {
        ClusterSettings {
            workers,
            slots: self.slots,
            groups: self.groups,
            group: self.group,
            turns: self.turns,
            prompt: self.prompt,
            turn_tokens: self.turn_tokens,
            observation: self.observation,
            environment_s: self.environment,
            request_tokens_s: self.request,
            engine_tokens_s: self.engine,
            training_tokens_s: self.training,
            publish_s: self.publication,
            max_staleness: self.staleness,
            hub_turn_s: costs.turn_s,
            hub_threads: self.threads,
            message_s: costs.message_s + self.network / 1e3,
            lifetime_s: self.lifetime.map_or(f64::INFINITY, |minutes| minutes * 60.0),
            lease_s: 20.0,
            steps: self.steps,
        }
    }
}

/// A simulated number of workers.
#[derive(Clone, Copy, Debug, Serialize)]
struct Simulated {
    workers: usize,
    #[serde(flatten)]
    report: ClusterReport,
}

/// Measures what a worker's turn costs here, and simulates all numbers of workers.
pub(super) fn run(arguments: &ClusterArguments) -> Result<(), Failure> {
    let costs = match arguments.hub {
        Some(ms) => HubCosts { turn_s: ms / 1e3, message_s: ms / 1e3 },
        None => measure(&arguments.settings(1, HubCosts::default()))?,
    };
    let mut all = Vec::new();
    for workers in &arguments.workers {
        let settings = arguments.settings(*workers, costs);
        let report = simulate_cluster(settings).map_err(Failure::refused)?;
        all.push(Simulated { workers: *workers, report });
        if !arguments.json {
            let _ = write!(io::stderr(), "\r{} of {}", all.len(), arguments.workers.len());
        }
    }
    if arguments.json {
        let settings = arguments.settings(0, costs);
        let line = json!({"simulate": "cluster", "settings": settings, "simulated": all});
        return say(&format!("{line}\n"));
    }
    let _ = writeln!(io::stderr());
    say(&describe(arguments, costs, &all))
}

fn describe(arguments: &ClusterArguments, costs: HubCosts, all: &[Simulated]) -> String {
    let ClusterArguments { groups, group, turns, turn_tokens, prompt, observation, .. } = arguments;
    let source = if arguments.hub.is_some() { "given" } else { "measured on this machine" };
    let mut text = format!(
        "a step has {groups} groups of {group}, {turns} turns of {turn_tokens} tokens after a prompt of {prompt}, and {observation} tokens between them\n\
         environment {} s a turn; engine {} tokens/s, {} for one request; training {} tokens/s; new weights in {} s\n\
         a turn takes {:.2} ms of a processor of the trainer's machine, and its messages {:.1} ms ({source}); network {} ms\n\n",
        arguments.environment,
        arguments.engine,
        arguments.request,
        arguments.training,
        arguments.publication,
        costs.turn_s * 1e3,
        costs.message_s * 1e3,
        arguments.network,
    );
    text += "workers   step s  episodes/s  trainer idle  staleness  most  engine   hub  places\n";
    text.extend(all.iter().map(row));
    text + &saturation(all)
}

fn row(simulated: &Simulated) -> String {
    let Simulated { workers, report } = simulated;
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let lost = match report.lost {
        0 => String::new(),
        lost => format!("  {lost} taken over"),
    };
    format!(
        "{workers:>7}{:>9.1}{:>12.2}{:>14}{:>11.2}{:>6.0}{:>8}{:>6}{:>8}{lost}\n",
        report.step_s,
        report.episodes_s,
        percent(report.trainer_idle),
        report.staleness,
        report.max_staleness,
        percent(report.engine_busy),
        percent(report.hub_busy),
        percent(report.slots_busy),
    )
}

/// Gains of less than this count as none.
const GAIN: f64 = 0.05;

/// Says from which number of workers on more of them gain nothing, and what then is busy.
fn saturation(all: &[Simulated]) -> String {
    let Some(best) = all.iter().map(|one| one.report.step_s).reduce(f64::min) else {
        return String::new();
    };
    let Some(enough) = all.iter().find(|one| one.report.step_s <= best * (1.0 + GAIN)) else {
        return String::new();
    };
    let ClusterReport { trainer_idle, engine_busy, hub_busy, slots_busy, .. } = enough.report;
    if all.last().is_some_and(|last| last.workers == enough.workers) && slots_busy > 0.9 {
        return "\nmore workers would still help\n".to_owned();
    }
    let busy = [
        ("the trainer", 1.0 - trainer_idle),
        ("the engine", engine_busy),
        ("serving workers", hub_busy),
    ];
    let (what, share) =
        busy.into_iter().max_by(|one, other| one.1.total_cmp(&other.1)).unwrap_or_default();
    format!(
        "\n{} workers are enough: more gain less than {:.0} %, and {what} is busy {:.0} % of the time\n",
        enough.workers,
        100.0 * GAIN,
        100.0 * share
    )
}
