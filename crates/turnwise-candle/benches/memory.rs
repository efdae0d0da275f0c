//! Peak memory of training, compared with its estimate: `cargo bench -p turnwise-candle --bench memory`.
//!
//! Each case runs in a process of its own: two steps on random rows, a publication after each, and an engine that
//! samples. The largest has the sizes of SmolLM2-135M.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::error::Error;
use std::process::Command;
use std::{env, fs};

use turnwise_candle::{
    AdamW, Architecture, CandleLearner, ComputePrecision, Decoder, DecoderConfig, EngineSettings,
    LearnerSettings, LoraSettings, TrainingPlan,
};
use turnwise_rollout::{Policy, SampleRequest, SessionId};
use turnwise_training::{Learner, Row, Target, Update};
use turnwise_trajectory::{PolicyVersion, Sampling};

/// Tells a child process which case to run.
const CASE: &str = "TURNWISE_MEMORY_CASE";
const LENGTH: usize = 256;

fn cases() -> Vec<(&'static str, DecoderConfig, TrainingPlan)> {
    let tiny = DecoderConfig { max_positions: LENGTH, ..DecoderConfig::small(512) };
    let middle = DecoderConfig {
        hidden_size: 256,
        intermediate_size: 768,
        n_layers: 6,
        head_dim: 64,
        vocab_size: 8192,
        ..tiny.clone()
    };
    let smol = DecoderConfig {
        architecture: Architecture::Llama { attention_bias: false, mlp_bias: false },
        vocab_size: 49_152,
        hidden_size: 576,
        intermediate_size: 1536,
        n_layers: 30,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
        ..tiny.clone()
    };
    let plan =
        TrainingPlan { micro_batch_tokens: 2048, kv_tokens: 8 * LENGTH, ..TrainingPlan::default() };
    let lora = TrainingPlan { lora: Some(LoraSettings::default()), ..plan.clone() };
    let again = TrainingPlan { recompute_layers: true, ..plan.clone() };
    let reference = TrainingPlan { keeps_reference: true, ..plan.clone() };
    vec![
        ("tiny", tiny, plan.clone()),
        ("middle", middle.clone(), plan.clone()),
        ("middle, reference", middle.clone(), reference),
        ("middle, layers again", middle.clone(), again),
        ("middle, LoRA", middle, lora.clone()),
        ("135M", smol.clone(), plan.clone()),
        ("135M, bf16", smol.clone(), TrainingPlan { compute: ComputePrecision::Bf16, ..plan }),
        ("135M, LoRA", smol, lora),
    ]
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(case) = env::var(CASE) {
        let (name, config, plan) = cases().swap_remove(case.parse()?);
        return run(name, config, &plan);
    }
    for case in 0..cases().len() {
        let status = Command::new(env::current_exe()?).env(CASE, case.to_string()).status()?;
        assert!(status.success(), "training works");
    }
    Ok(())
}

fn run(name: &str, config: DecoderConfig, plan: &TrainingPlan) -> Result<(), Box<dyn Error>> {
    let before = peak()?;
    let estimate = config.training_memory(plan);
    let vocabulary = config.vocab_size as u32;
    let mut model = Decoder::random(config, 1)?;
    if let Some(lora) = &plan.lora {
        model = model.with_lora(lora, 1)?;
    }
    let settings = LearnerSettings {
        recompute_layers: plan.recompute_layers,
        compute: plan.compute,
        ..LearnerSettings::default()
    };
    let mut learner = CandleLearner::with_settings(model, AdamW::default(), settings)?;
    let policy = learner.policy(EngineSettings::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        if plan.keeps_reference {
            learner.keep_reference().await?;
        }
        for step in 0..2 {
            let requests = (0..8).map(|session| policy.sample(request(session)));
            for answer in one_by_one(requests).await {
                answer?;
            }
            let rows = rows(plan.micro_batch_tokens, vocabulary, step);
            let ones = &mut |logprobs: &[Vec<f32>]| {
                Ok(logprobs.iter().map(|row| vec![-1e-3; row.len()]).collect())
            };
            learner.accumulate(&rows, ones).await?;
            learner.step(Update { learning_rate: 1e-5, max_grad_norm: 1.0 }).await?;
            learner.publish().await?;
        }
        Ok::<(), Box<dyn Error>>(())
    })?;
    let (measured, expected) = ((peak()? - before) as f64, estimate.total() as f64);
    println!(
        "{name}: measured {:.3} GB, estimated {:.3} GB ({:.2}): {estimate:?}",
        measured / 1e9,
        expected / 1e9,
        expected / measured
    );
    Ok(())
}

/// Awaits futures in sequence, which is enough to keep all keys and values until their sessions are released.
async fn one_by_one<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut answers = Vec::new();
    for future in futures {
        answers.push(future.await);
    }
    answers
}

fn request(session: u64) -> SampleRequest {
    SampleRequest {
        prompt: (0..LENGTH as u32 - 16).map(|id| (id * 7 + session as u32) % 500).collect(),
        stop: Vec::new(),
        max_tokens: 8,
        sampling: Sampling::default(),
        seed: session,
        first_index: 0,
        min_version: PolicyVersion(0),
        session: SessionId(session),
    }
}

/// Returns rows without common tokens.
fn rows(n_tokens: usize, vocabulary: u32, step: u32) -> Vec<Row> {
    let row = |row: u32| {
        let ids = (0..LENGTH as u32).map(|i| (i * 31 + row * 97 + step * 13 + 1) % vocabulary);
        let targets = (1..LENGTH).map(|position| Target { position, temperature: 1.0 });
        Row { ids: ids.collect(), targets: targets.collect(), ..Row::default() }
    };
    (0..(n_tokens / LENGTH) as u32).map(row).collect()
}

/// Returns the peak memory of this process, in bytes.
fn peak() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.ok_or("the system tells no peak")?.parse::<u64>()? * 1024)
}
