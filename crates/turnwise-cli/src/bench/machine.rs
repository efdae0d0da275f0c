//! The measured machine, and the number of threads.

use std::process::Command;
use std::{env, fs, thread};

use serde::Serialize;
use turnwise_candle::{ComputePrecision, EngineWeights, bf16_peak, gemm_peak, int8_peak};

use turnwise_run::{ExitCode, Failure};

use super::model::ModelArguments;

/// The variables that the libraries' thread pools read once, when they start.
const VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// A description of the machine.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) cores: usize,
    /// The number of threads.
    pub(super) threads: usize,
}

impl Machine {
    pub(super) fn with(threads: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            processor: processor().unwrap_or_else(|| "unknown processor".to_owned()),
            cores,
            threads,
        }
    }
}

fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// Runs the work in a process whose pools have this many threads: this one if it was started so, else a child that runs
/// the same command. A process of its own also has its own memory peak.
pub(super) fn with_threads(
    threads: usize,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    if threads == 0 {
        return Err(Failure::refused("nothing can be measured with 0 threads").help("--threads 1"));
    }
    let wanted = threads.to_string();
    if VARIABLES.iter().all(|name| env::var(name).is_ok_and(|value| value == wanted)) {
        return work();
    }
    let program = env::current_exe().map_err(|error| failed(&error))?;
    let mut child = Command::new(program);
    child.args(env::args_os().skip(1)).envs(VARIABLES.map(|name| (name, &wanted)));
    let status = child.status().map_err(|error| failed(&error))?;
    match status.code() {
        Some(0) => Ok(()),
        // The child has printed the reason.
        Some(code) => std::process::exit(code),
        None => Err(Failure::new(
            ExitCode::Runtime,
            format!("the measuring process ended with {status}"),
        )),
    }
}

fn failed(error: &std::io::Error) -> Failure {
    Failure::new(ExitCode::Runtime, format!("failed to start the measuring process: {error}"))
}

/// Measures the best matrix product of the model's precision, in operations per second.
pub(super) fn product_peak(model: ModelArguments, threads: usize) -> f64 {
    match (model.engine_weights(), model.compute()) {
        (EngineWeights::Int8, _) => int8_peak(threads),
        (EngineWeights::Compute, ComputePrecision::F32) => gemm_peak(threads),
        (EngineWeights::Compute, ComputePrecision::Bf16) => bf16_peak(threads),
    }
}
