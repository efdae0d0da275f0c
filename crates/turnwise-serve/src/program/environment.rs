//! An episode that a program plays.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use turnwise_environment::{
    Action, Ending, Environment, EnvironmentError, LateReward, Observation, Recovery, Services,
    Step, ToolSpec,
};

use super::process::Process;
use super::tasks::ProgramTasks;
use crate::call::{Event, Rewarded};
use crate::exchange::Exchange;

/// An environment that is a program: what the program asks the model is an observation.
///
/// Requests of one session are answered one after another, in the order in which they came.
pub(super) struct ProgramEnvironment {
    tasks: ProgramTasks,
    index: usize,
    /// The environment behind the program, which gives tasks and rewards; the program may leave it alone.
    inner: Box<dyn Environment>,
    running: Option<Running>,
    earned: Earned,
}

/// A program that runs.
struct Running {
    process: Process,
    exchange: Exchange,
    opening: Observation,
    _permit: OwnedSemaphorePermit,
}

/// Rewards since the last turn, and how the environment behind the program ended.
#[derive(Debug, Default)]
struct Earned {
    reward: Option<f64>,
    /// The sum of all rewards of the episode, which says whether a task is solved if nobody does.
    total: f64,
    late: Vec<(usize, f64)>,
    solved: Option<bool>,
    ending: Option<Ending>,
    faults: u32,
}

/// What the program does next.
enum Next {
    Asks(Observation),
    Ends,
}

impl ProgramEnvironment {
    pub(super) fn new(tasks: ProgramTasks, index: usize) -> Self {
        let inner = tasks.inner.environment(index);
        Self { tasks, index, inner, running: None, earned: Earned::default() }
    }

    async fn start(&mut self, seed: u64) -> Result<Running, EnvironmentError> {
        let settings = &self.tasks.settings;
        let opening = settings.preface.before(&self.inner.reset(seed).await?);
        let permit = self.tasks.processes.clone().acquire_owned().await;
        let permit = permit.map_err(|_| EnvironmentError::new("no more processes may start"))?;
        let exchange = Exchange::open(&self.tasks.gateway)?;
        let url = exchange.url(&self.tasks.gateway);
        let key = exchange.key().to_owned();
        let variables = [
            ("OPENAI_BASE_URL", format!("{url}/v1")),
            ("OPENAI_API_KEY", key.clone()),
            ("ANTHROPIC_BASE_URL", url.clone()),
            ("ANTHROPIC_API_KEY", key),
            ("TURNWISE_SESSION", url),
            ("TURNWISE_TASK", (settings.first_task + self.index).to_string()),
            ("TURNWISE_SEED", seed.to_string()),
            // A proxy would be asked for this machine.
            ("NO_PROXY", without_proxy("NO_PROXY")),
            ("no_proxy", without_proxy("no_proxy")),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        let command = &settings.command;
        let process = Process::start(command, &variables).map_err(|error| {
            EnvironmentError::new(format!("cannot start the agent program `{command}`"))
                .caused_by(error)
        })?;
        Ok(Running { process, exchange, opening, _permit: permit })
    }

    /// Serves the program until it asks the model or ends.
    async fn next(&mut self) -> Result<Next, EnvironmentError> {
        loop {
            let running = self.running.as_mut().ok_or_else(not_started)?;
            let event = tokio::select! {
                biased;
                event = running.exchange.event() => event,
                status = running.process.ended() => {
                    let status = status.map_err(|error| {
                        EnvironmentError::new("cannot wait for the agent program").caused_by(error)
                    })?;
                    if !status.success() {
                        let said = running.process.last_words().await;
                        return Err(EnvironmentError::new(format!("the agent program ended with {status}: {said}")));
                    }
                    // What it sent before its end counts.
                    match running.exchange.waiting_event() {
                        Some(event) => event,
                        None => return Ok(Next::Ends),
                    }
                }
            };
            match event {
                Event::Call(call, reply) => {
                    if let Some(observation) = running.exchange.asks(call, reply) {
                        return Ok(Next::Asks(observation));
                    }
                }
                Event::Task(reply) => {
                    let task = (running.opening.clone(), self.inner.tools());
                    let _ = reply.send(Some(task));
                }
                Event::Act(action, reply) => self.act(action, reply).await?,
                Event::Reward(rewarded) => self.earned.add(rewarded, running.exchange.n_turns()),
                Event::End => return Ok(Next::Ends),
            }
        }
    }

    /// Takes an action in the environment behind the program.
    async fn act(
        &mut self,
        action: Action,
        reply: oneshot::Sender<Option<Step>>,
    ) -> Result<(), EnvironmentError> {
        if self.earned.ending.is_some() {
            let _ = reply.send(None);
            return Ok(());
        }
        let step = self.inner.step(action).await?;
        match &step {
            Step::Next { observation, .. } if !observation.seat.is_first() => {
                return Err(EnvironmentError::new(
                    "this environment has several seats, and an agent program plays one",
                ));
            }
            Step::Next { reward, faults, late, .. } => {
                self.earned.give_all(*reward, late);
                self.earned.faults += faults;
            }
            Step::End { reward, ending, solved, late, .. } => {
                self.earned.give_all(*reward, late);
                self.earned.ending = Some(*ending);
                self.earned.solved = Some(*solved);
            }
        }
        let _ = reply.send(Some(step));
        Ok(())
    }

    fn step_to(&mut self, next: Next) -> Step {
        let Earned { reward, late, faults, .. } = &mut self.earned;
        let (reward, late, faults) = (reward.take(), std::mem::take(late), std::mem::take(faults));
        let step = match next {
            Next::Asks(observation) => Step::next(observation).faults(faults),
            Next::Ends => {
                // The process ends with its episode.
                self.running = None;
                match self.earned.ending {
                    Some(Ending::Failed) => Step::failed(),
                    Some(Ending::Truncated) => Step::truncated(),
                    Some(Ending::Terminated) | None => {
                        let solved = self.earned.solved.unwrap_or(self.earned.total >= 1.0);
                        Step::End {
                            reward: None,
                            ending: Ending::Terminated,
                            solved,
                            others: Vec::new(),
                            late: Vec::new(),
                        }
                    }
                }
            }
        };
        let step =
            late.into_iter().fold(step, |step, (turn, late)| step.reward_of_turn(turn, late));
        reward.map_or(step.clone(), |reward| step.reward(reward))
    }
}

impl Earned {
    /// Adds a reward of the newest turn, or of an earlier one of `n_turns`.
    fn add(&mut self, rewarded: Rewarded, n_turns: usize) {
        let Rewarded { reward, turn, solved } = rewarded;
        match turn.filter(|turn| turn + 1 != n_turns) {
            Some(turn) => {
                self.total += reward;
                self.late.push((turn, reward));
            }
            None => self.give(Some(reward)),
        }
        self.solved = solved.or(self.solved);
    }

    /// Adds what a step of the environment behind the program gives. Its turns are not the program's, so that a late reward
    /// belongs to the newest turn.
    fn give_all(&mut self, reward: Option<f64>, late: &[LateReward]) {
        self.give(reward);
        for late in late {
            self.give(Some(late.reward));
        }
    }

    fn give(&mut self, reward: Option<f64>) {
        self.total += reward.unwrap_or(0.0);
        self.reward = [self.reward, reward].into_iter().flatten().reduce(|sum, part| sum + part);
    }
}

#[async_trait]
impl Environment for ProgramEnvironment {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        self.running = Some(self.start(seed).await?);
        match self.next().await? {
            Next::Asks(observation) => Ok(observation),
            Next::Ends => {
                let mut running = self.running.take().ok_or_else(not_started)?;
                let said = running.process.last_words().await;
                Err(EnvironmentError::new(format!(
                    "the agent program ended before it asked the model: {said}"
                )))
            }
        }
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        let running = self.running.as_mut().ok_or_else(not_started)?;
        let next = match running.exchange.answer(&action)? {
            Some(observation) => Next::Asks(observation),
            None => self.next().await?,
        };
        Ok(self.step_to(next))
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        // A program may give rewards of its own.
        f64::MIN..=f64::MAX
    }

    fn fault_reward(&self) -> Option<f64> {
        self.inner.fault_reward()
    }

    fn recovery(&self) -> Recovery {
        Recovery::Restart
    }

    fn connect(&mut self, services: &Services) {
        self.inner.connect(services);
    }

    /// Tools come with each request.
    fn tools(&self) -> Vec<ToolSpec> {
        Vec::new()
    }
}

/// Adds this machine to the hosts of a variable that clients reach without a proxy.
fn without_proxy(variable: &str) -> String {
    let own = "127.0.0.1,localhost,::1";
    match std::env::var(variable) {
        Ok(others) if !others.is_empty() => format!("{others},{own}"),
        _ => own.to_owned(),
    }
}

fn not_started() -> EnvironmentError {
    EnvironmentError::new("the episode has no program: it was not reset, or it is over")
}
