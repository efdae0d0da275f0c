//! An environment with exact token counts: a token is a number, and words are numbers.

use async_trait::async_trait;
use turnwise_environment::{
    Action, Environment, EnvironmentError, Message, Observation, Random, Step, ToolSpec,
};
use turnwise_rollout::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::{Span, TokenId};

/// Returns random tokens.
pub(super) fn ids(random: &mut Random, vocab_size: usize, count: usize) -> Vec<TokenId> {
    (0..count).map(|_| random.below(vocab_size as u64) as TokenId).collect()
}

/// A game with a fixed number of turns and a random reward.
#[derive(Clone, Debug)]
pub(super) struct Game {
    /// The task: tasks have different prompts.
    pub(super) task: u64,
    pub(super) vocab_size: usize,
    /// The tokens of the prompt.
    pub(super) prompt: usize,
    /// The tokens of an observation between turns.
    pub(super) observation: usize,
    /// The remaining turns.
    pub(super) turns: usize,
}

impl Game {
    fn say(&self, seed: u64, count: usize) -> Observation {
        words(&ids(&mut Random::new(seed), self.vocab_size, count)).as_str().into()
    }
}

#[async_trait]
impl Environment for Game {
    async fn reset(&mut self, _: u64) -> Result<Observation, EnvironmentError> {
        Ok(self.say(self.task, self.prompt))
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.turns = self.turns.saturating_sub(1);
        // Members of a group need different rewards: otherwise nothing trains.
        let sum: u64 = read(&action.text).map(u64::from).sum();
        Ok(match self.turns {
            0 => Step::terminated((sum % 7) as f64),
            _ => Step::next(self.say(sum, self.observation)),
        })
    }
}

/// A renderer that adds nothing: a message is its numbers.
#[derive(Debug)]
pub(super) struct Numbers;

fn words(ids: &[TokenId]) -> String {
    ids.iter().map(TokenId::to_string).collect::<Vec<_>>().join(" ")
}

fn read(text: &str) -> impl Iterator<Item = TokenId> + '_ {
    text.split_whitespace().filter_map(|word| word.parse().ok())
}

fn render(message: &Message) -> Vec<Span> {
    vec![Span::Context(read(&message.content).collect())]
}

impl Renderer for Numbers {
    fn fingerprint(&self) -> &'static str {
        "numbers"
    }

    fn render(&self, said: &[Said<'_>], _: &[ToolSpec]) -> Result<Rendered, RenderError> {
        let messages = said.iter().map(|said| render(said.message)).collect();
        Ok(Rendered { messages, ..Rendered::default() })
    }

    fn bridge(
        &self,
        _: EndedTurn<'_>,
        _: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        let messages = new.iter().map(render).collect();
        Ok(Bridged::Append(Rendered { messages, ..Rendered::default() }))
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        read(&action.text).collect()
    }

    fn parse(&self, turn: &[TokenId], _: &[ToolSpec]) -> Action {
        Action::text(words(turn))
    }

    fn stop_tokens(&self) -> &[TokenId] {
        &[]
    }

    fn text(&self, ids: &[TokenId]) -> String {
        words(ids)
    }
}
