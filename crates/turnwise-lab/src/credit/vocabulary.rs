use turnwise_environment::{Action, Message, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::{Span, StopReason, TokenId};

use super::Levers;

/// The end of a turn.
const END: TokenId = 0;
/// The lead-in to a message of the environment.
const ENVIRONMENT: TokenId = 1;
/// The lead-in to a message of the policy.
const POLICY: TokenId = 2;
/// The first word.
const WORDS: TokenId = 3;

/// A word-level vocabulary of the lever task, so small that a network of a few thousand weights learns it.
///
/// The policy may sample any token; control tokens and the words of the environment are not part of its text.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// The levers first, then the words of the environment.
    words: Vec<String>,
    n_levers: usize,
    fingerprint: String,
}

impl Vocabulary {
    /// Creates the vocabulary of a task.
    #[must_use]
    pub fn new(levers: &Levers) -> Self {
        let mut words: Vec<String> = (0..levers.levers).map(Levers::lever).collect();
        words.extend((0..levers.doors).map(Levers::door));
        words.push("report".to_owned());
        Self { fingerprint: format!("words {}", words.join(" ")), n_levers: levers.levers, words }
    }

    /// Returns the number of tokens.
    #[must_use]
    pub fn n_ids(&self) -> usize {
        WORDS as usize + self.words.len()
    }

    fn ids(&self, text: &str) -> Result<Vec<TokenId>, RenderError> {
        let id = |word: &str| {
            let place = self.words.iter().position(|known| known == word);
            place
                .map(|place| WORDS + place as TokenId)
                .ok_or_else(|| RenderError(format!("`{word}` has no token")))
        };
        text.split_whitespace().map(id).collect()
    }

    fn message(&self, message: &Message) -> Result<Vec<Span>, RenderError> {
        let said = self.ids(&message.content)?;
        Ok(vec![Span::Scaffold(vec![ENVIRONMENT]), Span::Context(said)])
    }

    fn word(&self, id: TokenId) -> Option<&str> {
        let place = id.checked_sub(WORDS)? as usize;
        self.words.get(place).map(String::as_str)
    }
}

impl Renderer for Vocabulary {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn render(&self, said: &[Said<'_>], _tools: &[ToolSpec]) -> Result<Rendered, RenderError> {
        let messages = said.iter().map(|said| self.message(said.message));
        let messages = messages.collect::<Result<_, _>>()?;
        Ok(Rendered { messages, generation: vec![POLICY], ..Rendered::default() })
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        _history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        let close = if ended.stop == StopReason::EndOfTurn { Vec::new() } else { vec![END] };
        let messages = new.iter().map(|message| self.message(message)).collect::<Result<_, _>>()?;
        let generation = vec![POLICY];
        Ok(Bridged::Append(Rendered { close, messages, generation, ..Rendered::default() }))
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        // A word without a token cannot be sampled either.
        let known = action.text.split_whitespace().filter_map(|word| self.ids(word).ok());
        known.flatten().chain([END]).collect()
    }

    fn parse(&self, turn: &[TokenId], _tools: &[ToolSpec]) -> Action {
        let is_lever = |id: &&TokenId| (WORDS..WORDS + self.n_levers as TokenId).contains(*id);
        let words: Vec<&str> =
            turn.iter().filter(is_lever).filter_map(|id| self.word(*id)).collect();
        Action::text(words.join(" "))
    }

    fn stop_tokens(&self) -> &[TokenId] {
        &[END]
    }

    fn text(&self, ids: &[TokenId]) -> String {
        let show = |id: &TokenId| match *id {
            END => ".",
            ENVIRONMENT => "<",
            POLICY => ">",
            id => self.word(id).unwrap_or("?"),
        };
        ids.iter().map(show).collect::<Vec<_>>().join(" ")
    }
}
