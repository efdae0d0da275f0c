//! One model on the server: training requests in their order.

use std::sync::Arc;

use prost::Message;
use serde_json::{Value, json};

use super::client::{Client, JSON, PROTOBUF, message, object, text};
use super::messages::{Datum, ForwardBackwardOutput, ForwardBackwardRequest};
use super::shifted_row::ShiftedRow;
use crate::fault::ServerFault;
use crate::http::Incoming;

/// One step of Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct AdamStep {
    pub(super) learning_rate: f64,
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) epsilon: f64,
    pub(super) weight_decay: f64,
}

/// A model on the server. Its training requests are numbered; a request is repeated under its own number alone, by which the
/// server knows that it has it already.
#[derive(Debug)]
pub(super) struct RemoteModel {
    client: Arc<Client>,
    id: String,
    /// The number of the next training request.
    seq_id: i32,
}

/// The rounding with which a log-probability of 0 may be positive.
const ROUNDING: f32 = 1e-3;

impl RemoteModel {
    pub(super) fn new(client: Arc<Client>, id: String) -> Self {
        Self { client, id, seq_id: 1 }
    }

    /// Computes the log-probabilities of sequences, without a gradient.
    pub(super) async fn forward(
        &mut self,
        sequences: &[ShiftedRow],
    ) -> Result<Vec<Vec<f32>>, ServerFault> {
        let data = sequences.iter().map(ShiftedRow::scored).collect();
        let output = self.pass(data, "cross_entropy", true).await?;
        let all = output.logprobs().map_err(ServerFault::Wrong)?;
        let lengths = sequences.iter().map(ShiftedRow::len);
        if !all.iter().map(Vec::len).eq(lengths) {
            return Err(ServerFault::Wrong("log-probabilities of other sequences".to_owned()));
        }
        let is_wrong = |logprob: &&f32| !(logprob.is_finite() && **logprob <= ROUNDING);
        match all.iter().flatten().find(is_wrong) {
            Some(wrong) => Err(ServerFault::Wrong(format!("log-probability {wrong}"))),
            None => Ok(all),
        }
    }

    /// Adds the gradient of sequences to what the next step applies.
    pub(super) async fn forward_backward(&mut self, data: Vec<Datum>) -> Result<(), ServerFault> {
        self.pass(data, "importance_sampling", false).await.map(drop)
    }

    /// Applies the gradient, and returns its norm.
    pub(super) async fn optim_step(&mut self, step: AdamStep) -> Result<f64, ServerFault> {
        let body = json!({
            "model_id": self.id,
            "seq_id": self.seq_id,
            "adam_params": {
                "learning_rate": step.learning_rate,
                "beta1": step.beta1,
                "beta2": step.beta2,
                "eps": step.epsilon,
                "weight_decay": step.weight_decay,
                "grad_clip_norm": 0.0,
            },
            "type": "optim_step",
        });
        let answer = self.call("optim_step", &body).await?;
        let metrics = answer["metrics"].as_object();
        let mut metrics = metrics.into_iter().flatten();
        let norm = metrics.find(|(name, _)| name.ends_with("grad_norm"));
        match norm {
            // A number that JSON does not have.
            Some((_, Value::Null)) => Ok(f64::NAN),
            Some((_, norm)) if norm.as_f64().is_some_and(|norm| norm >= 0.0) => {
                Ok(norm.as_f64().unwrap_or(f64::NAN))
            }
            _ => Err(ServerFault::Wrong(
                "a step without the gradient's norm among its metrics".to_owned(),
            )),
        }
    }

    /// Saves weights and optimiser state on the server, and returns their path.
    pub(super) async fn save(&mut self) -> Result<String, ServerFault> {
        self.save_as("save_weights").await
    }

    /// Saves weights to sample with, and returns their path.
    pub(super) async fn save_for_sampler(&mut self) -> Result<String, ServerFault> {
        self.save_as("save_weights_for_sampler").await
    }

    /// Loads weights and optimiser state. Servers allow this as the first request of a model alone.
    pub(super) async fn load(&mut self, path: &str) -> Result<(), ServerFault> {
        let body = json!({
            "model_id": self.id,
            "path": path,
            "optimizer": true,
            "seq_id": self.seq_id,
            "type": "load_weights",
        });
        self.call("load_weights", &body).await.map(drop)
    }

    /// Frees what the server holds for the model; that it fails changes nothing.
    pub(super) async fn unload(&self) {
        let body = json!({ "model_id": self.id, "type": "unload_model" });
        if let Err(fault) = self.client.compute("/api/v1/unload_model", &body).await {
            tracing::debug!(model = self.id, %fault, "cannot unload a model on the server");
        }
    }

    /// Saves under a name of its own. A save that was lost is repeated under another name: it changes no weights.
    async fn save_as(&mut self, kind: &str) -> Result<String, ServerFault> {
        match self.save_once(kind).await {
            Err(ServerFault::Refused { status: 409, .. }) => {
                self.seq_id += 1;
                self.save_once(kind).await
            }
            other => other,
        }
    }

    async fn save_once(&mut self, kind: &str) -> Result<String, ServerFault> {
        let body = json!({
            "model_id": self.id,
            "path": format!("turnwise-{}", self.seq_id),
            "seq_id": self.seq_id,
            "type": kind,
        });
        text(&self.call(kind, &body).await?, "path")
    }

    async fn pass(
        &mut self,
        data: Vec<Datum>,
        loss_fn: &str,
        forward_only: bool,
    ) -> Result<ForwardBackwardOutput, ServerFault> {
        let request = ForwardBackwardRequest {
            model_id: self.id.clone(),
            seq_id: self.seq_id,
            data,
            loss_fn: loss_fn.to_owned(),
            forward_only,
            ..ForwardBackwardRequest::default()
        };
        let bytes = request.encode_to_vec();
        message(&self.train("forward_backward", PROTOBUF, &bytes).await?)
    }

    async fn call(&mut self, name: &str, body: &Value) -> Result<Value, ServerFault> {
        object(&self.train(name, JSON, body.to_string().as_bytes()).await?)
    }

    /// Sends the next training request, and waits for its result.
    async fn train(
        &mut self,
        name: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Incoming, ServerFault> {
        let request = self.client.submit(&format!("/api/v1/{name}"), content_type, body).await?;
        self.seq_id += 1;
        self.client.retrieve(&request).await
    }
}
