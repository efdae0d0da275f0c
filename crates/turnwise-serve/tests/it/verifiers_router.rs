//! A server of verifiers whose episodes a test writes.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use turnwise_environment::{Split, TaskSet};
use turnwise_rollout::{Allowance, ChatAgents, Episode, Limits, Renderer};
use turnwise_serve::{
    GatewayAgents, VerifiersClient, VerifiersOptions, VerifiersTasks, verifiers_tasks,
};
use turnwise_testkit::scene;
use turnwise_trajectory::Trajectory;

use crate::peers::{Heard, Served};
use crate::support::{Program, Session, finished, user};
use crate::zmq;

/// A server that is well, and plays every episode by a script.
pub(crate) struct VerifiersRouter {
    pub(crate) url: String,
    pub(crate) heard: Heard,
    directory: tempfile::TempDir,
    _served: Served,
}

/// An episode that a script plays.
pub(crate) struct Rollout {
    pub(crate) stream: TcpStream,
    pub(crate) id: Vec<u8>,
    pub(crate) request: Value,
    heard: Heard,
}

type Script = dyn Fn(Rollout) -> BoxFuture<'static, ()> + Send + Sync;

impl VerifiersRouter {
    pub(crate) fn new<F: Future<Output = ()> + Send + 'static>(
        script: impl Fn(Rollout) -> F + Send + Sync + 'static,
    ) -> Self {
        let script: Arc<Script> = Arc::new(move |rollout| Box::pin(script(rollout)));
        let heard = Heard::default();
        let noted = heard.clone();
        let served =
            Served::connections(move |stream| serve(stream, script.clone(), noted.clone()));
        let directory = tempfile::tempdir().unwrap();
        let rows: Vec<String> = (0..20).map(|idx| json!({"idx": idx}).to_string()).collect();
        std::fs::write(directory.path().join("tasks.jsonl"), rows.join("\n")).unwrap();
        let url = served.url.replace("http://", "tcp://");
        Self { url, heard, directory, _served: served }
    }

    pub(crate) fn tasks_file(&self) -> PathBuf {
        self.directory.path().join("tasks.jsonl")
    }

    pub(crate) fn options(&self) -> VerifiersOptions {
        VerifiersOptions {
            address: self.url.clone(),
            tasks: self.tasks_file(),
            ..VerifiersOptions::default()
        }
    }

    /// Returns an episode of the first task.
    pub(crate) fn episode(&self, program: &Program, limits: Limits) -> Episode {
        let options = self.options();
        let suite = verifiers_tasks(&options).unwrap();
        let client = VerifiersClient::new(&options).unwrap();
        let tasks = VerifiersTasks::new(suite.tasks(Split::Train), program.gateway.clone(), client);
        let renderer: Arc<dyn Renderer> = program.renderer.clone();
        let agents = Arc::new(ChatAgents::new(renderer.clone()));
        let agents = GatewayAgents::new(agents, renderer, &program.gateway);
        Episode::new(scene::identity(&tasks, 0, 4), tasks.environment(0), &agents, limits)
    }

    /// Plays an episode to its end.
    pub(crate) async fn played(&self, limits: Limits) -> Trajectory {
        let program = Program::new().await;
        let episode = self.episode(&program, limits);
        finished(episode.advance(&program.model, &Allowance::unlimited()).await)
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Script>, heard: Heard) {
    zmq::greet(&mut stream, "ROUTER", "DEALER").await;
    let Some(frames) = zmq::message(&mut stream).await else { return };
    let [id, method, payload] = <[Vec<u8>; 3]>::try_from(frames).unwrap();
    let request: Value = rmp_serde::from_slice(&payload).unwrap();
    if method == b"health" {
        let reply = rmp_serde::to_vec(&json!({"success": true, "error": null})).unwrap();
        zmq::send(&mut stream, &[&id, b"reply", &reply]).await;
        return;
    }
    assert_eq!(method, b"run");
    heard.note(request.clone());
    script(Rollout { stream, id, request, heard }).await;
}

impl Rollout {
    /// Returns the session at which the model is.
    pub(crate) fn session(&self) -> Session {
        let url = self.request["client"]["base_url"].as_str().unwrap();
        let url = url.strip_suffix("/v1").unwrap().strip_prefix("http://").unwrap();
        let (address, path) = url.split_once('/').unwrap();
        Session { address: address.to_owned(), path: format!("/{path}") }
    }

    /// Asks the model once, and returns what it says.
    pub(crate) async fn ask(&self, messages: &Value) -> Value {
        let asked = json!({"messages": messages, "model": self.request["model"]});
        self.session().chat(&asked).await.1
    }

    /// Asks the model one thing.
    pub(crate) async fn begin(&self) {
        self.ask(&json!([user("a")])).await;
    }

    pub(crate) async fn send(&mut self, kind: &str, value: &Value) {
        let packed = rmp_serde::to_vec(value).unwrap();
        self.frames(&[&self.id.clone(), kind.as_bytes(), &packed]).await;
    }

    pub(crate) async fn frames(&mut self, frames: &[&[u8]]) {
        zmq::send(&mut self.stream, frames).await;
    }

    pub(crate) async fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Waits until the client is gone, and notes what it asks for until then.
    pub(crate) async fn wait(mut self) {
        while let Some(frames) = zmq::message(&mut self.stream).await {
            let [_, method, payload] = <[Vec<u8>; 3]>::try_from(frames).unwrap();
            let request: Value = rmp_serde::from_slice(&payload).unwrap();
            let run = String::from_utf8_lossy(&self.id).into_owned();
            let method = String::from_utf8(method).unwrap();
            self.heard
                .note(json!({"method": method, "is_of_this_run": request["request_id"] == run}));
        }
    }
}

/// A trace that ended well, with rewards.
pub(crate) fn ended(rewards: &Value) -> Value {
    json!({"trace": "T", "open": {"id": "T"}, "set": {
        "agent": {"name": "agent", "config": {}}, "rewards": rewards, "metrics": {},
        "is_completed": true, "ok": true, "stop_condition": "agent_completed", "is_timeout": false}})
}

/// The reply to a request whose episode has one trace.
pub(crate) fn replied() -> Value {
    json!({"success": true, "error": null, "traces": [{"id": "T", "nodes": 0, "calls": 0}],
        "head": {"id": "E", "env": {"id": "x"}, "ok": true, "is_timeout": false, "errors": []}})
}
