//! `turnwise bench train`: full fine-tuning of a small model.

use std::error::Error;
use std::iter;
use std::time::Instant;

use clap::Args;
use serde_json::{Map, Value, json};
use turnwise_candle::{
    CandleLearner, ComputePrecision, EngineWeights, PassPart, Shares, matrix_unit_peak,
};
use turnwise_environment::Random;
use turnwise_training::{Learner, LearnerError, Row, Target, Update};

use super::machine::{self, Machine};
use super::model::{LearnerArguments, ModelArguments};
use super::report::{Figure, Report, TimedPart, median, memory_figures};
use super::{flops, memory, numbers};
use turnwise_run::Failure;

#[derive(Clone, Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command")]
pub(crate) struct TrainArguments {
    /// Print every repetition as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArguments,
    /// The number of rows in a step; every token except a row's first is a target
    #[arg(long, value_name = "N", default_value_t = 16, conflicts_with = "shared_prompt")]
    batch: usize,
    /// The tokens of a row
    #[arg(long, value_name = "N", default_value_t = 256, conflicts_with = "shared_prompt")]
    length: usize,
    /// Measure a group of rows with a common prompt instead; only their responses are targets
    #[arg(long)]
    shared_prompt: bool,
    /// The number of rows in the group
    #[arg(long, value_name = "N", default_value_t = 8)]
    group: usize,
    /// The tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 768)]
    prompt: usize,
    /// The tokens of a response
    #[arg(long, value_name = "N", default_value_t = 96)]
    response: usize,
    /// Measure the group with none, a quarter, half, three quarters and all of the prompt shared
    #[arg(long, conflicts_with = "shared_prompt")]
    curve: bool,
    #[command(flatten)]
    learner: LearnerArguments,
    /// The number of measured steps, after one warm-up
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) threads: usize,
}

/// Rows of one length with a common prefix.
#[derive(Clone, Copy, Debug)]
struct Work {
    rows: usize,
    length: usize,
    /// The number of tokens in the common prefix.
    shared: usize,
    /// The number of targets at the end of each row.
    targets: usize,
}

impl Work {
    /// Returns the number of tokens in a padded batch.
    fn padded_tokens(self) -> usize {
        self.rows * self.length
    }

    fn distinct_tokens(self) -> usize {
        self.shared + self.rows * (self.length - self.shared)
    }

    /// Returns the fewest operations of a step: each distinct token except the last of a row once, forward and
    /// backward.
    fn flops(self, model: &ModelArguments) -> f64 {
        let own = iter::repeat_n(self.shared..self.length - 1, self.rows);
        let spans = own.chain(iter::once(0..self.shared));
        3.0 * flops::forward(&model.config(self.length), spans, self.rows * self.targets)
    }

    fn make(self, vocab_size: usize) -> Vec<Row> {
        let mut random = Random::new(1);
        let prompt = numbers::ids(&mut random, vocab_size, self.shared);
        let positions = self.length - self.targets..self.length;
        let targets: Vec<Target> =
            positions.map(|position| Target { position, temperature: 1.0 }).collect();
        let row = |_| {
            let own = numbers::ids(&mut random, vocab_size, self.length - self.shared);
            let ids = [prompt.clone(), own].concat();
            Row { ids, targets: targets.clone(), ..Row::default() }
        };
        (0..self.rows).map(row).collect()
    }
}

/// The times of a step.
struct StepTimes {
    forward_s: f64,
    backward_s: f64,
    optimizer_s: f64,
    shares: Shares,
}

impl StepTimes {
    fn seconds(&self) -> f64 {
        self.forward_s + self.backward_s + self.optimizer_s
    }
}

/// The measurements of some work.
struct TrainMeasurement {
    steps: Vec<StepTimes>,
    start_bytes: u64,
    peak_bytes: u64,
}

impl TrainMeasurement {
    fn seconds(&self) -> Vec<f64> {
        self.each(StepTimes::seconds)
    }

    fn each(&self, of: impl Fn(&StepTimes) -> f64) -> Vec<f64> {
        self.steps.iter().map(of).collect()
    }

    /// Returns the time of passes by kind of work, and the rest: packing, and waiting for threads.
    fn parts(&self) -> Vec<TimedPart> {
        let seconds = |part| self.each(|step| step.shares.of(part).as_secs_f64());
        let other = self.each(|step| (step.seconds() - step.shares.total().as_secs_f64()).max(0.0));
        let known = PassPart::ALL.iter().map(|part| (part.label(), seconds(*part)));
        known
            .chain([("other", other)])
            .filter(|(_, seconds)| seconds.iter().any(|s| *s > 0.0))
            .map(|(name, seconds)| TimedPart { name: name.to_owned(), seconds })
            .collect()
    }
}

/// Runs the benchmark and prints its results.
pub(super) fn bench(arguments: &TrainArguments) -> Result<(), Failure> {
    check(arguments)?;
    let report = if arguments.curve { curve(arguments)? } else { one(arguments)? };
    report.print(arguments.json)
}

fn check(arguments: &TrainArguments) -> Result<(), Failure> {
    let TrainArguments { batch, length, group, prompt, response, repetitions, .. } = arguments;
    let whole = if arguments.shared_prompt || arguments.curve {
        *group > 0 && *prompt > 0 && *response > 0
    } else {
        *batch > 0 && *length > 1
    };
    if arguments.model.engine_weights() == EngineWeights::Int8 {
        return Err(Failure::refused(
            "int8 is a precision of the engine alone; training has f32 and bf16",
        ));
    }
    if whole && *repetitions > 0 {
        return Ok(());
    }
    Err(Failure::refused(
        "a step needs at least one row of two tokens, a target among them, and one repetition",
    ))
}

fn one(arguments: &TrainArguments) -> Result<Report, Failure> {
    let TrainArguments { batch, length, group, prompt, response, .. } = *arguments;
    let work = if arguments.shared_prompt {
        Work { rows: group, length: prompt + response, shared: prompt, targets: response }
    } else {
        Work { rows: batch, length, shared: 0, targets: length - 1 }
    };
    let measured = measure(arguments, work)?;
    let peak = machine::product_peak(arguments.model, arguments.threads);
    let (seconds, flops) = (measured.seconds(), work.flops(&arguments.model));
    let per_second = |count: f64| seconds.iter().map(|seconds| count / seconds).collect();
    let mut figures = vec![
        Figure::each("step_s", "a step", "s", 1.0, seconds.clone()),
        Figure::each("forward_s", "forward", "s", 1.0, measured.each(|step| step.forward_s)),
        Figure::each("backward_s", "backward", "s", 1.0, measured.each(|step| step.backward_s)),
        Figure::each("optimizer_s", "optimizer", "s", 1.0, measured.each(|step| step.optimizer_s)),
        Figure::each(
            "tokens_per_s",
            "tokens of padded rows",
            "tokens/s",
            1.0,
            per_second(work.padded_tokens() as f64),
        ),
        Figure::each("flops_per_s", "matrix products", "GFLOP/s", 1e9, per_second(flops)),
        Figure::once("gemm_peak_flops_per_s", "best matrix product", "GFLOP/s", 1e9, peak),
        Figure::each("mfu", "share of the peak (MFU)", "", 1.0, per_second(flops / peak)),
    ];
    // In bf16 the best product is already the unit's.
    let of_unit = matrix_unit_peak(arguments.threads);
    if let Some(peak) = of_unit.filter(|_| arguments.model.compute() == ComputePrecision::F32) {
        let (name, what) = ("matrix_unit_peak_flops_per_s", "peak of the matrix unit");
        figures.push(Figure::once(name, what, "GFLOP/s", 1e9, peak));
        figures.push(Figure::each(
            "of_matrix_unit",
            "achieved of it",
            "",
            1.0,
            per_second(flops / peak),
        ));
    }
    figures.extend(memory_figures(measured.start_bytes, measured.peak_bytes));
    let report = Report { figures, parts: measured.parts(), ..empty(arguments, work) };
    Ok(report)
}

/// Measures rows of the same size with growing shares of the prompt in common.
fn curve(arguments: &TrainArguments) -> Result<Report, Failure> {
    let TrainArguments { group, prompt, response, .. } = *arguments;
    let of = |shared| Work { rows: group, length: prompt + response, shared, targets: response };
    let (mut points, mut figures) = (Vec::new(), Vec::new());
    let labels = ["nothing", "a quarter of the prompt", "half", "three quarters", "all"];
    for (quarters, label) in labels.into_iter().enumerate() {
        let work = of(prompt * quarters / 4);
        let seconds = measure(arguments, work)?.seconds();
        let per_token = 1e6 * median(&seconds) / work.distinct_tokens() as f64;
        points.push(json!({
            "shared_tokens": work.shared,
            "padded_tokens": work.padded_tokens(),
            "distinct_tokens": work.distinct_tokens(),
            "flops": work.flops(&arguments.model),
            "step_s": seconds,
            "us_per_distinct_token": per_token,
        }));
        figures.push(Figure::each("step_s", label, "s", 1.0, seconds));
    }
    let what =
        format!("a step of {group} rows of {} tokens, of which rows share", prompt + response);
    let mut report = empty(arguments, of(prompt));
    report.what[0] = what;
    report.more = Map::from_iter([("curve".to_owned(), Value::Array(points))]);
    Ok(Report { figures, ..report })
}

fn empty(arguments: &TrainArguments, work: Work) -> Report {
    let Work { rows, length, shared, targets } = work;
    let common = match shared {
        0 => String::new(),
        _ => format!("; the first {shared} are the same in all"),
    };
    let what = format!("{rows} rows of {length} tokens, {targets} of each are targets{common}");
    let model = &arguments.model;
    Report {
        name: "train",
        what: vec![what, model.describe()],
        machine: Machine::with(arguments.threads),
        sizes: json!({
            "model": model.sizes(),
            "rows": rows,
            "length": length,
            "shared": shared,
            "targets": targets,
            "padded_tokens": work.padded_tokens(),
            "distinct_tokens": work.distinct_tokens(),
            "flops_per_step": work.flops(model),
        }),
        figures: Vec::new(),
        parts: Vec::new(),
        more: Map::new(),
    }
}

fn measure(arguments: &TrainArguments, work: Work) -> Result<TrainMeasurement, Failure> {
    let rows = work.make(arguments.model.sizes().vocab_size);
    let start_bytes = memory::resident()?;
    let TrainArguments { model, learner, threads, .. } = arguments;
    let mut learner = learner.learner(model, work.length, *threads)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| Failure::runtime(&error))?;
    let mut step = || {
        let done = runtime.block_on(step(&mut learner, &rows));
        done.map_err(|error| Failure::runtime(&error))
    };
    step()?;
    memory::reset_peak()?;
    let steps = (0..arguments.repetitions).map(|_| step()).collect::<Result<_, _>>()?;
    Ok(TrainMeasurement { steps, start_bytes, peak_bytes: memory::peak()? })
}

/// Runs one step on the mean negative log-likelihood of the targets.
async fn step(learner: &mut CandleLearner, rows: &[Row]) -> Result<StepTimes, LearnerError> {
    let n_targets: usize = rows.iter().map(|row| row.targets.len()).sum();
    let slope = -1.0 / n_targets as f32;
    let before = learner.shares().await?;
    let started = Instant::now();
    let mut forward_s = 0.0;
    let mut gradient = |logprobs: &[Vec<f32>]| -> Result<_, Box<dyn Error + Send + Sync>> {
        forward_s = started.elapsed().as_secs_f64();
        Ok(logprobs.iter().map(|row| vec![slope; row.len()]).collect())
    };
    learner.accumulate(rows, &mut gradient).await?;
    let both_s = started.elapsed().as_secs_f64();
    learner.step(Update { learning_rate: 1e-4, max_grad_norm: 1.0 }).await?;
    let all_s = started.elapsed().as_secs_f64();
    let shares = learner.shares().await?.since(&before);
    Ok(StepTimes { forward_s, backward_s: both_s - forward_s, optimizer_s: all_s - both_s, shares })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_share_what_they_are_said_to_share() {
        let work = Work { rows: 3, length: 10, shared: 6, targets: 2 };
        let rows = work.make(50);
        assert!(rows.iter().all(|row| row.ids.len() == 10 && row.ids[..6] == rows[0].ids[..6]));
        assert!(rows[0].ids[6..] != rows[1].ids[6..]);
        let positions: Vec<usize> = rows[2].targets.iter().map(|target| target.position).collect();
        assert_eq!(positions, [8, 9]);
        assert_eq!((work.padded_tokens(), work.distinct_tokens()), (30, 18));
    }
}
