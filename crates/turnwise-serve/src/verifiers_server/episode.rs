//! An episode that a client asks for.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use turnwise_environment::{Split, Suite, derive_seed};
use turnwise_rollout::{Allowance, ChatAgents, Episode, Limits, Preface, Progress, Renderer};
use turnwise_trajectory::{GroupId, Identity, Outcome, Trajectory};

use super::endpoint::{AskedSampling, TokenEndpoint};
use super::node::nodes;
use super::server::VerifiersSettings;
use crate::environment_client::Patience;
use crate::key::SessionKey;

/// What all episodes of a server share.
pub(super) struct VerifiersHost {
    pub(super) suite: Suite,
    pub(super) renderer: Arc<dyn Renderer>,
    pub(super) settings: VerifiersSettings,
}

/// A request for an episode.
#[derive(Debug, Deserialize)]
struct AskedRun {
    task_data: Value,
    client: AskedClient,
    model: String,
    #[serde(default)]
    sampling: Option<AskedSampling>,
}

/// The endpoint that the client names. Its headers are not followed, because some of them name variables of this process.
#[derive(Debug, Deserialize)]
struct AskedClient {
    base_url: String,
    #[serde(default)]
    api_key_var: Option<String>,
}

/// An episode as it is sent: the pieces of its trace, and the reply.
#[derive(Debug)]
pub(super) struct SentEpisode {
    pub(super) delta: Value,
    pub(super) reply: Value,
}

/// The names of a task's number in the data of a task.
const TASK_KEYS: [&str; 4] = ["idx", "index", "task_index", "id"];

impl VerifiersHost {
    /// Plays the episode of a request; an error is what the client reads.
    pub(super) async fn run(&self, payload: &[u8]) -> Result<SentEpisode, String> {
        let asked: AskedRun = rmp_serde::from_slice(payload)
            .map_err(|error| format!("cannot read the request: {error}"))?;
        let (split, index) = self.task(&asked.task_data)?;
        let AskedRun { task_data, client, model, sampling } = asked;
        let sampling = sampling.unwrap_or_default();
        let (temperature, max_tokens) = (sampling.temperature, sampling.max_tokens);
        let key = self.key(client.api_key_var.as_deref());
        let seconds = self.settings.limits.engine_timeout_s;
        let patience = Patience::read(10.0, seconds, 60_f64.min(seconds));
        let endpoint = patience.and_then(|patience| {
            TokenEndpoint::new(&client.base_url, key.as_deref(), model, sampling, patience)
        });
        let endpoint = endpoint.map_err(|error| error.to_string())?;
        let trajectory = self.played(split, index, &endpoint, temperature, max_tokens).await?;
        sent(&self.suite, &task_data, &trajectory)
    }

    /// Finds the task that the data of a task mean.
    fn task(&self, data: &Value) -> Result<(Split, usize), String> {
        let split = match data["split"].as_str() {
            None | Some("train") => Split::Train,
            Some("test" | "validation" | "eval" | "held_out") => Split::HeldOut,
            Some(_) => return Err("task_data.split is neither train nor test".to_owned()),
        };
        let n = self.suite.tasks(split).len();
        let index = TASK_KEYS.iter().map(|key| &data[*key]).find(|index| !index.is_null());
        let index = index.and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        match index {
            Some(index) if index < n => Ok((split, index)),
            Some(index) => Err(format!("there is no task {index}: the split has {n}")),
            None => Err("task_data has no idx, the number of a task".to_owned()),
        }
    }

    /// Returns the endpoint's key, if the server may use the variable that the client names.
    fn key(&self, variable: Option<&str>) -> Option<String> {
        let variable = variable?;
        let may = self.settings.key_variables.iter().any(|one| one == variable);
        std::env::var(variable).ok().filter(|key| may && !key.is_empty())
    }

    async fn played(
        &self,
        split: Split,
        index: usize,
        endpoint: &TokenEndpoint,
        temperature: Option<f64>,
        max_tokens: Option<usize>,
    ) -> Result<Trajectory, String> {
        let tasks = self.suite.tasks(split);
        let sampling_seed = getrandom::u64().map_err(|error| error.to_string())?;
        let identity = Identity {
            environment: self.suite.name().to_owned(),
            environment_version: tasks.version(),
            task: tasks.key(index),
            task_index: index,
            group: GroupId(0),
            member: 0,
            attempt: 0,
            // Equal for all episodes of a task: the trainer compares them.
            environment_seed: derive_seed(index as u64, 0),
            sampling_seed,
        };
        let mut agents = ChatAgents::new(self.renderer.clone());
        agents.sampling.temperature = temperature.unwrap_or(1.0) as f32;
        agents.preface = Preface {
            system: self.suite.instructions_text().unwrap_or_default().to_owned(),
            ..Preface::default()
        };
        let limits = Limits {
            max_turn_tokens: max_tokens.unwrap_or(self.settings.limits.max_turn_tokens).max(1),
            ..self.settings.limits.clone()
        };
        let episode = Episode::new(identity, tasks.environment(index), &agents, limits);
        let allowance = Allowance::unlimited();
        let advanced = episode.advance(endpoint, &allowance);
        let seconds = Duration::from_secs_f64(self.settings.limits.episode_timeout_s);
        let advanced = tokio::time::timeout(seconds, advanced).await;
        match advanced.map_err(|_| "the time of the episode was up".to_owned())? {
            Progress::Finished(trajectory) => Ok(trajectory),
            Progress::Suspended(_) => Err("the episode stopped before its end".to_owned()),
        }
    }
}

/// Writes a trajectory as verifiers has it.
fn sent(suite: &Suite, task_data: &Value, trajectory: &Trajectory) -> Result<SentEpisode, String> {
    if let Outcome::InfraFault(fault) = &trajectory.outcome {
        return Err(format!("{}: {}", trajectory.outcome.label(), fault.message));
    }
    let (trace, episode) = (SessionKey::random(), SessionKey::random());
    let nodes = nodes(&trajectory.graph);
    let n_nodes = nodes.len();
    let task = json!({"type": suite.name(), "data": task_data});
    let reward = trajectory.reward().map(|score| json!({"score": score, "weight": 1.0}));
    let is_cut = matches!(trajectory.outcome, Outcome::Truncated(_));
    let set = json!({
        "agent": {"config": {}, "name": "agent"},
        "rewards": {"reward": reward},
        "metrics": {"solved": f64::from(u8::from(trajectory.solved)), "n_turns": trajectory.turns.len()},
        "info": {"turn_rewards": trajectory.turns.iter().map(|turn| turn.reward).collect::<Vec<_>>()},
        "is_completed": true,
        "ok": true,
        "stop_condition": if is_cut { trajectory.outcome.label() } else { "done".to_owned() },
    });
    let open = json!({"id": trace.as_str(), "task": task});
    let delta = json!({"trace": trace.as_str(), "open": open, "nodes": nodes, "set": set});
    let head = json!({
        "id": episode.as_str(), "env": {"id": suite.name()}, "task": task, "ok": true, "errors": [],
    });
    let counts = json!({"id": trace.as_str(), "nodes": n_nodes, "calls": 0});
    let reply = json!({"success": true, "error": null, "head": head, "traces": [counts]});
    Ok(SentEpisode { delta, reply })
}
