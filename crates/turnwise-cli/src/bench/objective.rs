//! `turnwise bench objective`: GSPO-token's value and gradient, without a model.

use clap::Args;
use serde_json::{Map, json};
use turnwise_training::{ObjectiveSpeedSettings, measure_objective};

use super::machine::Machine;
use super::memory;
use super::report::{Figure, Report, memory_figures};
use turnwise_run::Failure;

#[derive(Clone, Debug, Args)]
pub(crate) struct ObjectiveArguments {
    /// Print every repetition as one line of JSON
    #[arg(long)]
    json: bool,
    #[arg(long, value_name = "N", default_value_t = 4096)]
    sequences: usize,
    /// The number of tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 1024)]
    tokens: usize,
    /// The number of repetitions
    #[arg(long, value_name = "N", default_value_t = 11)]
    repetitions: usize,
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) threads: usize,
}

/// Runs the benchmark and prints its results.
pub(super) fn bench(arguments: &ObjectiveArguments) -> Result<(), Failure> {
    let ObjectiveArguments { sequences, tokens, repetitions, threads, .. } = *arguments;
    let start = memory::resident()?;
    memory::reset_peak()?;
    let settings = ObjectiveSpeedSettings { sequences, tokens, threads, repetitions };
    let speed = measure_objective(settings).map_err(|error| Failure::refused_by(&error))?;
    let peak = memory::peak()?;
    let rate = speed.seconds.iter().map(|s| (sequences * tokens) as f64 / s).collect();
    let mut figures = vec![
        Figure::each("seconds", "value and gradient", "ms", 1e-3, speed.seconds),
        Figure::each("tokens_per_s", "tokens", "million/s", 1e6, rate),
        Figure::each("memory_s", "reading and writing alone", "ms", 1e-3, speed.memory_seconds),
        Figure::once("loss", "loss", "", 1.0, speed.loss),
        Figure::once("gradient_size", "sum of gradient sizes", "", 1.0, speed.gradient_size),
    ];
    figures.extend(memory_figures(start, peak));
    Report {
        name: "objective",
        what: vec![format!("GSPO-token of {sequences} sequences of {tokens} tokens, f64")],
        machine: Machine::with(threads),
        sizes: json!({"sequences": sequences, "tokens": tokens, "bytes": speed.bytes}),
        figures,
        parts: Vec::new(),
        more: Map::new(),
    }
    .print(arguments.json)
}
