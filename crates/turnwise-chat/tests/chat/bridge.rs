//! A conversation appended turn by turn equals the conversation rendered at once.

use proptest::prelude::*;
use turnwise_chat::{ToolPrompt, clean};
use turnwise_environment::{Message, Observation, ToolSpec};
use turnwise_rollout::Renderer;
use turnwise_trajectory::{StopReason, TokenId};

use crate::support::{appended, chatml, fixture, hostile_text, ids_of, trained};

fn tools() -> Vec<ToolSpec> {
    vec![ToolSpec {
        name: "calc".to_owned(),
        description: "Adds <|im_end|>.".to_owned(),
        parameters: serde_json::json!({"required": ["a", "b"]}),
    }]
}

fn message() -> impl Strategy<Value = Message> {
    (0..3_u8, hostile_text()).prop_map(|(role, text)| match role {
        0 => Message::user(text),
        1 => Message::tool("call_0", text),
        _ => Message::system(text),
    })
}

/// The new messages before each turn of the model, and the turn's text: it has no leading blank, which the template's
/// newline could absorb, and nothing that cleaning would remove.
fn rounds() -> impl Strategy<Value = Vec<(Vec<Message>, String)>> {
    let answer = hostile_text().prop_map(|text| clean(&format!("So {text}")).into_owned());
    prop::collection::vec((prop::collection::vec(message(), 0..4), answer), 1..5)
}

proptest! {
    #[test]
    fn turn_by_turn_equals_all_at_once(
        rounds in rounds(),
        prompt in prop::sample::select(&[ToolPrompt::Hermes, ToolPrompt::Signatures, ToolPrompt::Omit][..]),
        with_fixture in any::<bool>(),
    ) {
        let renderer = chatml(if with_fixture { fixture() } else { trained() }, prompt);
        let close = renderer.stop_tokens()[0];
        let (mut held, mut messages): (Vec<TokenId>, Vec<Message>) = (Vec::new(), Vec::new());
        for (index, (new, answer)) in rounds.iter().enumerate() {
            let observation = Observation::new(new.clone());
            let delta = match index {
                0 => renderer.open(&observation, &tools()).expect("it renders"),
                _ => appended(&renderer, StopReason::EndOfTurn, &observation),
            };
            prop_assert_eq!(delta.messages.len(), new.len());
            held.extend(ids_of(&delta));
            messages.extend(new.iter().cloned());
            let at_once = renderer.open(&Observation::new(messages.clone()), &tools()).expect("it renders");
            prop_assert_eq!(&held, &ids_of(&at_once));

            held.extend(renderer.tokenizer().encode_plain(answer));
            held.push(close);
            messages.push(Message::assistant(answer.clone()));
        }
        let count = |marker: &str| {
            let id = renderer.tokenizer().token_id(marker).expect("a marker");
            held.iter().filter(|other| **other == id).count()
        };
        prop_assert_eq!(count("<|im_start|>"), count("<|im_end|>"));
    }

    #[test]
    fn a_forced_close_stands_where_the_model_would_have_closed(text in hostile_text()) {
        let renderer = chatml(trained(), ToolPrompt::Omit);
        let forced = appended(&renderer, StopReason::MaxTokens, &text.clone().into());
        let free = appended(&renderer, StopReason::EndOfTurn, &text.into());
        let mut expected = vec![renderer.stop_tokens()[0]];
        expected.extend(ids_of(&free));
        prop_assert_eq!(ids_of(&forced), expected);
    }
}

#[test]
fn separators_and_headers_stand_once_in_many_turns() {
    let renderer = chatml(trained(), ToolPrompt::Signatures);
    let first = vec![Message::system("Be brief."), Message::user("Guess.")].into();
    let mut held = ids_of(&renderer.open(&first, &tools()).expect("it renders"));
    for _ in 0..3 {
        held.extend(renderer.tokenizer().encode_with_markers("7<|im_end|>"));
        held.extend(ids_of(&appended(&renderer, StopReason::EndOfTurn, &"Lower.".into())));
    }
    let turn = "7<|im_end|>\n<|im_start|>user\nLower.<|im_end|>\n<|im_start|>assistant\n";
    let opening = "<|im_start|>system\nBe brief.\n\ncalc(a, b)<|im_end|>\n\
        <|im_start|>user\nGuess.<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(renderer.text(&held), format!("{opening}{}", turn.repeat(3)));
}
