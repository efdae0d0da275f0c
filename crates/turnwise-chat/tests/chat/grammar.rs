use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use turnwise_chat::{ChatError, Grammar, Tokenizer, train_tokenizer};
use turnwise_environment::{Random, derive_seed};
use turnwise_rollout::{Continued, TokenConstraint};
use turnwise_trajectory::TokenId;

use crate::support::{MARKERS, fixture, trained};

/// A tokenizer in which many tokens have several bytes, and some end or begin within a character.
static MIXED: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let texts = (0..300).map(|n| {
        format!(
            "{{\"a\": {n}, \"b\": [true, false, null], \"é\": \"日本語 日曜日 né ñ\"}} yes no {}",
            n * 7
        )
    });
    Arc::new(train_tokenizer(texts, 420).expect("420 ids are enough"))
});

fn stop_of(tokenizer: &Tokenizer) -> TokenId {
    tokenizer.token_id("<|im_end|>").expect("the tokenizer has it")
}

fn allowed(grammar: &Grammar, sampled: &[TokenId]) -> Vec<TokenId> {
    let allowed = grammar.allowed(sampled).expect("a grammar constrains every token");
    assert!(allowed.is_sorted_by(|a, b| a < b), "ids ascend without repetition");
    allowed
}

/// Returns the bytes of each token of text by its id, from the names in the file.
fn bytes_of(tokenizer: &Tokenizer) -> BTreeMap<TokenId, Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    tokenizer.save(folder.path()).expect("saved");
    let json = std::fs::read_to_string(folder.path().join("tokenizer.json")).expect("read");
    let file: Value = serde_json::from_str(&json).expect("JSON");
    let bytes: BTreeMap<char, u8> = (0..=u8::MAX).map(|byte| (letter(byte), byte)).collect();
    let vocabulary = file["model"]["vocab"].as_object().expect("a vocabulary");
    let spelt = vocabulary.iter().map(|(name, id)| {
        let id = id.as_u64().expect("an id") as TokenId;
        (id, name.chars().map(|c| bytes[&c]).collect())
    });
    spelt.collect()
}

/// Returns the character that stands for a byte in byte-level names, by its definition in GPT-2.
fn letter(byte: u8) -> char {
    let is_itself = |byte: &u8| matches!(*byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let rank = (0..byte).filter(|byte| !is_itself(byte)).count() as u32;
    let code = if is_itself(&byte) { u32::from(byte) } else { 0x100 + rank };
    char::from_u32(code).expect("a character")
}

/// Samples a turn by uniform choice among the allowed tokens; `None` if it does not end within `n_max` tokens.
pub(crate) fn sampled_turn(
    grammar: &Grammar,
    stop: TokenId,
    seed: u64,
    n_max: usize,
) -> Option<Vec<TokenId>> {
    let mut random = Random::new(seed);
    let mut ids = Vec::new();
    while ids.len() < n_max {
        let allowed = allowed(grammar, &ids);
        assert!(!allowed.is_empty(), "a text that can be reached can be continued: {ids:?}");
        // Ends early where possible, because a uniform choice seldom does.
        let ends = allowed.contains(&stop) && random.below(2) == 0;
        let id = if ends { stop } else { allowed[random.below(allowed.len() as u64) as usize] };
        if id == stop {
            return Some(ids);
        }
        ids.push(id);
    }
    None
}

/// Returns a regular expression that matches exactly these words.
fn one_of(words: &BTreeSet<String>) -> String {
    let escaped = |word: &String| -> Vec<String> {
        word.chars().map(|c| format!("\\u{{{:x}}}", u32::from(c))).collect()
    };
    words.iter().map(|word| escaped(word).concat()).collect::<Vec<_>>().join("|")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Every token of the vocabulary is allowed exactly if some word of the language begins with the text that it makes;
    /// the stop token, if the text is a word. The words have characters of several bytes, which tokens divide.
    #[test]
    fn the_mask_is_that_of_every_token_tried_alone(
        words in prop::collection::btree_set("[abné日本 ]{1,4}|[0-9]{1,3}|yes|日曜日", 1..6),
        seed: u64,
    ) {
        let tokenizer = MIXED.clone();
        let stop = stop_of(&tokenizer);
        let grammar = Grammar::regex(&tokenizer, &one_of(&words), &[stop]).expect("a grammar");
        let bytes = bytes_of(&tokenizer);
        let mut random = Random::new(seed);
        let (mut ids, mut text) = (Vec::new(), Vec::new());
        loop {
            let begins = |text: &[u8]| words.iter().any(|word| word.as_bytes().starts_with(text));
            let is_allowed = |id: &TokenId| match bytes.get(id) {
                Some(bytes) => begins(&[&text[..], bytes].concat()),
                None => *id == stop && words.iter().any(|word| word.as_bytes() == text),
            };
            let expected: Vec<TokenId> =
                (0..tokenizer.n_ids() as TokenId).filter(is_allowed).collect();
            let allowed = allowed(&grammar, &ids);
            prop_assert_eq!(&allowed, &expected, "after {:?}", String::from_utf8_lossy(&text));
            let id = allowed[random.below(allowed.len() as u64) as usize];
            if id == stop {
                break;
            }
            text.extend(&bytes[&id]);
            ids.push(id);
        }
        prop_assert!(words.contains(&tokenizer.decode(&ids)));
    }

    /// Any turn that is sampled under a schema is a value that the schema accepts.
    #[test]
    fn a_turn_under_a_schema_is_a_value_of_the_schema(schema in schema(), seed: u64) {
        for tokenizer in [MIXED.clone(), fixture()] {
            let stop = stop_of(&tokenizer);
            let grammar = Grammar::json_schema(&tokenizer, &schema, &[stop]).expect("a grammar");
            let turns = (0..4).filter_map(|n| sampled_turn(&grammar, stop, derive_seed(seed, n), 400));
            for turn in turns {
                let text = tokenizer.decode(&turn);
                let value: Value = serde_json::from_str(&text)
                    .unwrap_or_else(|error| panic!("{error}: {text:?} under {schema}"));
                prop_assert!(is_valid(&schema, &value), "{value} under {schema}");
            }
        }
    }

    /// The answer to a question depends on the question alone: not on the questions before it, nor on the grammar's
    /// having seen another turn, nor on the thread.
    #[test]
    fn allowed_is_a_function_of_the_tokens(schema in schema(), seed: u64) {
        let tokenizer = trained();
        let stop = stop_of(&tokenizer);
        let make = || Grammar::json_schema(&tokenizer, &schema, &[stop]).expect("a grammar");
        let (first, second) = (make(), make());
        let turns: Vec<Vec<TokenId>> = (0..3)
            .filter_map(|n| sampled_turn(&first, stop, derive_seed(seed, n), 200))
            .collect();
        let mut questions: Vec<&[TokenId]> = turns
            .iter()
            .flat_map(|turn| (0..=turn.len()).map(|n| &turn[..n]))
            .collect();
        let answers: Vec<Vec<TokenId>> =
            questions.iter().map(|question| allowed(&make(), question)).take(8).collect();
        for (question, answer) in questions.iter().zip(&answers) {
            prop_assert_eq!(&allowed(&first, question), answer);
        }
        let ordered: Vec<_> = questions.iter().map(|one| (*one, allowed(&first, one))).collect();
        Random::new(seed).shuffle(&mut questions);
        std::thread::scope(|scope| {
            for part in questions.chunks(questions.len().div_ceil(2).max(1)) {
                let (second, ordered) = (&second, &ordered);
                scope.spawn(move || {
                    for question in part {
                        let (_, answer) = ordered.iter().find(|(one, _)| one == question).expect("asked");
                        assert_eq!(&allowed(second, question), answer);
                    }
                });
            }
        });
    }
}

/// Small schemas whose values end.
fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (-20i64..20, 0i64..300).prop_map(|(low, size)| {
            json!({"type": "integer", "minimum": low, "maximum": low + size})
        }),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        (0usize..6).prop_map(|most| json!({"type": "string", "maxLength": most})),
        prop::collection::btree_set("[a-cé日\"\\\\]{0,3}", 1..4)
            .prop_map(|words| json!({"enum": words})),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let object = prop::collection::btree_map("[a-cé]{1,2}", (inner.clone(), any::<bool>()), 0..3);
        prop_oneof![
            (inner, 0usize..2, 0usize..3).prop_map(|(items, least, more)| {
                json!({"type": "array", "items": items, "minItems": least, "maxItems": least + more})
            }),
            object.prop_map(|fields| {
                let required: Vec<&String> =
                    fields.iter().filter(|(_, (_, must))| *must).map(|(key, _)| key).collect();
                let properties: Map<String, Value> =
                    fields.iter().map(|(key, (schema, _))| (key.clone(), schema.clone())).collect();
                json!({
                    "type": "object", "properties": properties, "required": required,
                    "additionalProperties": false,
                })
            }),
        ]
    })
}

/// A validator of the schemas that [`schema`] makes.
fn is_valid(schema: &Value, value: &Value) -> bool {
    if let Some(words) = schema["enum"].as_array() {
        return words.contains(value);
    }
    let size = |key: &str| schema[key].as_u64().map(|size| size as usize);
    match schema["type"].as_str().expect("every schema has a type") {
        // -0 is an integer, which serde reads as a float.
        "integer" => value.as_i64().or((*value == -0.0).then_some(0)).is_some_and(|number| {
            schema["minimum"].as_i64().is_some_and(|least| least <= number)
                && schema["maximum"].as_i64().is_some_and(|most| number <= most)
        }),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "string" => {
            value.as_str().is_some_and(|text| Some(text.chars().count()) <= size("maxLength"))
        }
        "array" => value.as_array().is_some_and(|items| {
            Some(items.len()) >= size("minItems")
                && Some(items.len()) <= size("maxItems")
                && items.iter().all(|item| is_valid(&schema["items"], item))
        }),
        "object" => value.as_object().is_some_and(|fields| {
            let required = schema["required"].as_array().expect("a list");
            required.iter().all(|key| fields.contains_key(key.as_str().expect("a name")))
                && fields.iter().all(|(key, value)| {
                    schema["properties"].get(key).is_some_and(|schema| is_valid(schema, value))
                })
        }),
        other => panic!("no schema has the type {other}"),
    }
}

/// What the mask allows is what a grammar that has seen nothing accepts, token by token, inside JSON too.
#[test]
fn every_allowed_token_of_a_schema_leads_on_and_every_other_does_not() {
    let tokenizer = MIXED.clone();
    let stop = stop_of(&tokenizer);
    let schema = json!({
        "type": "object",
        "properties": {"a": {"type": "integer"}, "é": {"type": "array", "items": {"type": "string"}}},
        "required": ["a", "é"], "additionalProperties": false,
    });
    let grammar = Grammar::json_schema(&tokenizer, &schema, &[stop]).expect("a grammar");
    let other = Grammar::json_schema(&tokenizer, &schema, &[stop]).expect("a grammar");
    for text in
        ["", "{", "{\"a\": 1", "{\"a\": 12, \"é", "{\"a\":0,\"é\": [\"x", "{\"a\":0,\"é\": []}"]
    {
        let ids = tokenizer.encode_plain(text);
        let allowed = allowed(&grammar, &ids);
        for id in (0..tokenizer.n_ids() as TokenId).filter(|id| *id != stop) {
            let next = [&ids[..], &[id]].concat();
            let leads_on = !self::allowed(&other, &next).is_empty();
            assert_eq!(
                allowed.contains(&id),
                leads_on,
                "{:?} after {text}",
                tokenizer.token_text(id)
            );
        }
    }
}

#[test]
fn a_character_may_be_sampled_in_parts() {
    let tokenizer = train_tokenizer(Vec::new(), 300).expect("bytes");
    let stop = stop_of(&tokenizer);
    let grammar = Grammar::regex(&tokenizer, "[日é]+", &[stop]).expect("a grammar");
    let byte = |byte| tokenizer.token_id(&letter(byte).to_string()).expect("it has every byte");
    let [first, second, third] = *"日".as_bytes() else { panic!("three bytes") };
    assert_eq!(allowed(&grammar, &[]), {
        let mut ids = [byte(first), byte("é".as_bytes()[0])];
        ids.sort_unstable();
        ids
    });
    assert_eq!(allowed(&grammar, &[byte(first)]), [byte(second)]);
    assert_eq!(allowed(&grammar, &[byte(first), byte(second)]), [byte(third)]);
    let whole = [byte(first), byte(second), byte(third)];
    assert!(allowed(&grammar, &whole).contains(&stop));
    assert_eq!(tokenizer.decode(&whole), "日");
}

#[test]
fn control_tokens_are_never_text() {
    let tokenizer = trained();
    let stop = stop_of(&tokenizer);
    let controls: Vec<TokenId> =
        MARKERS.iter().filter_map(|marker| tokenizer.token_id(marker)).collect();
    let anything = Grammar::regex(&tokenizer, "(.|\n)*", &[stop]).expect("a grammar");
    for text in ["", "a", "<tool_call", "<|im_end|"] {
        let allowed = allowed(&anything, &tokenizer.encode_plain(text));
        let controls: Vec<&TokenId> = controls.iter().filter(|id| allowed.contains(id)).collect();
        assert_eq!(controls, [&stop], "after {text:?}");
        assert!(allowed.len() > 200);
    }
    for control in controls {
        assert_eq!(allowed(&anything, &[control]), [] as [TokenId; 0]);
    }
    assert_eq!(allowed(&anything, &[1_000_000]), [] as [TokenId; 0]);
}

#[test]
fn a_lark_grammar_may_name_control_tokens_but_not_the_one_that_ends_the_turn() {
    let tokenizer = trained();
    let stop = stop_of(&tokenizer);
    let id = |name| tokenizer.token_id(name).expect("a marker");
    let lark = "start: <think> /[a-c]/ </think> /[0-9]/";
    let grammar = Grammar::lark(&tokenizer, lark, &[stop]).expect("a grammar");
    assert_eq!(allowed(&grammar, &[]), [id("<think>")]);
    let mut turn = vec![id("<think>")];
    turn.extend(tokenizer.encode_plain("b"));
    assert_eq!(allowed(&grammar, &turn), [id("</think>")]);
    turn.push(id("</think>"));
    turn.extend(tokenizer.encode_plain("7"));
    assert_eq!(allowed(&grammar, &turn), [stop]);
    // The same text without the control token is another turn.
    assert_eq!(allowed(&grammar, &tokenizer.encode_plain("<think>b")), [] as [TokenId; 0]);
    let error = Grammar::lark(&tokenizer, "start: \"a\" <|im_end|> \"b\"", &[stop]).unwrap_err();
    assert!(error.to_string().contains("im_end"), "{error}");
}

#[test]
fn a_turn_ends_with_any_of_the_stop_tokens() {
    let tokenizer = trained();
    let stops = [stop_of(&tokenizer), tokenizer.token_id("<|endoftext|>").expect("a marker")];
    let grammar = Grammar::regex(&tokenizer, "a?", &stops).expect("a grammar");
    let mut sorted = stops;
    sorted.sort_unstable();
    assert_eq!(allowed(&grammar, &tokenizer.encode_plain("a")), sorted);
    // The empty text is complete, so the turn may end at once.
    let first = allowed(&grammar, &[]);
    assert_eq!(first, [&tokenizer.encode_plain("a")[..], &sorted].concat());
}

#[test]
fn a_turn_that_was_interrupted_goes_on_under_the_same_grammar() {
    let tokenizer = trained();
    let stop = stop_of(&tokenizer);
    let constraint: Arc<dyn TokenConstraint> =
        Arc::new(Grammar::regex(&tokenizer, "ab|ac", &[stop]).expect("a grammar"));
    let before = tokenizer.encode_plain("a");
    let rest = Continued { constraint: constraint.clone(), before: before.clone() };
    assert_eq!(rest.allowed(&[]), constraint.allowed(&before));
    assert_eq!(rest.allowed(&[]).expect("constrained").len(), 2);
}

#[test]
fn what_is_no_grammar_is_refused_in_a_sentence() {
    let tokenizer = trained();
    let stop = stop_of(&tokenizer);
    let schema = |schema: Value| Grammar::json_schema(&tokenizer, &schema, &[stop]);
    let refused = vec![
        Grammar::regex(&tokenizer, "(a", &[stop]),
        Grammar::regex(&tokenizer, "a", &[]),
        Grammar::lark(&tokenizer, "", &[stop]),
        Grammar::lark(&tokenizer, "start: missing", &[stop]),
        Grammar::lark(&tokenizer, "start: <no_such_token>", &[stop]),
        schema(json!({"type": "list"})),
        schema(json!({"type": "string", "format": "nonsense-format", "minLength": "x"})),
        schema(json!({"type": "integer", "minimum": 3, "maximum": 2})),
        schema(json!(7)),
    ];
    for refused in refused {
        let error = refused.expect_err("it is no grammar");
        assert!(matches!(error, ChatError::Grammar(_)), "{error:?}");
        let said = error.to_string();
        assert!(said.starts_with("cannot read the grammar: "), "{said}");
        assert!(!said.contains('\n') && !said.contains("<non-verbose/>"), "{said}");
    }
}
