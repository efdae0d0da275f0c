use turnwise_environment::{Action, Message, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::{Span, StopReason, TokenId};

/// The token that ends a turn.
pub(crate) const END: TokenId = 0;
/// The number of tokens that the policy can sample: the end and three letters.
pub(crate) const N_IDS: usize = 4;
const ENVIRONMENT: TokenId = 1000;
const POLICY: TokenId = 1001;
/// The first of 256 tokens for the bytes of messages to the policy.
const BYTES: TokenId = 256;
const ALPHABET: [char; 3] = ['a', 'b', 'c'];

/// A renderer without a tokenizer: the policy writes three letters, and reads bytes.
#[derive(Debug)]
pub(crate) struct Letters;

fn render(message: &Message) -> Vec<Span> {
    let bytes = message.content.bytes().map(|byte| BYTES + TokenId::from(byte)).collect();
    vec![Span::Scaffold(vec![ENVIRONMENT]), Span::Context(bytes)]
}

fn letter(id: TokenId) -> Option<char> {
    ALPHABET.get((id as usize).checked_sub(1)?).copied()
}

impl Renderer for Letters {
    fn fingerprint(&self) -> &'static str {
        "letters"
    }

    fn render(&self, said: &[Said<'_>], _: &[ToolSpec]) -> Result<Rendered, RenderError> {
        let messages = said.iter().map(|said| render(said.message)).collect();
        Ok(Rendered { messages, generation: vec![POLICY], ..Rendered::default() })
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        _: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        let close = if ended.stop == StopReason::EndOfTurn { Vec::new() } else { vec![END] };
        let messages = new.iter().map(render).collect();
        let generation = vec![POLICY];
        Ok(Bridged::Append(Rendered { close, messages, generation, ..Rendered::default() }))
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        let known = |letter| ALPHABET.iter().position(|known| *known == letter);
        let letters = action.text.chars().filter_map(known).map(|place| place as TokenId + 1);
        letters.chain([END]).collect()
    }

    fn parse(&self, turn: &[TokenId], _: &[ToolSpec]) -> Action {
        Action::text(turn.iter().filter_map(|id| letter(*id)).collect::<String>())
    }

    fn stop_tokens(&self) -> &[TokenId] {
        &[END]
    }

    fn text(&self, ids: &[TokenId]) -> String {
        ids.iter().filter_map(|id| letter(*id)).collect()
    }
}
