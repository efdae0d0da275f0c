//! Tokens per second of the rollout load that speeds are compared at, as JSON: `cargo bench -p turnwise-candle --bench rollout`.
//! With the argument `eviction`, how a load of three gigabytes of keys and values passes through one.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::env;
use std::error::Error;

use turnwise_candle::{DecoderConfig, EngineSettings, RolloutLoad, measure_rollout};

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let load = if env::args().any(|argument| argument == "eviction") {
        eviction()
    } else {
        RolloutLoad::standard()
    };
    let speed = runtime.block_on(measure_rollout(&load))?;
    println!("{}", serde_json::to_string_pretty(&speed)?);
    Ok(())
}

/// 64 episodes whose 3,840 tokens each come to 48 MB: 3.0 GB, in 1 GB.
fn eviction() -> RolloutLoad {
    let standard = RolloutLoad::standard();
    RolloutLoad {
        config: DecoderConfig { max_positions: 4096, n_kv_heads: 4, ..standard.config },
        engine: EngineSettings { max_kv_bytes: 1 << 30, ..EngineSettings::default() },
        episodes: 64,
        turns: 2,
        shared_tokens: 0,
        environment_tokens: 1888,
        turn_tokens: 32,
        repetitions: 1,
    }
}
