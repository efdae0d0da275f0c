//! Options of a `config.json` that this crate does not support.

use serde_json::{Map, Value};

use super::{bad, present};
use crate::error::brief;
use crate::{Architecture, ModelError};

/// A key, its supported value, and a test for that value.
type KeyCheck = (&'static str, &'static str, fn(&Value) -> bool);

const CHECKS: [KeyCheck; 6] = [
    ("hidden_act", "\"silu\"", |value| value == "silu" || value == "swish"),
    ("use_sliding_window", "false", |value| value == false),
    // Embedding models have attention in both directions.
    ("is_causal", "true", |value| value == true),
    ("layer_types", "full attention in every layer", |value| {
        value.as_array().is_some_and(|types| types.iter().all(|kind| kind == "full_attention"))
    }),
    ("partial_rotary_factor", "1", |value| value.as_f64() == Some(1.0)),
    (
        "quantization_config",
        "weights that are not quantised: float32, bfloat16 and float16",
        // transformers writes this next to weights that it has read from a GGUF file; in safetensors they are plain
        // numbers.
        |value| value["quant_method"] == "gguf",
    ),
];

/// # Errors
/// [`ModelError::Unsupported`] with every unsupported option.
pub(super) fn check(json: &Map<String, Value>) -> Result<(), ModelError> {
    let mut reasons = Vec::new();
    let supported = quoted(Architecture::MODEL_TYPES);
    match json.get("model_type").and_then(Value::as_str) {
        Some(kind) if Architecture::MODEL_TYPES.contains(&kind) => {
            reasons.extend(other_class(json, kind));
        }
        Some(other) => {
            let other = brief(other);
            reasons.push(format!("model_type is \"{other}\"; supported: {supported}"));
        }
        None => reasons.push(format!("config.json names no model_type; supported: {supported}")),
    }
    for (key, supported, holds) in CHECKS {
        if let Some(value) = present(json, key).filter(|value| !holds(value)) {
            reasons.push(format!("{key} is {}; supported: {supported}", brief(value)));
        }
    }
    for key in ["rope_scaling", "rope_parameters"] {
        match present(json, key) {
            Some(Value::Object(parameters)) => reasons.extend(other_rope(key, parameters)),
            Some(value) => {
                return Err(bad(format!("{key} is {} and must be an object", brief(value))));
            }
            None => {}
        }
    }
    if reasons.is_empty() {
        return Ok(());
    }
    Err(ModelError::Unsupported(reasons.join("; ")))
}

/// Explains a model of a known family that does not predict the next token.
fn other_class(json: &Map<String, Value>, kind: &str) -> Option<String> {
    let classes = present(json, "architectures")?.as_array()?;
    let is_ours =
        |class: &Value| class.as_str().is_some_and(|class| class.ends_with("ForCausalLM"));
    (!classes.is_empty() && !classes.iter().any(is_ours)).then(|| {
        let classes = brief(Value::Array(classes.clone()));
        format!("architectures is {classes}; supported of {kind}: language models (…ForCausalLM)")
    })
}

fn other_rope(key: &str, parameters: &Map<String, Value>) -> Vec<String> {
    const KINDS: &[&str] = &["default", "linear", "llama3", "yarn"];
    let mut reasons = Vec::new();
    for name in ["rope_type", "type"] {
        let kind = present(parameters, name);
        if let Some(kind) = kind.filter(|kind| !kind.as_str().is_some_and(|k| KINDS.contains(&k))) {
            let kind = brief(kind);
            reasons.push(format!("{key} is of the type {kind}; supported: {}", quoted(KINDS)));
        }
    }
    if let Some(factor) = present(parameters, "partial_rotary_factor")
        && factor.as_f64() != Some(1.0)
    {
        let factor = brief(factor);
        reasons.push(format!("{key} has the partial_rotary_factor {factor}; supported: 1"));
    }
    let nested = parameters.iter().filter(|(_, value)| value.is_object());
    // One reason is enough for several nested models.
    reasons.extend(nested.take(1).map(|(layers, _)| {
        let layers = brief(layers);
        format!("{key} is different for {layers}; supported: the same for all layers")
    }));
    reasons
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}
