//! Sliding windows in `config.json`.

use serde_json::{Map, Value, json};

use super::super::window::WindowLayers;
use super::{bad, object, optional, optional_size, present};
use crate::error::brief;
use crate::{DecoderConfig, ModelError, SlidingWindow};

/// Reads the window of a family, with the defaults of transformers. `unrotated` are the layers without rotary position
/// embedding.
pub(super) fn read(
    json: &Map<String, Value>,
    kind: &str,
    n_layers: usize,
    unrotated: &[usize],
) -> Result<Option<SlidingWindow>, ModelError> {
    let window_layers = WindowLayers::of(kind);
    let is_on = match kind {
        "mistral" | "mixtral" | "phi3" | "gemma3_text" => true,
        _ => optional(json, "use_sliding_window", false, Value::as_bool)?,
    };
    if window_layers == WindowLayers::Absent {
        return Ok(None);
    }
    let length = if is_on { optional_size(json, "sliding_window")? } else { None };
    let layers = match window_layers {
        WindowLayers::Any => match present(json, "layer_types") {
            Some(types) => listed(types, n_layers)?,
            None if length.is_none() => Vec::new(),
            None => usual(json, kind, n_layers, unrotated)?,
        },
        _ => (0..n_layers).collect(),
    };
    match length {
        Some(length) => Ok((!layers.is_empty()).then_some(SlidingWindow { length, layers })),
        None if window_layers == WindowLayers::Any && !layers.is_empty() => Err(bad(
            "layer_types has sliding_attention, and there is no sliding_window; set its length, or full_attention",
        )),
        None => Ok(None),
    }
}

/// Returns the layers with a window according to a list of the layers' types.
fn listed(types: &Value, n_layers: usize) -> Result<Vec<usize>, ModelError> {
    let types = types.as_array().map_or(&[][..], Vec::as_slice);
    let sliding = types.iter().enumerate().filter(|(_, kind)| *kind == "sliding_attention");
    let sliding: Vec<usize> = sliding.map(|(layer, _)| layer).collect();
    if !sliding.is_empty() && types.len() != n_layers {
        let n_types = types.len();
        return Err(bad(format!(
            "layer_types has {n_types} types, and there are {n_layers} layers"
        )));
    }
    Ok(sliding)
}

/// Returns the layers with a window in a file that does not list the layers' types.
fn usual(
    json: &Map<String, Value>,
    kind: &str,
    n_layers: usize,
    unrotated: &[usize],
) -> Result<Vec<usize>, ModelError> {
    let first = optional_size(json, "max_window_layers")?.unwrap_or(28);
    let pattern = match optional_size(json, "sliding_window_pattern")? {
        Some(0) => return Err(bad("sliding_window_pattern is 0 and must be positive")),
        pattern => pattern.unwrap_or(6),
    };
    let has_window = |layer: &usize| match kind {
        "gemma3_text" => !(layer + 1).is_multiple_of(pattern),
        "qwen2_moe" => layer.is_multiple_of(2) && *layer < first,
        "smollm3" => unrotated.contains(layer),
        _ => *layer >= first,
    };
    Ok((0..n_layers).filter(has_window).collect())
}

/// Reads the layers of a `SmolLM3` without rotary position embedding.
pub(super) fn unrotated(
    json: &Map<String, Value>,
    n_layers: usize,
) -> Result<Vec<usize>, ModelError> {
    let Some(flags) = present(json, "no_rope_layers") else {
        let interval = optional_size(json, "no_rope_layer_interval")?.unwrap_or(4);
        if interval == 0 {
            return Err(bad("no_rope_layer_interval is 0 and must be positive"));
        }
        return Ok((0..n_layers).filter(|layer| (layer + 1).is_multiple_of(interval)).collect());
    };
    // In spite of the key's name, 1 stands for a layer with rotary position embedding.
    let read = serde_json::from_value::<Vec<u8>>(flags.clone()).ok();
    let flags = read.filter(|flags| flags.len() >= n_layers).ok_or_else(|| {
        let flags = brief(flags);
        bad(format!("no_rope_layers is {flags} and must be a list of 0 or 1 for each layer"))
    })?;
    Ok((0..n_layers).filter(|layer| flags[*layer] == 0).collect())
}

/// Writes the window of a model that was created here.
pub(super) fn write(config: &DecoderConfig) -> Map<String, Value> {
    let kind = config.architecture.properties().model_type;
    let length = config.sliding_window.as_ref().map(|window| window.length);
    let types = (0..config.n_layers).map(|layer| match config.window_of(layer) {
        Some(_) => "sliding_attention",
        None => "full_attention",
    });
    let types: Vec<&str> = types.collect();
    let is_on = length.is_some();
    object(match WindowLayers::of(kind) {
        WindowLayers::Absent => json!({}),
        WindowLayers::All if kind == "qwen3_moe" && !is_on => json!({}),
        WindowLayers::All if kind == "qwen3_moe" => {
            json!({"use_sliding_window": true, "sliding_window": length})
        }
        WindowLayers::All => json!({"sliding_window": length}),
        WindowLayers::Any if kind == "gemma3_text" => {
            json!({"sliding_window": length, "layer_types": types})
        }
        WindowLayers::Any if !is_on && kind == "qwen3" => json!({}),
        WindowLayers::Any if !is_on => json!({"use_sliding_window": false}),
        WindowLayers::Any => {
            json!({"use_sliding_window": true, "sliding_window": length, "layer_types": types})
        }
    })
}
