use turnwise_chat::{MAX_CALL_BYTES, parse_llama_turn};
use turnwise_environment::{Action, CallAttempt, CallError};
use turnwise_rollout::Renderer;

use crate::support::llama;

fn error_of(text: &str) -> Option<CallError> {
    match parse_llama_turn(text).calls.first() {
        Some(CallAttempt::Malformed(call)) => Some(call.error),
        _ => None,
    }
}

// Rollouts 12.4
#[test]
fn each_form_of_a_llama_call_has_its_answer() {
    let name = |text: &str| {
        let action = parse_llama_turn(text);
        action.tool_calls().map(|call| call.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(name(r#"{"name": "a", "parameters": {}}"#), ["a"]);
    assert_eq!(name(r#"<|python_tag|>{"name": "a", "arguments": {}}"#), ["a"]);
    assert_eq!(name(r#"{"name": "a"}; {"name": "b"}, {"name": "c"} done"#), ["a", "b", "c"]);
    assert_eq!(parse_llama_turn(r#"{"name": "a"} done"#).text, "done");
    assert!(name(r#"Call {"name": "a"}"#).is_empty());
    assert!(name("```json\n{\"name\": \"a\"}\n```").is_empty());
    assert!(name(r#"{"answer": 3}"#).is_empty());
    assert_eq!(error_of("<|python_tag|>print(1)"), Some(CallError::Decode));
    assert_eq!(error_of(r#"{"name": "a", "parameters": {"x": 1"#), Some(CallError::Decode));
    assert_eq!(error_of(r#"{"name": "a", "name": "b"}"#), Some(CallError::Decode));
    assert_eq!(error_of(r#"{"name": "a", "parameters": 3}"#), Some(CallError::InvalidArgs));
    assert_eq!(
        error_of(&format!(r#"{{"name": "a", "parameters": {}"#, "[".repeat(1_000_000))),
        Some(CallError::Decode)
    );
    let long = "x".repeat(MAX_CALL_BYTES);
    assert_eq!(
        error_of(&format!(r#"{{"name": "a", "parameters": {{"x": "{long}"}}}}"#)),
        Some(CallError::TooLarge)
    );
}

#[test]
fn a_written_llama_action_reads_back() {
    let renderer = llama(true);
    for action in [
        Action::text("16"),
        Action::call("calc", serde_json::json!({"a": [1, {"b": "<|eot_id|>"}]})),
    ] {
        let ids = renderer.write(&action);
        assert_eq!(ids.last(), renderer.stop_tokens().first());
        assert_eq!(renderer.parse(&ids, &[]), action);
    }
}
