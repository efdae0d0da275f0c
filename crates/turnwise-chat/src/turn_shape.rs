//! How every turn of an agent begins and ends, whatever the template says.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use turnwise_environment::{Action, Message, ToolSpec};
use turnwise_rollout::{
    Bridged, EndedTurn, RenderError, Rendered, Renderer, Said, TokenConstraint,
};
use turnwise_trajectory::TokenId;

use crate::Tokenizer;
use crate::fingerprint::fingerprint;
use crate::thinking::{self, Tags};

/// Part of every fingerprint. It is incremented when the same settings give other tokens.
const FORMAT: &str = "turn shape 1";

/// Settings of a [`TurnShape`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnShapeSettings {
    /// The text with which every turn begins; the policy does not sample it.
    pub prefill: String,
    /// Texts that end a turn, outside of thoughts. The action ends before the first of them; the turn keeps all tokens as
    /// they were sampled.
    pub stop: Vec<String>,
    /// The most tokens of thinking in a turn, after which its closing tag is forced.
    pub thinking_tokens: Option<usize>,
}

/// A renderer around another one, whose turns begin with a given text and end at given texts.
///
/// What is forced is not trained: prefilled tokens are not sampled, and a forced token has probability 1 under the
/// [constraint](Self::constraint).
pub struct TurnShape {
    inner: Arc<dyn Renderer>,
    tokenizer: Arc<Tokenizer>,
    settings: TurnShapeSettings,
    prefill: Vec<TokenId>,
    fingerprint: String,
}

impl TurnShape {
    /// Creates the renderer.
    #[must_use]
    pub fn new(
        inner: Arc<dyn Renderer>,
        tokenizer: Arc<Tokenizer>,
        settings: TurnShapeSettings,
    ) -> Self {
        let written = serde_json::to_string(&settings).expect("settings are plain data");
        let identity = format!("{}\n{FORMAT}\n{written}", inner.fingerprint());
        // The tags of thinking are control tokens of many models.
        let prefill = if settings.prefill.contains(thinking::OPEN) {
            tokenizer.encode_with_markers(&settings.prefill)
        } else {
            tokenizer.encode_plain(&settings.prefill)
        };
        Self { fingerprint: fingerprint(identity.as_bytes()), inner, tokenizer, settings, prefill }
    }

    /// Returns the constraint that ends a turn at a stop text, and a thought at its budget; `None` if there is neither.
    #[must_use]
    pub fn constraint(&self) -> Option<Arc<dyn TokenConstraint>> {
        let TurnShapeSettings { stop, thinking_tokens, .. } = &self.settings;
        if stop.is_empty() && thinking_tokens.is_none() {
            return None;
        }
        Some(Arc::new(TurnEnd {
            tokenizer: self.tokenizer.clone(),
            stop: stop.clone(),
            end: self.inner.stop_tokens().first().copied().unwrap_or_default(),
            thinking_tokens: *thinking_tokens,
            closes: thinking::TAGS.map(|tags| {
                let close = format!("\n{}\n\n", tags.close);
                (tags, self.tokenizer.encode_with_markers(&close))
            }),
            opened: self.opened(),
        }))
    }

    /// Returns the tags of the thought that the template, or the prefill, opens at the beginning of a turn.
    fn opened(&self) -> Option<Tags> {
        let question = [Message::user("question")];
        let rendered = self.render(&question.each_ref().map(Said::new), &[]).ok()?;
        let prefill = self.tokenizer.decode(&rendered.prefill);
        thinking::last_tags(&prefill).filter(|(_, is_open)| *is_open).map(|(tags, _)| tags)
    }

    /// Returns sampled turns with all of their text: an action ends before a stop text, and the template has to see
    /// what stands in the tokens.
    fn whole<'a>(&self, said: &Said<'a>, tools: &[ToolSpec]) -> Cow<'a, Message> {
        match said.drawn.filter(|_| !self.settings.stop.is_empty()) {
            Some(drawn) => Cow::Owned(self.inner.parse(drawn, tools).to_message()),
            None => Cow::Borrowed(said.message),
        }
    }

    fn begun(&self, mut rendered: Rendered) -> Rendered {
        rendered.prefill.extend_from_slice(&self.prefill);
        rendered
    }
}

impl Renderer for TurnShape {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn render(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        let whole: Vec<_> = conversation.iter().map(|said| self.whole(said, tools)).collect();
        let said = whole.iter().zip(conversation);
        let said: Vec<_> =
            said.map(|(message, said)| Said { message, drawn: said.drawn }).collect();
        Ok(self.begun(self.inner.render(&said, tools)?))
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        self.go_on(ended, history, new, &[])
    }

    fn go_on(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
        tools: &[ToolSpec],
    ) -> Result<Bridged, RenderError> {
        let whole: Vec<_> = history.iter().map(|said| self.whole(said, tools)).collect();
        let said = whole.iter().zip(history);
        let said: Vec<_> =
            said.map(|(message, said)| Said { message, drawn: said.drawn }).collect();
        Ok(match self.inner.go_on(ended, &said, new, tools)? {
            Bridged::Append(rendered) => Bridged::Append(self.begun(rendered)),
            Bridged::Rewrite => Bridged::Rewrite,
        })
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        self.inner.write_after(&self.prefill, action)
    }

    fn write_after(&self, prefill: &[TokenId], action: &Action) -> Vec<TokenId> {
        self.inner.write_after(prefill, action)
    }

    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action {
        let mut action = self.inner.parse(turn, tools);
        let first = self.settings.stop.iter().filter_map(|stop| action.text.find(stop)).min();
        if let Some(end) = first {
            action.text.truncate(end);
        }
        action
    }

    fn shortens(&self, message: &Message, tools: &[ToolSpec]) -> bool {
        self.inner.shortens(message, tools)
    }

    fn stop_tokens(&self) -> &[TokenId] {
        self.inner.stop_tokens()
    }

    fn text(&self, ids: &[TokenId]) -> String {
        self.inner.text(ids)
    }
}

impl fmt::Debug for TurnShape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TurnShape")
            .field("fingerprint", &self.fingerprint)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Ends turns at stop texts and thoughts at their budget, by allowing one token alone.
struct TurnEnd {
    tokenizer: Arc<Tokenizer>,
    stop: Vec<String>,
    /// The token that ends a turn.
    end: TokenId,
    thinking_tokens: Option<usize>,
    /// The tokens that end a thought.
    closes: [(Tags, Vec<TokenId>); thinking::TAGS.len()],
    /// The tags of the thought in which every turn begins.
    opened: Option<Tags>,
}

/// Where a turn is.
enum Place<'a> {
    Thought(Tags),
    /// The text behind the last thought.
    Answer(&'a str),
}

impl TurnEnd {
    /// Returns where a turn with this text goes on.
    fn place<'a>(&self, text: &'a str) -> Place<'a> {
        match thinking::last_tags(text) {
            Some((tags, true)) => return Place::Thought(tags),
            Some((_, false)) => {}
            None => match self.opened {
                Some(tags) if !text.contains(tags.close) => return Place::Thought(tags),
                Some(_) => {}
                None => return Place::Answer(text),
            },
        }
        let end = thinking::last_close(text).unwrap_or(0);
        Place::Answer(text[end..].trim_start_matches('\n'))
    }

    /// Returns the forced token of a thought that has used up the turn's budget of `most` tokens.
    fn closing(&self, sampled: &[TokenId], most: usize) -> Option<TokenId> {
        let mut from = most;
        loop {
            let (first, tags) = self.thought(sampled, from)?;
            let (_, close) = self.closes.iter().find(|(other, _)| *other == tags)?;
            match close.get(sampled.len() - first) {
                Some(id) => return Some(*id),
                None => from = first + close.len(),
            }
        }
    }

    /// Returns the first number of tokens, from `from` on, after which the turn is within a thought.
    fn thought(&self, sampled: &[TokenId], from: usize) -> Option<(usize, Tags)> {
        let text = |n: usize| self.tokenizer.decode(&sampled[..n]);
        let before = sampled.get(..from).map(|_| text(from))?;
        if let Place::Thought(tags) = self.place(&before) {
            return Some((from, tags));
        }
        let n_before = thinking::n_opened(&before);
        let is_before = |n: &usize| thinking::n_opened(&text(*n)) == n_before;
        if is_before(&sampled.len()) {
            return None;
        }
        let counts: Vec<usize> = (from..=sampled.len()).collect();
        let first = from + counts.partition_point(is_before);
        thinking::last_tags(&text(first)).map(|(tags, _)| (first, tags))
    }
}

impl TokenConstraint for TurnEnd {
    fn allowed(&self, sampled: &[TokenId]) -> Option<Vec<TokenId>> {
        let most = self.thinking_tokens.filter(|most| *most <= sampled.len());
        if let Some(id) = most.and_then(|most| self.closing(sampled, most)) {
            return Some(vec![id]);
        }
        if self.stop.is_empty() {
            return None;
        }
        let text = self.tokenizer.decode(sampled);
        let Place::Answer(answer) = self.place(&text) else { return None };
        self.stop.iter().any(|stop| answer.contains(stop)).then(|| vec![self.end])
    }
}

impl fmt::Debug for TurnEnd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TurnEnd")
            .field("stop", &self.stop)
            .field("thinking_tokens", &self.thinking_tokens)
            .finish_non_exhaustive()
    }
}
