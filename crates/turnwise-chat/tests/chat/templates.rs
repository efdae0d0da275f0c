//! A model's own template, run as a program and implemented by hand.

use proptest::prelude::*;
use serde_json::json;
use turnwise_chat::{
    CallForm, ChatError, ChatMl, ChatMlSettings, TemplateRenderer, TemplateSettings, Thinking,
    Trust,
};
use turnwise_environment::{Message, Observation, Role, ToolCall, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, Renderer, Said};
use turnwise_trajectory::{StopReason, TokenId, TokenKind};

use crate::support::{hostile_text, ids_of, ids_of_kind, llama, llama_tokenizer, trained};

const QWEN3: &str = include_str!("jinja/qwen3.jinja");
const LLAMA31: &str = include_str!("jinja/llama31.jinja");

fn qwen3(thinking: Thinking) -> TemplateRenderer {
    let settings = TemplateSettings { thinking, ..TemplateSettings::default() };
    TemplateRenderer::new(trained(), QWEN3, &Trust::Any, settings).expect("a template")
}

fn qwen3_by_hand(thinking: Thinking) -> ChatMl {
    let settings = ChatMlSettings { thinking, ..ChatMlSettings::default() };
    ChatMl::new(trained(), settings).expect("it has the markers")
}

fn llama31(tools_in_user_message: bool) -> TemplateRenderer {
    let mut settings = TemplateSettings {
        stop: vec!["<|eot_id|>".to_owned(), "<|eom_id|>".to_owned(), "<|end_of_text|>".to_owned()],
        calls: CallForm::Llama3,
        ..TemplateSettings::default()
    };
    settings.arguments.insert("bos_token".to_owned(), "<|begin_of_text|>".into());
    settings.arguments.insert("tools_in_user_message".to_owned(), tools_in_user_message.into());
    TemplateRenderer::new(llama_tokenizer(), LLAMA31, &Trust::Any, settings).expect("a template")
}

pub(crate) fn calc() -> ToolSpec {
    ToolSpec {
        name: "calc".to_owned(),
        description: "Adds.".to_owned(),
        parameters: json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "number"}}}),
    }
}

fn tame_text() -> impl Strategy<Value = String> {
    "[ -;=?-z\n]{0,20}".prop_filter("no braces, no tags", |text| !text.contains('<'))
}

fn message() -> impl Strategy<Value = Message> {
    let call = || ToolCall {
        id: "call_0".to_owned(),
        name: "calc".to_owned(),
        arguments: json!({"b": 1, "a": [true]}),
    };
    (0..5_u8, tame_text(), tame_text()).prop_map(move |(kind, text, thought)| match kind {
        0 => Message::user(text),
        1 => Message::tool("call_0", text),
        2 => Message::assistant(text),
        3 => Message { reasoning: Some(thought), ..Message::assistant(text) },
        _ => Message { tool_calls: vec![call()], ..Message::assistant(text) },
    })
}

pub(crate) fn conversation() -> impl Strategy<Value = Vec<Message>> {
    (any::<bool>(), tame_text(), tame_text(), prop::collection::vec(message(), 0..6)).prop_map(
        |(has_system, system, first, rest)| {
            let system = has_system.then(|| Message::system(system));
            system.into_iter().chain([Message::user(first)]).chain(rest).collect()
        },
    )
}

proptest! {
    // Rollouts 12.2
    #[test]
    fn qwen3_by_hand_is_the_published_template(messages in conversation(), has_tools in any::<bool>()) {
        let tools = if has_tools { vec![calc()] } else { Vec::new() };
        let observation = Observation::new(messages);
        let renderer = qwen3(Thinking::Follow);
        let published = renderer.open(&observation, &tools).expect("it renders");
        let by_hand = qwen3_by_hand(Thinking::Follow).open(&observation, &tools).expect("it renders");
        prop_assert_eq!(renderer.text(&ids_of(&by_hand)), renderer.text(&ids_of(&published)));
        prop_assert_eq!(ids_of(&by_hand), ids_of(&published));
    }

    // Rollouts 12.2
    #[test]
    fn llama3_by_hand_is_the_published_template(
        messages in conversation(),
        has_tools in any::<bool>(),
        in_user in any::<bool>(),
    ) {
        let tools = if has_tools { vec![calc()] } else { Vec::new() };
        // The published template trims the assistant's text; ours keeps it, like a sampled turn.
        let trimmed = messages.into_iter().map(|message| match message.role {
            Role::Assistant => Message { content: message.content.trim().to_owned(), ..message },
            _ => message,
        });
        let observation = Observation::new(trimmed.collect());
        let renderer = llama31(in_user);
        let published = renderer.open(&observation, &tools).expect("it renders");
        let by_hand = llama(in_user).open(&observation, &tools).expect("it renders");
        prop_assert_eq!(renderer.text(&ids_of(&by_hand)), renderer.text(&ids_of(&published)));
        prop_assert_eq!(ids_of(&by_hand), ids_of(&published));
    }

    // Rollouts 13.15, 12.1: an appended text equals the end of the whole rendering.
    #[test]
    fn a_bridge_is_the_whole_rendering_or_a_rewrite(
        first in tame_text(),
        answer in "[a-z]{1,8}",
        thinks in any::<bool>(),
        n_tools in 0..3_usize,
        asks in any::<bool>(),
    ) {
        for renderer in [&qwen3(Thinking::Follow) as &dyn Renderer, &qwen3_by_hand(Thinking::Follow), &llama31(true), &llama(true)] {
            let question = Message::user(first.clone());
            let is_qwen = renderer.stop_tokens().len() < 3;
            let thought = if thinks && is_qwen { "<think>\nso\n</think>\n\n" } else { "" };
            let drawn = drawn(renderer, &format!("{thought}{answer}"));
            let turn = renderer.parse(&drawn, &[]).to_message();
            let mut new: Vec<Message> = (0..n_tools).map(|n| Message::tool("call_0", format!("{n}"))).collect();
            new.extend((asks || n_tools == 0).then(|| Message::user("next")));
            let history = [Said::new(&question), Said { message: &turn, drawn: Some(&drawn) }];
            let whole: Vec<Said<'_>> = history.into_iter().chain(new.iter().map(Said::new)).collect();
            let whole = ids_of(&renderer.render(&whole, &[]).expect("it renders"));
            let mut held = ids_of(&renderer.open(&first.clone().into(), &[]).expect("it renders"));
            held.extend(&drawn);
            let ended = EndedTurn { ids: &drawn, stop: StopReason::EndOfTurn };
            match renderer.bridge(ended, &history, &new).expect("it renders") {
                Bridged::Append(delta) => {
                    held.extend(ids_of(&delta));
                    prop_assert_eq!(renderer.text(&held), renderer.text(&whole));
                    prop_assert_eq!(held, whole);
                }
                Bridged::Rewrite => {
                    let is_prefix = whole.starts_with(&held);
                    prop_assert!(!is_prefix);
                }
            }
        }
    }

    // Rollouts 13.17, 12.3
    #[test]
    fn hostile_text_makes_no_control_token_in_a_template(text in hostile_text(), role in 0..3_u8) {
        let renderer = qwen3(Thinking::Follow);
        let tokenizer = renderer.tokenizer();
        let say = |text: &str| match role {
            0 => Message::user(text),
            1 => Message::tool("call_0", text),
            _ => Message::system(text),
        };
        let tool = |text: &str| ToolSpec { name: text.to_owned(), description: format!("a{text}"), ..calc() };
        let render = |text: &str| {
            let messages = vec![Message::user("Hi"), say(&format!("x{text}x"))];
            renderer.open(&messages.into(), &[tool(text)]).expect("it renders")
        };
        let controls = |text: &str| {
            let ids = ids_of(&render(text));
            ids.into_iter().filter(|id| tokenizer.is_control(*id)).collect::<Vec<_>>()
        };
        prop_assert_eq!(controls(&text), controls(""));
        let context = ids_of_kind(&render(&text).messages[1], TokenKind::Context);
        prop_assert!(!context.iter().any(|id| tokenizer.is_control(*id)));
        let read = renderer.text(&ids_of(&render(&text)));
        let without: String = text.chars().filter(|c| !('\u{fdd0}'..='\u{fdd2}').contains(c)).collect();
        let said = format!("x{without}x");
        // Tools print for terminals.
        let is_whole = if role == 1 { read.contains(&*turnwise_chat::clean(&said)) } else { read.contains(&said) };
        prop_assert!(is_whole);
    }
}

fn drawn(renderer: &dyn Renderer, text: &str) -> Vec<TokenId> {
    let tokenizer = if renderer.stop_tokens().len() < 3 { trained() } else { llama_tokenizer() };
    let mut ids = tokenizer.encode_with_markers(text);
    ids.push(renderer.stop_tokens()[0]);
    ids
}

// Rollouts 11.3, 11.4
#[test]
fn thinking_goes_at_a_question_and_stays_in_a_cycle_of_tools() {
    for renderer in [&qwen3(Thinking::Follow) as &dyn Renderer, &qwen3_by_hand(Thinking::Follow)] {
        let question = Message::user("3 + 5?");
        let ids = drawn(renderer, "<think>\nAdd.\n</think>\n\n8");
        let turn = renderer.parse(&ids, &[]).to_message();
        let history = [Said::new(&question), Said { message: &turn, drawn: Some(&ids) }];
        let ended = EndedTurn { ids: &ids, stop: StopReason::EndOfTurn };
        let go_on = |new: Message| renderer.bridge(ended, &history, &[new]).expect("it renders");
        assert!(matches!(go_on(Message::tool("call_0", "8")), Bridged::Append(_)));
        assert_eq!(go_on(Message::user("And 3?")), Bridged::Rewrite);
    }
    for renderer in [&qwen3(Thinking::Keep) as &dyn Renderer, &qwen3_by_hand(Thinking::Keep)] {
        let question = Message::user("3 + 5?");
        let ids = drawn(renderer, "<think>\nAdd.\n</think>\n\n8");
        let turn = renderer.parse(&ids, &[]).to_message();
        let history = [Said::new(&question), Said { message: &turn, drawn: Some(&ids) }];
        let ended = EndedTurn { ids: &ids, stop: StopReason::EndOfTurn };
        let bridged =
            renderer.bridge(ended, &history, &[Message::user("And 3?")]).expect("it renders");
        let Bridged::Append(delta) = bridged else { panic!("thinking is kept") };
        let text = "\n<|im_start|>user\nAnd 3?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(renderer.text(&ids_of(&delta)), text);
    }
}

// Rollouts 11.11: an empty thinking block in the lead-in is forced, not scaffold.
#[test]
fn a_prefilled_block_of_thinking_is_apart_from_the_lead_in() {
    let mut settings = TemplateSettings::default();
    settings.arguments.insert("enable_thinking".to_owned(), false.into());
    let template =
        TemplateRenderer::new(trained(), QWEN3, &Trust::Any, settings).expect("a template");
    let settings = ChatMlSettings { enable_thinking: false, ..ChatMlSettings::default() };
    let by_hand = ChatMl::new(trained(), settings).expect("it has the markers");
    for renderer in [&template as &dyn Renderer, &by_hand] {
        let delta = renderer.open(&"Hi".into(), &[]).expect("it renders");
        assert!(renderer.text(&delta.generation).ends_with("<|im_start|>assistant\n"));
        assert_eq!(renderer.text(&delta.prefill), "<think>\n\n</think>\n\n");
    }
}

// Rollouts 13.16, 11.5, 11.12
#[test]
fn separator_and_first_token_stand_once_over_many_turns() {
    for renderer in [&llama31(true) as &dyn Renderer, &llama(true)] {
        let mut held = ids_of(&renderer.open(&"Hi".into(), &[]).expect("it renders"));
        let question = Message::user("Hi");
        for _ in 0..4 {
            let ids = drawn(renderer, "7");
            let turn = Message::assistant("7");
            let history = [Said::new(&question), Said { message: &turn, drawn: Some(&ids) }];
            let ended = EndedTurn { ids: &ids, stop: StopReason::EndOfTurn };
            held.extend(&ids);
            let Bridged::Append(delta) = renderer
                .bridge(ended, &history, std::slice::from_ref(&question))
                .expect("it renders")
            else {
                panic!("it appends")
            };
            held.extend(ids_of(&delta));
        }
        let text = renderer.text(&held);
        assert_eq!(text.matches("<|begin_of_text|>").count(), 1);
        assert_eq!(text.matches("<|start_header_id|>system").count(), 1);
        assert_eq!(
            text.matches("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n").count(),
            5
        );
    }
}

#[test]
fn an_unknown_template_is_refused_with_its_hash() {
    let trust = Trust::Hash("0".repeat(64));
    let error = TemplateRenderer::new(trained(), QWEN3, &trust, TemplateSettings::default())
        .expect_err("unknown");
    assert!(matches!(error, ChatError::Untrusted { .. }));
    assert!(error.to_string().contains(&turnwise_chat::template_hash(QWEN3)), "{error}");
}

#[test]
fn a_template_that_would_not_end_is_an_error() {
    let bombs = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(9999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ strftime_now('%Y') }}",
    ];
    for bomb in bombs {
        let settings = TemplateSettings { max_context_tokens: 1000, ..TemplateSettings::default() };
        let renderer =
            TemplateRenderer::new(trained(), bomb, &Trust::Any, settings).expect("a template");
        assert!(renderer.open(&"Hi".into(), &[]).is_err(), "{bomb}");
    }
}

// Rollouts 11.13: the date is a setting, and part of the fingerprint.
#[test]
fn the_time_is_frozen_by_the_settings() {
    let renderer = |day: &str| {
        let mut settings = TemplateSettings::default();
        settings.times.insert("%d %b %Y".to_owned(), day.to_owned());
        TemplateRenderer::new(trained(), "{{ strftime_now('%d %b %Y') }}", &Trust::Any, settings)
            .expect("a template")
    };
    let text = |renderer: &TemplateRenderer| {
        renderer.text(&ids_of(&renderer.open(&"Hi".into(), &[]).expect("it renders")))
    };
    let (one, other) = (renderer("26 Jul 2024"), renderer("27 Jul 2024"));
    assert_eq!([text(&one), text(&other)], ["26 Jul 2024", "27 Jul 2024"]);
    assert_ne!(one.fingerprint(), other.fingerprint());
}
