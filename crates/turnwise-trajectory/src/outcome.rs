use std::fmt;

use serde::{Deserialize, Serialize};

/// How a finished attempt ended. Each of the five outcomes determines reward, baseline and loss.
///
/// A suspended episode has no outcome: it continues later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The environment ended the episode. Scored and trained.
    Done,
    /// The policy reached a limit. The rewards received so far count.
    Truncated(Limit),
    /// The agent's own output made it impossible to continue. Scored and trained.
    AgentFault(AgentFault),
    /// The environment, a tool, the engine or a grader broke. Never scored, and outside baseline and loss.
    InfraFault(InfraFault),
    /// The scheduler stopped the episode. Never scored, and outside baseline and loss.
    Cancelled(CancelReason),
}

impl Outcome {
    /// Returns whether the episode's rewards count: false for infrastructure faults and cancellations.
    #[must_use]
    pub fn is_scored(&self) -> bool {
        !matches!(self, Self::InfraFault(_) | Self::Cancelled(_))
    }

    /// Returns a word for counters: `done`, `truncated_turns`, `infra_env_panic`, …
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Done => "done".to_owned(),
            Self::Truncated(limit) => format!("truncated_{}", word(limit)),
            Self::AgentFault(fault) => format!("agent_{}", word(fault)),
            Self::InfraFault(fault) => format!("infra_{}", word(&fault.reason)),
            Self::Cancelled(reason) => format!("cancelled_{}", word(reason)),
        }
    }
}

/// Returns the `snake_case` word of a unit variant, as records spell it.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("a unit variant is a string in JSON, not {other:?}"),
    }
}

/// A limit that the policy reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The number of turns of the episode.
    Turns,
    /// The number of sampled tokens of the episode.
    SampledTokens,
    /// The context length of the model.
    Context,
    /// The number of tool calls.
    ToolCalls,
    /// The policy kept repeating itself.
    Loop,
    /// A clock or limit of the environment.
    Environment,
    /// A limit or a fault of another seat of the episode. Neither penalised nor masked.
    OtherSeat,
}

/// A fault of the agent that ended its episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentFault {
    /// Too many malformed calls and answers.
    FaultBudget,
    /// An empty answer.
    Empty,
}

/// A breakage outside of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InfraFault {
    /// The kind of breakage.
    pub reason: InfraReason,
    /// The cause, with the values that matter.
    pub message: String,
}

impl fmt::Display for InfraFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", word(&self.reason), self.message)
    }
}

/// The kinds of breakage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InfraReason {
    /// The environment returned an error or reported a failure.
    EnvError,
    /// The environment panicked.
    EnvPanic,
    /// The environment exceeded its deadline.
    EnvTimeout,
    /// A reward that is missing, not finite, or outside the declared range.
    BadReward,
    /// The engine returned an error.
    EngineError,
    /// The engine exceeded its deadline.
    EngineTimeout,
    /// The engine returned an impossible answer.
    BadEngine,
    /// The model's logits are NaN or infinite.
    NotFinite,
    /// The rubric returned an error.
    RubricError,
    /// A snapshot could not be restored.
    Snapshot,
    /// A caller called methods in a wrong order.
    Protocol,
    /// The renderer's tokens do not continue the tokens that the engine read.
    Render,
    /// The agent or its renderer panicked.
    AgentPanic,
    /// A tool call was in doubt after a crash.
    ToolInDoubt,
    /// The episode exceeded its deadline.
    EpisodeTimeout,
}

/// The reason why the scheduler cancelled an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// The episode would have been too old to train on.
    Stale,
    /// The run had too much work.
    Overload,
    /// Too few members of the group were left.
    GroupDropped,
    /// The run stopped.
    Shutdown,
    /// The user requested it.
    User,
}
