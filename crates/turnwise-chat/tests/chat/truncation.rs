use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use turnwise_chat::{
    ChatMl, ChatMlSettings, Llama3, Llama3Settings, TemplateRenderer, TemplateSettings, TextTools,
    Thinking, ToolPrompt, Trust, TurnShape, TurnShapeSettings,
};
use turnwise_environment::{Action, Message, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, Renderer, Said};
use turnwise_trajectory::{StopReason, TokenKind};

use crate::support::{ids_of, ids_of_kind, llama_tokenizer, trained};

/// Returns the number of tokens of an observation's text, and the text after truncation.
fn heard(text: &str, max_observation_tokens: usize) -> (usize, String) {
    let settings = ChatMlSettings { max_observation_tokens, ..ChatMlSettings::default() };
    let renderer = ChatMl::new(trained(), settings).expect("markers");
    let observation = vec![Message::assistant("go"), Message::user(text)].into();
    let delta = renderer.open(&observation, &[]).expect("it renders");
    let ids = ids_of_kind(&delta.messages[1], TokenKind::Context);
    (ids.len(), renderer.text(&ids))
}

#[test]
fn a_text_that_fits_stays_whole() {
    let text = "what is 12 plus 7?";
    assert_eq!(heard(text, trained().encode_plain(text).len()).1, text);
}

#[test]
fn a_long_text_loses_its_middle_visibly() {
    let text = format!("beginning{}end", " 7".repeat(1000));
    let (n_tokens, left) = heard(&text, 100);
    assert!(n_tokens <= 100 && n_tokens > 90, "{n_tokens}");
    assert!(left.starts_with("beginning 7 7") && left.ends_with("7 7end"), "{left}");
    let (head, rest) = left.split_once("[... ").expect("a mark");
    let (n_bytes, tail) = rest.split_once(" bytes omitted ...]").expect("a mark");
    assert_eq!(n_bytes.parse(), Ok(text.len() - head.len() - tail.len()));
}

#[test]
fn a_limit_smaller_than_the_mark_leaves_the_mark() {
    assert_eq!(heard(&"7".repeat(500), 3).1, "[... 500 bytes omitted ...]");
}

#[test]
fn ten_megabytes_are_cut_before_they_are_encoded() {
    let (n_tokens, left) = heard(&"é7\n".repeat(2_500_000), 200);
    assert!(n_tokens <= 200);
    assert!(left.contains("bytes omitted"));
}

/// Returns the renderers whose limit is this many tokens.
fn renderers(max_observation_tokens: usize) -> Vec<Arc<dyn Renderer>> {
    let settings = ChatMlSettings { max_observation_tokens, ..ChatMlSettings::default() };
    let own = Arc::new(ChatMl::new(trained(), settings.clone()).expect("markers"));
    let settings = ChatMlSettings { thinking: Thinking::Follow, ..settings };
    let follows = Arc::new(ChatMl::new(trained(), settings).expect("markers"));
    let settings = TemplateSettings { max_observation_tokens, ..TemplateSettings::default() };
    let template = TemplateRenderer::new(trained(), &own.template(), &Trust::Any, settings)
        .expect("a template");
    let told = Arc::new(TextTools::new(own.clone(), ToolPrompt::Hermes));
    let shape = TurnShapeSettings::default();
    let shaped = Arc::new(TurnShape::new(own.clone(), trained(), shape));
    let settings = Llama3Settings { max_observation_tokens, ..Llama3Settings::default() };
    let llama = Arc::new(Llama3::new(llama_tokenizer(), settings).expect("markers"));
    vec![own, follows, Arc::new(template), told, shaped, llama]
}

/// A long question is the task: it is not truncated, whatever the limit of observations is.
#[test]
fn the_task_stays_whole() {
    let question = format!("Read.\n{}What does part 600 cost?", "Part 7 costs 259.\n".repeat(1500));
    let messages = vec![Message::system(question.clone()), Message::user(question.clone())];
    for renderer in renderers(100) {
        let opened = renderer.open(&messages.clone().into(), &[]).expect("it renders");
        let text = renderer.text(&ids_of(&opened));
        assert_eq!(text.matches(&question).count(), 2);
        let turn = Message::assistant("7");
        let ids = renderer.write(&Action::text("7"));
        let history = [Said::new(&messages[1]), Said { message: &turn, drawn: Some(&ids) }];
        let ended = EndedTurn { ids: &ids, stop: StopReason::EndOfTurn };
        let new = [Message::user(question.clone())];
        let Bridged::Append(delta) = renderer.bridge(ended, &history, &new).expect("it renders")
        else {
            panic!("it appends")
        };
        assert!(renderer.text(&ids_of(&delta)).contains("bytes omitted ...]"));
    }
}

/// Returns the text of messages that follow a turn.
fn told(renderer: &dyn Renderer, new: &[Message], tools: &[ToolSpec]) -> String {
    let (question, turn) = (Message::user("what?"), Message::assistant("7"));
    let ids = renderer.write(&Action::text("7"));
    let history = [Said::new(&question), Said { message: &turn, drawn: Some(&ids) }];
    let ended = EndedTurn { ids: &ids, stop: StopReason::EndOfTurn };
    let next = renderer.go_on(ended, &history, new, tools).expect("it renders");
    let Bridged::Append(delta) = next else { panic!("it appends") };
    renderer.text(&ids_of(&delta))
}

proptest! {
    /// What a renderer says about a message is what it does to it.
    #[test]
    fn a_message_is_shortened_if_and_only_if_it_is_said_to_be(
        text in "(?s)[ -~日é\u{1b}\n]{0,300}",
        limit in 40..120_usize,
        role in 0..3_usize,
    ) {
        let (name, description) = ("look".to_owned(), "Looks.".to_owned());
        let tool = ToolSpec { name, description, parameters: json!({"type": "object"}) };
        for tools in [&[][..], &[tool]] {
            let message = match role {
                0 => Message::tool("call_0", &*text),
                1 => Message::user(&*text),
                _ => Message::assistant(&*text),
            };
            for (number, renderer) in renderers(limit).into_iter().enumerate() {
                let seen = told(&*renderer, std::slice::from_ref(&message), tools);
                let is_marked = seen.contains("bytes omitted ...]");
                prop_assert_eq!(renderer.shortens(&message, tools), is_marked, "{} {}", number, seen);
            }
        }
    }

    #[test]
    fn the_limit_holds(text in "(?s)[ -~日é😀\u{301}\n]{0,400}", limit in 40..120_usize) {
        let (n_tokens, left) = heard(&text, limit);
        prop_assert!(n_tokens <= limit, "{} of {limit}", n_tokens);
        let is_whole = trained().encode_plain(&text).len() <= limit;
        prop_assert_eq!(left == text, is_whole);
    }
}
