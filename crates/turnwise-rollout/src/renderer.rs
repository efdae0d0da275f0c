use turnwise_environment::{Action, Observation, ToolSpec};
use turnwise_trajectory::{Span, StopReason, TokenId};

/// New tokens for a conversation, message by message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    /// What closes a turn that the model did not close; forced, and part of the turn before.
    pub close: Vec<TokenId>,
    /// For each message of the observation its lead-in, content and end.
    pub messages: Vec<Vec<Span>>,
    /// The lead-in to the model's next turn.
    pub generation: Vec<TokenId>,
}

/// The only maker of tokens from text.
///
/// # Contract
///
/// - Deterministic, and append-only: [`bridge`](Self::bridge) encodes what the environment said and nothing else. What the
///   model sampled stays as it was drawn.
/// - No text of an observation becomes a control token, whatever it contains.
/// - [`parse`](Self::parse) never fails: what is not a call is text, and a call that cannot be read says why.
/// - Two renderers with one fingerprint make the same tokens.
pub trait Renderer: Send + Sync {
    /// Hash of tokenizer, template and template settings.
    fn fingerprint(&self) -> &str;

    /// The first prompt: tools, first observation, and the lead-in to the model's first turn.
    ///
    /// # Errors
    /// When the conversation cannot be rendered.
    fn open(&self, observation: &Observation, tools: &[ToolSpec]) -> Result<Rendered, RenderError>;

    /// What is appended after a turn of the model that ended with `stop`.
    ///
    /// # Errors
    /// When the conversation cannot be continued by appending.
    fn bridge(&self, stop: StopReason, observation: &Observation) -> Result<Rendered, RenderError>;

    /// The tokens a model would sample to take this action, the stop token included: what demonstrations are imitated with.
    /// Parsing them gives the action back.
    fn write(&self, action: &Action) -> Vec<TokenId>;

    /// Reads what the model sampled in one turn.
    fn parse(&self, sampled: &[TokenId]) -> Action;

    /// The tokens that end a turn.
    fn stop_tokens(&self) -> &[TokenId];

    /// The tokens as text, for people.
    fn text(&self, ids: &[TokenId]) -> String;
}

/// A conversation that cannot be rendered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("render a conversation: {0}")]
pub struct RenderError(pub String);
