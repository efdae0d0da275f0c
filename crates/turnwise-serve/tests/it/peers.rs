//! Servers that a test writes itself, and our own, each on a thread of its own.

use std::sync::{Arc, Mutex};

use axum::Router;
use serde_json::Value;
use tokio::runtime::Runtime;
use turnwise_environment::{Action, Environment, Observation, Split, Step, Suite};
use turnwise_serve::{EnvironmentServer, ServerSettings};

/// A server that runs while a test waits.
pub(crate) struct Served {
    pub(crate) url: String,
    runtime: Option<Runtime>,
    _server: Option<EnvironmentServer>,
}

impl Served {
    /// Serves routes.
    pub(crate) fn routes(router: Router) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { url, runtime: Some(runtime), _server: None }
    }

    /// Gives each connection to a function.
    pub(crate) fn connections<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Self { url, runtime: Some(runtime), _server: None }
    }

    /// Serves a suite.
    pub(crate) fn suite(settings: ServerSettings, suite: Suite) -> Self {
        let runtime = runtime();
        let server = runtime.block_on(EnvironmentServer::bind(settings, suite)).unwrap();
        Self { url: server.url(), runtime: Some(runtime), _server: Some(server) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// What a server heard, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<Value>>>);

impl Heard {
    pub(crate) fn note(&self, value: Value) {
        self.0.lock().unwrap().push(value);
    }

    pub(crate) fn all(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }

    /// Returns how much was heard that has these words.
    pub(crate) fn n_with(&self, words: &str) -> usize {
        self.all().iter().filter(|value| value.to_string().contains(words)).count()
    }
}

/// Starts an episode of the first task.
pub(crate) async fn begun(suite: &Suite) -> (Box<dyn Environment>, Observation) {
    let mut environment = suite.tasks(Split::Train).environment(0);
    let first = environment.reset(7).await.unwrap();
    (environment, first)
}

/// Returns the error of a reset, with its causes.
pub(crate) async fn refused(suite: &Suite) -> String {
    let mut environment = suite.tasks(Split::Train).environment(0);
    chain(&environment.reset(7).await.expect_err("it cannot start"))
}

/// Returns the error of a step, with its causes.
pub(crate) async fn broken(environment: &mut dyn Environment, action: Action) -> String {
    chain(&environment.step(action).await.expect_err("it breaks"))
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    let causes = causes.map(|cause| format!(": {cause}"));
    format!("{error}{}", causes.collect::<String>())
}

/// Returns the texts of a step that goes on, its reward and its faults.
pub(crate) fn next(step: Step) -> (Vec<String>, Option<f64>, u32) {
    let Step::Next { observation, reward, faults, .. } = step else {
        panic!("it goes on: {step:?}")
    };
    let texts = observation.messages.into_iter().map(|message| message.content);
    (texts.collect(), reward, faults)
}

/// Returns the reward of a step that ends the episode, and whether the task counts as solved.
pub(crate) fn end(step: &Step) -> (Option<f64>, bool) {
    let Step::End { reward, solved, .. } = step else { panic!("it ends: {step:?}") };
    (*reward, *solved)
}
