use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::sleep;
use turnwise_training::{GradientFn, Learner, LearnerError, Row, Update, Updated};
use turnwise_trajectory::PolicyVersion;

use crate::FaultKind;
use crate::engine::logits;
use crate::witness::extend;
use crate::world::World;

/// A learner whose only weight is a number: every gradient changes it, and with it every logit.
pub(crate) struct Scripted {
    pub(crate) world: Arc<World>,
}

impl Scripted {
    fn logprobs_of(&self, rows: &[Row]) -> Vec<Vec<f32>> {
        let weights = self.world.state().witness.current();
        rows.iter().map(|row| logprobs(weights, row)).collect()
    }

    async fn work(&self, action: &str) -> Result<(), LearnerError> {
        sleep(self.world.latency(1000)).await;
        match self.world.fault(&[FaultKind::LearnerError]) {
            Some(_) => Err(LearnerError::failed(action, "simulated")),
            None => Ok(()),
        }
    }

    fn trace(&self, rows: &[Row], coefficients: &[Vec<f32>]) {
        for (row, coefficients) in rows.iter().zip(coefficients) {
            let mut numbers = vec![crate::witness::hash_ids(0, &row.ids)];
            for (target, coefficient) in row.targets.iter().zip(coefficients) {
                numbers.extend([target.position as u64, u64::from(coefficient.to_bits())]);
            }
            self.world.event("row", &numbers);
            let gradient = numbers
                .iter()
                .fold(0, |hash, number| turnwise_environment::derive_seed(hash, *number));
            self.world.state().witness.add_gradient(gradient);
        }
    }
}

fn logprobs(weights: u64, row: &Row) -> Vec<f32> {
    let mut targets = row.targets.iter().peekable();
    let mut context = 0;
    let mut logprobs = Vec::with_capacity(row.targets.len());
    for (position, id) in row.ids.iter().enumerate() {
        if targets.next_if(|target| target.position == position).is_some() {
            let logits = logits(weights, context);
            let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let own = logits.get(*id as usize).copied().unwrap_or(f32::NEG_INFINITY);
            logprobs.push((f64::from(own) - total.ln()) as f32);
        }
        context = extend(context, *id);
    }
    logprobs
}

#[async_trait]
impl Learner for Scripted {
    fn version(&self) -> PolicyVersion {
        self.world.state().witness.version()
    }

    async fn check_gradients(&mut self) -> Result<(), LearnerError> {
        Ok(())
    }

    async fn logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        self.work("compute log-probabilities").await?;
        Ok(self.logprobs_of(rows))
    }

    async fn accumulate(
        &mut self,
        rows: &[Row],
        gradient: &mut GradientFn<'_>,
    ) -> Result<(), LearnerError> {
        self.work("compute a gradient").await?;
        let coefficients = gradient(&self.logprobs_of(rows)).map_err(LearnerError::Gradient)?;
        self.trace(rows, &coefficients);
        Ok(())
    }

    async fn step(&mut self, update: Update) -> Result<Updated, LearnerError> {
        self.work("take a step").await?;
        let applied = self.world.fault(&[FaultKind::GradientNotFinite]).is_none();
        self.world.state().witness.update(applied);
        let weights = self.world.state().witness.current();
        self.world.event("weights", &[weights, update.learning_rate.to_bits()]);
        Ok(Updated { grad_norm: if applied { 1.0 } else { f64::NAN }, applied, not_finite: None })
    }

    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        self.work("publish").await?;
        let version = self.world.state().witness.publish();
        self.world.event("publish", &[u64::from(version.0)]);
        Ok(version)
    }

    async fn save(&mut self, _: &Path) -> Result<(), LearnerError> {
        Err(LearnerError::failed("save a simulated learner", "the world is its memory"))
    }

    async fn load(&mut self, _: &Path, _: PolicyVersion) -> Result<(), LearnerError> {
        Err(LearnerError::failed("load a simulated learner", "the world is its memory"))
    }
}
