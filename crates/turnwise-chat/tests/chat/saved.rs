//! The templates saved with a model make the prompts that it was trained on.

use proptest::prelude::*;
use serde_json::json;
use turnwise_chat::{
    CallForm, ChatMl, ChatMlSettings, Llama3, Llama3Settings, TemplateRenderer, TemplateSettings,
    Thinking, ToolPrompt, Trust, clean,
};
use turnwise_environment::{Message, Observation, ToolCall, ToolSpec};
use turnwise_rollout::{Renderer, Said};
use turnwise_trajectory::TokenId;

use crate::support::{hostile_text, ids_of, llama_tokenizer, trained};
use crate::templates::{calc, conversation};

fn tool_prompt() -> impl Strategy<Value = ToolPrompt> {
    prop_oneof![
        Just(ToolPrompt::Hermes),
        Just(ToolPrompt::Signatures),
        Just(ToolPrompt::Omit),
        Just(ToolPrompt::Between {
            open: "# \"Tools\"\\\n<t>".to_owned(),
            close: "\n</t>\té".to_owned()
        }),
    ]
}

fn tools() -> Vec<ToolSpec> {
    let parameters = json!({"type": "object", "required": ["b", "a"], "properties": {"c": {}, "a": {}, "b": {"type": "string"}, "d": {}}});
    let bare = ToolSpec { name: "roll".to_owned(), parameters: json!({}), ..calc() };
    vec![ToolSpec { parameters, ..calc() }, bare]
}

/// Returns the renderer, and one of the template that is saved with its checkpoints.
fn llama_and_its_template(tools_in_user_message: bool) -> (Llama3, TemplateRenderer) {
    let settings = Llama3Settings {
        tools_in_user_message,
        date: "1 Jan \"2025\"".to_owned(),
        ..Llama3Settings::default()
    };
    let chat = Llama3::new(llama_tokenizer(), settings).expect("it has the markers");
    let settings = TemplateSettings {
        stop: Vec::new(),
        calls: CallForm::Llama3,
        ..TemplateSettings::default()
    };
    let saved = TemplateRenderer::new(llama_tokenizer(), &chat.template(), &Trust::Any, settings);
    (chat, saved.expect("a template"))
}

/// Texts that a policy may sample: blanks at both ends, thoughts, calls, control tokens.
fn sampled_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(
            &[
                " ",
                "\n",
                "\n\n",
                "\t",
                "\u{a0}",
                "8",
                "<think>\nso\n</think>",
                "</think>",
                "<think>",
                "<|python_tag|>",
                "<|eom",
                "\\n",
                "{% raw %}",
                "{{ x }}",
                "{\"name\": \"calc\", \"parameters\": {\"a\": 1}}",
                "; ",
            ][..]
        )
        .prop_map(str::to_owned),
        "[ -~\n\té]{0,8}",
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// Hostile text without the noncharacters that a template's renderer removes.
fn said_text() -> impl Strategy<Value = String> {
    hostile_text().prop_map(|text| {
        // The forms remove control characters, which a program that runs the template keeps.
        clean(&text.replace(['\u{fdd0}', '\u{fdd1}', '\u{fdd2}'], "")).into_owned()
    })
}

/// A message that is not the first of a conversation.
fn any_message() -> impl Strategy<Value = Message> {
    ("[ a-z\n]{0,8}", 0..4_u8).prop_map(|(text, role)| match role {
        0 => Message::user(text),
        1 => Message::tool("call_0", text),
        2 => Message::assistant(text),
        _ => Message { tool_calls: vec![a_call()], ..Message::assistant(text) },
    })
}

fn a_call() -> ToolCall {
    ToolCall { id: "call_0".to_owned(), name: "calc".to_owned(), arguments: json!({"a": "\n"}) }
}

proptest! {
    // Each case creates renderers and compares whole conversations.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    #[test]
    fn the_saved_template_of_chatml_is_its_renderer(
        messages in conversation(),
        prompt in tool_prompt(),
        has_tools in any::<bool>(),
        keeps in any::<bool>(),
        enable_thinking in any::<bool>(),
    ) {
        let thinking = if keeps { Thinking::Keep } else { Thinking::Follow };
        let settings = ChatMlSettings { tools: prompt, thinking, enable_thinking, ..ChatMlSettings::default() };
        let chat = ChatMl::new(trained(), settings).expect("it has the markers");
        let settings = TemplateSettings { thinking, ..TemplateSettings::default() };
        let saved = TemplateRenderer::new(trained(), &chat.template(), &Trust::Any, settings).expect("a template");
        let tools = if has_tools { tools() } else { Vec::new() };
        let observation = Observation::new(messages);
        let (own, saved) = (chat.open(&observation, &tools), saved.open(&observation, &tools));
        let (own, saved) = (ids_of(&own.expect("it renders")), ids_of(&saved.expect("it renders")));
        prop_assert_eq!(chat.text(&own), chat.text(&saved));
        prop_assert_eq!(own, saved);
    }

    #[test]
    fn the_saved_template_of_llama_3_is_its_renderer(
        messages in conversation(),
        first in any_message(),
        has_tools in any::<bool>(),
        tools_in_user_message in any::<bool>(),
    ) {
        let (chat, saved) = llama_and_its_template(tools_in_user_message);
        prop_assert_eq!(saved.stop_tokens()[0], chat.stop_tokens()[0]);
        let tools = if has_tools { tools() } else { Vec::new() };
        for messages in [messages.clone(), [vec![first], messages].concat()] {
            let observation = Observation::new(messages);
            let (own, saved) = (chat.open(&observation, &tools), saved.open(&observation, &tools));
            let (own, saved) = (ids_of(&own.expect("it renders")), ids_of(&saved.expect("it renders")));
            prop_assert_eq!(chat.text(&own), chat.text(&saved));
            prop_assert_eq!(own, saved);
        }
    }

    /// Turns stay as they were sampled. A program that keeps their texts renders the prompts of training, and so does a
    /// renderer of the saved template with their tokens.
    #[test]
    fn the_saved_template_of_llama_3_keeps_sampled_turns(
        question in said_text(),
        rounds in prop::collection::vec((sampled_text(), any::<bool>(), said_text()), 1..5),
        has_tools in any::<bool>(),
        tools_in_user_message in any::<bool>(),
    ) {
        let (chat, saved) = llama_and_its_template(tools_in_user_message);
        let tools = if has_tools { tools() } else { Vec::new() };
        let mut drawn: Vec<Option<Vec<TokenId>>> = vec![None];
        let (mut messages, mut texts) = (vec![Message::user(question.clone())], vec![Message::user(question)]);
        for (text, answers_tool, next) in rounds {
            let mut ids = llama_tokenizer().encode_with_markers(&text);
            ids.push(chat.stop_tokens()[0]);
            messages.push(chat.parse(&ids, &tools).to_message());
            texts.push(Message::assistant(text));
            drawn.push(Some(ids));
            let next = if answers_tool { Message::tool("call_0", next) } else { Message::user(next) };
            messages.push(next.clone());
            texts.push(next);
            drawn.push(None);
        }
        let said: Vec<Said<'_>> = messages
            .iter()
            .zip(&drawn)
            .map(|(message, drawn)| Said { message, drawn: drawn.as_deref() })
            .collect();
        let own = ids_of(&chat.render(&said, &tools).expect("it renders"));
        let by_tokens = ids_of(&saved.render(&said, &tools).expect("it renders"));
        prop_assert_eq!(&own, &by_tokens);
        let texts: Vec<Said<'_>> = texts.iter().map(Said::new).collect();
        let by_text = ids_of(&saved.render(&texts, &tools).expect("it renders"));
        prop_assert_eq!(chat.text(&own), chat.text(&by_text));
    }
}

/// Llama's template rejects a message with several calls. A policy that makes them goes on nevertheless.
#[test]
fn a_template_that_rejects_several_calls_keeps_the_sampled_turn_that_makes_them() {
    let (chat, saved) = llama_and_its_template(true);
    let call = "{\"name\": \"calc\", \"parameters\": {\"a\": 1}}";
    let mut ids = llama_tokenizer().encode_with_markers(&format!("{call}; {call}"));
    ids.push(chat.stop_tokens()[0]);
    let turn = saved.parse(&ids, &[]).to_message();
    assert_eq!(turn.tool_calls.len(), 2);
    let messages = [Message::user("6 * 7"), turn, Message::tool("call_0", "42")];
    let as_given: Vec<Said<'_>> = messages.iter().map(Said::new).collect();
    let error = saved.render(&as_given, &[]).expect_err("nobody has sampled the turn");
    assert!(error.to_string().contains("one call at a time"), "{error}");
    let mut sampled = as_given;
    sampled[1].drawn = Some(&ids);
    let own = ids_of(&chat.render(&sampled, &[]).expect("it renders"));
    assert_eq!(own, ids_of(&saved.render(&sampled, &[]).expect("it renders")));
}
