//! Options of a `config.json` that this crate does not support.

use serde_json::{Map, Value};

use super::super::window::WindowLayers;
use super::{bad, present, rope};
use crate::error::brief;
use crate::{Architecture, ModelError};

/// A key, its supported value, and a test for that value.
type KeyCheck = (&'static str, &'static str, fn(&Value) -> bool);

const CHECKS: [KeyCheck; 6] = [
    // Embedding models have attention in both directions.
    ("is_causal", "true", |value| value == true),
    // Embedding models made of a Gemma 3.
    ("use_bidirectional_attention", "false", |value| value == false),
    ("attn_logit_softcapping", "none", Value::is_null),
    ("final_logit_softcapping", "none", Value::is_null),
    ("clip_qkv", "none", Value::is_null),
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
            reasons.extend(other_options(json));
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
            Some(Value::Object(parameters)) => {
                reasons.extend(other_rope(json, key, parameters));
            }
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

/// Explains options that some families have and others do not.
fn other_options(json: &Map<String, Value>) -> Vec<String> {
    let kind = model_type(json);
    let mut reasons = Vec::new();
    let (key, expected): (_, &[&str]) = match kind {
        "gemma3_text" => ("hidden_activation", &["gelu_pytorch_tanh"]),
        _ => ("hidden_act", &["silu", "swish"]),
    };
    if let Some(activation) = present(json, key)
        && !expected.iter().any(|expected| activation == expected)
    {
        let activation = brief(activation);
        reasons.push(format!("{key} is {activation}; supported of {kind}: {}", quoted(expected)));
    }
    if let Some(share) = present(json, "partial_rotary_factor")
        && kind != "phi3"
        && share.as_f64() != Some(1.0)
    {
        reasons.push(format!("partial_rotary_factor is {}; supported of {kind}: 1", brief(share)));
    }
    if let Some(types) = present(json, "layer_types") {
        let supported: &[&str] = match WindowLayers::of(kind) {
            WindowLayers::Any | WindowLayers::All => &["full_attention", "sliding_attention"],
            WindowLayers::Absent => &["full_attention"],
        };
        let is_known = |kind: &Value| kind.as_str().is_some_and(|kind| supported.contains(&kind));
        if !types.as_array().is_some_and(|types| types.iter().all(is_known)) {
            let types = brief(types);
            reasons.push(format!(
                "layer_types is {types}; supported of {kind}: {}",
                quoted(supported)
            ));
        }
    }
    reasons
}

fn other_rope(
    json: &Map<String, Value>,
    key: &str,
    parameters: &Map<String, Value>,
) -> Vec<String> {
    const KINDS: &[&str] = &["default", "linear", "dynamic", "llama3", "longrope", "su", "yarn"];
    let kind = model_type(json);
    let is_by_layer =
        kind == "gemma3_text" && rope::BY_LAYER.iter().any(|of| parameters.contains_key(*of));
    if is_by_layer {
        let each =
            rope::BY_LAYER.iter().filter_map(|of| Some((of, parameters.get(*of)?.as_object()?)));
        return each
            .flat_map(|(of, own)| other_rope_kind(KINDS, &format!("{key} of {of}"), own))
            .collect();
    }
    let mut reasons = other_rope_kind(KINDS, key, parameters);
    if let Some(factor) = present(parameters, "partial_rotary_factor")
        && kind != "phi3"
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

fn other_rope_kind(kinds: &[&str], key: &str, parameters: &Map<String, Value>) -> Vec<String> {
    let others = ["rope_type", "type"].into_iter().filter_map(|name| {
        let kind = present(parameters, name)?;
        let is_known = kind.as_str().is_some_and(|kind| kinds.contains(&kind));
        (!is_known)
            .then(|| format!("{key} is of the type {}; supported: {}", brief(kind), quoted(kinds)))
    });
    others.collect()
}

fn model_type(json: &Map<String, Value>) -> &str {
    json.get("model_type").and_then(Value::as_str).unwrap_or_default()
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}
