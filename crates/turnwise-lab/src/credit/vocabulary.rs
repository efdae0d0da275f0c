use turnwise_environment::{Action, Observation, ToolSpec};
use turnwise_rollout::{RenderError, Rendered, Renderer};
use turnwise_trajectory::{Span, StopReason, TokenId};

use super::Levers;

/// Ends a turn.
const END: TokenId = 0;
/// The lead-in to what the environment says.
const ENVIRONMENT: TokenId = 1;
/// The lead-in to what the policy says.
const POLICY: TokenId = 2;
/// The first word.
const WORDS: TokenId = 3;

/// A token for each word of the lever task: the vocabulary is so small that a network of a few thousand weights learns it.
///
/// The policy may draw any token; control tokens and the words of the environment are not part of what it says.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// The levers first, then what only the environment says.
    words: Vec<String>,
    n_levers: usize,
    fingerprint: String,
}

impl Vocabulary {
    /// The words of a task.
    #[must_use]
    pub fn new(levers: &Levers) -> Self {
        let mut words: Vec<String> = (0..levers.levers).map(Levers::lever).collect();
        words.extend((0..levers.doors).map(Levers::door));
        words.push("report".to_owned());
        Self { fingerprint: format!("words {}", words.join(" ")), n_levers: levers.levers, words }
    }

    /// How many tokens there are.
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

    fn messages(&self, observation: &Observation) -> Result<Vec<Vec<Span>>, RenderError> {
        let message = |content: &str| {
            Ok(vec![Span::Scaffold(vec![ENVIRONMENT]), Span::Context(self.ids(content)?)])
        };
        observation.messages.iter().map(|one| message(&one.content)).collect()
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

    fn open(
        &self,
        observation: &Observation,
        _tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        let messages = self.messages(observation)?;
        Ok(Rendered { close: Vec::new(), messages, generation: vec![POLICY] })
    }

    fn bridge(&self, stop: StopReason, observation: &Observation) -> Result<Rendered, RenderError> {
        let close = if stop == StopReason::EndOfTurn { Vec::new() } else { vec![END] };
        Ok(Rendered { close, messages: self.messages(observation)?, generation: vec![POLICY] })
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        // What has no token cannot be sampled either.
        let known = action.text.split_whitespace().filter_map(|word| self.ids(word).ok());
        known.flatten().chain([END]).collect()
    }

    fn parse(&self, sampled: &[TokenId]) -> Action {
        let is_lever = |id: &&TokenId| (WORDS..WORDS + self.n_levers as TokenId).contains(*id);
        let words: Vec<&str> =
            sampled.iter().filter(is_lever).filter_map(|id| self.word(*id)).collect();
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
