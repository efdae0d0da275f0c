//! An episode that a client plays by calling tools.

use serde_json::{Value, json};
use turnwise_environment::{
    Action, CallAttempt, Environment, EnvironmentError, Message, Observation, Split, Step, Suite,
    TaskSet, ToolCall, ToolSpec,
};

use super::settings::RewardForm;

/// An episode of an environment. Whatever the agent does is a call of a tool; what it says is a call of [`ANSWER`].
pub(super) struct HostedEpisode {
    environment: Box<dyn Environment>,
    opening: Observation,
    reward_form: RewardForm,
    total: Option<f64>,
    n_calls: u64,
    is_over: bool,
}

/// The tool by which an agent says something, for clients that know tools alone.
pub(super) const ANSWER: &str = "answer";

/// The answer to a call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Called {
    pub(super) text: String,
    pub(super) reward: Option<f64>,
    pub(super) is_over: bool,
    pub(super) solved: bool,
}

/// The reason why a call has no answer.
#[derive(Debug)]
pub(super) enum CallFailure {
    /// The episode is over.
    Over,
    /// There is no such tool.
    UnknownTool,
    /// The arguments do not fit [`ANSWER`].
    NoText,
    /// The environment broke.
    Broken(EnvironmentError),
}

impl HostedEpisode {
    /// Starts an episode of a task.
    pub(super) async fn start(
        tasks: &dyn TaskSet,
        index: usize,
        seed: u64,
        reward_form: RewardForm,
    ) -> Result<Self, EnvironmentError> {
        let mut environment = tasks.environment(index);
        if environment.n_seats() > 1 {
            return Err(EnvironmentError::new(
                "this environment has several seats, and a client of this protocol plays one",
            ));
        }
        let opening = environment.reset(seed).await?;
        Ok(Self { environment, opening, reward_form, total: None, n_calls: 0, is_over: false })
    }

    /// Returns the environment's tools and the one that says something.
    pub(super) fn tools(&self) -> Vec<ToolSpec> {
        with_answer(self.environment.tools())
    }

    /// Returns what the agent reads first, after the instructions of its suite.
    pub(super) fn prompt(&self, suite: &Suite) -> String {
        let instructions = suite.instructions_text().into_iter();
        let messages = self.opening.messages.iter().map(|message| message.content.as_str());
        instructions.chain(messages).collect::<Vec<_>>().join("\n\n")
    }

    /// Calls a tool, or says something by [`ANSWER`].
    pub(super) async fn call(
        &mut self,
        name: &str,
        arguments: Value,
    ) -> Result<Called, CallFailure> {
        if self.environment.tools().iter().any(|tool| tool.name == name) {
            let id = format!("call_{}", self.n_calls);
            self.n_calls += 1;
            let call = ToolCall { id, name: name.to_owned(), arguments };
            let calls = vec![CallAttempt::Call(call)];
            return self.act(Action { calls, ..Action::default() }).await;
        }
        if name != ANSWER {
            return Err(if self.is_over { CallFailure::Over } else { CallFailure::UnknownTool });
        }
        let text = arguments.get("text").and_then(Value::as_str).ok_or(CallFailure::NoText)?;
        self.say(text.to_owned()).await
    }

    /// Says something.
    pub(super) async fn say(&mut self, text: String) -> Result<Called, CallFailure> {
        self.act(Action::text(text)).await
    }

    async fn act(&mut self, action: Action) -> Result<Called, CallFailure> {
        if self.is_over {
            return Err(CallFailure::Over);
        }
        let step = self.environment.step(action).await.map_err(|error| {
            self.is_over = true;
            CallFailure::Broken(error)
        })?;
        self.read(step)
    }

    fn read(&mut self, step: Step) -> Result<Called, CallFailure> {
        let (Step::Next { late, .. } | Step::End { late, .. }) = &step;
        let late: Vec<Option<f64>> = late.iter().map(|late| Some(late.reward)).collect();
        let (text, of_turn, solved) = match step {
            Step::Next { observation, reward, .. } => {
                (joined(&observation.messages), reward, false)
            }
            Step::End { ending: turnwise_environment::Ending::Failed, .. } => {
                self.is_over = true;
                let broken = EnvironmentError::new("the environment failed");
                return Err(CallFailure::Broken(broken));
            }
            Step::End { reward, solved, .. } => {
                self.is_over = true;
                ("The episode is over.".to_owned(), reward, solved)
            }
        };
        // A client has no place for the reward of an earlier turn.
        let of_turn = sum([of_turn].into_iter().chain(late));
        self.total = sum([self.total, of_turn]);
        let reward = match self.reward_form {
            RewardForm::Turn => of_turn,
            RewardForm::Total => self.total,
        };
        Ok(Called { text, reward, is_over: self.is_over, solved })
    }
}

/// Adds rewards; nothing but missing ones is missing.
fn sum(rewards: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    rewards.into_iter().flatten().reduce(|sum, part| sum + part)
}

/// Returns the tools of a suite's first task, for clients that ask before an episode runs.
pub(super) fn first_tools(suite: &Suite) -> Vec<ToolSpec> {
    with_answer(suite.tasks(Split::Train).environment(0).tools())
}

fn with_answer(mut tools: Vec<ToolSpec>) -> Vec<ToolSpec> {
    if !tools.iter().any(|tool| tool.name == ANSWER) {
        tools.push(ToolSpec {
            name: ANSWER.to_owned(),
            description: "Says something to the environment, such as the answer to the task."
                .to_owned(),
            parameters: json!({
                "type": "object",
                "properties": {"text": {"type": "string", "description": "What to say."}},
                "required": ["text"],
            }),
        });
    }
    tools
}

fn joined(messages: &[Message]) -> String {
    messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n")
}
