//! How byte-level vocabularies split texts before they merge: the names of `tokenizer.ggml.pre`, with the parts of the
//! models' own `tokenizer.json`.

use serde_json::{Value, json};

/// The parts of `tokenizer.json` that split texts.
pub(super) struct SplitForm {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    /// Whether a piece that is a token as a whole is not merged.
    pub(super) ignores_merges: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Returns the form with this name; `None` if it is unknown.
pub(super) fn of(name: &str) -> Option<SplitForm> {
    let byte_level = |has_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": has_regex});
    let by = |regex: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let nfc = json!({"type": "NFC"});
    let (normalizer, pre_tokenizer, ignores_merges) = match name {
        "default" | "gpt-2" | "gpt2" | "phi-2" | "olmo" | "mpt" => {
            (Value::Null, byte_level(true), false)
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => {
            let parts = json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
            (Value::Null, parts, false)
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" => {
            (Value::Null, by(LLAMA3), true)
        }
        "dbrx" | "smaug-bpe" => (Value::Null, by(LLAMA3), false),
        "qwen2" | "deepseek-r1-qwen" | "megrez" => (nfc, by(QWEN2), false),
        "tekken" => (Value::Null, by(TEKKEN), true),
        "gpt-4o" | "llama4" => (Value::Null, by(GPT4O), false),
        _ => return None,
    };
    Some(SplitForm { normalizer, pre_tokenizer, ignores_merges })
}
