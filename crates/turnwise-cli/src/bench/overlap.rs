//! `turnwise bench overlap`: whether rollouts beside training pay on this machine and on larger ones.

use std::thread::available_parallelism;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use turnwise_candle::read_bandwidth;
use turnwise_run::Failure;
use turnwise_simulation::{ComputeCosts, OverlapSettings, simulate_overlap};

use super::flops;
use super::machine::Machine;
use super::report::median;
use super::step::{self, Division, StepArguments};
use crate::say;

#[derive(Clone, Debug, Args)]
pub(crate) struct OverlapArguments {
    #[command(flatten)]
    pub(super) step: StepArguments,
    /// Processors of the machines that are simulated
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [16, 64])]
    processors: Vec<usize>,
    /// What all processors of a simulated machine read together, in GB/s
    #[arg(long, value_name = "GB/s", default_value_t = 300.0)]
    bandwidth: f64,
}

/// A step with some division of the threads.
#[derive(Clone, Copy, Debug, Serialize)]
struct Divided {
    processors: usize,
    engine: usize,
    learner: usize,
    asynchronous: bool,
    step_s: f64,
    /// Seconds over those of the synchronous step.
    of_synchronous: f64,
    engine_busy: Option<f64>,
    learner_busy: Option<f64>,
}

/// Runs the benchmark and prints its results.
pub(super) fn bench(arguments: &OverlapArguments) -> Result<(), Failure> {
    let OverlapArguments { step, processors, bandwidth } = arguments;
    let own = available_parallelism().map_or(1, std::num::NonZero::get).min(step.threads.max(1));
    if processors.contains(&0) || *bandwidth <= 0.0 || bandwidth.is_nan() {
        return Err(Failure::refused("processors and bandwidth are above 0"));
    }
    let costs = costs(step, own)?;
    let measured = measured(step, own)?;
    let mut simulated = Vec::new();
    for processors in std::iter::once(own).chain(processors.iter().copied()) {
        let read_all = if processors == own { costs.read_all } else { bandwidth * 1e9 };
        simulated.extend(curve(step, processors, ComputeCosts { read_all, ..costs })?);
    }
    if step.json {
        let all = json!({
            "bench": "overlap",
            "machine": Machine::with(own),
            "costs": costs,
            "measured": measured,
            "simulated": simulated,
        });
        return say(&format!("{all}\n"));
    }
    say(&describe(step, &costs, &measured, &simulated))
}

/// Measures steps with every division of this machine's threads.
fn measured(arguments: &StepArguments, processors: usize) -> Result<Vec<Divided>, Failure> {
    let mut all = Vec::new();
    for division in divisions(processors, &(1..processors).collect::<Vec<_>>()) {
        let timed = step::seconds(arguments, division)?;
        let step_s = median(&timed.iter().map(|step| step.step_s).collect::<Vec<_>>());
        all.push(divided(processors, division, step_s, None));
    }
    Ok(compared(all))
}

/// Simulates steps on a machine.
fn curve(
    arguments: &StepArguments,
    processors: usize,
    costs: ComputeCosts,
) -> Result<Vec<Divided>, Failure> {
    let eighths = (1..8).map(|part| (processors * part / 8).max(1));
    let mut engines: Vec<usize> = eighths.filter(|engine| *engine < processors).collect();
    engines.dedup();
    let mut all = Vec::new();
    for division in divisions(processors, &engines) {
        let settings = OverlapSettings {
            groups: arguments.groups,
            group: arguments.group,
            turns: arguments.turns,
            prompt: arguments.prompt,
            turn_tokens: arguments.turn_tokens,
            observation: arguments.observation,
            engine_threads: division.engine,
            learner_threads: division.learner,
            asynchronous: division.asynchronous,
            steps: 8,
            costs,
        };
        let report = simulate_overlap(settings).map_err(Failure::refused)?;
        let busy = Some([report.engine_busy, report.learner_busy]);
        all.push(divided(processors, division, report.step_s, busy));
    }
    Ok(compared(all))
}

/// Returns the synchronous step, in which both have all threads, and asynchronous ones.
fn divisions(processors: usize, engines: &[usize]) -> Vec<Division> {
    let both = Division { engine: processors, learner: processors, asynchronous: false };
    let beside = |engine: &usize| Division {
        engine: *engine,
        learner: processors - engine,
        asynchronous: true,
    };
    std::iter::once(both).chain(engines.iter().map(beside)).collect()
}

fn divided(processors: usize, of: Division, step_s: f64, busy: Option<[f64; 2]>) -> Divided {
    let Division { engine, learner, asynchronous } = of;
    let [engine_busy, learner_busy] = [0, 1].map(|who| busy.map(|busy| busy[who]));
    let of_synchronous = 1.0;
    Divided {
        processors,
        engine,
        learner,
        asynchronous,
        step_s,
        of_synchronous,
        engine_busy,
        learner_busy,
    }
}

/// Compares with the first, which is synchronous.
fn compared(mut all: Vec<Divided>) -> Vec<Divided> {
    let synchronous = all.first().map_or(1.0, |first| first.step_s);
    for divided in &mut all {
        divided.of_synchronous = divided.step_s / synchronous;
    }
    all
}

/// Measures what engine and learner cost on one thread, and how training scales from one thread to all.
fn costs(arguments: &StepArguments, processors: usize) -> Result<ComputeCosts, Failure> {
    let alone = |threads| Division { engine: threads, learner: threads, asynchronous: false };
    let time = |threads: usize| -> Result<[f64; 2], Failure> {
        let steps = step::seconds(arguments, alone(threads))?;
        let of = |seconds: fn(&step::Timed) -> f64| {
            median(&steps.iter().map(seconds).collect::<Vec<_>>())
        };
        Ok([of(|step| step.rollout_s), of(|step| step.step_s - step.rollout_s)])
    };
    let [rollouts, training] = time(1)?;
    let scaled = if processors > 1 { time(processors)?[1] } else { training };
    let config = arguments.model.config(arguments.length());
    let weights =
        flops::weight_bytes(&config, arguments.model.engine_weights(), arguments.model.compute());
    #[expect(clippy::cast_sign_loss, reason = "a number of bytes is not negative")]
    let read = |threads| read_bandwidth(threads, weights as usize);
    let read_one = read(1);
    let (groups, episodes) = (arguments.groups as f64, (arguments.groups * arguments.group) as f64);
    let own = (arguments.length() - arguments.prompt) as f64;
    let tokens = groups * arguments.prompt as f64 + episodes * own;
    let decoding = (arguments.turns * arguments.turn_tokens) as f64;
    let computing = (rollouts - decoding * weights / read_one).max(0.1 * rollouts);
    let share = scaled / training;
    let whole = 1.0 / processors as f64;
    let serial = if processors > 1 { (share - whole) / (1.0 - whole) } else { 0.0 };
    Ok(ComputeCosts {
        weight_bytes: weights,
        read_one,
        read_all: read(processors),
        engine_token_s: computing / tokens,
        training_token_s: training / tokens,
        serial: serial.clamp(0.0, 1.0),
    })
}

fn describe(
    arguments: &StepArguments,
    costs: &ComputeCosts,
    measured: &[Divided],
    simulated: &[Divided],
) -> String {
    let mut lines = vec![
        arguments.what(),
        arguments.model.describe(),
        format!(
            "on one thread: {:.2} ms to train a token, {:.2} ms to compute one in the engine, {:.1} GB/s read; {:.0} % of training does not scale",
            1e3 * costs.training_token_s,
            1e3 * costs.engine_token_s,
            costs.read_one / 1e9,
            100.0 * costs.serial,
        ),
    ];
    for (title, all) in [("measured", measured), ("simulated", simulated)] {
        for of_machine in all.chunk_by(|a, b| a.processors == b.processors) {
            lines.push(format!("{title}, {} processors", of_machine[0].processors));
            lines.extend(of_machine.iter().map(line));
            lines.push(format!("    {}", advice(of_machine)));
        }
    }
    lines.join("\n") + "\n"
}

fn line(divided: &Divided) -> String {
    let Divided { engine, learner, step_s, of_synchronous, .. } = divided;
    let what = if divided.asynchronous {
        format!("engine {engine}, learner {learner}")
    } else {
        "synchronous".to_owned()
    };
    let busy = match (divided.engine_busy, divided.learner_busy) {
        (Some(engine), Some(learner)) => {
            format!("   engine {:.0} %, learner {:.0} % busy", 100.0 * engine, 100.0 * learner)
        }
        _ => String::new(),
    };
    format!("  {what:<26}{step_s:>9.2} s a step   {of_synchronous:.2}{busy}")
}

/// Says which division is best.
fn advice(all: &[Divided]) -> String {
    let beside = all.iter().filter(|divided| divided.asynchronous);
    match beside.min_by(|a, b| a.step_s.total_cmp(&b.step_s)) {
        Some(best) if best.of_synchronous < 0.95 => format!(
            "rollout.mode = \"asynchronous\" with engine.threads = {} and train.threads = {} saves {:.0} %",
            best.engine,
            best.learner,
            100.0 * (1.0 - best.of_synchronous)
        ),
        _ => "rollout.mode = \"synchronous\" is the better choice".to_owned(),
    }
}
