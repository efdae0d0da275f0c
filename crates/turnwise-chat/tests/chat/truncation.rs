use proptest::prelude::*;
use turnwise_chat::{ChatMl, ChatMlSettings};
use turnwise_environment::Message;
use turnwise_rollout::Renderer;
use turnwise_trajectory::TokenKind;

use crate::support::{ids_of_kind, trained};

/// The tokens of a tool's text, and the text that is left of it.
fn heard(text: &str, max_observation_tokens: usize) -> (usize, String) {
    let settings = ChatMlSettings { max_observation_tokens, ..ChatMlSettings::default() };
    let renderer = ChatMl::new(trained(), settings).expect("markers");
    let observation = vec![Message::user(text)].into();
    let delta = renderer.open(&observation, &[]).expect("it renders");
    let ids = ids_of_kind(&delta.messages[0], TokenKind::Context);
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

proptest! {
    #[test]
    fn the_limit_holds(text in "(?s)[ -~日é😀\u{301}\n]{0,400}", limit in 40..120_usize) {
        let (n_tokens, left) = heard(&text, limit);
        prop_assert!(n_tokens <= limit, "{} of {limit}", n_tokens);
        let is_whole = trained().encode_plain(&text).len() <= limit;
        prop_assert_eq!(left == text, is_whole);
    }
}
