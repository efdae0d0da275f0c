use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use turnwise_chat::{
    ChatMl, ChatMlSettings, Llama3, Llama3Settings, Tokenizer, ToolPrompt, train_tokenizer,
};
use turnwise_environment::{Message, Observation};
use turnwise_rollout::{Bridged, EndedTurn, Rendered, Renderer, Said};
use turnwise_trajectory::{Span, StopReason, TokenId, TokenKind};

pub(crate) const MARKERS: [&str; 9] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "<tool_response>",
    "</tool_response>",
];

static TRAINED: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let texts =
        (0..200).map(|n| format!("user: what is {n} plus {}? assistant: it is\n\n{{}}", n * 7));
    Arc::new(train_tokenizer(texts, 320).expect("320 ids are enough"))
});

static FIXTURE: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let directory = fixture_path().join("tokenizer");
    Arc::new(Tokenizer::from_directory(directory).expect("the fixture is a tokenizer"))
});

/// Returns a trained tokenizer without a normalizer: decoding restores text exactly.
pub(crate) fn trained() -> Arc<Tokenizer> {
    TRAINED.clone()
}

/// Returns the reference tokenizer: NFC, and no token for `<tool_response>`.
pub(crate) fn fixture() -> Arc<Tokenizer> {
    FIXTURE.clone()
}

pub(crate) fn fixture_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat")
}

pub(crate) fn fixture_json(name: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(fixture_path().join(name)).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

pub(crate) fn ids_in(value: &serde_json::Value) -> Vec<TokenId> {
    serde_json::from_value(value.clone()).expect("a list of ids")
}

pub(crate) fn chatml(tokenizer: Arc<Tokenizer>, tools: ToolPrompt) -> ChatMl {
    let settings = ChatMlSettings { tools, ..ChatMlSettings::default() };
    ChatMl::new(tokenizer, settings).expect("the tokenizer has the markers")
}

static LLAMA: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let texts = (0..200).map(|n| format!("user: what is {n} plus {}? it is\n\n{{}}", n * 7));
    train_tokenizer(texts, 320).expect("trained").save(folder.path()).expect("saved");
    let path = folder.path().join("tokenizer.json");
    let mut text = std::fs::read_to_string(&path).expect("read");
    for (old, new) in MARKERS.iter().zip(LLAMA_MARKERS) {
        text = text.replace(&format!("\"{old}\""), &format!("\"{new}\""));
    }
    std::fs::write(&path, text).expect("written");
    Arc::new(Tokenizer::from_directory(folder.path()).expect("a tokenizer"))
});

/// The control tokens of Llama 3, instead of those of a trained tokenizer.
const LLAMA_MARKERS: [&str; 9] = [
    "<|end_of_text|>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|reserved_0|>",
    "<|reserved_1|>",
];

pub(crate) fn llama_tokenizer() -> Arc<Tokenizer> {
    LLAMA.clone()
}

pub(crate) fn llama(tools_in_user_message: bool) -> Llama3 {
    let settings = Llama3Settings { tools_in_user_message, ..Llama3Settings::default() };
    Llama3::new(llama_tokenizer(), settings).expect("it has the markers")
}

/// Returns the tokens appended after a turn without thoughts.
pub(crate) fn appended(
    renderer: &dyn Renderer,
    stop: StopReason,
    observation: &Observation,
) -> Rendered {
    let ids: Vec<TokenId> = match stop {
        StopReason::EndOfTurn => vec![renderer.stop_tokens()[0]],
        _ => Vec::new(),
    };
    let turn = Message::assistant("");
    let history = [Said { message: &turn, drawn: Some(&ids) }];
    let ended = EndedTurn { ids: &ids, stop };
    match renderer.bridge(ended, &history, &observation.messages).expect("it renders") {
        Bridged::Append(delta) => delta,
        Bridged::Rewrite => panic!("nothing is rewritten"),
    }
}

/// Returns all rendered tokens, in order.
pub(crate) fn ids_of(delta: &Rendered) -> Vec<TokenId> {
    let mut ids = delta.close.clone();
    delta.messages.iter().flatten().for_each(|span| span.extend_ids(&mut ids));
    ids.extend(&delta.generation);
    ids.extend(&delta.prefill);
    ids
}

/// Returns the ids of the spans of one kind.
pub(crate) fn ids_of_kind(spans: &[Span], kind: TokenKind) -> Vec<TokenId> {
    let mut ids = Vec::new();
    spans.iter().filter(|span| span.kind() == kind).for_each(|span| span.extend_ids(&mut ids));
    ids
}

/// Text made of markers, escapes, control characters, blanks and anything else.
pub(crate) fn hostile_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(&MARKERS[..]).prop_map(str::to_owned),
        prop::sample::select(
            &["\u{1b}[31m", "\u{1b}]0;x\u{7}", "\r\n", "\0", "\u{9b}", " \n", "}\n", "<|", "|>"][..]
        )
        .prop_map(str::to_owned),
        any::<String>(),
        "[ -~\n\t]{0,12}",
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}
