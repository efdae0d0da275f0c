//! What a program asks for, whichever surface it came by.

use tokio::sync::oneshot;
use turnwise_environment::{Action, Message, Observation, Step, ToolSpec};

use crate::answer::ChatAnswer;

/// A request for the model's next turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ModelCall {
    /// The whole conversation.
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Vec<ToolSpec>,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    /// The number of answers; at least 1.
    pub(crate) n: usize,
}

/// What a session's clients ask of its episode, in order.
#[derive(Debug)]
pub(crate) enum Event {
    /// The model's next turn.
    Call(ModelCall, oneshot::Sender<Vec<ChatAnswer>>),
    /// What the environment behind the program says first, and its tools.
    Task(oneshot::Sender<Option<(Observation, Vec<ToolSpec>)>>),
    /// An action in the environment behind the program; `None` comes back where there is none, or it is over.
    Act(Action, oneshot::Sender<Option<Step>>),
    /// A reward of the newest turn, or of an earlier one.
    Reward(Rewarded),
    /// The end of the episode.
    End,
}

/// A reward that the program gives itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rewarded {
    pub(crate) reward: f64,
    pub(crate) turn: Option<usize>,
    /// Whether the task counts as solved; a total of 1 or more does if nobody says.
    pub(crate) solved: Option<bool>,
}
