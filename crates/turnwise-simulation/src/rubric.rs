use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::sleep;
use turnwise_environment::{EnvironmentError, Rubric, Transcript};

use crate::FaultKind;
use crate::world::World;

/// A rubric that scores by the length of the transcript, and fails according to the plan.
pub(crate) struct Scores {
    pub(crate) world: Arc<World>,
}

const BREAKS: [FaultKind; 6] = [
    FaultKind::RubricError,
    FaultKind::RubricPanic,
    FaultKind::RubricDead,
    FaultKind::RubricCount,
    FaultKind::RubricNotANumber,
    FaultKind::RubricSilent,
];

#[async_trait]
impl Rubric for Scores {
    fn name(&self) -> &'static str {
        "length"
    }

    async fn score(&self, group: &[Transcript]) -> Result<Vec<Option<f64>>, EnvironmentError> {
        self.world.event("score", &[group.len() as u64]);
        let score = |transcript: &Transcript| {
            let said: usize = transcript.messages.iter().map(|message| message.content.len()).sum();
            (said % 3) as f64 / 4.0
        };
        let mut scores: Vec<Option<f64>> =
            group.iter().map(|transcript| Some(score(transcript))).collect();
        match self.world.fault(&BREAKS) {
            Some(FaultKind::RubricError) => return Err(EnvironmentError::new("simulated")),
            Some(FaultKind::RubricPanic) => std::panic::resume_unwind(Box::new("simulated")),
            Some(FaultKind::RubricDead) => std::future::pending().await,
            Some(FaultKind::RubricCount) => scores.push(None),
            Some(FaultKind::RubricNotANumber) => {
                scores.iter_mut().take(1).for_each(|score| *score = Some(f64::NAN));
            }
            Some(_) => scores.fill(None),
            None => sleep(self.world.latency(1000)).await,
        }
        Ok(scores)
    }
}
