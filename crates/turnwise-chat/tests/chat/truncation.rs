use proptest::prelude::*;
use turnwise_chat::{ChatMl, ChatMlSettings, TemplateRenderer, TemplateSettings, Trust};
use turnwise_environment::{Action, Message};
use turnwise_rollout::{Bridged, EndedTurn, Renderer, Said};
use turnwise_trajectory::{StopReason, TokenKind};

use crate::support::{ids_of, ids_of_kind, trained};

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

/// A long question is the task: it is not truncated, whatever the limit of observations is.
#[test]
fn the_task_stays_whole() {
    let question = format!("Read.\n{}What does part 600 cost?", "Part 7 costs 259.\n".repeat(1500));
    let messages = vec![Message::system(question.clone()), Message::user(question.clone())];
    let own = ChatMl::new(
        trained(),
        ChatMlSettings { max_observation_tokens: 100, ..ChatMlSettings::default() },
    );
    let own = own.expect("markers");
    let settings = TemplateSettings { max_observation_tokens: 100, ..TemplateSettings::default() };
    let template = TemplateRenderer::new(trained(), &own.template(), &Trust::Any, settings)
        .expect("a template");
    for renderer in [&own as &dyn Renderer, &template] {
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

proptest! {
    #[test]
    fn the_limit_holds(text in "(?s)[ -~日é😀\u{301}\n]{0,400}", limit in 40..120_usize) {
        let (n_tokens, left) = heard(&text, limit);
        prop_assert!(n_tokens <= limit, "{} of {limit}", n_tokens);
        let is_whole = trained().encode_plain(&text).len() <= limit;
        prop_assert_eq!(left == text, is_whole);
    }
}
