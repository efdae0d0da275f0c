use turnwise_environment::{Action, Observation, ToolSpec};
use turnwise_rollout::{RenderError, Rendered, Renderer};
use turnwise_trajectory::{Span, StopReason, TokenId};

/// The token that ends a turn.
pub(crate) const END: TokenId = 0;
/// How many tokens the policy can draw: the end and three letters.
pub(crate) const N_IDS: usize = 4;
const ENVIRONMENT: TokenId = 1000;
const POLICY: TokenId = 1001;
/// The first of 256 tokens for the bytes of what is said to the policy.
const BYTES: TokenId = 256;
const ALPHABET: [char; 3] = ['a', 'b', 'c'];

/// A renderer without a tokenizer: the policy speaks three letters, and is spoken to byte by byte.
#[derive(Debug)]
pub(crate) struct Letters;

fn render(observation: &Observation) -> Vec<Vec<Span>> {
    let say = |text: &str| text.bytes().map(|byte| BYTES + TokenId::from(byte)).collect();
    let message = |text: &str| vec![Span::Scaffold(vec![ENVIRONMENT]), Span::Context(say(text))];
    observation.messages.iter().map(|said| message(&said.content)).collect()
}

fn letter(id: TokenId) -> Option<char> {
    ALPHABET.get((id as usize).checked_sub(1)?).copied()
}

impl Renderer for Letters {
    fn fingerprint(&self) -> &'static str {
        "letters"
    }

    fn open(&self, observation: &Observation, _: &[ToolSpec]) -> Result<Rendered, RenderError> {
        let messages = render(observation);
        Ok(Rendered { close: Vec::new(), messages, generation: vec![POLICY] })
    }

    fn bridge(&self, stop: StopReason, observation: &Observation) -> Result<Rendered, RenderError> {
        let close = if stop == StopReason::EndOfTurn { Vec::new() } else { vec![END] };
        Ok(Rendered { close, messages: render(observation), generation: vec![POLICY] })
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        let known = |letter| ALPHABET.iter().position(|known| *known == letter);
        let letters = action.text.chars().filter_map(known).map(|place| place as TokenId + 1);
        letters.chain([END]).collect()
    }

    fn parse(&self, sampled: &[TokenId]) -> Action {
        Action::text(sampled.iter().filter_map(|id| letter(*id)).collect::<String>())
    }

    fn stop_tokens(&self) -> &[TokenId] {
        &[END]
    }

    fn text(&self, ids: &[TokenId]) -> String {
        ids.iter().filter_map(|id| letter(*id)).collect()
    }
}
