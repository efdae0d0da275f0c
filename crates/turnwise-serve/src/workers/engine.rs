//! The trainer's engine, as a worker's policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use serde_json::json;
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest, SessionId};
use turnwise_trajectory::PolicyVersion;

use super::wire::{Draw, Drawn, OfSession};
use crate::environment_client::http::Ask;
use crate::environment_client::peer::Peer;

/// Samples with the engine of a trainer.
#[derive(Clone, Debug)]
pub(super) struct TrainersEngine {
    pub(super) peer: Arc<Peer>,
    pub(super) worker: String,
    pub(super) newest: Arc<AtomicU32>,
}

impl TrainersEngine {
    /// Notes a version of which the trainer told.
    pub(super) fn note(&self, version: PolicyVersion) {
        self.newest.fetch_max(version.0, Ordering::Relaxed);
    }

    /// Tells the trainer something about a session, in the background: it is not waited for.
    fn tell(&self, route: &'static str, session: SessionId) {
        let peer = self.peer.clone();
        let of = OfSession { worker: self.worker.clone(), session };
        tokio::spawn(async move {
            let body = serde_json::to_value(of).unwrap_or_else(|_| json!({}));
            if let Err(error) = peer.answer(Ask::post(route, body)).await {
                tracing::debug!(%error, route, "the trainer does not hear of a session");
            }
        });
    }
}

#[async_trait]
impl Policy for TrainersEngine {
    fn version(&self) -> PolicyVersion {
        PolicyVersion(self.newest.load(Ordering::Relaxed))
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let unavailable =
            |error: &dyn std::fmt::Display| PolicyError::Unavailable(error.to_string());
        let draw = Draw { worker: self.worker.clone(), request };
        let body = serde_json::to_value(draw).map_err(|error| unavailable(&error))?;
        // Sampled again, a request gives the same tokens as far as its engine does.
        let answer = self.peer.json(Ask::post("/sample", body)).await;
        let drawn: Drawn = serde_json::from_value(answer.map_err(|error| unavailable(&error))?)
            .map_err(|error| unavailable(&error))?;
        let sample = drawn.into_result()?;
        if let Some(token) = sample.tokens.last() {
            self.note(token.version);
        }
        Ok(sample)
    }

    fn interrupt(&self, session: SessionId) -> bool {
        self.tell("/interrupt", session);
        true
    }

    fn release(&self, session: SessionId) {
        self.tell("/release", session);
    }
}
