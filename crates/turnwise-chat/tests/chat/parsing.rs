//! Every text of a model is parsed, malformed calls included.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use turnwise_chat::{MAX_CALL_BYTES, ToolPrompt, parse_turn};
use turnwise_environment::{CallAttempt, CallError, MalformedCall};
use turnwise_rollout::Renderer;

use crate::support::{chatml, hostile_text, trained};

fn call(body: &str) -> String {
    format!("<tool_call>{body}</tool_call>")
}

fn well_formed(body: &str) -> (String, Value) {
    let action = parse_turn(&call(body));
    assert_eq!((action.calls.len(), action.n_malformed()), (1, 0), "{action:?}");
    let call = action.tool_calls().next().expect("one call");
    (call.name.clone(), call.arguments.clone())
}

fn malformed(text: &str) -> MalformedCall {
    match parse_turn(text).calls.as_slice() {
        [CallAttempt::Malformed(call)] => call.clone(),
        calls => panic!("{calls:?}"),
    }
}

#[test]
fn calls_are_read_in_order() {
    let action = parse_turn(
        "I add.\n<tool_call>\n{\"name\": \"calc\", \"arguments\": {\"a\": 3}}\n</tool_call>\n\
         <tool_call>nonsense</tool_call><tool_call>{\"name\": \"roll\", \"arguments\": {}}</tool_call>\nDone. ",
    );
    assert_eq!(action.text, "I add.\nDone.");
    assert_eq!(action.reasoning, None);
    let read: Vec<_> =
        action.tool_calls().map(|call| (call.id.as_str(), call.name.as_str())).collect();
    assert_eq!(read, [("call_0", "calc"), ("call_2", "roll")]);
    assert_eq!(action.n_malformed(), 1);
}

#[test]
fn every_form_of_arguments_has_its_answer() {
    assert_eq!(
        well_formed(r#"{"name": "f", "arguments": {"a": [1, 2.5]}}"#),
        ("f".to_owned(), json!({"a": [1, 2.5]}))
    );
    assert_eq!(well_formed(r#"{"name": "f"}"#).1, json!({}));
    assert_eq!(
        well_formed(r#"{"arguments": {}, "name": "", "id": 7}"#),
        (String::new(), json!({}))
    );
    assert_eq!(well_formed(r#"{"name": "f", "arguments": "{\"a\": 1}"}"#).1, json!({"a": 1}));
    for arguments in ["[1]", "1", "null", "\"text\"", "\"[1]\"", r#""{\"a\": 1, \"a\": 1}""#] {
        let mistake = malformed(&call(&format!(r#"{{"name": "f", "arguments": {arguments}}}"#)));
        assert_eq!(mistake.error, CallError::InvalidArgs, "{arguments}: {}", mistake.message);
    }
}

#[test]
fn what_is_no_call_says_why() {
    let cases = [
        ("<tool_call>{\"name\": \"f\"}", "no closing tag"),
        ("<tool_call>", "no closing tag"),
        ("<tool_call></tool_call>", "cannot be read as JSON"),
        ("<tool_call>{\"name\": }</tool_call>", "line 1 column"),
        ("<tool_call>{\"name\": \"f\"} extra</tool_call>", "trailing"),
        ("<tool_call>[]</tool_call>", "not a JSON object"),
        ("<tool_call>{\"arguments\": {}}</tool_call>", "no name"),
        ("<tool_call>{\"name\": 3}</tool_call>", "name is not a string"),
        ("<tool_call>{\"name\": \"f\", \"name\": \"g\"}</tool_call>", "\"name\" is written twice"),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1, \"a\": 2}}</tool_call>",
            "\"a\" is written twice",
        ),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": NaN}}</tool_call>",
            "cannot be read as JSON",
        ),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1e999}}</tool_call>",
            "cannot be read as JSON",
        ),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}",
            "cannot be read as JSON",
        ),
    ];
    for (text, reason) in cases {
        let mistake = malformed(text);
        assert_eq!(mistake.error, CallError::Decode, "{text}");
        assert!(mistake.message.contains(reason), "{text}: {}", mistake.message);
        assert_eq!(mistake.id, "call_0");
    }
}

#[test]
fn a_call_that_is_too_long_is_not_read() {
    let long = format!(r#"{{"name": "{}"}}"#, "é".repeat(MAX_CALL_BYTES));
    let mistake = malformed(&call(&long));
    assert_eq!(mistake.error, CallError::TooLarge);
    assert!(mistake.raw.len() <= MAX_CALL_BYTES);
    assert!(long.starts_with(&mistake.raw));
}

#[test]
fn calls_in_thinking_are_thinking() {
    let action =
        parse_turn("<think>\nI could <tool_call>{\"name\": \"f\"}</tool_call>.\n</think>\n\n16");
    assert_eq!(action.calls, []);
    assert_eq!(
        action.reasoning.as_deref(),
        Some("I could <tool_call>{\"name\": \"f\"}</tool_call>.")
    );
    assert_eq!(action.text, "16");

    let unclosed = parse_turn("So <think> on and on <tool_call>{}</tool_call>");
    assert_eq!((unclosed.text.as_str(), unclosed.calls.len()), ("So", 0));
    assert_eq!(unclosed.reasoning.as_deref(), Some("on and on <tool_call>{}</tool_call>"));

    assert_eq!(parse_turn("<think>\n\n</think>\n\n16").reasoning, None);
    assert_eq!(parse_turn("<think>a</think>b<think>c</think>").reasoning.as_deref(), Some("a\nc"));
    assert_eq!(parse_turn("</think></tool_call>").text, "</think></tool_call>");
}

#[test]
fn a_marker_counts_however_it_was_drawn() {
    let renderer = chatml(trained(), ToolPrompt::Hermes);
    let text = "<think>a</think>b<tool_call>{\"name\": \"f\"}</tool_call>";
    let tokenizer = renderer.tokenizer();
    let (spelled, drawn) = (tokenizer.encode_plain(text), tokenizer.encode_with_markers(text));
    assert_ne!(spelled, drawn);
    assert_eq!(renderer.parse(&spelled, &[]), renderer.parse(&drawn, &[]));
    assert_eq!(renderer.parse(&drawn, &[]).calls.len(), 1);
}

#[test]
fn a_turn_ends_at_its_stop_token() {
    let renderer = chatml(trained(), ToolPrompt::Hermes);
    let parsed =
        |text: &str| renderer.parse(&renderer.tokenizer().encode_with_markers(text), &[]).text;
    assert_eq!(parsed("16\n<|im_end|>"), "16");
    assert_eq!(parsed("16<|endoftext|>"), "16");
    assert_eq!(parsed("16<|im_end|>\n<|im_start|>user\nWell done!"), "16");
    assert_eq!(parsed("<|im_end|>"), "");
    assert_eq!(
        renderer.parse(&renderer.tokenizer().encode_plain("16<|im_end|>"), &[]).text,
        "16<|im_end|>"
    );
}

/// Texts on which a careless parser needs quadratic time or deep recursion.
#[test]
fn adversarial_texts_take_little_time() {
    let megabyte = |piece: &str| piece.repeat((1 << 20) / piece.len());
    let texts = [
        call(&"[".repeat(100_000)),
        call(&format!("{{\"name\": \"f\", \"arguments\": {}", "{\"a\":".repeat(10_000))),
        call(&"[".repeat(1_000_000)),
        megabyte("<tool_call>"),
        megabyte("<think>"),
        megabyte("</tool_call>"),
        megabyte("<think></think>"),
        megabyte("<tool_call></tool_call>"),
        megabyte("<tool_call>[\"</tool_call>"),
        megabyte("<"),
        megabyte("<tool_call"),
        call(&megabyte("{\"a\":")),
        call(&megabyte(" ")),
    ];
    for text in texts {
        let start = Instant::now();
        let _ = parse_turn(&text);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}: {:.40}", start.elapsed(), text);
    }
}

proptest! {
    #[test]
    fn any_ids_can_be_read(ids in prop::collection::vec(prop_oneof![0..330_u32, 305..320_u32, any::<u32>()], 0..60)) {
        let renderer = chatml(trained(), ToolPrompt::Hermes);
        let action = renderer.parse(&ids, &[]);
        prop_assert_eq!(renderer.parse(&ids, &[]), action);
    }

    #[test]
    fn any_text_can_be_read(text in hostile_text()) {
        let _ = parse_turn(&text);
        let action = parse_turn(&call(&text));
        prop_assert!(!action.calls.is_empty());
        let numbered = action.calls.iter().enumerate().all(|(index, attempt)| match attempt {
            CallAttempt::Call(call) => call.id == format!("call_{index}"),
            CallAttempt::Malformed(call) => call.id == format!("call_{index}"),
        });
        prop_assert!(numbered);
    }

    #[test]
    fn text_without_tags_is_only_text(text in "[^<]{0,60}") {
        let action = parse_turn(&text);
        prop_assert_eq!(action.text.as_str(), text.trim());
        prop_assert!(action.calls.is_empty() && action.reasoning.is_none());
    }
}
