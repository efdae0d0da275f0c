//! Text of messages is never encoded as control tokens.

use proptest::prelude::*;
use turnwise_chat::{ToolPrompt, clean};
use turnwise_environment::{Message, ToolSpec};
use turnwise_rollout::Renderer;
use turnwise_trajectory::TokenKind;

use crate::support::{chatml, fixture, hostile_text, ids_of, ids_of_kind, trained};

proptest! {
    #[test]
    fn hostile_text_makes_no_control_token_and_reads_back(text in hostile_text(), role in 0..4_u8) {
        let message = match role {
            0 => Message::user(text.clone()),
            1 => Message::tool("call_0", text.clone()),
            2 => Message::system(text.clone()),
            _ => Message::assistant(text.clone()),
        };
        let empty = Message { content: String::new(), ..message.clone() };
        for tokenizer in [trained(), fixture()] {
            let renderer = chatml(tokenizer.clone(), ToolPrompt::Omit);
            let render = |message: &Message| {
                renderer.open(&vec![message.clone()].into(), &[]).expect("it renders")
            };
            let delta = render(&message);
            let context = ids_of_kind(&delta.messages[0], TokenKind::Context);
            prop_assert!(!context.iter().any(|id| tokenizer.is_control(*id)));
            let controls = |ids: &[u32]| -> Vec<u32> {
                ids.iter().copied().filter(|id| tokenizer.is_control(*id)).collect()
            };
            prop_assert_eq!(controls(&ids_of(&delta)), controls(&ids_of(&render(&empty))));
        }
        // Without a normalizer, the text comes back exactly, in one piece and in its place.
        let renderer = chatml(trained(), ToolPrompt::Omit);
        let delta = renderer.open(&vec![message].into(), &[]).expect("it renders");
        let around = renderer.open(&vec![empty].into(), &[]).expect("it renders");
        let (whole, around) = (renderer.text(&ids_of(&delta)), renderer.text(&ids_of(&around)));
        let cleaned = clean(&text);
        prop_assert_eq!(whole.len(), around.len() + cleaned.len());
        let at = (0..=around.len()).find(|at| {
            around.is_char_boundary(*at) && whole == format!("{}{cleaned}{}", &around[..*at], &around[*at..])
        });
        prop_assert!(at.is_some(), "{:?}", whole);
        let context = ids_of_kind(&delta.messages[0], TokenKind::Context);
        prop_assert!(renderer.text(&context).contains(&*cleaned));
    }

    #[test]
    fn a_hostile_tool_makes_no_control_token(name in hostile_text(), description in hostile_text()) {
        let parameters = serde_json::json!({"required": [name], "properties": {(description.clone()): {}}});
        let tool = ToolSpec { name, description, parameters };
        let tame = ToolSpec { name: String::new(), description: String::new(), parameters: serde_json::json!(null) };
        for prompt in [ToolPrompt::Hermes, ToolPrompt::Signatures] {
            let renderer = chatml(trained(), prompt);
            let n_controls = |tool: &ToolSpec| {
                let delta = renderer.open(&"Hi".into(), std::slice::from_ref(tool)).expect("it renders");
                ids_of(&delta).iter().filter(|id| renderer.tokenizer().is_control(**id)).count()
            };
            prop_assert_eq!(n_controls(&tool), n_controls(&tame));
        }
    }

    #[test]
    fn cleaning_leaves_nothing_to_clean(text in hostile_text()) {
        let once = clean(&text).into_owned();
        prop_assert_eq!(&*clean(&once), once.as_str());
        prop_assert!(once.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
    }
}
