use turnwise_environment::{Action, Message, Observation, ToolSpec};
use turnwise_trajectory::{Span, StopReason, TokenId};

/// New tokens for a conversation, message by message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    /// What closes a turn that the model did not close; forced, and part of the turn before.
    pub close: Vec<TokenId>,
    /// For each message its lead-in, content and end.
    pub messages: Vec<Vec<Span>>,
    /// The lead-in to the model's next turn.
    pub generation: Vec<TokenId>,
    /// What the template puts into the model's mouth after the lead-in, such as an empty block of thinking; forced.
    pub prefill: Vec<TokenId>,
}

/// A message of a conversation, with its tokens where the policy drew them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Said<'a> {
    /// What was said, as text.
    pub message: &'a Message,
    /// What the policy drew to say it, prefill and stop token included; `None` for what it did not say itself. A renderer
    /// puts these ids down, less what its template drops, and never encodes the text again.
    pub drawn: Option<&'a [TokenId]>,
}

impl<'a> Said<'a> {
    /// A message that the policy did not draw.
    #[must_use]
    pub fn new(message: &'a Message) -> Self {
        Self { message, drawn: None }
    }
}

/// A turn of the policy that is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EndedTurn<'a> {
    /// What it drew, the stop token included if it drew one.
    pub ids: &'a [TokenId],
    /// Why drawing ended.
    pub stop: StopReason,
}

/// How a conversation goes on after a turn of the policy.
#[derive(Clone, Debug, PartialEq)]
pub enum Bridged {
    /// By appending these tokens to what is held.
    Append(Rendered),
    /// Not by appending: the template writes history in another way now. The whole conversation is to be
    /// [rendered](Renderer::render), and what is held stays behind as a branch of its own.
    Rewrite,
}

/// The only maker of tokens from text.
///
/// # Contract
///
/// - Deterministic. [`bridge`](Self::bridge) encodes what is new and nothing else; what the model sampled stays as it was
///   drawn, in [`render`](Self::render) too.
/// - No text of a message becomes a control token, whatever it contains.
/// - [`parse`](Self::parse) never fails: what is not a call is text, and a call that cannot be read says why.
/// - Two renderers with one fingerprint make the same tokens.
pub trait Renderer: Send + Sync {
    /// Hash of tokenizer, template and template settings.
    fn fingerprint(&self) -> &str;

    /// The prompt of a whole conversation: one list of spans for each message, which one after the other are the template's
    /// tokens, and the lead-in to the model's turn.
    ///
    /// # Errors
    /// When the conversation cannot be rendered.
    fn render(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError>;

    /// The first prompt: tools, first observation, and the lead-in to the model's first turn.
    ///
    /// # Errors
    /// When the conversation cannot be rendered.
    fn open(&self, observation: &Observation, tools: &[ToolSpec]) -> Result<Rendered, RenderError> {
        let conversation: Vec<Said<'_>> = observation.messages.iter().map(Said::new).collect();
        self.render(&conversation, tools)
    }

    /// How the conversation goes on with `new` after a turn of the model. `history` is everything before `new`; the turn that
    /// ended is its last.
    ///
    /// # Errors
    /// When the conversation cannot be rendered.
    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError>;

    /// The same for an episode with these tools: a template may write them behind the history. An agent asks this way.
    ///
    /// # Errors
    /// When the conversation cannot be rendered.
    fn go_on(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
        _tools: &[ToolSpec],
    ) -> Result<Bridged, RenderError> {
        self.bridge(ended, history, new)
    }

    /// The tokens a model would sample to take this action, the stop token included: what demonstrations are imitated with.
    /// Parsing them gives the action back.
    fn write(&self, action: &Action) -> Vec<TokenId>;

    /// Reads one turn: what was forced at its beginning and what the model sampled. Calls are held to the schemas of
    /// `tools`; with no tools any call is a call.
    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action;

    /// The tokens that end a turn.
    fn stop_tokens(&self) -> &[TokenId];

    /// The tokens as text, for people.
    fn text(&self, ids: &[TokenId]) -> String;
}

/// A conversation that cannot be rendered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("render a conversation: {0}")]
pub struct RenderError(pub String);
