//! How fast an engine draws, and how fast this machine could.

use std::time::Instant;

use serde::Serialize;
use tokio::task::JoinSet;
use turnwise_rollout::{Policy, PolicyError, SampleRequest};
use turnwise_trajectory::{PolicyVersion, Sampling, TokenId};

use crate::engine::Team;
use crate::math;
use crate::matrix::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::simd::vectorized;
use crate::{CandlePolicy, Decoder, DecoderConfig, EngineSettings, EngineStats, ModelError};

/// Episodes of several turns that run side by side and begin with the same prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutLoad {
    /// The model; its weights are random.
    pub config: DecoderConfig,
    /// The engine.
    pub engine: EngineSettings,
    /// How many episodes there are at a time.
    pub episodes: usize,
    /// Turns of each.
    pub turns: usize,
    /// Tokens of the prompt that all begin with.
    pub shared_tokens: usize,
    /// Tokens that the environment adds before each turn, the first among them; every episode has its own.
    pub environment_tokens: usize,
    /// Tokens drawn in a turn.
    pub turn_tokens: usize,
    /// How often all of it is done, each time with another prompt. The first, which is not counted, warms up.
    pub repetitions: usize,
}

/// What a load took. Rates are tokens per second of wall time, from the first request to the last answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RolloutSpeed {
    /// Tokens drawn per second, for each repetition.
    pub drawn_per_s: Vec<f64>,
    /// Their median.
    pub drawn_per_s_median: f64,
    /// What the engine did in all repetitions, the warming one not counted; peaks are of all.
    pub stats: EngineStats,
    /// Operations of products and attention of one repetition.
    pub operations: f64,
    /// Memory that its steps read: all weights in each step, keys and values of what is shared once in a step, and those of
    /// each episode. In bytes.
    pub bytes_read: f64,
    /// What this machine can do.
    pub machine: Machine,
    /// Tokens per second if operations at the machine's peak and reading at its full rate happened one after another.
    pub bound_apart_per_s: f64,
    /// The same if they happened at once.
    pub bound_at_once_per_s: f64,
    /// The most memory that the process has held, in bytes; 0 where the system does not tell.
    pub peak_bytes: u64,
}

/// Rates of a machine, as measured with the engine's number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Operations per second of a large product in single precision.
    pub operations_per_s: f64,
    /// Bytes per second of reading as much memory as a model's weights take.
    pub bytes_per_s: f64,
}

impl RolloutLoad {
    /// The load that speeds are compared at: 32 episodes of 4 turns of 48 tokens behind a prompt of 512, drawn by a model
    /// of 6 layers of width 256.
    #[must_use]
    pub fn standard() -> Self {
        let config = DecoderConfig {
            hidden_size: 256,
            intermediate_size: 768,
            n_layers: 6,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 64,
            max_positions: 1024,
            ..DecoderConfig::small(8192)
        };
        Self {
            config,
            engine: EngineSettings::default(),
            episodes: 32,
            turns: 4,
            shared_tokens: 512,
            environment_tokens: 8,
            turn_tokens: 48,
            repetitions: 5,
        }
    }

    fn drawn(&self) -> usize {
        self.episodes * self.turns * self.turn_tokens
    }

    /// Operations of one repetition, and the numbers of keys and values that are read in it, those of the shared prompt once in
    /// each of so many steps.
    fn attention(&self, steps: f64) -> (f64, f64) {
        let DecoderConfig { n_layers, n_heads, n_kv_heads, head_dim, .. } = self.config;
        let whole = |tokens: usize| (tokens * (tokens + 1) / 2) as f64;
        let own = self.turns * (self.environment_tokens + self.turn_tokens) - 1;
        let pairs = whole(self.shared_tokens)
            + self.episodes as f64 * (whole(own) + (own * self.shared_tokens) as f64);
        let read = self.episodes as f64 * whole(own) + steps * self.shared_tokens as f64;
        (
            pairs * (4 * n_layers * n_heads * head_dim) as f64,
            read * (2 * n_layers * n_kv_heads * head_dim) as f64,
        )
    }
}

/// Runs a load on an engine of its own, and measures the machine before it.
///
/// # Errors
/// When the sizes cannot be a model, or the engine refuses a request of the load.
///
/// # Panics
/// Without a tokio runtime to run in.
pub async fn measure_rollout(load: &RolloutLoad) -> Result<RolloutSpeed, ModelError> {
    let model = Decoder::random(load.config.clone(), 1)?;
    let weights = model.weights()?;
    let (in_layers, in_head) = weights.multiplied();
    let machine = Machine::measure(load.engine.threads, size_of::<f32>() * (in_layers + in_head));
    drop(weights);
    let policy = CandlePolicy::new(&model, load.engine)?;
    drop(model);

    let failed = |error: PolicyError| ModelError::BadConfig(error.to_string());
    repeat(&policy, load, 0).await.map_err(failed)?;
    let warm = policy.stats();
    let mut drawn_per_s = Vec::new();
    for repetition in 1..=load.repetitions.max(1) {
        let start = Instant::now();
        repeat(&policy, load, repetition).await.map_err(failed)?;
        drawn_per_s.push(load.drawn() as f64 / start.elapsed().as_secs_f64());
    }
    let stats = policy.stats().since(&warm);

    let each = 1.0 / drawn_per_s.len() as f64;
    let steps = stats.steps as f64 * each;
    let (attention, kv_numbers) = load.attention(steps);
    let products = stats.computed as f64 * in_layers as f64 + stats.drawn as f64 * in_head as f64;
    let operations = 2.0 * products * each + attention;
    let numbers = steps * (in_layers + in_head) as f64 + kv_numbers;
    let bytes_read = numbers * size_of::<f32>() as f64;
    let (busy, reading) = (operations / machine.operations_per_s, bytes_read / machine.bytes_per_s);
    let drawn = load.drawn() as f64;
    Ok(RolloutSpeed {
        drawn_per_s_median: median(&drawn_per_s),
        drawn_per_s,
        stats,
        operations,
        bytes_read,
        machine,
        bound_apart_per_s: drawn / (busy + reading),
        bound_at_once_per_s: drawn / busy.max(reading),
        peak_bytes: peak_bytes(),
    })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    f64::midpoint(low, high)
}

/// All episodes once.
async fn repeat(
    policy: &CandlePolicy,
    load: &RolloutLoad,
    repetition: usize,
) -> Result<(), PolicyError> {
    let mut episodes = JoinSet::new();
    for episode in 0..load.episodes {
        episodes.spawn(run_episode(policy.clone(), load.clone(), repetition, episode));
    }
    while let Some(done) = episodes.join_next().await {
        done.map_err(|error| PolicyError::Failed(error.to_string()))??;
    }
    Ok(())
}

async fn run_episode(
    policy: CandlePolicy,
    load: RolloutLoad,
    repetition: usize,
    episode: usize,
) -> Result<(), PolicyError> {
    let session = (repetition * load.episodes + episode) as u64;
    let token = |seed: usize, i: usize| {
        ((seed * 7919 + i * (i + 31) + i / 7) % load.config.vocab_size) as TokenId
    };
    let mut ids: Vec<TokenId> = (0..load.shared_tokens).map(|i| token(repetition, i)).collect();
    for turn in 0..load.turns {
        let said = (0..load.environment_tokens).map(|i| token(episode + 1000 * (turn + 1), i));
        ids.extend(said);
        let request = SampleRequest {
            prompt: ids.clone(),
            stop: Vec::new(),
            max_tokens: load.turn_tokens,
            sampling: Sampling::default(),
            seed: session,
            first_index: (turn * load.turn_tokens) as u64,
            min_version: PolicyVersion(0),
            session,
        };
        ids.extend(policy.sample(request).await?.tokens.iter().map(|token| token.id));
    }
    policy.release(session);
    Ok(())
}

impl Machine {
    /// Measures with so many threads (0: one for each processor), reading memory of so many bytes. Takes about a second.
    #[must_use]
    pub fn measure(threads: usize, bytes: usize) -> Self {
        let mut team = Team::new(threads);
        let best = |mut work: Box<dyn FnMut() + '_>| {
            let time = |_| {
                let start = Instant::now();
                work();
                start.elapsed().as_secs_f64()
            };
            (0..12).map(time).fold(f64::MAX, f64::min)
        };
        let (a, b) = (vec![1.0_f32; SIZE * SIZE], vec![1.0_f32; SIZE * SIZE]);
        let mut targets: Vec<Vec<f32>> = (0..team.size()).map(|_| vec![0.0; SIZE * SIZE]).collect();
        let operations = (2 * SIZE * SIZE * SIZE * team.size()) as f64;
        let product = best(Box::new(|| {
            team.chunks(&mut targets, 1, |_, _, target| {
                let mut target = MatrixMut::rows(&mut target[0], SIZE);
                let (a, b) = (Matrix::rows(&a, SIZE), Matrix::rows(&b, SIZE));
                multiply(&mut target, Write::Replace, 1.0, a, b, Threads::One);
            });
        }));
        let mut memory = vec![0.0_f32; bytes / size_of::<f32>()];
        let length = memory.len().div_ceil(8 * team.size()).max(1);
        let reading = best(Box::new(|| {
            team.chunks(&mut memory, length, |_, _, numbers| {
                std::hint::black_box(sum(numbers));
            });
        }));
        Self { operations_per_s: operations / product, bytes_per_s: bytes as f64 / reading }
    }
}

/// Rows and columns of a large product.
const SIZE: usize = 768;

vectorized! {
    fn sum(numbers: &[f32]) -> f32 {
        math::dot(numbers, numbers)
    }
}

/// What Linux says of the most memory that was resident.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_load_is_drawn_whole_and_its_prompt_computed_once() {
        let load = RolloutLoad {
            config: DecoderConfig::small(97),
            episodes: 5,
            turns: 3,
            shared_tokens: 70,
            turn_tokens: 6,
            environment_tokens: 4,
            repetitions: 2,
            ..RolloutLoad::standard()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let speed = runtime.block_on(measure_rollout(&load)).unwrap();
        assert_eq!(speed.stats.drawn, 2 * 5 * 3 * 6);
        // The last token of each episode is drawn and never computed.
        let own = 3 * (6 + 4) - 1;
        assert_eq!(speed.stats.computed, 2 * (70 + 5 * own));
        assert_eq!(speed.drawn_per_s.len(), 2);
        assert!(speed.bound_at_once_per_s > speed.bound_apart_per_s);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
    }
}
