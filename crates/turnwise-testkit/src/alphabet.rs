use turnwise_environment::{Action, Observation, ToolSpec};
use turnwise_rollout::{RenderError, Rendered, Renderer};
use turnwise_trajectory::{Span, StopReason, TokenId};

/// The token that ends a turn.
pub const END: TokenId = 0;
/// The lead-in to what the environment says.
pub const ENVIRONMENT: TokenId = 1000;
/// The lead-in to what the policy says.
pub const POLICY: TokenId = 1001;
/// The first of 256 tokens for the bytes of what is said to the policy.
const BYTES: TokenId = 256;

/// A renderer without a tokenizer: the policy speaks the letters of a small alphabet, one token each.
///
/// The policy's vocabulary is [`END`] and then the letters from 1 on. What is said to it is encoded byte by byte, beyond
/// that vocabulary.
#[derive(Clone, Debug)]
pub struct AlphabetRenderer {
    letters: Vec<char>,
    fingerprint: String,
}

impl AlphabetRenderer {
    /// A renderer for these letters, at most 255.
    ///
    /// # Panics
    /// When there are more.
    #[must_use]
    pub fn new(letters: &str) -> Self {
        let fingerprint = format!("alphabet-{letters}");
        let letters: Vec<char> = letters.chars().collect();
        assert!(letters.len() < BYTES as usize, "letters and bytes share ids");
        Self { letters, fingerprint }
    }

    /// The policy's vocabulary: the letters and the end.
    #[must_use]
    pub fn n_ids(&self) -> usize {
        self.letters.len() + 1
    }

    fn render(observation: &Observation) -> Vec<Vec<Span>> {
        let say = |text: &str| {
            Span::Context(text.bytes().map(|byte| BYTES + TokenId::from(byte)).collect())
        };
        let render = |text: &str| vec![Span::Scaffold(vec![ENVIRONMENT]), say(text)];
        observation.messages.iter().map(|message| render(&message.content)).collect()
    }

    fn letter(&self, id: TokenId) -> Option<char> {
        self.letters.get((id as usize).checked_sub(1)?).copied()
    }
}

impl Renderer for AlphabetRenderer {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn open(
        &self,
        observation: &Observation,
        _tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        Ok(Rendered {
            close: Vec::new(),
            messages: Self::render(observation),
            generation: vec![POLICY],
        })
    }

    fn bridge(&self, stop: StopReason, observation: &Observation) -> Result<Rendered, RenderError> {
        let close = if stop == StopReason::EndOfTurn { Vec::new() } else { vec![END] };
        Ok(Rendered { close, messages: Self::render(observation), generation: vec![POLICY] })
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        let known = |letter| self.letters.iter().position(|known| *known == letter);
        let letters = action.text.chars().filter_map(known).map(|place| place as TokenId + 1);
        letters.chain([END]).collect()
    }

    fn parse(&self, sampled: &[TokenId]) -> Action {
        Action::text(sampled.iter().filter_map(|id| self.letter(*id)).collect::<String>())
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
