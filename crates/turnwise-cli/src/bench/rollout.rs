//! `turnwise bench rollout`: concurrent episodes of several turns, sampled by the engine.

use std::iter;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde_json::{Map, json};
use tokio::task::JoinSet;
use turnwise_candle::{
    CandlePolicy, DecoderConfig, EngineSeconds, EngineSettings, EngineStats, read_bandwidth,
};
use turnwise_environment::{Random, derive_seed};
use turnwise_rollout::{Policy, PolicyError, SampleRequest, SessionId};
use turnwise_trajectory::{PolicyVersion, Sampling, TokenId};

use super::machine::{self, Machine};
use super::model::ModelArguments;
use super::report::{Figure, Report, TimedPart, memory_figures};
use super::{flops, memory, numbers};
use turnwise_run::Failure;

#[derive(Clone, Debug, Args)]
pub(crate) struct RolloutArguments {
    /// Print every repetition as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArguments,
    /// The number of concurrent episodes
    #[arg(long, value_name = "N", default_value_t = 32)]
    episodes: usize,
    /// The number of turns of each episode
    #[arg(long, value_name = "N", default_value_t = 4)]
    turns: usize,
    /// The tokens of the prompt that all episodes share
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// The tokens sampled in a turn
    #[arg(long, value_name = "N", default_value_t = 48)]
    turn_tokens: usize,
    /// The tokens that the environment adds between turns
    #[arg(long, value_name = "N", default_value_t = 16)]
    observation: usize,
    /// The number of repetitions, each with a new prompt, after one warm-up
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// The memory of the KV cache: what does not fit is evicted and recomputed
    #[arg(long, value_name = "MB", default_value_t = 2048)]
    kv_memory: u64,
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) threads: usize,
}

impl RolloutArguments {
    /// Returns the tokens of a finished episode.
    fn length(&self) -> usize {
        self.prompt + self.turns * self.turn_tokens + (self.turns - 1) * self.observation
    }

    fn n_sampled(&self) -> usize {
        self.episodes * self.turns * self.turn_tokens
    }

    /// Returns the fewest operations of all episodes: the prompt once, every other token except the last of an episode
    /// once, and logits for each sampled token.
    fn flops(&self, config: &DecoderConfig) -> f64 {
        let own = iter::repeat_n(self.prompt..self.length() - 1, self.episodes);
        flops::forward(config, own.chain(iter::once(0..self.prompt)), self.n_sampled())
    }

    /// Returns the fewest bytes read: each decoding step reads the weights once, the keys and values of the prompt
    /// once, and those of each episode's own tokens once.
    fn bytes(&self, config: &DecoderConfig) -> f64 {
        let precision = self.model.compute();
        let weights = flops::weight_bytes(config, self.model.engine_weights(), precision);
        let of_token = flops::kv_bytes(config, precision);
        let tokens = |turn: usize, drawn: usize| {
            self.prompt + self.episodes * (turn * (self.turn_tokens + self.observation) + drawn)
        };
        let steps = (0..self.turns).flat_map(|turn| (0..self.turn_tokens).map(move |n| (turn, n)));
        steps.map(|(turn, drawn)| weights + of_token * tokens(turn, drawn) as f64).sum()
    }
}

/// The measurements of a benchmark.
struct RolloutMeasurement {
    seconds: Vec<f64>,
    /// The engine's statistics over all repetitions.
    done: EngineStats,
    start_bytes: u64,
    peak_bytes: u64,
}

/// Runs the benchmark and prints its results.
pub(super) fn bench(arguments: &RolloutArguments) -> Result<(), Failure> {
    let RolloutArguments { episodes, turns, prompt, turn_tokens, repetitions, .. } = *arguments;
    if [episodes, turns, prompt, turn_tokens, repetitions].contains(&0) {
        return Err(Failure::refused(
            "episodes, turns, tokens of prompt and turn, and repetitions are at least 1",
        ));
    }
    let measured = measure(arguments)?;
    report(arguments, &measured).print(arguments.json)
}

fn report(arguments: &RolloutArguments, measured: &RolloutMeasurement) -> Report {
    let config = arguments.model.config(arguments.length());
    let (flops, bytes) = (arguments.flops(&config), arguments.bytes(&config));
    let peak = machine::product_peak(arguments.model, arguments.threads);
    let step_bytes = bytes / (arguments.turns * arguments.turn_tokens) as f64;
    #[expect(clippy::cast_sign_loss, reason = "a number of bytes is not negative")]
    let bandwidth = read_bandwidth(arguments.threads, step_bytes as usize);
    // The times are added: no kernel is known to compute at its peak while it reads at its peak.
    let bound = arguments.n_sampled() as f64 / (flops / peak + bytes / bandwidth);
    let memory_bound = arguments.n_sampled() as f64 * bandwidth / bytes;
    let per_second = |count: f64| measured.seconds.iter().map(|s| count / s).collect::<Vec<_>>();
    let sampled = per_second(arguments.n_sampled() as f64);
    let of = |bound: f64| sampled.iter().map(|rate| rate / bound).collect();
    let (of_bound, of_memory_bound) = (of(bound), of(memory_bound));
    let mut figures = vec![
        Figure::each("rollout_s", "all episodes", "s", 1.0, measured.seconds.clone()),
        Figure::each("sampled_tokens_per_s", "tokens sampled", "tokens/s", 1.0, sampled),
        Figure::once("bound_tokens_per_s", "bound of products and memory", "tokens/s", 1.0, bound),
        Figure::each("of_bound", "achieved of it", "", 1.0, of_bound),
        Figure::once("memory_bound_tokens_per_s", "bound of memory", "tokens/s", 1.0, memory_bound),
        Figure::each("of_memory_bound", "achieved of it", "", 1.0, of_memory_bound),
        Figure::each("flops_per_s", "matrix products", "GFLOP/s", 1e9, per_second(flops)),
        Figure::once("gemm_peak_flops_per_s", "best matrix product", "GFLOP/s", 1e9, peak),
        Figure::each("mfu", "share of the peak (MFU)", "", 1.0, per_second(flops / peak)),
        Figure::once("read_bytes_per_s", "peak of memory reads", "GB/s", 1e9, bandwidth),
    ];
    figures.extend(engine_figures(measured.done, arguments.repetitions));
    figures.extend(memory_figures(measured.start_bytes, measured.peak_bytes));
    let parts = parts(&measured.done.seconds, arguments.repetitions);
    Report { figures, parts, ..empty(arguments, flops, bytes) }
}

/// Returns the engine's time per repetition by kind of work; the rest is waiting for requests.
fn parts(seconds: &EngineSeconds, repetitions: usize) -> Vec<TimedPart> {
    let EngineSeconds { embedding, linear, attention, head, sampling, other, .. } = *seconds;
    let parts = [
        ("embedding", embedding),
        ("linear", linear),
        ("attention", attention),
        ("head", head),
        ("sampling", sampling),
        ("other", other),
    ];
    let part = |(name, seconds): (&str, f64)| TimedPart {
        name: name.to_owned(),
        seconds: vec![seconds / repetitions as f64],
    };
    parts.map(part).to_vec()
}

/// Returns the engine's statistics per repetition.
fn engine_figures(done: EngineStats, repetitions: usize) -> [Figure; 7] {
    let each = |count: u64| count as f64 / repetitions as f64;
    [
        Figure::once("computed_tokens", "tokens computed", "", 1.0, each(done.computed)),
        Figure::once("drafted_tokens", "tokens drafted", "", 1.0, each(done.drafted)),
        Figure::once("confirmed_tokens", "of them sampled", "", 1.0, each(done.confirmed)),
        Figure::once("reused_tokens", "tokens of prompts reused", "", 1.0, each(done.reused)),
        Figure::once("evicted_tokens", "tokens evicted", "", 1.0, each(done.evicted)),
        Figure::once("pauses", "requests paused", "", 1.0, each(done.paused)),
        Figure::once("kv_bytes_peak", "keys and values", "MB", 1e6, done.kv_bytes_peak as f64),
    ]
}

fn empty(arguments: &RolloutArguments, flops: f64, bytes: f64) -> Report {
    let RolloutArguments { model, episodes, turns, prompt, turn_tokens, observation, .. } =
        arguments;
    let what = format!(
        "{episodes} episodes of {turns} turns of {turn_tokens} tokens, {observation} between turns, after one prompt of {prompt}"
    );
    Report {
        name: "rollout",
        what: vec![what, model.describe()],
        machine: Machine::with(arguments.threads),
        sizes: json!({
            "model": model.sizes(),
            "episodes": episodes,
            "turns": turns,
            "prompt": prompt,
            "turn_tokens": turn_tokens,
            "observation": observation,
            "flops": flops,
            "bytes_read": bytes,
        }),
        figures: Vec::new(),
        parts: Vec::new(),
        more: Map::new(),
    }
}

fn measure(arguments: &RolloutArguments) -> Result<RolloutMeasurement, Failure> {
    let start_bytes = memory::resident()?;
    let model = arguments.model.make(arguments.length())?;
    let settings = EngineSettings {
        max_batch: arguments.episodes,
        max_kv_bytes: arguments.kv_memory.saturating_mul(1 << 20),
        weights: arguments.model.engine_weights(),
        threads: arguments.threads,
        ..EngineSettings::default()
    };
    let policy = CandlePolicy::new(&model, settings).map_err(|error| Failure::runtime(&error))?;
    drop(model);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| Failure::runtime(&error))?;
    let play = |round| {
        let begun = Instant::now();
        runtime.block_on(play(arguments, &policy, round))?;
        Ok(begun.elapsed().as_secs_f64())
    };
    play(0)?;
    memory::reset_peak()?;
    let before = policy.stats();
    let rounds = 1..=arguments.repetitions as u64;
    let seconds = rounds.map(play).collect::<Result<_, Failure>>()?;
    let done = policy.stats().since(&before);
    Ok(RolloutMeasurement { seconds, done, start_bytes, peak_bytes: memory::peak()? })
}

/// Plays all episodes of a round, with a prompt of its own, so that nothing is reused from earlier rounds.
async fn play(
    arguments: &RolloutArguments,
    policy: &CandlePolicy,
    round: u64,
) -> Result<(), Failure> {
    let mut random = Random::new(round);
    let prompt = numbers::ids(&mut random, arguments.model.sizes().vocab_size, arguments.prompt);
    let (arguments, mut episodes) = (Arc::new(arguments.clone()), JoinSet::new());
    for episode in 0..arguments.episodes as u64 {
        let session = round * arguments.episodes as u64 + episode;
        episodes.spawn(run(arguments.clone(), policy.clone(), prompt.clone(), session));
    }
    while let Some(done) = episodes.join_next().await {
        done.map_err(|error| Failure::runtime(&error))?.map_err(|e| Failure::runtime(&e))?;
    }
    Ok(())
}

/// Plays one episode.
async fn run(
    arguments: Arc<RolloutArguments>,
    policy: CandlePolicy,
    mut ids: Vec<TokenId>,
    session: u64,
) -> Result<(), PolicyError> {
    let mut random = Random::new(derive_seed(session, 1));
    for turn in 0..arguments.turns {
        if turn > 0 {
            let vocab_size = arguments.model.sizes().vocab_size;
            ids.extend(numbers::ids(&mut random, vocab_size, arguments.observation));
        }
        let request = SampleRequest {
            prompt: ids.clone(),
            stop: Vec::new(),
            max_tokens: arguments.turn_tokens,
            sampling: Sampling::default(),
            seed: session,
            first_index: (turn * arguments.turn_tokens) as u64,
            min_version: PolicyVersion(0),
            session: SessionId(session),
        };
        ids.extend(policy.sample(request).await?.tokens.iter().map(|token| token.id));
    }
    policy.release(SessionId(session));
    Ok(())
}
