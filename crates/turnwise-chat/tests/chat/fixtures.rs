use turnwise_chat::ToolPrompt;
use turnwise_environment::{Message, Observation, Role, ToolCall};
use turnwise_rollout::Renderer;

use crate::support::{chatml, fixture, fixture_json, ids_in, ids_of};

#[test]
fn encoding_and_decoding_match_the_reference() {
    let tokenizer = fixture();
    let cases = fixture_json("encode.json");
    for case in cases["cases"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("text");
        let ids = ids_in(&case["ids"]);
        assert_eq!(tokenizer.encode_with_markers(text), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids), case["decoded"], "{text:?}");
        assert_eq!(
            tokenizer.decode_without_special(&ids),
            case["decoded_skip_special"],
            "{text:?}"
        );
        if !ids.iter().any(|id| tokenizer.is_control(*id)) {
            assert_eq!(tokenizer.encode_plain(text), ids, "{text:?}");
        }
    }
}

#[test]
fn every_prefix_decodes_as_the_reference_does() {
    let tokenizer = fixture();
    for case in fixture_json("stream_decode.json")["cases"].as_array().expect("cases") {
        let ids = ids_in(&case["ids"]);
        assert_eq!(tokenizer.encode_with_markers(case["text"].as_str().expect("text")), ids);
        for (n, expected) in case["prefix_text"].as_array().expect("texts").iter().enumerate() {
            assert_eq!(tokenizer.decode(&ids[..=n]), *expected);
        }
    }
}

/// The reference template adds thinking blocks and has its own tool prompt; where it does neither, it is plain `ChatML`.
#[test]
fn plain_conversations_match_the_reference_template() {
    let renderer = chatml(fixture(), ToolPrompt::Omit);
    let mut n_matched = 0;
    for conversation in
        fixture_json("conversations.json")["conversations"].as_array().expect("list")
    {
        let expected = &conversation["rendered"]["with_generation_prompt"];
        let is_plain = conversation["tools"].is_null()
            && !expected["text"].as_str().expect("text").contains("<think>");
        if !is_plain {
            continue;
        }
        let messages: Vec<Message> =
            conversation["messages"].as_array().expect("messages").iter().map(message).collect();
        let delta = renderer.open(&Observation::new(messages), &[]).expect("it renders");
        assert_eq!(ids_of(&delta), ids_in(&expected["ids"]), "{}", conversation["id"]);
        n_matched += 1;
    }
    assert_eq!(n_matched, 3);
}

fn message(value: &serde_json::Value) -> Message {
    let role: Role = serde_json::from_value(value["role"].clone()).expect("a role");
    let calls = value["tool_calls"].as_array().into_iter().flatten().map(|call| {
        let function = if call["function"].is_null() { call } else { &call["function"] };
        let arguments = function["arguments"].clone();
        let name = function["name"].as_str().expect("a name").to_owned();
        ToolCall { id: String::new(), name, arguments }
    });
    Message {
        tool_calls: calls.collect(),
        ..Message::new(role, value["content"].as_str().unwrap_or_default())
    }
}
