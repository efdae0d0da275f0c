//! A session on the server, which its heartbeat keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::client::{Client, SDK_VERSION, request_id, text};
use super::error::TinkerError;
use super::remote_model::RemoteModel;
use super::settings::TinkerSettings;
use crate::fault::ServerFault;
use crate::secret::Secret;

/// A session; its models share adapters' settings and the base model.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Arc<Client>,
    pub(super) base_model: String,
    id: String,
    rank: u32,
    seed: u32,
    n_models: AtomicU64,
    heartbeat: JoinHandle<()>,
}

/// How often the server hears of the session.
const HEARTBEAT: Duration = Duration::from_secs(10);

impl Session {
    /// Opens a session on a server that has the base model.
    pub(super) async fn open(
        settings: &TinkerSettings,
        key: Option<Secret>,
    ) -> Result<Self, TinkerError> {
        let client = Arc::new(Client::new(settings, key)?);
        let unfit = |reason: String| TinkerError::Unfit { url: client.url(), reason };
        let listed = client.get("/api/v1/get_server_capabilities").await;
        let listed = listed.map_err(|fault| unfit(fault.to_string()))?;
        let base_model = base_model(&listed, settings).map_err(unfit)?;
        let body = json!({ "tags": [], "sdk_version": SDK_VERSION, "type": "create_session" });
        let opened = client.post("/api/v1/create_session", &body).await;
        let id = opened.and_then(|answer| text(&answer, "session_id"));
        let id =
            id.map_err(|fault| TinkerError::failed("open a session", &client.url(), &fault))?;
        let heartbeat = tokio::spawn(beat(client.clone(), id.clone()));
        let (rank, seed, n_models) = (settings.rank, settings.seed, AtomicU64::new(0));
        Ok(Self { client, base_model, id, rank, seed, n_models, heartbeat })
    }

    /// Creates a model with new adapters, which change nothing until they are trained.
    pub(super) async fn create_model(&self) -> Result<RemoteModel, ServerFault> {
        let body = json!({
            "session_id": self.id,
            "model_seq_id": self.n_models.fetch_add(1, Ordering::Relaxed),
            "base_model": self.base_model,
            "lora_config": {
                "rank": self.rank,
                "seed": self.seed,
                "train_unembed": true,
                "train_mlp": true,
                "train_attn": true,
            },
            "type": "create_model",
        });
        let answer = self.client.post("/api/v1/create_model", &body).await?;
        let id = text(&answer, "model_id");
        let done = self.client.retrieve(&request_id(&answer)?).await?;
        let done = super::client::object(&done)?;
        // Some servers say the id with the result alone.
        let id = id.or_else(|_| text(&done, "model_id"))?;
        Ok(RemoteModel::new(self.client.clone(), id))
    }

    /// Creates a model with weights and optimiser state that were saved.
    pub(super) async fn model_at(&self, path: &str) -> Result<RemoteModel, ServerFault> {
        let mut model = self.create_model().await?;
        match model.load(path).await {
            Ok(()) => Ok(model),
            Err(fault) => {
                model.unload().await;
                Err(fault)
            }
        }
    }

    pub(super) fn rank(&self) -> u32 {
        self.rank
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

async fn beat(client: Arc<Client>, session: String) {
    let body = json!({ "session_id": session, "type": "session_heartbeat" });
    let mut ticks = tokio::time::interval(HEARTBEAT);
    loop {
        ticks.tick().await;
        if let Err(fault) = client.post("/api/v1/session_heartbeat", &body).await {
            tracing::warn!(%fault, "the Tinker server does not take the session's heartbeat");
        }
    }
}

/// Returns the name of the base model, which the server has to list.
fn base_model(listed: &Value, settings: &TinkerSettings) -> Result<String, String> {
    let models = listed["supported_models"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = models.iter().filter_map(|one| one["model_name"].as_str()).collect();
    match (&settings.base_model, names.first()) {
        (Some(wanted), _) if names.contains(&wanted.as_str()) => Ok(wanted.clone()),
        (None, Some(first)) => Ok((*first).to_owned()),
        (_, None) => Err("it lists no model".to_owned()),
        (Some(wanted), _) => {
            let names = crate::http::message(&names.join(", "));
            Err(format!("it does not have the model `{wanted}`; it has {names}"))
        }
    }
}
