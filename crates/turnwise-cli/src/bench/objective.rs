//! `turnwise bench objective`: GSPO-token's value and gradient, without a model.

use std::hint::black_box;
use std::time::Instant;

use clap::Args;
use serde_json::{Map, json};
use turnwise::environment::Random;
use turnwise::objective::{
    Advantages, Clip, GspoToken, LengthWeight, ObjectiveError, Sequence, evaluate_step,
};

use super::machine::Machine;
use super::memory;
use super::report::{Figure, Report, memory_figures};
use crate::failure::Failure;

#[derive(Clone, Debug, Args)]
pub(crate) struct ObjectiveArguments {
    /// Print every repetition as one line of JSON
    #[arg(long)]
    json: bool,
    #[arg(long, value_name = "N", default_value_t = 4096)]
    sequences: usize,
    /// Tokens of each
    #[arg(long, value_name = "N", default_value_t = 1024)]
    tokens: usize,
    /// How often all are evaluated, after once to warm up
    #[arg(long, value_name = "N", default_value_t = 11)]
    repetitions: usize,
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) threads: usize,
}

/// What an objective reads, a column for each quantity. `[sequences * tokens]`
struct Columns {
    logprobs: Vec<f64>,
    behavior_logprobs: Vec<f64>,
    advantages: Vec<f64>,
}

/// Measures and prints.
pub(super) fn bench(arguments: &ObjectiveArguments) -> Result<(), Failure> {
    let ObjectiveArguments { sequences, tokens, repetitions, threads, .. } = *arguments;
    if [sequences, tokens, repetitions].contains(&0) {
        return Err(Failure::refused("sequences, tokens and repetitions are at least 1"));
    }
    let columns = columns(sequences * tokens);
    let start = memory::resident()?;
    let evaluate = || evaluate(&columns, tokens).map_err(|error| Failure::runtime(&error));
    evaluate()?;
    memory::reset_peak()?;
    let seconds: Vec<f64> = (0..repetitions).map(|_| evaluate()).collect::<Result<_, _>>()?;
    let peak = memory::peak()?;
    let rate = seconds.iter().map(|s| (sequences * tokens) as f64 / s).collect();
    let mut figures = vec![
        Figure::each("seconds", "value and gradient", "ms", 1e-3, seconds),
        Figure::each("tokens_per_s", "tokens", "million/s", 1e6, rate),
    ];
    figures.extend(memory_figures(start, peak));
    Report {
        name: "objective",
        what: vec![format!("GSPO-token of {sequences} sequences of {tokens} tokens, f64")],
        machine: Machine::with(threads),
        sizes: json!({"sequences": sequences, "tokens": tokens}),
        figures,
        parts: Vec::new(),
        more: Map::new(),
    }
    .print(arguments.json)
}

/// Log-probabilities a little away from those the tokens were drawn with, so that some sequences are clipped.
fn columns(count: usize) -> Columns {
    let mut random = Random::new(1);
    let behavior_logprobs: Vec<f64> = (0..count).map(|_| -3.0 * random.uniform()).collect();
    let moved = |logprob: &f64| (logprob + 0.02 * (random.uniform() - 0.5)).min(0.0);
    let logprobs = behavior_logprobs.iter().map(moved).collect();
    let advantages = (0..count).map(|_| 2.0 * random.uniform() - 1.0).collect();
    Columns { logprobs, behavior_logprobs, advantages }
}

/// Evaluates all sequences once, and answers with the seconds it took.
fn evaluate(columns: &Columns, tokens: usize) -> Result<f64, ObjectiveError> {
    let objective = GspoToken { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
    let begun = Instant::now();
    let advantages = columns.advantages.chunks_exact(tokens);
    let rows = columns.logprobs.chunks_exact(tokens);
    let sequences = rows.zip(columns.behavior_logprobs.chunks_exact(tokens)).zip(advantages);
    let sequences: Vec<Sequence<'_>> = sequences
        .map(|((logprobs, behavior), advantages)| {
            Sequence::new(logprobs, behavior, Advantages::PerToken(advantages))
        })
        .collect::<Result<_, _>>()?;
    black_box(evaluate_step(&objective, &sequences)?);
    Ok(begun.elapsed().as_secs_f64())
}
