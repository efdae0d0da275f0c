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

use crate::fingerprint::fingerprint;
use crate::{Tokenizer, thinking};

/// Part of every fingerprint. It is incremented when the same settings give other tokens.
const FORMAT: &str = "turn shape 1";

/// The text that ends a thought which has used up its budget.
const CLOSE: &str = "\n</think>\n\n";

/// Settings of a [`TurnShape`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnShapeSettings {
    /// The text with which every turn begins; the policy does not sample it.
    pub prefill: String,
    /// Texts that end a turn. The action ends before the first of them; the turn keeps all tokens as they were sampled.
    pub stop: Vec<String>,
    /// The most tokens of thinking in a turn, after which `</think>` is forced.
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
            close: self.tokenizer.encode_with_markers(CLOSE),
            begins_thinking: self.begins_thinking(),
        }))
    }

    /// Returns whether the template, or the prefill, opens a thought at the beginning of a turn.
    fn begins_thinking(&self) -> bool {
        let question = [Message::user("question")];
        let Ok(rendered) = self.render(&question.each_ref().map(Said::new), &[]) else {
            return false;
        };
        let prefill = self.tokenizer.decode(&rendered.prefill);
        thinking::last_tags(&prefill).is_some_and(|(_, is_open)| is_open)
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
    close: Vec<TokenId>,
    begins_thinking: bool,
}

impl TurnEnd {
    /// Returns the forced token of a thought that has used up its budget of `most` tokens.
    fn closing(&self, sampled: &[TokenId], most: usize) -> Option<TokenId> {
        let text = |n: usize| self.tokenizer.decode(&sampled[..n]);
        let is_open = |n: usize| {
            let text = text(n);
            let opens = self.begins_thinking || text.contains(thinking::OPEN);
            opens && !text.contains(thinking::CLOSE)
        };
        // The forced tokens follow the first place at or behind the budget that is within a thought.
        let first = (most..=sampled.len()).find(|n| is_open(*n))?;
        self.close.get(sampled.len() - first).copied()
    }
}

impl TokenConstraint for TurnEnd {
    fn allowed(&self, sampled: &[TokenId]) -> Option<Vec<TokenId>> {
        if !self.stop.is_empty() {
            let text = self.tokenizer.decode(sampled);
            if self.stop.iter().any(|stop| text.contains(stop)) {
                return Some(vec![self.end]);
            }
        }
        let most = self.thinking_tokens.filter(|most| *most <= sampled.len())?;
        self.closing(sampled, most).map(|id| vec![id])
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
