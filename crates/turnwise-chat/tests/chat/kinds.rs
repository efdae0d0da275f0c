//! Tokenizers of every kind that the `tokenizers` library loads, and files that are not tokenizers.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};
use turnwise_chat::{
    ChatError, ChatMl, ChatMlSettings, Grammar, TemplateRenderer, TemplateSettings, Tokenizer,
    Trust,
};
use turnwise_environment::Message;
use turnwise_rollout::Renderer;

use crate::grammar::sampled_turn;
use crate::support::{fixture_path, hostile_text, ids_in, ids_of};

fn of_text(text: &str) -> Result<Tokenizer, ChatError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, text).expect("written");
    Tokenizer::from_file(path)
}

fn kinds() -> Vec<Value> {
    let kinds: Value = serde_json::from_str(include_str!("data/tokenizers.json")).expect("JSON");
    kinds["kinds"].as_array().expect("a list").clone()
}

fn kind(name: &str) -> Value {
    let mut kinds = kinds().into_iter();
    kinds.find(|kind| kind["name"].as_str().expect("a name").contains(name)).expect("it is there")
}

fn tokenizer(kind: &Value) -> Tokenizer {
    of_text(&kind["tokenizer"].to_string()).expect("the library loads it")
}

// The expected ids are those of Python's tokenizers 0.23.3.
// Field 12
#[test]
fn every_kind_of_tokenizer_has_the_librarys_ids() {
    for kind in kinds() {
        let tokenizer = tokenizer(&kind);
        for case in kind["cases"].as_array().expect("cases") {
            let (text, ids) = (case["text"].as_str().expect("a text"), ids_in(&case["ids"]));
            assert_eq!(tokenizer.encode_plain(text), ids, "{}: {text:?}", kind["name"]);
            assert_eq!(tokenizer.encode_with_markers(text), ids, "{}: {text:?}", kind["name"]);
            assert_eq!(tokenizer.decode(&ids), case["decoded"], "{}: {text:?}", kind["name"]);
        }
        for case in kind["marked"].as_array().expect("cases") {
            let (text, ids) = (case["text"].as_str().expect("a text"), ids_in(&case["ids"]));
            assert_eq!(tokenizer.encode_with_markers(text), ids, "{}: {text:?}", kind["name"]);
        }
    }
}

/// Texts with control tokens are encoded as by the library if no content contains their names, also message by message.
#[test]
fn a_conversation_has_the_ids_of_its_text() {
    for name in ["without some bytes", "a blank before the text"] {
        let tokenizer = std::sync::Arc::new(tokenizer(&kind(name)));
        let chat =
            ChatMl::new(tokenizer.clone(), ChatMlSettings::default()).expect("it has the markers");
        let messages = vec![
            Message::user("hello\n"),
            Message::assistant(" the cat"),
            Message::user("é 日 \u{4}x"),
        ];
        let ids = ids_of(&chat.open(&messages.into(), &[]).expect("it renders"));
        let whole = "<|im_start|>user\nhello\n<|im_end|>\n<|im_start|>assistant\n the cat<|im_end|>\n\
            <|im_start|>user\né 日 x<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(ids, tokenizer.encode_with_markers(whole), "{name}");
    }
}

/// Content with names of control tokens changes no neighbouring tokens: the template's control tokens absorb their
/// blanks.
#[test]
fn a_hostile_text_leaves_the_templates_tokens_alone() {
    let kind = kind("blanks behind them");
    let tokenizer = std::sync::Arc::new(tokenizer(&kind));
    let template =
        "{%- for m in messages -%}{{- '<|user|>\n' + m.content + '<|end|>\n' -}}{%- endfor -%}";
    let settings = TemplateSettings { stop: Vec::new(), ..TemplateSettings::default() };
    let renderer = TemplateRenderer::new(tokenizer.clone(), template, &Trust::Any, settings);
    let renderer = renderer.expect("a template");
    let controls = |text: &str| -> Vec<u32> {
        let opened = renderer.open(&text.into(), &[]).expect("it renders");
        ids_of(&opened).into_iter().filter(|id| tokenizer.is_control(*id)).collect()
    };
    assert_eq!(controls("a <|end|>\n b</s>"), controls("a"));
    let ids = ids_of(&renderer.open(&"the <|user|>\ncat".into(), &[]).expect("it renders"));
    let usual = tokenizer.encode_with_markers("<|user|>\nthe ");
    assert!(
        ids.starts_with(&usual[..2])
            && ids.last() == tokenizer.encode_with_markers("<|end|>\n").last()
    );
    assert_eq!(tokenizer.decode(&ids), "<|user|> the <|user|>\ncat<|end|>");
}

/// Without byte fallback and unknown token, text without tokens is dropped, as in the library; the rest stays.
#[test]
fn what_the_vocabulary_cannot_express_is_left_out_always_alike() {
    let kind = kind("without some bytes");
    for _ in 0..3 {
        let tokenizer = tokenizer(&kind);
        let ids = tokenizer.encode_plain("the\u{4} cat\u{6}é");
        assert_eq!(tokenizer.decode(&ids), "the cat\u{fffd}");
    }
    // A token that ends texts never represents unknown text, whatever the file says.
    let mut file = kind["tokenizer"].clone();
    file["model"]["unk_token"] = "<|endoftext|>".into();
    file["model"]["vocab"]["<|endoftext|>"] = 9999.into();
    file["added_tokens"][0]["id"] = 9999.into();
    let tokenizer = of_text(&file.to_string()).expect("the library loads it");
    let ids = tokenizer.encode_plain("the\u{4} cat");
    assert!(!ids.iter().any(|id| tokenizer.is_control(*id)));
    assert_eq!(tokenizer.decode(&ids), "the cat");
}

#[test]
fn a_model_that_fails_at_unknown_text_leaves_it_out() {
    let mut file = kind("Unigram with an unknown token")["tokenizer"].clone();
    file["model"]["unk_id"] = Value::Null;
    let tokenizer = of_text(&file.to_string()).expect("the library loads it");
    assert_eq!(tokenizer.decode(&tokenizer.encode_plain("the 😀 cat")), "the  cat");
}

#[test]
fn dropout_of_the_file_is_ignored() {
    let mut file = kind("Llama 2")["tokenizer"].clone();
    let usual = of_text(&file.to_string()).expect("a tokenizer");
    file["model"]["dropout"] = json!(0.9);
    let tokenizer = of_text(&file.to_string()).expect("a tokenizer");
    for _ in 0..8 {
        assert_eq!(tokenizer.encode_plain("hello world"), usual.encode_plain("hello world"));
    }
}

#[test]
fn a_token_says_its_blank() {
    let tokenizer = tokenizer(&kind("Llama 2"));
    let id = tokenizer.token_id("▁cat").expect("a token");
    assert_eq!(tokenizer.token_text(id).as_deref(), Some(" cat"));
}

/// Each of these names is a control token; text with the name stays text.
/// A grammar's tokens spell what decoding returns, or the tokenizer is refused.
#[test]
fn a_turn_under_a_grammar_decodes_to_a_text_of_it() {
    let mut refused = Vec::new();
    for kind in kinds() {
        let name = kind["name"].as_str().expect("a name").to_owned();
        let tokenizer = tokenizer(&kind);
        let stop = tokenizer.n_ids() as u32;
        let grammar = match Grammar::regex(&tokenizer, "[a-t]{1,6}( [a-t]{1,6}){0,2}", &[stop]) {
            Ok(grammar) => grammar,
            Err(error) => {
                assert!(matches!(error, ChatError::Unsupported(_)), "{name}: {error}");
                refused.push(name);
                continue;
            }
        };
        for seed in 0..40 {
            let Some(turn) = sampled_turn(&grammar, stop, seed, 100) else { continue };
            let text = tokenizer.decode(&turn);
            let is_word = |word: &str| {
                (1..=6).contains(&word.len())
                    && word.bytes().all(|byte| (b'a'..=b't').contains(&byte))
            };
            assert!(
                text.split(' ').all(is_word) && text.split(' ').count() <= 3,
                "{name}: {text:?}"
            );
        }
    }
    assert_eq!(refused, ["WordPiece that lowercases (BERT)"]);
}

#[test]
fn no_kind_makes_control_tokens_of_text() {
    for kind in kinds() {
        let tokenizer = tokenizer(&kind);
        let added = kind["tokenizer"]["added_tokens"].as_array().expect("tokens");
        for token in added {
            let name = token["content"].as_str().expect("a name");
            let id = tokenizer.token_id(name).expect("a token");
            let is_unknown = name.to_lowercase().contains("unk");
            for text in [name.to_owned(), format!("a {name} b"), format!("{name}{name}\n")] {
                let ids = tokenizer.encode_plain(&text);
                let n_controls = ids.iter().filter(|id| tokenizer.is_control(**id)).count();
                // The token for unknown text may occur: the name has letters that the vocabulary lacks.
                assert!(
                    n_controls == 0 || kind["tokenizer"]["model"]["type"] != "BPE",
                    "{}: {text}",
                    kind["name"]
                );
                assert!(
                    is_unknown || !ids.contains(&id) || !tokenizer.is_control(id),
                    "{}: {text}",
                    kind["name"]
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn hostile_text_makes_no_control_token_in_any_kind(text in hostile_text()) {
        for kind in kinds() {
            let tokenizer = tokenizer(&kind);
            let ids = tokenizer.encode_plain(&text);
            let is_unknown = |id: u32| tokenizer.token_text(id).is_some_and(|text| text.to_lowercase().contains("unk"));
            prop_assert!(!ids.iter().any(|id| tokenizer.is_control(*id) && !is_unknown(*id)), "{}", kind["name"]);
            prop_assert_eq!(tokenizer.encode_plain(&text), ids);
        }
    }
}

fn fixture_text() -> String {
    fs::read_to_string(fixture_path().join("tokenizer/tokenizer.json")).expect("fixture")
}

/// A truncated file is refused.
///
/// Field 14
#[test]
fn a_file_cut_anywhere_is_refused() {
    let texts: Vec<String> =
        kinds().iter().map(|kind| kind["tokenizer"].to_string()).chain([fixture_text()]).collect();
    for text in texts {
        let step = (text.len() / 120).max(1);
        let decoder = text.find("\"decoder\"").expect("it has one");
        for at in (0..text.len()).step_by(step).chain(decoder..decoder + 40) {
            let Some(part) = text.get(..at) else { continue };
            let error = of_text(part).expect_err("it is cut");
            assert!(matches!(error, ChatError::Parse { .. }), "{error}");
        }
    }
}

/// Values that a damaged file may have in any place.
const ODD: [&str; 16] = [
    "null",
    "0",
    "-1",
    "1e300",
    "4294967295",
    "18446744073709551616",
    "\"\"",
    "\"x\"",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "{\"type\": \"x\"}",
    "{\"type\": \"Precompiled\", \"precompiled_charsmap\": \"AAA=\"}",
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}, \"behavior\": \"Isolated\", \"invert\": false}",
    "true",
];

/// Collects the paths of all values.
fn places(value: &Value, path: &str, places: &mut Vec<String>) {
    places.push(path.to_owned());
    let deeper: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.clone(), value)).take(24).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().map(|(n, value)| (n.to_string(), value)).take(4).collect()
        }
        _ => Vec::new(),
    };
    for (key, value) in deeper {
        let key = key.replace('~', "~0").replace('/', "~1");
        self::places(value, &format!("{path}/{key}"), places);
    }
}

/// A changed file is either a working tokenizer or refused; it never panics.
#[test]
fn a_file_changed_anywhere_is_refused_or_encodes() {
    let mut n_refused = 0;
    for kind in kinds() {
        let file = &kind["tokenizer"];
        let mut all = Vec::new();
        places(file, "", &mut all);
        for place in &all {
            for odd in ODD {
                let mut changed = file.clone();
                *changed.pointer_mut(place).expect("a place") =
                    serde_json::from_str(odd).expect("JSON");
                match of_text(&changed.to_string()) {
                    Err(error) => {
                        let text = error.to_string();
                        assert!(text.contains("/tokenizer.json: "), "{text}");
                        assert!(!text.chars().any(char::is_control), "{text:?}");
                        assert!(text.chars().count() < 600, "{text}");
                        n_refused += 1;
                    }
                    Ok(tokenizer) => {
                        drop(tokenizer.decode(&tokenizer.encode_plain("the cat\u{4}😀 <s>")));
                    }
                }
            }
        }
    }
    assert!(n_refused > 100, "{n_refused}");
}
