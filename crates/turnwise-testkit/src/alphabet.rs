use turnwise_environment::{Action, Message, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::{Span, StopReason, TokenId};

/// The token that ends a turn.
pub const END: TokenId = 0;
/// The lead-in to a message of the environment.
pub const ENVIRONMENT: TokenId = 1000;
/// The lead-in to a message of the policy.
pub const POLICY: TokenId = 1001;
/// The first of 256 tokens for the bytes of messages to the policy.
const BYTES: TokenId = 256;

/// A renderer without a tokenizer: the policy writes the letters of a small alphabet, one token each.
///
/// The policy's vocabulary is [`END`] and then the letters from 1 on. Messages to the policy are encoded byte by byte,
/// beyond that vocabulary.
#[derive(Clone, Debug)]
pub struct AlphabetRenderer {
    letters: Vec<char>,
    fingerprint: String,
}

impl AlphabetRenderer {
    /// Creates a renderer for these letters, at most 255.
    ///
    /// # Panics
    /// Panics if there are more letters.
    #[must_use]
    pub fn new(letters: &str) -> Self {
        let fingerprint = format!("alphabet-{letters}");
        let letters: Vec<char> = letters.chars().collect();
        assert!(letters.len() < BYTES as usize, "letters and bytes share ids");
        Self { letters, fingerprint }
    }

    /// Returns the size of the policy's vocabulary: the letters and the end.
    #[must_use]
    pub fn n_ids(&self) -> usize {
        self.letters.len() + 1
    }

    fn said(message: &Message) -> Vec<Span> {
        let bytes = message.content.bytes().map(|byte| BYTES + TokenId::from(byte)).collect();
        vec![Span::Scaffold(vec![ENVIRONMENT]), Span::Context(bytes)]
    }

    /// Returns the spans of a turn of the policy: its sampled tokens as context, and its end.
    fn drawn(ids: &[TokenId]) -> Vec<Span> {
        let turn = ids.split(|id| *id == END).next().unwrap_or_default().to_vec();
        vec![Span::Scaffold(vec![POLICY]), Span::Context(turn), Span::Scaffold(vec![END])]
    }

    fn letter(&self, id: TokenId) -> Option<char> {
        self.letters.get((id as usize).checked_sub(1)?).copied()
    }
}

impl Renderer for AlphabetRenderer {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn render(
        &self,
        conversation: &[Said<'_>],
        _tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        let render =
            |said: &Said<'_>| said.drawn.map_or_else(|| Self::said(said.message), Self::drawn);
        let messages = conversation.iter().map(render).collect();
        Ok(Rendered { messages, generation: vec![POLICY], ..Rendered::default() })
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        _history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        let close = if ended.stop == StopReason::EndOfTurn { Vec::new() } else { vec![END] };
        let messages = new.iter().map(Self::said).collect();
        let generation = vec![POLICY];
        Ok(Bridged::Append(Rendered { close, messages, generation, ..Rendered::default() }))
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        let known = |letter| self.letters.iter().position(|known| *known == letter);
        let letters = action.text.chars().filter_map(known).map(|place| place as TokenId + 1);
        letters.chain([END]).collect()
    }

    fn parse(&self, turn: &[TokenId], _tools: &[ToolSpec]) -> Action {
        Action::text(turn.iter().filter_map(|id| self.letter(*id)).collect::<String>())
    }

    fn stop_tokens(&self) -> &[TokenId] {
        &[END]
    }

    fn text(&self, ids: &[TokenId]) -> String {
        let show = |id: &TokenId| match *id {
            END => '.',
            ENVIRONMENT => '<',
            POLICY => '>',
            id => self.letter(id).unwrap_or_else(|| char::from(id.saturating_sub(BYTES) as u8)),
        };
        ids.iter().map(show).collect()
    }
}
