//! Rotary positions in `config.json`: `rope_parameters` since transformers 5, before that `rope_scaling` and `rope_theta`.

use serde_json::{Map, Value, json};

use super::{bad, object, optional, optional_size, present};
use crate::{ModelError, RopeScaling};

/// Base and scaling. Where a file has both forms, `rope_scaling` is what all versions of transformers go by.
pub(super) fn read(
    json: &Map<String, Value>,
    max_positions: usize,
) -> Result<(f64, RopeScaling), ModelError> {
    let named = |key| present(json, key).and_then(Value::as_object);
    let (old, new) = (named("rope_scaling"), named("rope_parameters"));
    let places = [old, new, Some(json)].into_iter().flatten();
    let theta = places.into_iter().find(|place| present(place, "rope_theta").is_some());
    let theta =
        theta.map_or(Ok(10_000.0), |place| optional(place, "rope_theta", 0.0, Value::as_f64))?;
    let scaling =
        old.or(new).map_or(Ok(RopeScaling::None), |parameters| scaling(parameters, max_positions));
    Ok((theta, scaling?))
}

fn scaling(
    parameters: &Map<String, Value>,
    max_positions: usize,
) -> Result<RopeScaling, ModelError> {
    let kind = present(parameters, "rope_type").or_else(|| present(parameters, "type"));
    let kind = kind.and_then(Value::as_str).unwrap_or("default");
    let needed = |key| match present(parameters, key).and_then(Value::as_f64) {
        Some(value) => Ok(value),
        None => Err(bad(format!("rotary positions of the type \"{kind}\" need a number {key}"))),
    };
    let original = optional_size(parameters, "original_max_position_embeddings")?;
    Ok(match kind {
        "linear" => RopeScaling::Linear { factor: needed("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_positions: original.ok_or_else(|| {
                bad("rotary positions of the type \"llama3\" need original_max_position_embeddings")
            })?,
        },
        "yarn" => {
            let factor = needed("factor")?;
            RopeScaling::Yarn {
                factor,
                beta_fast: optional(parameters, "beta_fast", 32.0, Value::as_f64)?,
                beta_slow: optional(parameters, "beta_slow", 1.0, Value::as_f64)?,
                attention_factor: attention_factor(parameters, factor)?,
                truncate: optional(parameters, "truncate", true, Value::as_bool)?,
                original_max_positions: original.unwrap_or(max_positions),
            }
        }
        _ => RopeScaling::None,
    })
}

/// `YaRN`'s constant, unless the file gives it or the two numbers that it is the ratio of.
fn attention_factor(parameters: &Map<String, Value>, factor: f64) -> Result<f64, ModelError> {
    let scaled = |share: f64| if factor <= 1.0 { 1.0 } else { 0.1 * share * factor.ln() + 1.0 };
    let number = |key| optional(parameters, key, 0.0, Value::as_f64);
    let (above, below) = (number("mscale")?, number("mscale_all_dim")?);
    let default =
        if above != 0.0 && below != 0.0 { scaled(above) / scaled(below) } else { scaled(1.0) };
    optional(parameters, "attention_factor", default, Value::as_f64)
}

/// Both forms: the first is for transformers 5, the others for its predecessors and for inference servers.
pub(super) fn write(theta: f64, scaling: RopeScaling) -> Map<String, Value> {
    let old = match scaling {
        RopeScaling::None => Value::Null,
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
