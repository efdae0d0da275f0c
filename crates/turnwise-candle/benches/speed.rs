//! Tokens per second of a small model, sampling and training: `cargo bench -p turnwise-candle`.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::error::Error;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use turnwise_candle::{
    AdamW, CandleLearner, CandlePolicy, Decoder, DecoderConfig, EngineSettings, Kernels,
};
use turnwise_rollout::{Policy, SampleRequest, SessionId};
use turnwise_training::{Learner, Row, Target, Update};
use turnwise_trajectory::{PolicyVersion, Sampling};

const EPISODES: usize = 128;
const TURNS: usize = 5;
/// Tokens sampled in a turn.
const DRAWN: usize = 3;
/// Tokens that the environment adds between turns, and before the first.
const CONTEXT: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for (hidden_size, n_layers, head_dim) in [(64, 2, 16), (128, 3, 32)] {
        let config = DecoderConfig {
            hidden_size,
            n_layers,
            head_dim,
            intermediate_size: 3 * hidden_size,
            max_positions: 128,
            ..DecoderConfig::small(400)
        };
        println!("hidden {hidden_size}, {n_layers} layers, vocabulary 400");
        runtime.block_on(draw(config.clone()))?;
        for kernels in [Kernels::Fused, Kernels::Plain] {
            runtime.block_on(train(config.clone(), kernels))?;
        }
    }
    Ok(())
}

async fn draw(config: DecoderConfig) -> Result<(), Box<dyn Error>> {
    let policy = CandlePolicy::new(&Decoder::random(config, 1)?, EngineSettings::default())?;
    let mut best = Duration::MAX;
    for round in 0..8 {
        let start = Instant::now();
        let mut episodes = JoinSet::new();
        for episode in 0..EPISODES as u64 {
            episodes.spawn(run_episode(policy.clone(), round * EPISODES as u64 + episode));
        }
        while let Some(done) = episodes.join_next().await {
            let () = done?.map_err(|error| error.to_string())?;
        }
        best = best.min(start.elapsed());
    }
    let turns = (EPISODES * TURNS) as f64;
    let seconds = best.as_secs_f64();
    println!(
        "  draw: {:.0} tokens/s drawn, {:.0} tokens/s computed",
        turns * DRAWN as f64 / seconds,
        turns * (DRAWN + CONTEXT) as f64 / seconds
    );
    Ok(())
}

async fn run_episode(
    policy: CandlePolicy,
    session: u64,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut ids = Vec::new();
    for turn in 0..TURNS {
        ids.extend(
            (0..CONTEXT as u64).map(|i| ((session * 31 + i * 7 + turn as u64) % 400) as u32),
        );
        let request = SampleRequest {
            prompt: ids.clone(),
            stop: Vec::new(),
            max_tokens: DRAWN,
            sampling: Sampling::default(),
            seed: session,
            first_index: (turn * DRAWN) as u64,
            min_version: PolicyVersion(0),
            session: SessionId(session),
        };
        ids.extend(policy.sample(request).await?.tokens.iter().map(|token| token.id));
    }
    policy.release(SessionId(session));
    Ok(())
}

async fn train(config: DecoderConfig, kernels: Kernels) -> Result<(), Box<dyn Error>> {
    let model = Decoder::random(config, 1)?.with_kernels(kernels);
    let mut learner = CandleLearner::new(model, AdamW::default())?;
    let length = TURNS * (DRAWN + CONTEXT) + 5;
    let rows: Vec<Row> = (0..EPISODES)
        .map(|row| Row {
            ids: (0..length).map(|i| ((row * 31 + i * 7) % 400) as u32).collect(),
            targets: (1..length)
                .filter(|i| i % (DRAWN + CONTEXT) >= CONTEXT)
                .map(|position| Target { position, temperature: 1.0 })
                .collect(),
            ..Row::default()
        })
        .collect();
    let (mut forward, mut both, mut step) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..6 {
        let start = Instant::now();
        learner.logprobs(&rows).await?;
        forward = forward.min(start.elapsed());
        let start = Instant::now();
        let gradient = |logprobs: &[Vec<f32>]| -> Result<_, Box<dyn Error + Send + Sync>> {
            Ok(logprobs.iter().map(|row| vec![-1e-3; row.len()]).collect())
        };
        learner.accumulate(&rows, &mut { gradient }).await?;
        both = both.min(start.elapsed());
        let start = Instant::now();
        learner.step(Update { learning_rate: 1e-4, max_grad_norm: 1.0 }).await?;
        step = step.min(start.elapsed());
    }
    println!(
        "  train {kernels:?}, {EPISODES} rows of {length} tokens: log-probabilities {:.1} ms, forward and backward {:.1} ms, step {:.2} ms",
        forward.as_secs_f64() * 1e3,
        both.as_secs_f64() * 1e3,
        step.as_secs_f64() * 1e3
    );
    Ok(())
}
