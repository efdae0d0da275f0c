//! A training program in which every choice shows: a small model, made here, learns to set a thermostat.

#![allow(clippy::print_stdout)] // programs that show something

use std::{error::Error, sync::Arc};

use turnwise::candle::{AdamW, CandleLearner, Decoder, DecoderConfig, EngineSettings};
use turnwise::chat::{ChatMl, ChatMlSettings, MIN_IDS, train_tokenizer};
use turnwise::environment::{Action, Demonstrator, Observation, Random};
use turnwise::objective::{Clip, GroupAdvantage, GspoToken, LengthWeight};
use turnwise::rollout::{ChatAgents, Limits, PoolSettings, Preface, StopSignal};
use turnwise::training::{
    Learner, OutcomeCredit, Parts, Schedule, Trainer, TrainerSettings, Update, demonstrate,
    imitate_step, metric,
};
use turnwise_examples::Thermostat;

/// A player who knows what an answer looks like, and no more.
struct AnyDigit(Random);

impl Demonstrator for AnyDigit {
    fn act(&mut self, _observation: &Observation) -> Action {
        Action::text(self.0.below(10).to_string())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let tokenizer = Arc::new(train_tokenizer(Vec::new(), MIN_IDS)?);
    let config = DecoderConfig { n_layers: 1, ..DecoderConfig::small(tokenizer.n_ids()) };
    let renderer = Arc::new(ChatMl::new(tokenizer, ChatMlSettings::default())?);
    let mut learner = CandleLearner::new(Decoder::random(config, 1)?, AdamW::default())?;
    let policy = Arc::new(learner.policy(EngineSettings::default())?);
    let tasks = Arc::new(vec![Thermostat::new(6)]);

    // The form of an answer is imitated; which one is right is learnt from rewards.
    for step in 0..40 {
        let mut rows = Vec::new();
        for player in 8 * step..8 * (step + 1) {
            let any = move |_| Box::new(AnyDigit(Random::new(player))) as Box<dyn Demonstrator>;
            rows.extend(
                demonstrate(&*tasks, 0, &any, &*renderer, &Preface::default(), 4, player)
                    .await?
                    .rows,
            );
        }
        let update = Update { learning_rate: 3e-3, max_grad_norm: 1.0 };
        imitate_step(&mut learner, &rows, update).await?;
    }
    learner.publish().await?;

    let clip = Clip::new(0.2, 0.2)?;
    let parts = Parts {
        tasks,
        agents: Arc::new(ChatAgents::new(renderer)),
        rubric: None,
        policy,
        learner,
        objective: Box::new(GspoToken { clip, length_weight: LengthWeight::Mean }),
        credit: Box::new(OutcomeCredit { advantage: GroupAdvantage::MeanOnly }),
    };
    let limits = Limits { max_turns: 4, max_turn_tokens: 4, ..Limits::default() };
    let rollout = PoolSettings { group_size: 16, limits, ..PoolSettings::default() };
    let schedule = Schedule { learning_rate: 1e-3, ..Schedule::default() };
    let settings =
        TrainerSettings { groups_per_step: 4, rollout, schedule, ..TrainerSettings::default() };
    let mut trainer = Trainer::new(parts, settings);
    while let Some(report) = trainer.step(&StopSignal::never()).await?.filter(|r| r.step < 40) {
        let reward = report.metrics.get(metric::REWARD_MEAN).unwrap_or(0.0);
        println!("step {:2}  reward {reward:.2}", report.step);
    }
    Ok(())
}
