//! A training main: every choice shows. A table of logits stands in for a network, so that it ends in a second.

use std::{error::Error, sync::Arc};

use turnwise::objective::{Clip, GroupAdvantage, GspoToken, LengthWeight};
use turnwise::rollout::{ChatAgents, Limits, PoolSettings, StopSignal};
use turnwise::training::{OutcomeCredit, Parts, Schedule, Trainer, TrainerSettings, metric};
use turnwise::trajectory::Sampling;
use turnwise_examples::Thermostat;
use turnwise_testkit::{AlphabetRenderer, TabularModel};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let renderer = Arc::new(AlphabetRenderer::new("0123456789"));
    let model = TabularModel::new(renderer.n_ids());
    let parts = Parts {
        tasks: Arc::new(vec![Thermostat::new(6)]),
        agents: Arc::new(ChatAgents { renderer, sampling: Sampling::default() }),
        rubric: None,
        policy: Arc::new(model.clone()),
        learner: model,
        objective: Box::new(GspoToken {
            clip: Clip::new(0.2, 0.2)?,
            length_weight: LengthWeight::Mean,
        }),
        credit: Box::new(OutcomeCredit { advantage: GroupAdvantage::MeanOnly }),
    };
    let limits = Limits { max_turns: 4, max_turn_tokens: 2, ..Limits::default() };
    let rollout = PoolSettings { group_size: 32, limits, ..PoolSettings::default() };
    let schedule = Schedule { learning_rate: 10.0, ..Schedule::default() };
    let mut trainer =
        Trainer::new(parts, TrainerSettings { rollout, schedule, ..TrainerSettings::default() });
    while let (step @ 0..100, Some(report)) =
        (trainer.next_step(), trainer.step(&StopSignal::never()).await?)
    {
        println!(
            "step {step:3}  reward {:.2}",
            report.metrics.get(metric::REWARD_MEAN).unwrap_or(0.0)
        );
    }
    Ok(())
}
