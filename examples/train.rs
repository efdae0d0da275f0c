//! A training main: every choice shows. A table of logits stands in for a network, so that it ends in a second.

#![allow(clippy::print_stdout)] // programs that show something

use std::{error::Error, sync::Arc};

use turnwise::objective::{Clip, GroupAdvantage, GspoToken, LengthWeight};
use turnwise::rollout::{ChatAgents, Limits, PoolSettings, StopSignal};
use turnwise::training::{OutcomeCredit, Parts, Schedule, Trainer, TrainerSettings, metric};
use turnwise_examples::Thermostat;
use turnwise_testkit::{AlphabetRenderer, TabularModel};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let renderer = Arc::new(AlphabetRenderer::new("0123456789"));
    let model = TabularModel::new(renderer.n_ids());
    let clip = Clip::new(0.2, 0.2)?;
    let parts = Parts {
        tasks: Arc::new(vec![Thermostat::new(6)]),
        agents: Arc::new(ChatAgents::new(renderer)),
        rubric: None,
        policy: Arc::new(model.clone()),
        learner: model,
        objective: Box::new(GspoToken { clip, length_weight: LengthWeight::Mean }),
        credit: Box::new(OutcomeCredit { advantage: GroupAdvantage::MeanOnly }),
    };
    let limits = Limits { max_turns: 4, max_turn_tokens: 2, ..Limits::default() };
    let rollout = PoolSettings { group_size: 32, limits, ..PoolSettings::default() };
    let schedule = Schedule { learning_rate: 10.0, ..Schedule::default() };
    let settings = TrainerSettings { rollout, schedule, ..TrainerSettings::default() };
    let mut trainer = Trainer::new(parts, settings);
    while let Some(report) = trainer.step(&StopSignal::never()).await?.filter(|r| r.step < 100) {
        let reward = report.metrics.get(metric::REWARD_MEAN).unwrap_or(0.0);
        println!("step {:3}  reward {reward:.2}", report.step);
    }
    Ok(())
}
