//! Training with an engine of another precision: how far it is from the trainer, and what that does to learning.
//!
//! ```sh
//! cargo run --release -p turnwise-examples --features gguf --example other_engine
//! ```

#![allow(clippy::print_stdout)] // programs that show something

use std::{error::Error, sync::Arc};

use turnwise::candle::{AdamW, CandleLearner, Decoder, DecoderConfig};
use turnwise::gguf::{GgufPolicy, GgufSettings, Quantization};
use turnwise::objective::{Clip, GroupAdvantage, GspoToken, LengthWeight};
use turnwise::rollout::{ChatAgents, Limits, PoolSettings, StopSignal};
use turnwise::training::{
    Behavior, Correction, OutcomeCredit, Parts, Schedule, Trainer, TrainerSettings, metric,
};
use turnwise_examples::Thermostat;
use turnwise_testkit::AlphabetRenderer;

const STEPS: u64 = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let recorded = Behavior::Recorded;
    let recomputed = Behavior::Recomputed(Correction::truncated(2.0));
    let engines = [
        ("f32, recorded", Quantization::F32, recorded),
        ("q4_0, recorded", Quantization::Q4_0, recorded),
        ("q4_0, recomputed", Quantization::Q4_0, recomputed),
    ];
    println!("{:18} {:>12} {:>12} {:>14}", "engine", "first reward", "last reward", "mismatch_kl");
    for (name, quantization, behavior) in engines {
        let (first, last, mismatch) = train(quantization, behavior).await?;
        println!("{name:18} {first:12.3} {last:12.3} {mismatch:14.2e}");
    }
    Ok(())
}

/// The reward of the first and of the last step, and the mean KL between engine and trainer.
async fn train(
    quantization: Quantization,
    behavior: Behavior,
) -> Result<(f64, f64, f64), Box<dyn Error>> {
    // The renderer has ten digits and an end of turn, from 256 on bytes of what is said to the policy, and at 1000 marks.
    let renderer = Arc::new(AlphabetRenderer::new("0123456789"));
    let config = DecoderConfig { n_layers: 1, ..DecoderConfig::small(1024) };
    let learner = CandleLearner::new(Decoder::random(config, 1)?, AdamW::default())?;
    let settings = GgufSettings::default();
    let policy = GgufPolicy::following(&learner, quantization, settings).await?;
    let clip = Clip::new(0.2, 0.2)?;
    let parts = Parts {
        tasks: Arc::new(vec![Thermostat::new(6)]),
        agents: Arc::new(ChatAgents::new(renderer)),
        rubric: None,
        policy: Arc::new(policy),
        learner,
        objective: Box::new(GspoToken { clip, length_weight: LengthWeight::Mean }),
        credit: Box::new(OutcomeCredit { advantage: GroupAdvantage::MeanOnly }),
    };
    let limits = Limits { max_turns: 4, max_turn_tokens: 2, ..Limits::default() };
    let rollout = PoolSettings { group_size: 16, limits, ..PoolSettings::default() };
    let schedule = Schedule { learning_rate: 5e-3, ..Schedule::default() };
    let settings = TrainerSettings {
        groups_per_step: 4,
        rollout,
        schedule,
        behavior,
        ..TrainerSettings::default()
    };
    let mut trainer = Trainer::new(parts, settings);
    let (mut rewards, mut mismatch) = (Vec::new(), 0.0);
    while let Some(report) = trainer.step(&StopSignal::never()).await?.filter(|r| r.step < STEPS) {
        rewards.extend(report.metrics.get(metric::REWARD_MEAN));
        mismatch += report.metrics.get(metric::MISMATCH_KL).unwrap_or(0.0) / STEPS as f64;
    }
    let [first, .., last] = rewards[..] else { return Err("no two steps".into()) };
    Ok((first, last, mismatch))
}
