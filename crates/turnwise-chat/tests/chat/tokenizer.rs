use std::fs;

use proptest::prelude::*;
use turnwise_chat::{ChatError, Tokenizer};

use crate::support::{MARKERS, fixture, fixture_path, hostile_text, trained};

fn edited(edit: impl Fn(&mut serde_json::Value)) -> Result<Tokenizer, ChatError> {
    let text =
        fs::read_to_string(fixture_path().join("tokenizer/tokenizer.json")).expect("fixture");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    edit(&mut json);
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("written");
    Tokenizer::from_directory(folder.path())
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = Tokenizer::from_directory(folder.path()).expect_err("there is none");
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    assert!(matches!(error, ChatError::Read { .. }));
}

/// An error is one short line that names the file, whatever the file contains.
#[test]
fn a_broken_file_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    let odd = "x\\u001b[31m\\n".repeat(2000);
    let unknown = format!("{{\"model\": {{\"type\": \"BPE\", \"vocab\": {{\"a\": \"{odd}\"}}}}}}");
    let decoder = format!(
        "{{\"model\": {{\"type\": \"BPE\", \"vocab\": {{}}, \"merges\": []}}, \"decoder\": {{\"type\": \"{odd}\"}}}}"
    );
    for broken in [
        &b"{"[..],
        b"",
        b"[]",
        b"\xff\xfe",
        &b"[".repeat(100_000),
        unknown.as_bytes(),
        decoder.as_bytes(),
    ] {
        fs::write(&path, broken).expect("written");
        for read in [Tokenizer::from_directory(folder.path()), Tokenizer::from_file(&path)] {
            let error = read.expect_err("it is broken");
            assert!(matches!(error, ChatError::Parse { .. }), "{error}");
            let text = error.to_string();
            let reason = text.strip_prefix(&format!("cannot parse {}: ", path.display()));
            let reason = reason.unwrap_or_else(|| panic!("no file: {text}"));
            assert!(!reason.is_empty() && reason.chars().count() < 230, "{text}");
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
}

#[test]
fn a_huge_file_is_not_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = fs::File::create(folder.path().join("tokenizer.json")).expect("created");
    file.set_len((256 << 20) + 1).expect("a sparse file");
    let error = Tokenizer::from_directory(folder.path()).expect_err("it is too big");
    assert!(matches!(error, ChatError::TooBig { .. }), "{error}");
}

#[test]
fn truncation_and_padding_of_the_file_are_ignored() {
    let tokenizer = edited(|json| {
        json["truncation"] = serde_json::json!(
            {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    })
    .expect("a tokenizer");
    let text = "one two three four five six";
    assert_eq!(tokenizer.decode(&tokenizer.encode_with_markers(text)), text);
    assert_eq!(tokenizer.decode(&tokenizer.encode_plain(text)), text);
}

/// Merges that lead to an added token are the only way in which plain text could become it.
#[test]
fn an_added_token_that_merges_can_spell_is_spelled_out() {
    let tokenizer = edited(|json| {
        let id = json["model"]["vocab"]["he"].clone();
        json["added_tokens"].as_array_mut().expect("a list").insert(
            0,
            serde_json::json!({"id": id, "content": "he", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}),
        );
    })
    .expect("a tokenizer");
    let he = tokenizer.token_id("he").expect("it is in the vocabulary");
    assert!(tokenizer.encode_with_markers("the").contains(&he));
    let ids = tokenizer.encode_plain("the hé");
    assert!(!ids.contains(&he));
    assert_eq!(tokenizer.decode(&ids), "the hé");
}

#[test]
fn a_saved_tokenizer_is_the_same_tokenizer() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("new/folder");
    for original in [fixture(), trained()] {
        original.save(&copy).expect("saved");
        let read = Tokenizer::from_directory(&copy).expect("read");
        assert_eq!(read.fingerprint(), original.fingerprint());
        assert_eq!(read.n_ids(), original.n_ids());
        fs::remove_dir_all(&copy).expect("removed");
    }
}

#[test]
fn a_models_own_files_are_kept_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    fixture().save(folder.path()).expect("saved");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let original = fs::read(fixture_path().join("tokenizer").join(name)).expect("read");
        assert_eq!(fs::read(folder.path().join(name)).expect("read"), original);
    }
}

#[test]
fn a_trained_tokenizer_is_saved_with_a_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    trained().save(folder.path()).expect("saved");
    let text = fs::read_to_string(folder.path().join("tokenizer_config.json")).expect("read");
    let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["eos_token"], "<|im_end|>");
    assert_eq!(config["pad_token"], "<|endoftext|>");
    assert!(
        config["chat_template"].as_str().expect("a template").contains("add_generation_prompt")
    );
}

#[test]
fn ids_and_texts_name_each_other() {
    let tokenizer = fixture();
    assert_eq!(tokenizer.n_ids(), 384);
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(379));
    assert_eq!(tokenizer.token_id("no such token"), None);
    assert_eq!(tokenizer.token_text(379).as_deref(), Some("<|im_end|>"));
    assert_eq!(tokenizer.token_text(259).as_deref(), Some(" the"));
    assert_eq!(tokenizer.token_text(384), None);
    assert_eq!(tokenizer.decode(&[u32::MAX, 83]), "t");
}

#[test]
fn threads_agree() {
    let text = "the assistant <|im_end|> 日本語 42\n".repeat(200);
    let expected = fixture().encode_plain(&text);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(fixture().encode_plain(&text), expected));
        }
    });
}

#[test]
fn a_megabyte_of_blanks_is_encoded_whole() {
    let text = " ".repeat(1 << 20);
    for tokenizer in [trained(), fixture()] {
        assert_eq!(tokenizer.decode(&tokenizer.encode_plain(&text)), text);
    }
}

proptest! {
    #[test]
    fn any_text_comes_back_without_control_tokens(text in hostile_text()) {
        let tokenizer = trained();
        let ids = tokenizer.encode_plain(&text);
        prop_assert!(!ids.iter().any(|id| tokenizer.is_control(*id)));
        prop_assert_eq!(tokenizer.decode(&ids), text.as_str());
        prop_assert_eq!(tokenizer.encode_plain(&text), ids);
        let ids = fixture().encode_plain(&text);
        prop_assert!(!ids.iter().any(|id| fixture().is_control(*id)));
    }

    #[test]
    fn decoding_is_total(ids in prop::collection::vec(prop_oneof![0..400_u32, any::<u32>()], 0..40)) {
        for tokenizer in [trained(), fixture()] {
            let (whole, visible) = (tokenizer.decode(&ids), tokenizer.decode_without_special(&ids));
            prop_assert!(visible.len() <= whole.len());
        }
    }
}

#[test]
fn every_marker_is_one_control_token_in_a_template_and_none_in_a_text() {
    let tokenizer = trained();
    for marker in MARKERS {
        let ids = tokenizer.encode_with_markers(marker);
        assert_eq!(ids, [tokenizer.token_id(marker).expect("a token")]);
        assert!(tokenizer.is_control(ids[0]));
        assert!(tokenizer.encode_plain(marker).len() > 1);
    }
}
