//! A turn, as its messages and rewards come together.

use serde_json::Value;
use turnwise_environment::{
    CallError, Ending, EnvironmentError, ErrorKind, Message, Step, ToolCall, ToolSpec,
};

use super::answers::CallAnswer;
use super::rewards::{RewardReader, sum};

/// A turn that a server is answering.
#[derive(Debug, Default)]
pub(super) struct RemoteTurn {
    messages: Vec<Message>,
    reward: Option<f64>,
    faults: u32,
    solved: Option<bool>,
    /// Servers go on after the end if they are asked to.
    pub(super) is_over: bool,
}

/// The longest arguments or action that are sent, in bytes.
pub(super) const MAX_SENT: usize = 1 << 20;

impl RemoteTurn {
    /// Adds the answer to a call.
    pub(super) fn answer(&mut self, id: &str, answer: CallAnswer) {
        self.faults += u32::from(answer.is_mistake);
        self.messages.push(Message::tool(id, answer.text));
    }

    /// Adds the answer to a text.
    pub(super) fn say(&mut self, answer: CallAnswer) {
        self.faults += u32::from(answer.is_mistake);
        self.messages.push(Message::user(answer.text));
    }

    /// Adds a reward, and whether the server says that the task is solved.
    pub(super) fn score(&mut self, reward: Option<f64>, solved: Option<bool>) {
        self.reward = sum([self.reward, reward]);
        self.solved = solved.or(self.solved);
    }

    /// Returns the step.
    pub(super) fn into_step(self, rewards: &RewardReader) -> Step {
        let Self { messages, reward, faults, solved, is_over } = self;
        let step = if is_over {
            Step::End {
                reward: None,
                ending: Ending::Terminated,
                solved: solved.unwrap_or(rewards.total() >= 1.0),
                others: Vec::new(),
                late: Vec::new(),
            }
        } else {
            Step::next(messages).faults(faults)
        };
        match reward {
            Some(reward) => step.reward(reward),
            None => step,
        }
    }
}

/// Returns the answer to a call that no server has to see.
pub(super) fn unfit(call: &ToolCall, tools: &[ToolSpec]) -> Option<CallAnswer> {
    let mistake = |error, why| Some(CallAnswer::mistake(error, why));
    if !tools.iter().any(|tool| tool.name == call.name) {
        mistake(CallError::NotFound, "no tool has this name")
    } else if !call.arguments.is_object() {
        mistake(CallError::InvalidArgs, "the arguments are no object")
    } else if !is_shallow(&call.arguments, MAX_DEPTH) {
        mistake(CallError::InvalidArgs, "the arguments are nested too deeply")
    } else if call.arguments.to_string().len() > MAX_SENT {
        mistake(CallError::TooLarge, "the arguments are too long")
    } else {
        None
    }
}

/// The deepest nesting that is sent: parsers of JSON stop at 128 levels, and a message adds some.
pub(super) const MAX_DEPTH: usize = 100;

/// Returns whether a value has at most this many levels.
pub(super) fn is_shallow(value: &Value, levels: usize) -> bool {
    let mut inside: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(values) => Box::new(values.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => return true,
    };
    levels > 0 && inside.all(|value| is_shallow(value, levels - 1))
}

/// Returns the error for a step before the reset, or after the end.
pub(super) fn not_started() -> EnvironmentError {
    EnvironmentError::new("no episode runs at the server: it was not reset, or it is over")
        .of_kind(ErrorKind::Protocol)
}
