//! Estimates of what a run needs, made before it starts: memory, disk, and seconds per step.

use std::num::NonZero;
use std::path::Path;
use std::thread::available_parallelism;

use turnwise_candle::DecoderConfig;
use turnwise_training::{Batch, Learner, RolloutMode, Row, free_bytes};
use turnwise_trajectory::Trajectory;

use crate::config::{Config, EngineName, LearnerName};
use crate::failure::{ExitCode, Failure};
use crate::learner::RunLearner;
use crate::memory::{EpisodeLengths, available_memory, largest_plan, plan_of};
use crate::session::Session;
use crate::text::clock;
use crate::threads::Threads;

/// The number of weights above which a loaded model does not tolerate a large learning rate.
const TRAINED_MODEL: usize = 10_000_000;
/// The number of tokens over which a forward pass is timed.
const TIMED_TOKENS: usize = 1024;
/// The cost of a training step in forward passes: one forward pass, and a backward pass with twice its products.
const PASSES: f64 = 3.0;

/// Returns lines about memory and disk for the screen's header; a line that begins with `!` is a warning.
pub(crate) fn header(session: &Session, run: &Path) -> Vec<String> {
    let Session { config, shape, .. } = session;
    if config.train.learner == LearnerName::Tinker {
        let url = config.train.tinker.as_ref().map_or("", |tinker| &tinker.url);
        let sampler = match config.rollout.engine {
            EngineName::Candle => "which samples too".to_owned(),
            other => format!("and {} samples with its adapters", other.word()),
        };
        let rank = config.train.tinker.as_ref().map_or(0, |tinker| tinker.rank);
        return vec![format!(
            "learner adapters of rank {rank} at the Tinker server {url}, {sampler}"
        )];
    }
    let recomputes = config.train.recompute_layers == Some(true);
    let memory = shape.training_memory(&largest_plan(config, recomputes));
    let engine = match memory.engine.saturating_add(memory.kv) {
        0 => String::new(),
        bytes => format!(", engine {}", size(bytes)),
    };
    let mut lines = vec![format!(
        "memory  about {} at most: weights {}, gradients and moments {}, activations {}{}{engine}",
        size(memory.total()),
        size(memory.weights.saturating_add(memory.reference)),
        size(memory.gradients.saturating_add(memory.moments)),
        size(memory.activations),
        if recomputes { " (layers are recomputed)" } else { "" },
    )];
    let checkpoint = shape.checkpoint_bytes(config.model.lora.as_ref(), config.optimizer.moments);
    // A new checkpoint is written before the oldest one is deleted.
    let at_once = config.log.keep_checkpoints as u64 + 1;
    let free = free_bytes(run);
    let disk = free.map_or_else(String::new, |free| format!("; {} are free", size(free)));
    lines.push(format!(
        "disk    {} a checkpoint, up to {at_once} at a time{disk}",
        size(checkpoint)
    ));
    if let Some(available) = available_memory().filter(|available| *available < memory.total()) {
        lines.push(format!(
            "! the machine has {} of memory free: lower train.micro_batch_tokens, or train adapters (model.lora)",
            size(available)
        ));
    }
    if free.is_some_and(|free| free < checkpoint.saturating_mul(at_once)) {
        lines.push("! the disk may fill up: make room, or lower log.keep_checkpoints".to_owned());
    }
    lines.extend(learning_rate(config, session.n_weights));
    lines
}

/// Refuses to begin if not even the first checkpoint fits on the disk.
pub(crate) fn check_disk(session: &Session, run: &Path) -> Result<(), Failure> {
    let Session { config, shape, .. } = session;
    let needed = match config.train.learner {
        LearnerName::Candle => {
            shape.checkpoint_bytes(config.model.lora.as_ref(), config.optimizer.moments)
        }
        // The server keeps what training needs; the adapter alone is written here.
        LearnerName::Tinker => return Ok(()),
    };
    match free_bytes(run) {
        Some(free) if free < needed => Err(Failure::new(
            ExitCode::Runtime,
            format!(
                "the disk is too full for {}: a checkpoint needs {}, and {} are free",
                run.display(),
                size(needed),
                size(free)
            ),
        )
        .help("make room, or choose another disk with --run-dir DIR")),
        _ => Ok(()),
    }
}

/// Returns a warning if the learning rate is far above what a trained model tolerates.
fn learning_rate(config: &Config, weights: usize) -> Option<String> {
    let usual = if config.model.lora.is_some() { 1e-4 } else { 1e-5 };
    let rate = config.train.learning_rate;
    let is_large =
        config.model.directory.is_some() && weights > TRAINED_MODEL && rate > 10.0 * usual;
    is_large.then(|| {
        format!(
            "! train.learning_rate = {rate:e} is {:.0} times what a model of {:.0}M weights usually bears ({usual:e}); one step may destroy it",
            rate / usual,
            weights as f64 / 1e6
        )
    })
}

/// Estimates how long a step takes, from an evaluation that took `seconds` and a forward pass over some of its
/// episodes, and says how to divide the processors; nothing if nothing can be timed.
pub(crate) async fn step_time(
    config: &Config,
    shape: &DecoderConfig,
    learner: &mut RunLearner,
    played: &[Trajectory],
    seconds: f64,
) -> Result<Vec<String>, Failure> {
    let tokens =
        |episodes: &[Trajectory]| -> usize { episodes.iter().map(Trajectory::n_sampled).sum() };
    if played.is_empty() {
        return Ok(Vec::new());
    }
    let Ok(Batch { rows, .. }) = scored(&mut played.to_vec(), config) else {
        return Ok(Vec::new());
    };
    let some = of_tokens(&rows, TIMED_TOKENS);
    let started = std::time::Instant::now();
    learner.logprobs(some).await.map_err(|error| Failure::runtime(&error))?;
    let forward = started.elapsed().as_secs_f64();
    let per_token = forward / lengths(some).distinct(some.len(), 1).max(1) as f64;
    let lengths = lengths(&rows);
    let n_episodes = config.rollout.groups_per_step * config.rollout.group_size;
    let episodes = n_episodes as f64;
    let fraction = match config.rollout.tokens_per_step {
        0 => episodes / played.len().max(1) as f64,
        budget => budget as f64 / tokens(played).max(1) as f64,
    };
    // Of the evaluated episodes, a step trains this many.
    let trained = fraction * played.len() as f64 / episodes;
    let minibatches = config.train.n_minibatches.max(1);
    let in_batch = n_episodes.div_ceil(minibatches);
    let of_batch = lengths.distinct(in_batch, config.rollout.group_size);
    let rollout = seconds * fraction;
    let train = PASSES * per_token * (minibatches * of_batch) as f64 * trained;
    let step = match config.rollout.mode {
        RolloutMode::Synchronous => rollout + train,
        RolloutMode::Pipelined | RolloutMode::Asynchronous => rollout.max(train),
    };
    // The largest mini-batch counts: its mean is some standard errors above that of all.
    let more = 3.0 * deviation(&rows, lengths.whole) / (in_batch as f64).sqrt();
    #[expect(clippy::cast_sign_loss, reason = "a deviation is not negative")]
    let longest = EpisodeLengths { whole: lengths.whole + more as usize, ..lengths };
    let mut said = vec![format!(
        "a step takes about {step:.1} s: rollouts {rollout:.1} s, training {train:.1} s; {} steps about {}",
        config.run.steps,
        clock(step * config.run.steps as f64)
    )];
    if config.train.learner == LearnerName::Candle {
        said.extend(of_this_machine(config, shape, longest, [rollout, train]));
    }
    Ok(said)
}

/// Says what training takes of this machine: memory, and how to divide the processors.
fn of_this_machine(
    config: &Config,
    shape: &DecoderConfig,
    longest: EpisodeLengths,
    seconds: [f64; 2],
) -> Vec<String> {
    let memory = shape.training_memory(&plan_of(config, longest));
    let mut said =
        vec![format!("memory about {} with episodes of this length", size(memory.total()))];
    if config.rollout.mode != RolloutMode::Synchronous {
        let processors = available_parallelism().map_or(1, NonZero::get);
        said.extend(division(config, processors, seconds));
    }
    said
}

/// Says how rollouts and training that overlap should divide the processors, if that is not how they do, from the seconds
/// that each takes with its threads.
fn division(config: &Config, processors: usize, [rollout, train]: [f64; 2]) -> Option<String> {
    /// With fewer, neither side has threads to give.
    const FEW: usize = 3;
    if processors <= FEW {
        return Some(format!(
            "! on {processors} processors rollouts beside training seldom save time: rollout.mode = \"synchronous\" is the better choice (`turnwise bench overlap` measures it)"
        ));
    }
    let given = Threads::divide(config);
    let (engine, learner) = (rollout * given.engine as f64, train * given.learner as f64);
    let share = (processors as f64 * engine / (engine + learner)).round();
    #[expect(clippy::cast_sign_loss, reason = "a share is not negative, and NaN becomes 0")]
    let share = (share as usize).clamp(1, processors - 1);
    // A small difference is that of the estimate.
    let is_off = share.abs_diff(given.engine) * 8 > processors;
    is_off.then(|| {
        format!(
            "! rollouts and training would take equally long with engine.threads = {share} and train.threads = {} (now {} and {})",
            processors - share,
            given.engine,
            given.learner
        )
    })
}

/// Returns as many of the first rows as have `tokens` tokens.
fn of_tokens(rows: &[Row], tokens: usize) -> &[Row] {
    let mut counted = 0;
    let enough = rows.iter().position(|row| {
        counted += row.ids.len();
        counted >= tokens
    });
    &rows[..enough.map_or(rows.len(), |last| last + 1)]
}

/// Returns the standard deviation of the lengths of rows from their mean.
fn deviation(rows: &[Row], mean: usize) -> f64 {
    let squares = rows.iter().map(|row| (row.ids.len().abs_diff(mean) as f64).powi(2));
    (squares.sum::<f64>() / rows.len().max(1) as f64).sqrt()
}

/// Returns the mean lengths of rows, and what all of them begin with.
fn lengths(rows: &[Row]) -> EpisodeLengths {
    let mean =
        |of: &dyn Fn(&Row) -> usize| rows.iter().map(of).sum::<usize>().div_ceil(rows.len().max(1));
    let prompt = mean(&|row| row.targets.first().map_or(row.ids.len(), |first| first.position));
    let alike = |a: &Row, b: &Row| a.ids.iter().zip(&b.ids).take_while(|(a, b)| a == b).count();
    let common = rows.iter().map(|row| alike(&rows[0], row)).min().unwrap_or(0).min(prompt);
    EpisodeLengths { common, prompt, whole: mean(&|row| row.ids.len()) }
}

/// Creates a batch whose advantages are 0, which serves only to count and to time its tokens.
fn scored(episodes: &mut [Trajectory], config: &Config) -> Result<Batch, ()> {
    for episode in episodes.iter_mut() {
        for id in episode.graph.ids().collect::<Vec<_>>() {
            for tokens in episode.graph.node_mut(id).sampled_mut() {
                tokens.set_advantage(Some(0.0));
            }
        }
    }
    Batch::new(episodes.iter(), config.train.ratio_scope).map_err(drop)
}

/// Formats a size, as in `1.6 GB`.
pub(crate) fn size(bytes: u64) -> String {
    match bytes as f64 {
        small if small < 1e6 => format!("{:.0} kB", small / 1e3),
        some if some < 1e9 => format!("{:.0} MB", some / 1e6),
        much => format!("{:.1} GB", much / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_all_rows_and_few_are_timed() {
        let row = |length: usize| Row { ids: vec![0; length], ..Row::default() };
        let rows = [10, 10, 30, 50].map(row);
        assert_eq!(lengths(&rows).whole, 25);
        assert!((deviation(&rows, 25) - 275_f64.sqrt()).abs() < 1e-9);
        let timed = |tokens| of_tokens(&rows, tokens).len();
        assert_eq!([timed(1), timed(20), timed(21), timed(1000)], [1, 2, 3, 4]);
        assert_eq!((of_tokens(&[], 5).len(), deviation(&[], 0)), (0, 0.0));
    }

    #[test]
    fn processors_are_divided_by_the_measured_need() {
        let mut config = Config::default();
        config.rollout.mode = RolloutMode::Asynchronous;
        let said = division(&config, 2, [1.0, 1.0]).unwrap();
        assert!(said.contains("\"synchronous\" is the better choice"), "{said}");
        (config.engine.threads, config.train.threads) = (8, 8);
        assert_eq!(division(&config, 16, [2.0, 2.2]), None);
        let said = division(&config, 16, [9.0, 3.0]).unwrap();
        assert!(said.contains("engine.threads = 12 and train.threads = 4 (now 8 and 8)"), "{said}");
    }
}
