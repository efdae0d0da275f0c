//! The text model of a model for text and images.

use serde_json::{Map, Value, json};

use super::{bad, object};
use crate::ModelError;

/// Returns whether a model reads images, too, and has a text model that is read here without the rest.
pub(crate) fn has_images(json: &Map<String, Value>) -> bool {
    json.get("model_type").is_some_and(|kind| kind == "gemma3")
}

/// Returns the configuration of a model that reads text alone. That of a Gemma 3 with images has one for its text model,
/// which is read here without the rest.
pub(crate) fn text_part(json: Map<String, Value>) -> Result<Map<String, Value>, ModelError> {
    if !has_images(&json) {
        return Ok(json);
    }
    let Some(Value::Object(text)) = json.get("text_config") else {
        return Err(bad("config.json is of a gemma3 and has no text_config"));
    };
    let mut text = text.clone();
    text.extend(object(json!({
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
    })));
    for key in
        ["tie_word_embeddings", "dtype", "torch_dtype", "eos_token_id", "quantization_config"]
    {
        if let Some(value) = json.get(key) {
            text.entry(key).or_insert(value.clone());
        }
    }
    Ok(text)
}
