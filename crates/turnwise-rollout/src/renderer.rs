use turnwise_environment::{Action, Message, Observation, ToolSpec};
use turnwise_trajectory::{Span, StopReason, TokenId};

/// New tokens for a conversation, message by message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    /// The tokens that close a turn which the model did not close; forced, and part of the previous turn.
    pub close: Vec<TokenId>,
    /// For each message, its lead-in, content and end.
    pub messages: Vec<Vec<Span>>,
    /// The lead-in to the model's next turn.
    pub generation: Vec<TokenId>,
    /// The forced tokens that the template adds after the lead-in, such as an empty block of thinking.
    pub prefill: Vec<TokenId>,
}

/// A message of a conversation, with its sampled tokens if the policy sampled it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Said<'a> {
    /// The message as text.
    pub message: &'a Message,
    /// The policy's tokens of the message, prefill and stop token included; `None` for other authors. A renderer writes
    /// these ids, without those that its template drops, and never encodes the text again.
    pub drawn: Option<&'a [TokenId]>,
}

impl<'a> Said<'a> {
    /// Creates a message that the policy did not sample.
    #[must_use]
    pub fn new(message: &'a Message) -> Self {
        Self { message, drawn: None }
    }
}

/// A finished turn of the policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EndedTurn<'a> {
    /// The sampled ids, including a stop token.
    pub ids: &'a [TokenId],
    /// The reason why sampling stopped.
    pub stop: StopReason,
}

/// How a conversation continues after a turn of the policy.
#[derive(Clone, Debug, PartialEq)]
pub enum Bridged {
    /// Appends these tokens to the branch.
    Append(Rendered),
    /// Starts a new branch, because the template now renders the history differently. The caller
    /// [renders](Renderer::render) the whole conversation, and the old branch stays.
    Rewrite,
}

/// Makes tokens from text; no other type does.
///
/// # Contract
///
/// - Deterministic. [`bridge`](Self::bridge) encodes only new messages; sampled tokens are kept as they are, in
///   [`render`](Self::render) too.
/// - No text of a message becomes a control token.
/// - [`parse`](Self::parse) never fails: text that is not a call stays text, and a malformed call says why.
/// - Two renderers with the same fingerprint make the same tokens.
///
/// # Example
///
/// The renderer of the test kit writes one token for each letter of a small alphabet. Those for real models are in
/// `turnwise-chat`.
///
/// ```
/// use turnwise_environment::Action;
/// use turnwise_rollout::Renderer;
/// use turnwise_testkit::AlphabetRenderer;
///
/// let renderer = AlphabetRenderer::new("ab");
/// let opening = renderer.open(&"Say ab.".into(), &[])?;
/// let mut prompt = Vec::new();
/// opening.messages[0].iter().for_each(|span| span.extend_ids(&mut prompt));
/// prompt.extend(opening.generation);
/// assert_eq!(renderer.text(&prompt), "<Say ab.>");
///
/// let turn = renderer.write(&Action::text("ab"));
/// assert_eq!(turn.last(), renderer.stop_tokens().first());
/// assert_eq!(renderer.parse(&turn, &[]), Action::text("ab"));
/// # Ok::<(), turnwise_rollout::RenderError>(())
/// ```
pub trait Renderer: Send + Sync {
    /// Returns the hash of tokenizer, template and template settings.
    fn fingerprint(&self) -> &str;

    /// Renders a whole conversation: one list of spans for each message, whose concatenation has the template's tokens,
    /// and the lead-in to the model's turn.
    ///
    /// # Errors
    /// If the conversation cannot be rendered.
    fn render(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError>;

    /// Renders the first prompt: tools, first observation, and the lead-in to the model's first turn.
    ///
    /// # Errors
    /// If the conversation cannot be rendered.
    fn open(&self, observation: &Observation, tools: &[ToolSpec]) -> Result<Rendered, RenderError> {
        let conversation: Vec<Said<'_>> = observation.messages.iter().map(Said::new).collect();
        self.render(&conversation, tools)
    }

    /// Continues the conversation with `new` after a turn of the model. `history` is everything before `new`; its last
    /// message is the turn that ended.
    ///
    /// # Errors
    /// If the conversation cannot be rendered.
    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError>;

    /// Like [`bridge`](Self::bridge), for an episode with these tools, because a template may write them after the
    /// history. Agents call this method.
    ///
    /// # Errors
    /// If the conversation cannot be rendered.
    fn go_on(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
        _tools: &[ToolSpec],
    ) -> Result<Bridged, RenderError> {
        self.bridge(ended, history, new)
    }

    /// Returns the tokens that a model would sample to take this action, including the stop token, for imitating
    /// demonstrations. Parsing them returns the action.
    fn write(&self, action: &Action) -> Vec<TokenId>;

    /// Like [`write`](Self::write), for a turn that begins with the forced tokens `prefill`: returns the tokens that a
    /// model would sample after them. Parsing both returns the action.
    fn write_after(&self, prefill: &[TokenId], action: &Action) -> Vec<TokenId> {
        let mut written = self.write(action);
        if written.starts_with(prefill) {
            written.drain(..prefill.len());
        }
        written
    }

    /// Parses one turn: its forced tokens and its sampled tokens. Calls are checked against the schemas of `tools`;
    /// without tools every call is accepted.
    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action;

    /// Returns whether the model sees only a part of this message, because the message is longer than the renderer's
    /// limit; by default, a renderer has no limit.
    ///
    /// Asked for the first assistant message of a conversation and those that follow it. Messages before it are the
    /// task, and sampled turns are tokens already: neither is shortened.
    fn shortens(&self, _message: &Message, _tools: &[ToolSpec]) -> bool {
        false
    }

    /// Returns the tokens that end a turn.
    fn stop_tokens(&self) -> &[TokenId];

    /// Returns the tokens as text, for people.
    fn text(&self, ids: &[TokenId]) -> String;
}

/// The reason why a conversation cannot be rendered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("cannot render the conversation: {0}")]
pub struct RenderError(pub String);
