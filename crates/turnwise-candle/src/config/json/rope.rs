//! Rotary position embedding in `config.json`: `rope_parameters` since transformers 5, `rope_scaling` and `rope_theta`
//! before.

use serde_json::{Map, Value, json};

use super::{bad, object, optional, optional_size, present};
use crate::error::brief;
use crate::{ModelError, RopeScaling};

/// The key under which the defaults of a family have the base of its frequencies.
pub(super) const DEFAULT_THETA: &str = "default_theta";

/// The rotary settings of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    /// The longest sequence. With `YaRN` it is extended if a file keeps the original length in
    /// `max_position_embeddings`, as Qwen's model cards recommend.
    pub(super) max_positions: usize,
}

/// The keys of the two rotary settings of a Gemma 3 in transformers 5: those of layers without and with a sliding window.
pub(super) const BY_LAYER: [&str; 2] = ["full_attention", "sliding_attention"];

/// Returns the settings of layers without a window in the form of other families, and the base of layers with one.
pub(super) fn by_layer(json: &Map<String, Value>) -> Result<(Map<String, Value>, f64), ModelError> {
    let mut global = json.clone();
    let mut found = optional(json, "rope_local_base_freq", 10_000.0, Value::as_f64)?;
    let Some(Value::Object(parameters)) = present(json, "rope_parameters") else {
        return Ok((global, found));
    };
    let [full, sliding] = BY_LAYER.map(|key| parameters.get(key).and_then(Value::as_object));
    if let Some(sliding) = sliding {
        if kind("rope_parameters of sliding_attention", sliding)? != "default" {
            let reason = "rope_parameters scales the layers with a sliding window; supported: those without one";
            return Err(ModelError::Unsupported(reason.to_owned()));
        }
        found = optional(sliding, "rope_theta", found, Value::as_f64)?;
    }
    if full.is_some() || sliding.is_some() {
        let full = full.cloned().unwrap_or_default();
        global.insert("rope_parameters".to_owned(), Value::Object(full));
    }
    Ok((global, found))
}

/// Reads like transformers 5: `rope_scaling` first, then `rope_parameters`. Rejects contradictions between the two,
/// because other programs read the other one.
pub(super) fn read(json: &Map<String, Value>, max_positions: usize) -> Result<Rope, ModelError> {
    let named = |key: &'static str| {
        let parameters = present(json, key).and_then(Value::as_object);
        // transformers treats an empty object as absent.
        parameters.filter(|parameters| !parameters.is_empty()).map(|parameters| (key, parameters))
    };
    let places = [named("rope_scaling"), named("rope_parameters")];
    let mut found = Vec::new();
    for (key, parameters) in places.into_iter().flatten() {
        found.push((key, scaling(key, parameters, json, max_positions)?));
    }
    if let [(first, one), (second, other)] = &found[..]
        && one != other
    {
        return Err(bad(format!(
            "{first} and {second} contradict each other ({one:?} and {other:?}); remove one of them"
        )));
    }
    let scaling = found.into_iter().next().map_or(RopeScaling::None, |(_, scaling)| scaling);
    let max_positions = match scaling {
        RopeScaling::LongRope { original_max_positions, .. } => {
            max_positions.min(original_max_positions)
        }
        RopeScaling::Yarn { factor, original_max_positions, .. } => {
            #[expect(clippy::cast_sign_loss, reason = "the cast saturates at 0")]
            let extended = (factor * original_max_positions as f64) as usize;
            max_positions.max(extended)
        }
        _ => max_positions,
    };
    Ok(Rope { theta: theta(json, places.into_iter().flatten())?, scaling, max_positions })
}

/// Reads the share of each head that rotates.
pub(super) fn partial(json: &Map<String, Value>) -> Result<f64, ModelError> {
    let key = "partial_rotary_factor";
    let places = ["rope_parameters", "rope_scaling"].map(|name| present(json, name));
    let inner = places.into_iter().flatten().filter_map(Value::as_object);
    let mut found = inner.filter(|parameters| present(parameters, key).is_some());
    optional(found.next().unwrap_or(json), key, 1.0, Value::as_f64)
}

/// Returns the base of the frequencies from whichever place has it.
fn theta<'a>(
    json: &'a Map<String, Value>,
    places: impl Iterator<Item = (&'static str, &'a Map<String, Value>)>,
) -> Result<f64, ModelError> {
    let mut found: Option<(&str, f64)> = None;
    for (place, parameters) in places.chain([("config.json", json)]) {
        if present(parameters, "rope_theta").is_none() {
            continue;
        }
        let theta = optional(parameters, "rope_theta", 0.0, Value::as_f64)?;
        match found {
            Some((other, first)) if first != theta => {
                return Err(bad(format!(
                    "rope_theta is {first} in {other} and {theta} in {place}; remove one of them"
                )));
            }
            _ => found = found.or(Some((place, theta))),
        }
    }
    match found {
        Some((_, theta)) => Ok(theta),
        None => optional(json, DEFAULT_THETA, 10_000.0, Value::as_f64),
    }
}

/// Returns the keys that each type reads.
fn keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "linear" | "dynamic" => &["factor"],
        "longrope" => &[
            "factor",
            "short_factor",
            "long_factor",
            "attention_factor",
            "original_max_position_embeddings",
        ],
        "llama3" => {
            &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        }
        "yarn" => &[
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
        _ => &[],
    }
}

fn kind<'a>(place: &str, parameters: &'a Map<String, Value>) -> Result<&'a str, ModelError> {
    let named = |key| present(parameters, key).and_then(Value::as_str);
    match (named("rope_type"), named("type")) {
        (Some(one), Some(other)) if one != other => Err(bad(format!(
            "{place} is of the rope_type \"{one}\" and of the type \"{other}\"; remove one of them"
        ))),
        // The first name of LongRoPE.
        (Some("su"), _) | (None, Some("su")) => Ok("longrope"),
        (one, other) => Ok(one.or(other).unwrap_or("default")),
    }
}

fn scaling(
    place: &str,
    parameters: &Map<String, Value>,
    json: &Map<String, Value>,
    max_positions: usize,
) -> Result<RopeScaling, ModelError> {
    const COMMON: &[&str] = &["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    let kind = kind(place, parameters)?;
    let unread = parameters.keys().map(String::as_str);
    for key in unread.filter(|key| !COMMON.contains(key) && !keys(kind).contains(key)) {
        tracing::warn!(
            place,
            key = brief(key),
            kind,
            "rotary positions of this type do not read the key"
        );
    }
    let needed = |key| match present(parameters, key).and_then(Value::as_f64) {
        Some(value) => Ok(value),
        None => Err(bad(format!("rotary positions of the type \"{kind}\" need a number {key}"))),
    };
    // As in transformers, an outer key has precedence over an inner one.
    let length = "original_max_position_embeddings";
    let original = match optional_size(json, length)? {
        Some(original) => original,
        None => optional_size(parameters, length)?.unwrap_or(max_positions),
    };
    Ok(match kind {
        "linear" => RopeScaling::Linear { factor: needed("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: needed("factor")? },
        "longrope" => long_rope(parameters, max_positions, original)?,
        "llama3" => RopeScaling::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_positions: original,
        },
        "yarn" => {
            let factor = match parameters.get("factor") {
                Some(Value::Null) => max_positions as f64 / original as f64,
                _ => needed("factor")?,
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: optional(parameters, "beta_fast", 32.0, Value::as_f64)?,
                beta_slow: optional(parameters, "beta_slow", 1.0, Value::as_f64)?,
                attention_factor: attention_factor(parameters, factor)?,
                truncate: match parameters.get("truncate") {
                    // In Python, None counts as False.
                    Some(Value::Null) => false,
                    _ => optional(parameters, "truncate", true, Value::as_bool)?,
                },
                original_max_positions: original,
            }
        }
        _ => RopeScaling::None,
    })
}

fn long_rope(
    parameters: &Map<String, Value>,
    max_positions: usize,
    original: usize,
) -> Result<RopeScaling, ModelError> {
    let factors = |key: &str| {
        let factors = present(parameters, key);
        let read = factors.and_then(|factors| serde_json::from_value(factors.clone()).ok());
        read.ok_or_else(|| {
            bad(format!("rotary positions of the type \"longrope\" need a list of numbers {key}"))
        })
    };
    let growth = max_positions as f64 / original as f64;
    let growth = optional(parameters, "factor", growth, Value::as_f64)?;
    let usual =
        if growth <= 1.0 { 1.0 } else { (1.0 + growth.ln() / (original as f64).ln()).sqrt() };
    Ok(RopeScaling::LongRope {
        short_factor: factors("short_factor")?,
        long_factor: factors("long_factor")?,
        attention_factor: optional(parameters, "attention_factor", usual, Value::as_f64)?,
        original_max_positions: original,
    })
}

/// Returns the constant of `YaRN`, unless the file has it or the two numbers whose ratio it is.
fn attention_factor(parameters: &Map<String, Value>, factor: f64) -> Result<f64, ModelError> {
    let scaled = |share: f64| if factor <= 1.0 { 1.0 } else { 0.1 * share * factor.ln() + 1.0 };
    let number = |key| optional(parameters, key, 0.0, Value::as_f64);
    let (above, below) = (number("mscale")?, number("mscale_all_dim")?);
    let default =
        if above != 0.0 && below != 0.0 { scaled(above) / scaled(below) } else { scaled(1.0) };
    optional(parameters, "attention_factor", default, Value::as_f64)
}

/// Writes both forms: the first for transformers 5, the others for older versions and for inference servers.
pub(super) fn write(theta: f64, scaling: &RopeScaling) -> Map<String, Value> {
    let old = match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Dynamic { factor } => json!({"rope_type": "dynamic", "factor": factor}),
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            attention_factor,
            original_max_positions,
        } => json!({
            "rope_type": "longrope",
            "short_factor": short_factor,
            "long_factor": long_factor,
            "attention_factor": attention_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_positions,
            })
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
            original_max_positions,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "attention_factor": attention_factor,
            "truncate": truncate,
            "original_max_position_embeddings": original_max_positions,
        }),
    };
    let mut new = match &old {
        Value::Object(parameters) => parameters.clone(),
        _ => object(json!({"rope_type": "default"})),
    };
    new.insert("rope_theta".to_owned(), theta.into());
    object(json!({"rope_parameters": new, "rope_theta": theta, "rope_scaling": old}))
}
