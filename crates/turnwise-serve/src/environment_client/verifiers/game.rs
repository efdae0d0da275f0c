//! An episode that a server of verifiers plays.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use turnwise_environment::{
    Action, Ending, Environment, EnvironmentError, Observation, Recovery, Services, Step, TaskKey,
    TaskSet,
};

use super::client::VerifiersClient;
use super::delta::PlayedEpisode;
use super::run::RemoteRun;
use crate::Gateway;
use crate::call::Event;
use crate::exchange::Exchange;

/// The tasks of a suite, each played by a server of verifiers: it asks the model at a session of the gateway, so that in the
/// place of observations and actions are its requests and their answers, and it scores the episode.
///
/// The first message of an environment of the suite is the data of its task, as JSON; [`verifiers_tasks`](crate::verifiers_tasks)
/// makes such a suite.
#[derive(Clone)]
pub struct VerifiersTasks {
    inner: Arc<dyn TaskSet>,
    gateway: Arc<Gateway>,
    client: VerifiersClient,
}

impl VerifiersTasks {
    /// Wraps a task set.
    #[must_use]
    pub fn new(inner: Arc<dyn TaskSet>, gateway: Arc<Gateway>, client: VerifiersClient) -> Self {
        Self { inner, gateway, client }
    }
}

impl fmt::Debug for VerifiersTasks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VerifiersTasks")
            .field("client", &self.client)
            .field("gateway", &self.gateway)
            .finish_non_exhaustive()
    }
}

impl TaskSet for VerifiersTasks {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn version(&self) -> u32 {
        self.inner.version()
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn key(&self, index: usize) -> TaskKey {
        self.inner.key(index)
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        let task = self.inner.environment(index);
        Box::new(RemoteRollout { tasks: self.clone(), task, playing: None })
    }
}

/// An environment that is a server's episode: what the server asks the model is an observation.
struct RemoteRollout {
    tasks: VerifiersTasks,
    /// The task, which knows its data.
    task: Box<dyn Environment>,
    playing: Option<Playing>,
}

/// An episode that the server plays.
struct Playing {
    run: RemoteRun,
    exchange: Exchange,
}

/// What the server does next.
enum Next {
    Asks(Observation),
    Ends(PlayedEpisode),
}

impl RemoteRollout {
    async fn start(&mut self, seed: u64) -> Result<Playing, EnvironmentError> {
        let VerifiersTasks { gateway, client, .. } = &self.tasks;
        let task_data = task_data(&self.task.reset(seed).await?)?;
        let exchange = Exchange::open(gateway)?;
        let request = json!({
            "task_data": task_data,
            "client": {
                "type": "eval",
                "base_url": format!("{}/v1", exchange.url(gateway)),
                // The key is in the URL. Without a name, the client of verifiers would send the user's own key of Prime.
                "api_key_var": "TURNWISE_SESSION_KEY",
            },
            "model": "turnwise",
            // The run samples as its own settings say.
            "sampling": {},
        });
        Ok(Playing { run: RemoteRun::start(client, &request).await?, exchange })
    }
}

impl Playing {
    /// Serves the server until it asks the model or ends.
    async fn next(&mut self) -> Result<Next, EnvironmentError> {
        loop {
            let event = tokio::select! {
                // A request that the server no longer waits for changes nothing.
                biased;
                played = self.run.ended() => return Ok(Next::Ends(played?)),
                event = self.exchange.event() => event,
            };
            match event {
                Event::Call(call, reply) => {
                    if let Some(observation) = self.exchange.asks(call, reply) {
                        return Ok(Next::Asks(observation));
                    }
                }
                Event::Task(reply) => drop(reply.send(None)),
                Event::Act(_, reply) => drop(reply.send(None)),
                // The server scores and ends its episodes itself.
                Event::Reward(_) | Event::End => {}
            }
        }
    }
}

#[async_trait]
impl Environment for RemoteRollout {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        let playing = self.start(seed).await?;
        match self.playing.insert(playing).next().await? {
            Next::Asks(observation) => Ok(observation),
            Next::Ends(_) => Err(EnvironmentError::new(
                "the verifiers server ended the episode before it asked the model",
            )),
        }
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        let playing = self.playing.as_mut().ok_or_else(|| {
            EnvironmentError::new("the episode has no server: it was not reset, or it is over")
        })?;
        let next = match playing.exchange.answer(&action)? {
            Some(observation) => Next::Asks(observation),
            None => playing.next().await?,
        };
        match next {
            Next::Asks(observation) => Ok(Step::next(observation)),
            Next::Ends(PlayedEpisode { reward, is_cut }) => {
                self.playing = None;
                Ok(Step::End {
                    reward: Some(reward),
                    ending: if is_cut { Ending::Truncated } else { Ending::Terminated },
                    solved: !is_cut && reward >= 1.0,
                    others: Vec::new(),
                    late: Vec::new(),
                })
            }
        }
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        self.tasks.client.reward_range()
    }

    fn recovery(&self) -> Recovery {
        Recovery::Restart
    }

    fn connect(&mut self, services: &Services) {
        self.task.connect(services);
    }
}

/// Reads the data of a task from what its environment says first.
fn task_data(opening: &Observation) -> Result<Value, EnvironmentError> {
    let text = opening.messages.first().map_or("", |message| message.content.as_str());
    let data: Value = serde_json::from_str(text).map_err(|error| {
        EnvironmentError::new("the first message of the task is not its data as JSON")
            .caused_by(error)
    })?;
    if data.is_object() {
        Ok(data)
    } else {
        Err(EnvironmentError::new("the first message of the task is no object of JSON"))
    }
}
