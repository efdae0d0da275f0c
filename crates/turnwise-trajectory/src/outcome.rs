use std::fmt;

use serde::{Deserialize, Serialize};

/// How a finished attempt ended: exactly five ways, and each says what it means for reward, baseline and loss.
///
/// *Suspended* is not among them: it is a value that goes on later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The environment said so. Scored and trained.
    Done,
    /// The policy ran into a limit. What it was rewarded so far stays.
    Truncated(Limit),
    /// The agent's own output made going on impossible. A real reward, and trained.
    AgentFault(AgentFault),
    /// Environment, tool, engine or grader broke. No reward ever, outside baseline and loss.
    InfraFault(InfraFault),
    /// The scheduler stopped it. No reward, outside baseline and loss.
    Cancelled(CancelReason),
}

impl Outcome {
    /// Whether the episode's rewards count: false for infrastructure faults and cancellations.
    #[must_use]
    pub fn is_scored(&self) -> bool {
        !matches!(self, Self::InfraFault(_) | Self::Cancelled(_))
    }

    /// A word for counters: `done`, `truncated_turns`, `infra_env_panic`, …
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

/// The `snake_case` word of a unit variant, as it stands in the records.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("a unit variant is a string in JSON, not {other:?}"),
    }
}

/// A limit the policy ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Turns of the episode.
    Turns,
    /// Sampled tokens of the episode.
    SampledTokens,
    /// Tokens the model can attend to.
    Context,
    /// Calls of tools.
    ToolCalls,
    /// It kept repeating itself.
    Loop,
    /// A clock or limit of the environment's own.
    Environment,
}

/// What the agent did that ended its episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentFault {
    /// Too many calls and answers of the wrong form.
    FaultBudget,
    /// It said nothing.
    Empty,
}

/// What broke, where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InfraFault {
    /// The kind.
    pub reason: InfraReason,
    /// What happened, with the values that matter.
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
    /// The environment returned an error or said that it failed.
    EnvError,
    /// The environment panicked.
    EnvPanic,
    /// The environment outlived its deadline.
    EnvTimeout,
    /// A reward that is missing, not finite, or outside the declared range.
    BadReward,
    /// The engine returned an error.
    EngineError,
    /// The engine outlived its deadline.
    EngineTimeout,
    /// The engine answered something impossible.
    BadEngine,
    /// The model's logits are NaN or infinite.
    NotFinite,
    /// The rubric returned an error.
    RubricError,
    /// A snapshot could not be restored.
    Snapshot,
    /// A caller broke the order of calls.
    Protocol,
    /// The renderer's tokens do not continue what the engine saw.
    Render,
    /// The agent or its renderer panicked.
    AgentPanic,
    /// A tool call was in doubt after a crash.
    ToolInDoubt,
    /// The episode outlived its deadline.
    EpisodeTimeout,
}

/// Why the scheduler stopped an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// It would have been too old to train on.
    Stale,
    /// There was too much work.
    Overload,
    /// Too few of its group were left.
    GroupDropped,
    /// The run stopped.
    Shutdown,
    /// Somebody asked for it.
    User,
}
