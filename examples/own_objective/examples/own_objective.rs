//! Trains with an objective of your own: it is one of the parts of a trainer, as the ones of turnwise are.
//!
//! A table of logits stands in for a network, so that this ends in a second; `turnwise::candle::CandleLearner` takes its
//! place for a real model.

#![allow(clippy::print_stdout)] // programs that show something

use std::{error::Error, sync::Arc};

use own_objective::Spo;
use turnwise::environment::{
    Action, Environment, EnvironmentError, Observation, Step, async_trait,
};
use turnwise::objective::GroupAdvantage;
use turnwise::rollout::{ChatAgents, Limits, PoolSettings, StopSignal};
use turnwise::training::{OutcomeCredit, Parts, Schedule, Trainer, TrainerSettings, metric};
use turnwise_testkit::{AlphabetRenderer, TabularModel};

/// One turn that earns the digit that was said, from 0 to 9.
#[derive(Clone, Debug)]
struct HighDigit;

#[async_trait]
impl Environment for HighDigit {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("Say a digit.".into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        Ok(Step::terminated(action.text.trim().parse::<u8>().map_or(0.0, f64::from)))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let renderer = Arc::new(AlphabetRenderer::new("0123456789"));
    let model = TabularModel::new(renderer.n_ids());
    let parts = Parts {
        tasks: Arc::new(vec![HighDigit]),
        agents: Arc::new(ChatAgents::new(renderer)),
        rubric: None,
        policy: Arc::new(model.clone()),
        learner: model,
        objective: Box::new(Spo { epsilon: 0.2 }),
        credit: Box::new(OutcomeCredit { advantage: GroupAdvantage::MeanOnly }),
    };
    let limits = Limits { max_turns: 1, max_turn_tokens: 2, ..Limits::default() };
    let rollout = PoolSettings { group_size: 32, limits, ..PoolSettings::default() };
    let schedule = Schedule { learning_rate: 1.0, ..Schedule::default() };
    let settings = TrainerSettings { rollout, schedule, ..TrainerSettings::default() };
    let mut trainer = Trainer::new(parts, settings);
    while let Some(report) = trainer.step(&StopSignal::never()).await?.filter(|r| r.step <= 50) {
        if report.step % 10 == 0 {
            let reward = report.metrics.get(metric::REWARD_MEAN).unwrap_or(0.0);
            println!("step {:3}  reward {reward:.2} of 9", report.step);
        }
    }
    Ok(())
}
