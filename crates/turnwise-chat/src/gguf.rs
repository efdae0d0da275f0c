//! Tokenizers from the metadata of GGUF files.

mod splits;

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::brief;
use crate::{ChatError, Tokenizer};

/// Types of tokens in `tokenizer.ggml.token_type`.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// The blank of `SentencePiece`.
const BLANK: &str = "\u{2581}";

/// The metadata of a GGUF file, as far as a tokenizer needs it.
struct Metadata<'a> {
    path: &'a Path,
    keys: &'a Map<String, Value>,
    tokens: Vec<&'a str>,
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes. `keys` are the keys that begin with `tokenizer.`, with their
    /// values, and `architecture` is the model's name in GGUF.
    ///
    /// Byte-level BPE (`gpt2`) and BPE of `SentencePiece` (`llama`) are supported. The tokenizer has the control tokens
    /// of the file, and [`save`](Self::save) writes its special tokens and chat templates too.
    ///
    /// # Errors
    /// When the file describes no tokenizer, another kind, or texts that are split in an unknown way.
    pub fn from_gguf(
        path: &Path,
        architecture: &str,
        keys: &Map<String, Value>,
    ) -> Result<Self, ChatError> {
        let tokens = match keys.get("tokenizer.ggml.tokens") {
            Some(Value::Array(tokens)) => {
                tokens.iter().map(|token| token.as_str().unwrap_or_default()).collect()
            }
            _ => Vec::new(),
        };
        let metadata = Metadata { path, keys, tokens };
        let json = metadata.tokenizer(architecture)?.to_string();
        let config = format!("{:#}\n", Value::Object(metadata.config()));
        Self::with_config(path, json, config)
    }
}

impl<'a> Metadata<'a> {
    fn refuse<T>(&self, reason: impl Into<String>) -> Result<T, ChatError> {
        Err(ChatError::Parse { path: self.path.to_owned(), reason: reason.into() })
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.keys.get(&format!("tokenizer.{key}"))?.as_str()
    }

    /// Returns the token with the id of a key.
    fn token(&self, key: &str) -> Option<&'a str> {
        let id = self.keys.get(&format!("tokenizer.ggml.{key}_token_id"))?.as_u64()?;
        self.tokens.get(usize::try_from(id).ok()?).copied()
    }

    /// Returns `tokenizer.json`.
    fn tokenizer(&self, architecture: &str) -> Result<Value, ChatError> {
        let kind = self.text("ggml.model").unwrap_or("none");
        if self.tokens.is_empty() && kind != "none" {
            return self.refuse("it has no tokenizer.ggml.tokens");
        }
        let is_gemma = architecture.starts_with("gemma");
        let [normalizer, pre_tokenizer, decoder, model] = match kind {
            "gpt2" => self.byte_level()?,
            "llama" if is_gemma => self.gemma()?,
            "llama" => self.sentencepiece(architecture == "phi3")?,
            "none" | "no_vocab" => {
                return self
                    .refuse("it has no tokenizer, so that it can score tokens and nothing else");
            }
            other => {
                return self.refuse(format!(
                    "its tokenizer is of the kind {}; gpt2 and llama are supported",
                    brief(other)
                ));
            }
        };
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added(),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor(kind),
            "decoder": decoder,
            "model": model,
        }))
    }

    /// Returns normalizer, pre-tokenizer, decoder and model of byte-level BPE.
    fn byte_level(&self) -> Result<[Value; 4], ChatError> {
        let Some(merges) = self.listed_merges() else {
            return self.refuse("it has no tokenizer.ggml.merges");
        };
        let pre = self.text("ggml.pre").unwrap_or("default");
        let Some(split) = splits::of(pre) else {
            return self.refuse(format!(
                "it splits texts as {} does, which is not known; use the model's own directory with tokenizer.json",
                brief(pre)
            ));
        };
        let model = json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": split.ignores_merges,
            "vocab": vocabulary(self.tokens.iter().copied()),
            "merges": merges,
        });
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        Ok([split.normalizer, split.pre_tokenizer, decoder, model])
    }

    /// Returns the parts of Llama 2's form. `prepends` tells whether a blank stands before each part between control
    /// tokens, and not only before the first.
    fn sentencepiece(&self, prepends: bool) -> Result<[Value; 4], ChatError> {
        let tokens: Vec<String> = self.tokens.iter().map(|token| (*token).to_owned()).collect();
        let model = self.scored_bpe(&tokens, false)?;
        let has_blank =
            self.keys.get("tokenizer.ggml.add_space_prefix") != Some(&Value::Bool(false));
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": BLANK}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if has_blank {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let decoder = json!({"type": "Sequence", "decoders": decoders});
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK});
        if prepends && has_blank {
            let prepend = json!({"type": "Prepend", "prepend": BLANK});
            let normalizer = json!({"type": "Sequence", "normalizers": [prepend, replace]});
            return Ok([normalizer, Value::Null, decoder, model]);
        }
        let scheme = if has_blank { "first" } else { "never" };
        let metaspace = json!({"type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme, "split": false});
        Ok([Value::Null, metaspace, decoder, model])
    }

    /// Returns the parts of Gemma's form, whose file spells runs of blanks as blanks.
    fn gemma(&self) -> Result<[Value; 4], ChatError> {
        let respelled = self.tokens.iter().map(|token| {
            let is_blank = !token.is_empty() && token.chars().all(|char| char == ' ');
            if is_blank { BLANK.repeat(token.len()) } else { (*token).to_owned() }
        });
        let model = self.scored_bpe(&respelled.collect::<Vec<_>>(), true)?;
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let decoders =
            [replace(BLANK, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        Ok([
            replace(" ", BLANK),
            json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
            json!({"type": "Sequence", "decoders": decoders}),
            model,
        ])
    }

    /// Returns the merges that the file lists, if it lists any.
    fn listed_merges(&self) -> Option<Vec<[String; 2]>> {
        let merges = self.keys.get("tokenizer.ggml.merges")?.as_array()?;
        let pair = |merge: &Value| {
            let (left, right) = merge.as_str()?.split_once(' ')?;
            Some([left.to_owned(), right.to_owned()])
        };
        Some(merges.iter().filter_map(pair).collect())
    }

    /// Returns BPE with byte fallback, with the merges that scores imply. `by_place` takes a token's place in the file
    /// for its score.
    fn scored_bpe(&self, tokens: &[String], by_place: bool) -> Result<Value, ChatError> {
        let scores = || match self.keys.get("tokenizer.ggml.scores") {
            _ if by_place => Some((0..tokens.len()).map(|place| -(place as f64)).collect()),
            Some(Value::Array(scores)) if scores.len() == tokens.len() => {
                let scores = scores.iter().map(|score| score.as_f64().unwrap_or(f64::MIN));
                Some(scores.collect::<Vec<_>>())
            }
            _ => None,
        };
        let implied = || Some(implied_merges(tokens, &scores()?));
        let Some(merges) = self.listed_merges().or_else(implied) else {
            return self.refuse("it has no score for each of its tokens, and no merges");
        };
        let has_unknown = tokens.iter().any(|token| token == "<unk>");
        let unknown = self.token("unknown").or_else(|| has_unknown.then_some("<unk>"));
        Ok(json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary(tokens.iter().map(String::as_str)),
            "merges": merges,
        }))
    }

    /// Returns the control tokens, and the tokens that a user defined.
    fn added(&self) -> Vec<Value> {
        let Some(Value::Array(types)) = self.keys.get("tokenizer.ggml.token_type") else {
            return Vec::new();
        };
        let each = self.tokens.iter().zip(types).enumerate().filter_map(|(id, (token, kind))| {
            let kind = kind.as_u64().filter(|kind| [CONTROL, USER_DEFINED].contains(kind))?;
            // Gemma's runs of blanks are in the vocabulary under another spelling.
            let is_blank = token.chars().all(|char| char == ' ');
            (!is_blank).then(|| {
                json!({
                    "id": id,
                    "content": token,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": kind == CONTROL,
                })
            })
        });
        each.collect()
    }

    fn adds_bos(&self, kind: &str) -> bool {
        // Old files do not say, and SentencePiece adds the token unless told otherwise.
        let own = self.keys.get("tokenizer.ggml.add_bos_token").and_then(Value::as_bool);
        own.unwrap_or(kind == "llama")
    }

    /// Returns the part that puts the first token before a text, for other programs: a chat template writes its own.
    fn post_processor(&self, kind: &str) -> Value {
        let Some(bos) = self.token("bos").filter(|_| self.adds_bos(kind)) else {
            return Value::Null;
        };
        let id = self.tokens.iter().position(|token| *token == bos);
        let first = |part: u8| json!({"SpecialToken": {"id": bos, "type_id": part}});
        let text = |name: &str, part: u8| json!({"Sequence": {"id": name, "type_id": part}});
        json!({
            "type": "TemplateProcessing",
            "single": [first(0), text("A", 0)],
            "pair": [first(0), text("A", 0), first(1), text("B", 1)],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
        })
    }

    /// Returns `tokenizer_config.json`.
    fn config(&self) -> Map<String, Value> {
        let mut config = Map::new();
        config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
        for (name, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]
        {
            let token = self.token(key).map_or(Value::Null, Value::from);
            config.insert(format!("{name}_token"), token);
        }
        let prefix = "tokenizer.chat_template.";
        let named = self
            .keys
            .iter()
            .filter_map(|(key, template)| Some((key.strip_prefix(prefix)?, template.as_str()?)));
        let mut templates: Vec<_> = named.collect();
        templates.extend(self.text("chat_template").map(|usual| ("default", usual)));
        templates.sort_unstable();
        match &templates[..] {
            [] => {}
            [(_, only)] => {
                config.insert("chat_template".to_owned(), (*only).into());
            }
            several => {
                let one =
                    |(name, template): &(&str, &str)| json!({"name": name, "template": template});
                config.insert("chat_template".to_owned(), several.iter().map(one).collect());
            }
        }
        config
    }
}

fn vocabulary<'a>(tokens: impl Iterator<Item = &'a str>) -> Map<String, Value> {
    tokens.enumerate().map(|(id, token)| (token.to_owned(), id.into())).collect()
}

/// Returns the merges of a vocabulary with scores, best first: each token from every two tokens that make it up. Equal
/// scores come in the order of transformers: longer left parts first, then longer right parts.
fn implied_merges(tokens: &[String], scores: &[f64]) -> Vec<[String; 2]> {
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let mut own: Vec<_> = token
            .char_indices()
            .skip(1)
            .filter_map(|(middle, _)| {
                let (left, right) = token.split_at(middle);
                Some((*ids.get(left)?, *ids.get(right)?, left, right, *score))
            })
            .collect();
        own.sort_by_key(|(left, right, ..)| (*left, *right));
        merges.extend(own);
    }
    let length = |part: &str| part.chars().count();
    merges.sort_by(|(.., l0, r0, a), (.., l1, r1, b)| {
        b.total_cmp(a).then(length(l1).cmp(&length(l0))).then(length(r1).cmp(&length(r0)))
    });
    merges.into_iter().map(|(.., left, right, _)| [left.to_owned(), right.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_follow_from_scores_best_first() {
        let tokens = ["a", "b", "c", "ab", "bc", "abc"].map(str::to_owned);
        let merges = implied_merges(&tokens, &[0.0, 0.0, 0.0, -1.0, -2.0, -3.0]);
        let pairs: Vec<String> =
            merges.iter().map(|[left, right]| format!("{left} {right}")).collect();
        assert_eq!(pairs, ["a b", "b c", "ab c", "a bc"]);
    }
}
