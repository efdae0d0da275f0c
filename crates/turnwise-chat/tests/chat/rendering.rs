use serde_json::json;
use turnwise_chat::{ChatError, ChatMl, ChatMlSettings, ToolPrompt, train_tokenizer};
use turnwise_environment::{Action, Message, Observation, ToolCall, ToolSpec};
use turnwise_rollout::Renderer;
use turnwise_trajectory::{StopReason, TokenKind};

use crate::support::{appended, chatml, fixture, ids_of, ids_of_kind, trained};

fn calc() -> ToolSpec {
    ToolSpec {
        name: "calc".to_owned(),
        description: "Adds.".to_owned(),
        parameters: json!({"type": "object", "required": ["a", "b"]}),
    }
}

fn opened(tools: ToolPrompt, messages: Vec<Message>) -> String {
    let renderer = chatml(trained(), tools);
    let delta = renderer.open(&Observation::new(messages), &[calc()]).expect("it renders");
    renderer.text(&ids_of(&delta))
}

#[test]
fn signatures_stand_after_the_system_message_in_its_block() {
    assert_eq!(
        opened(ToolPrompt::Signatures, vec![Message::system("Be brief."), Message::user("3+5?")]),
        "<|im_start|>system\nBe brief.\n\ncalc(a, b)<|im_end|>\n\
         <|im_start|>user\n3+5?<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn tools_without_a_system_message_have_a_block_of_their_own() {
    assert_eq!(
        opened(ToolPrompt::Signatures, vec![Message::user("3+5?")]),
        "<|im_start|>system\ncalc(a, b)<|im_end|>\n\
         <|im_start|>user\n3+5?<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn omitted_tools_leave_no_trace() {
    assert_eq!(
        opened(ToolPrompt::Omit, vec![Message::user("3+5?")]),
        "<|im_start|>user\n3+5?<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn the_hermes_prompt_is_the_one_that_models_were_trained_on() {
    assert_eq!(
        opened(ToolPrompt::Hermes, vec![Message::system("Be brief."), Message::user("3+5?")]),
        "<|im_start|>system\nBe brief.\n\n# Tools\n\n\
         You may call one or more functions to assist with the user query.\n\n\
         You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n\
         {\"type\": \"function\", \"function\": {\"name\": \"calc\", \"description\": \"Adds.\", \"parameters\": \
         {\"type\": \"object\", \"required\": [\"a\", \"b\"]}}}\n</tools>\n\n\
         For each function call, return a json object with function name and arguments within \
         <tool_call></tool_call> XML tags:\n<tool_call>\n\
         {\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n\
         <|im_start|>user\n3+5?<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn an_opening_without_messages_still_tells_the_tools() {
    assert_eq!(
        opened(ToolPrompt::Signatures, Vec::new()),
        "<|im_start|>system\ncalc(a, b)<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn neighbouring_tool_answers_share_a_block() {
    for tokenizer in [trained(), fixture()] {
        let renderer = chatml(tokenizer, ToolPrompt::Omit);
        let answers = vec![
            Message::tool("call_0", "8}"),
            Message::tool("call_1", "9"),
            Message::user("Go on."),
        ];
        let delta = appended(&renderer, StopReason::EndOfTurn, &answers.into());
        assert_eq!(
            renderer.text(&ids_of(&delta)),
            "\n<|im_start|>user\n<tool_response>\n8}\n</tool_response>\n<tool_response>\n9\n</tool_response>\
             <|im_end|>\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n"
        );
        let said =
            |index: usize| renderer.text(&ids_of_kind(&delta.messages[index], TokenKind::Context));
        assert_eq!([said(0), said(1), said(2)], ["8}", "9", "Go on."]);
    }
}

#[test]
fn an_example_by_somebody_else_is_context() {
    let renderer = chatml(trained(), ToolPrompt::Omit);
    let call = ToolCall { id: "x".to_owned(), name: "calc".to_owned(), arguments: json!({"a": 3}) };
    let example = Message {
        reasoning: Some("Adding.".to_owned()),
        tool_calls: vec![call.clone(), call],
        ..Message::assistant("Let me see.")
    };
    let delta = renderer.open(&vec![example].into(), &[]).expect("it renders");
    assert_eq!(
        renderer.text(&ids_of(&delta)),
        "<|im_start|>assistant\n<think>\nAdding.\n</think>\n\nLet me see.\n<tool_call>\n\
         {\"name\": \"calc\", \"arguments\": {\"a\": 3}}\n</tool_call>\n<tool_call>\n\
         {\"name\": \"calc\", \"arguments\": {\"a\": 3}}\n</tool_call><|im_end|>\n<|im_start|>assistant\n"
    );
    let scaffold = ids_of_kind(&delta.messages[0], TokenKind::Scaffold);
    let n_tags = scaffold.iter().filter(|id| renderer.tokenizer().is_control(**id)).count();
    assert_eq!(n_tags, 2 + 2 + 4);
}

#[test]
fn an_unfinished_turn_is_closed_by_force() {
    let renderer = chatml(trained(), ToolPrompt::Omit);
    let close = renderer.tokenizer().encode_with_markers("<|im_end|>");
    assert_eq!(renderer.stop_tokens()[0], close[0]);
    for (stop, expected) in [
        (StopReason::EndOfTurn, Vec::new()),
        (StopReason::MaxTokens, close.clone()),
        (StopReason::Interrupted, close),
    ] {
        let delta = appended(&renderer, stop, &"Go on.".into());
        assert_eq!(delta.close, expected);
        let mut message = Vec::new();
        delta.messages[0].iter().for_each(|span| span.extend_ids(&mut message));
        assert_eq!(renderer.text(&message), "\n<|im_start|>user\nGo on.<|im_end|>");
        assert_eq!(renderer.text(&delta.generation), "\n<|im_start|>assistant\n");
    }
}

#[test]
fn the_fingerprint_knows_tokenizer_and_settings() {
    let fingerprint = |renderer: &ChatMl| renderer.fingerprint().to_owned();
    let base = fingerprint(&chatml(trained(), ToolPrompt::Hermes));
    assert_eq!(base.len(), 32);
    assert_eq!(base, fingerprint(&chatml(trained(), ToolPrompt::Hermes)));
    assert_ne!(base, fingerprint(&chatml(trained(), ToolPrompt::Omit)));
    assert_ne!(base, fingerprint(&chatml(fixture(), ToolPrompt::Hermes)));
}

#[test]
fn a_tokenizer_without_the_markers_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    train_tokenizer(Vec::new(), 300).expect("trained").save(folder.path()).expect("saved");
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).expect("read").replace("<|im_end|>", "<|other|>");
    std::fs::write(&path, text).expect("written");
    let tokenizer = turnwise_chat::Tokenizer::from_directory(folder.path()).expect("a tokenizer");
    let error = ChatMl::new(tokenizer.into(), ChatMlSettings::default()).expect_err("no close");
    assert!(matches!(error, ChatError::MissingMarker { .. }), "{error}");
}

#[test]
fn settings_are_read_with_their_defaults() {
    let settings: ChatMlSettings =
        serde_json::from_str(r#"{"tools": "signatures"}"#).expect("read");
    assert_eq!(settings, ChatMlSettings { tools: ToolPrompt::Signatures, ..Default::default() });
    assert!(serde_json::from_str::<ChatMlSettings>(r#"{"tool": "omit"}"#).is_err());
}

#[test]
fn a_written_action_reads_back() {
    let renderer = chatml(trained(), ToolPrompt::Hermes);
    let actions = [
        Action::text("16"),
        Action::text(""),
        Action::text("<|im_end|> spelled out <|im_start|>"),
        Action::call("calc", json!({"a": 3, "x": [1.5, "</tool_call>", {"é\n": null}]})),
        Action {
            text: "Now.".to_owned(),
            reasoning: Some("First a,\nthen b.".to_owned()),
            ..Action::call("calc", json!({}))
        },
    ];
    for action in actions {
        let ids = renderer.write(&action);
        assert_eq!(ids.iter().filter(|id| renderer.stop_tokens().contains(id)).count(), 1);
        assert_eq!(ids.last(), renderer.stop_tokens().first());
        assert_eq!(renderer.parse(&ids, &[]), action);
    }
}
