//! Trains on a Tinker server, and compares its gradients with those of a learner in this process.
//!
//! ```text
//! cargo run -p turnwise-remote --example tinker -- URL MODEL_DIRECTORY ADAPTER_DIRECTORY
//! ```
//!
//! `peers/tinker.py` makes a model, starts SkyRL's server and runs this program.

#![allow(clippy::print_stdout)] // it shows what it measured

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use turnwise_candle::{AdamW, CandleLearner, Decoder};
use turnwise_environment::{Action, Environment, EnvironmentError, Observation, Random, Step};
use turnwise_objective::{Clip, GroupAdvantage, GspoToken, LengthWeight};
use turnwise_remote::{TinkerLearner, TinkerSettings};
use turnwise_rollout::{ChatAgents, Limits, PoolSettings, StopSignal};
use turnwise_testkit::AlphabetRenderer;
use turnwise_training::{
    Learner, OutcomeCredit, Parts, Row, Schedule, Target, Trainer, TrainerSettings, Update, metric,
};
use turnwise_trajectory::PolicyVersion;

/// The number of tokens of a turn.
const N_TOKENS: usize = 4;
/// The number of training steps.
const N_STEPS: u64 = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, model, adapter] = arguments.as_slice() else {
        return Err("needs the server's URL, the model's directory and one for the adapter".into());
    };
    let settings = TinkerSettings { url: url.clone(), rank: 8, ..TinkerSettings::default() };
    let mut learner = TinkerLearner::connect(settings, None).await?;
    compare(&mut learner, Path::new(model), Path::new(adapter)).await?;
    resume(&mut learner, Path::new(adapter)).await?;
    train(learner, Path::new(adapter)).await
}

/// Prints how far log-probabilities and gradient norms of one batch are from those of a learner in this process.
///
/// Untrained adapters have a gradient in one of their halves alone, B. SkyRL keeps one other half, A, for the projections of
/// query, key and value, and one for gate and up, so that norms of trained adapters are not of the same parameters.
async fn compare(
    learner: &mut TinkerLearner,
    model: &Path,
    adapter: &Path,
) -> Result<(), Box<dyn Error>> {
    let rows = rows(12);
    for (which, learning_rate) in
        [("untrained", 0.0), ("untrained, limit 0.5", 1e-2), ("trained", 1e-2)]
    {
        let max_grad_norm = if which.contains("limit") { 0.5 } else { f64::INFINITY };
        let update = Update { learning_rate, max_grad_norm };
        learner.save_adapter(adapter).await?;
        let decoder = Decoder::from_directory(model)?.with_adapter(adapter)?;
        let mut ours = CandleLearner::new(decoder, AdamW::default())?;
        let (theirs, own) = (learner.logprobs(&rows).await?, ours.logprobs(&rows).await?);
        let gap = largest_gap(&theirs, &own);
        learner.accumulate(&rows, &mut |all| Ok(slopes(all))).await?;
        ours.accumulate(&rows, &mut |all| Ok(slopes(all))).await?;
        let (theirs, own) = (learner.step(update).await?, ours.step(update).await?);
        let error = (theirs.grad_norm - own.grad_norm).abs() / own.grad_norm;
        println!(
            "{which}: log-probabilities differ by {gap:.2e}; gradient norm on the server {:.6}, here {:.6}, relative error {error:.2e}",
            theirs.grad_norm, own.grad_norm
        );
        learner.publish().await?;
    }
    Ok(())
}

fn largest_gap(one: &[Vec<f32>], other: &[Vec<f32>]) -> f64 {
    let pairs = one.iter().flatten().zip(other.iter().flatten());
    pairs.map(|(one, other)| f64::from((one - other).abs())).fold(0.0, f64::max)
}

/// Prints whether a learner that loads a checkpoint takes the same next step.
async fn resume(learner: &mut TinkerLearner, directory: &Path) -> Result<(), Box<dyn Error>> {
    let rows = rows(5);
    let update = Update { learning_rate: 1e-2, max_grad_norm: 1.0 };
    learner.save(directory).await?;
    let mut after = Vec::new();
    for _ in 0..2 {
        learner.load(directory, PolicyVersion(9)).await?;
        learner.accumulate(&rows, &mut |all| Ok(slopes(all))).await?;
        learner.step(update).await?;
        after.push(learner.logprobs(&rows).await?);
    }
    println!("two steps from one checkpoint differ by {:.2e}", largest_gap(&after[0], &after[1]));
    learner.load(directory, PolicyVersion(9)).await?;
    Ok(())
}

/// Trains a policy to write known letters, and prints its rewards.
async fn train(learner: TinkerLearner, adapter: &Path) -> Result<(), Box<dyn Error>> {
    let letters: String =
        (0..255).map(|index| char::from_u32(0x4e00 + index).unwrap_or('?')).collect();
    let policy = Arc::new(learner.policy());
    let parts = Parts {
        tasks: Arc::new(vec![Letters]),
        agents: Arc::new(ChatAgents::new(Arc::new(AlphabetRenderer::new(&letters)))),
        rubric: None,
        policy,
        learner,
        objective: Box::new(GspoToken {
            clip: Clip::new(0.2, 0.2)?,
            length_weight: LengthWeight::Mean,
        }),
        credit: Box::new(OutcomeCredit { advantage: GroupAdvantage::MeanOnly }),
    };
    let limits = Limits { max_turns: 1, max_turn_tokens: N_TOKENS, ..Limits::default() };
    let rollout = PoolSettings { group_size: 16, limits, ..PoolSettings::default() };
    let schedule = Schedule { learning_rate: 1e-2, ..Schedule::default() };
    let settings =
        TrainerSettings { groups_per_step: 4, rollout, schedule, ..TrainerSettings::default() };
    let mut trainer = Trainer::new(parts, settings);
    while trainer.next_step() < N_STEPS {
        let Some(report) = trainer.step(&StopSignal::never()).await? else { break };
        let reward = report.metrics.get(metric::REWARD_MEAN).unwrap_or(f64::NAN);
        let norm = report.metrics.get(metric::GRAD_NORM).unwrap_or(f64::NAN);
        println!("step {:2}  reward {reward:.3}  gradient norm {norm:.4}", report.step);
    }
    trainer.learner().save_adapter(adapter).await?;
    Ok(())
}

/// One turn, whose reward is the share of tokens that are letters.
#[derive(Clone, Debug)]
struct Letters;

#[async_trait]
impl Environment for Letters {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("Write.".into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        Ok(Step::terminated(action.text.chars().count() as f64 / N_TOKENS as f64))
    }
}

/// Returns rows of different lengths, with targets in their second halves.
fn rows(n: usize) -> Vec<Row> {
    let mut random = Random::new(7);
    let row = |index: usize| {
        let ids: Vec<u32> = (0..8 + 3 * index).map(|_| random.below(1000) as u32).collect();
        let targets = (ids.len() / 2..ids.len()).step_by(1 + index % 2);
        let targets = targets.map(|position| Target { position, temperature: 1.0 }).collect();
        Row { ids, targets, ..Row::default() }
    };
    (0..n).map(row).collect()
}

/// Returns a gradient of both signs that depends on the log-probabilities.
fn slopes(all: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let slope = |(index, logprob): (usize, &f32)| (logprob.sin() + index as f32 % 3.0 - 1.0) / 20.0;
    all.iter().map(|row| row.iter().enumerate().map(slope).collect()).collect()
}
