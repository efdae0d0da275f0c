//! An episode whose program is the test itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use turnwise_environment::{Rubric, Split, TaskSet};
use turnwise_rollout::{
    Allowance, ChatAgents, Episode, Group, Limits, Policy, PoolSettings, Progress, Renderer,
    RolloutPool, StopSignal,
};
use turnwise_serve::{
    Gateway, GatewayAgents, GatewaySettings, OwnTasks, ProgramSettings, ProgramTasks, own_tasks,
};
use turnwise_testkit::{AlphabetRenderer, Echo, TabularModel, scene};
use turnwise_trajectory::{GroupId, Trajectory};

/// A response: its status and its body.
pub(crate) type Response = (u16, String);

/// A program that the test stands in for: it writes its session's URL to a file, and ends with the status that is written
/// to another.
pub(crate) struct Program {
    directory: tempfile::TempDir,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) renderer: Arc<AlphabetRenderer>,
    pub(crate) model: TabularModel,
}

impl Program {
    pub(crate) async fn new() -> Self {
        let renderer = Arc::new(AlphabetRenderer::new(scene::LETTERS));
        let model = TabularModel::new(renderer.n_ids());
        let gateway = Arc::new(Gateway::bind(GatewaySettings::default()).await.unwrap());
        Self { directory: tempfile::tempdir().unwrap(), gateway, renderer, model }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns an episode that this program plays.
    pub(crate) fn episode(&self, limits: Limits) -> Episode {
        self.episode_of(&self.command(), limits)
    }

    /// Returns the command of the program.
    fn command(&self) -> String {
        let (url, status) = (self.file("url"), self.file("status"));
        format!(
            "printf %s $TURNWISE_SESSION > {url}.new; mv {url}.new {url}; while [ ! -e {status} ]; do sleep 0.01; done; exit $(cat {status})",
            url = url.display(),
            status = status.display()
        )
    }

    /// Returns an episode that a command plays.
    pub(crate) fn episode_of(&self, command: &str, limits: Limits) -> Episode {
        let settings = ProgramSettings::new(command);
        let tasks =
            ProgramTasks::new(Arc::new(vec![Echo::new(2, false)]), self.gateway.clone(), settings);
        let renderer: Arc<dyn Renderer> = self.renderer.clone();
        let agents = Arc::new(ChatAgents::new(renderer.clone()));
        let agents = GatewayAgents::new(agents, renderer, &self.gateway);
        Episode::new(scene::identity(&tasks, 0, 4), tasks.environment(0), &agents, limits)
    }

    /// Plays the episode of an environment to its end while the test acts as its program.
    pub(crate) async fn played_in(
        &self,
        inner: impl TaskSet + 'static,
        test: impl Future<Output = ()>,
    ) -> Trajectory {
        let settings = ProgramSettings::new(self.command());
        let tasks = ProgramTasks::new(Arc::new(inner), self.gateway.clone(), settings);
        let renderer: Arc<dyn Renderer> = self.renderer.clone();
        let agents = Arc::new(ChatAgents::new(renderer.clone()));
        let agents = GatewayAgents::new(agents, renderer, &self.gateway);
        let identity = scene::identity(&tasks, 0, 4);
        let episode = Episode::new(identity, tasks.environment(0), &agents, scene::limits());
        let allowance = Allowance::unlimited();
        let (progress, ()) = tokio::join!(episode.advance(&self.model, &allowance), test);
        finished(progress)
    }

    /// Plays a group of the program's own tasks that a rubric scores. Returns it, once `test` has played the sessions whose
    /// URLs it gets as they begin.
    pub(crate) async fn graded<F: Future<Output = ()>>(
        &self,
        rubric: Arc<dyn Rubric>,
        group_size: usize,
        test: impl FnOnce(Vec<Session>) -> F,
    ) -> Group {
        let urls = self.file("urls");
        let command = format!("echo $TURNWISE_SESSION >> {}; exec sleep 600", urls.display());
        let suite = own_tasks(OwnTasks::default()).unwrap();
        let tasks = suite.tasks(Split::Train);
        let tasks = ProgramTasks::new(tasks, self.gateway.clone(), ProgramSettings::new(&command));
        let renderer: Arc<dyn Renderer> = self.renderer.clone();
        let agents = Arc::new(ChatAgents::new(renderer.clone()));
        let agents = Arc::new(GatewayAgents::new(agents, renderer, &self.gateway));
        let settings =
            PoolSettings { group_size, limits: scene::limits(), ..PoolSettings::default() };
        let mut pool = RolloutPool::new(Arc::new(tasks), agents, Some(rubric), settings, 7);
        pool.start(GroupId(0), 0);
        let policy: Arc<dyn Policy> = Arc::new(self.model.clone());
        let playing = async {
            let begun = loop {
                let listed = std::fs::read_to_string(&urls).unwrap_or_default();
                if listed.lines().count() == group_size && listed.ends_with('\n') {
                    break listed.lines().map(Session::at).collect();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            test(begun).await;
        };
        let never = StopSignal::never();
        let (iteration, ()) = tokio::join!(pool.iterate(&policy, &never), playing);
        iteration.unwrap().groups.pop().unwrap()
    }

    /// Ends the program with a status.
    pub(crate) fn exit(&self, status: i32) {
        std::fs::write(self.file("status.new"), status.to_string()).unwrap();
        std::fs::rename(self.file("status.new"), self.file("status")).unwrap();
    }

    /// Returns the path of the session, once the program runs.
    pub(crate) async fn session(&self) -> Session {
        let url = loop {
            match std::fs::read_to_string(self.file("url")) {
                Ok(url) => break url,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        Session::at(&url)
    }

    /// Plays an episode to its end while the test acts as its program.
    pub(crate) async fn played(&self, test: impl Future<Output = ()>) -> Trajectory {
        let episode = self.episode(scene::limits());
        let allowance = Allowance::unlimited();
        let (progress, ()) = tokio::join!(episode.advance(&self.model, &allowance), test);
        finished(progress)
    }
}

pub(crate) fn finished(progress: Progress) -> Trajectory {
    let Progress::Finished(trajectory) = progress else { panic!("the episode ends") };
    trajectory
}

/// The URL of a session.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) address: String,
    pub(crate) path: String,
}

impl Session {
    fn at(url: &str) -> Self {
        let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        Self { address: address.to_owned(), path: format!("/{path}") }
    }

    pub(crate) async fn post(&self, route: &str, body: &Value) -> Response {
        let body = body.to_string();
        let path = format!("{}{route}", self.path);
        let length = body.len();
        send(&self.address, &format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")).await
    }

    pub(crate) async fn get(&self, route: &str) -> Response {
        let path = format!("{}{route}", self.path);
        send(
            &self.address,
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        )
        .await
    }

    /// Asks for a turn; returns the response and the message in it.
    pub(crate) async fn chat(&self, request: &Value) -> (Value, Value) {
        let (status, body) = self.post("/v1/chat/completions", request).await;
        assert_eq!(status, 200, "{body}");
        let response: Value = serde_json::from_str(&body).unwrap();
        let message = response["choices"][0]["message"].clone();
        (response, message)
    }
}

pub(crate) fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// Sends a request and returns the response.
pub(crate) async fn send(address: &str, request: &str) -> Response {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that refuses a body may close before it has read all of it.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut response = String::new();
    let _ = stream.read_to_string(&mut response).await;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}

/// Runs a test in real time.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_mins(1), test).await.expect("the test ends");
    });
}
