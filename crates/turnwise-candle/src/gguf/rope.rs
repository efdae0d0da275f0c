//! The scaling of rotary frequencies, from the keys that llama.cpp reads (`llama-model.cpp` and `llama-context.cpp`).

use serde_json::{Map, Value, json};

use super::config::Keys;
use crate::ModelError;
use crate::error::brief;

/// The low-frequency and high-frequency factors and the original positions of all published Llama 3 models.
const LLAMA3_ROPE: (f64, f64, usize) = (1.0, 4.0, 8192);

/// Keys that change a scaling, with the values at which they do not.
const NEUTRAL: [(&str, f64); 2] =
    [("rope.scaling.yarn_ext_factor", 1.0), ("rope.scaling.yarn_attn_factor", 1.0)];

/// What to do about a file that says something that is not read.
const CHECKPOINT: &str = "use the model's Hugging Face checkpoint";

impl Keys<'_> {
    /// Returns base and scaling of the rotary frequencies.
    pub(super) fn rope(&self) -> Result<Map<String, Value>, ModelError> {
        let theta = self.number("rope.freq_base").unwrap_or(10_000.0);
        let mut rope = Map::new();
        rope.insert("rope_theta".to_owned(), theta.into());
        let scaling = self.scaling(theta)?;
        rope.extend(scaling.map(|scaling| ("rope_scaling".to_owned(), scaling)));
        Ok(rope)
    }

    fn scaling(&self, theta: f64) -> Result<Option<Value>, ModelError> {
        let kind = self.get("rope.scaling.type");
        let kind = kind.as_ref().and_then(Value::as_str);
        // The older key has the same meaning, and 0 is none.
        let factor =
            self.number("rope.scaling.factor").or_else(|| self.number("rope.scale_linear"));
        let factor = factor.filter(|factor| *factor != 0.0).unwrap_or(1.0);
        let attention = self.number("rope.scaling.attn_factor").unwrap_or(1.0);
        for (key, neutral) in NEUTRAL {
            if let Some(value) = self.number(key).filter(|value| *value != neutral) {
                return Err(self.unread(key, value));
            }
        }
        let scaling = match kind {
            Some("yarn") => return Ok(Some(self.yarn(factor, attention))),
            None | Some("linear") if factor != 1.0 => {
                Some(json!({"rope_type": "linear", "factor": factor}))
            }
            None | Some("none" | "linear") => None,
            Some(kind) => {
                let kind = brief(kind);
                return Err(ModelError::Unsupported(format!(
                    "its RoPE scaling is {kind}; of GGUF files linear, yarn and that of Llama 3 are read"
                )));
            }
        };
        // LongRoPE has the factor in its own settings.
        if attention != 1.0 && !self.has("rope_factors_long.weight") {
            return Err(self.unread("rope.scaling.attn_factor", attention));
        }
        match (scaling, self.llama3_rope(theta)?) {
            (Some(_), Some(_)) => Err(ModelError::Unsupported(format!(
                "it has both rope_freqs.weight and the RoPE scaling factor {factor}; {CHECKPOINT}"
            ))),
            (own, of_llama3) => Ok(own.or(of_llama3)),
        }
    }

    fn yarn(&self, factor: f64, attention: f64) -> Value {
        let mut yarn = json!({"rope_type": "yarn", "factor": factor});
        if let Some(original) = self.count("rope.scaling.original_context_length") {
            yarn["original_max_position_embeddings"] = original.into();
        }
        for key in ["beta_fast", "beta_slow"] {
            if let Some(beta) = self.number(&format!("rope.scaling.yarn_{key}")) {
                yarn[key] = beta.into();
            }
        }
        if attention != 1.0 {
            // llama.cpp multiplies by YaRN's own factor, which transformers takes the key to replace.
            yarn["attention_factor"] = (attention * (0.1 * factor.max(1.0).ln() + 1.0)).into();
        }
        yarn
    }

    fn unread(&self, key: &str, value: f64) -> ModelError {
        let architecture = brief(self.architecture);
        ModelError::Unsupported(format!(
            "its {architecture}.{key} is {value}, with which nothing is computed here; {CHECKPOINT}"
        ))
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    /// Returns Llama 3's scaling, of which a file holds nothing but the wavelength factor of each pair.
    fn llama3_rope(&self, theta: f64) -> Result<Option<Value>, ModelError> {
        const FACTORS: &str = "rope_freqs.weight";
        let Some(shape) = self.file.shape(FACTORS) else { return Ok(None) };
        let head_dim = 2 * shape.iter().product::<usize>();
        let stored = self.file.numbers(FACTORS)?;
        let factor = f64::from(stored.iter().fold(1.0_f32, |largest, x| largest.max(*x)));
        let (low, high, original) = LLAMA3_ROPE;
        let scaling = json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        });
        let standard = crate::RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_positions: original,
        };
        let plain = crate::RopeScaling::None.frequencies(theta, head_dim);
        let scaled = standard.frequencies(theta, head_dim);
        let factors = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
        let is_standard =
            factors.zip(&stored).all(|(ours, own)| (ours / f64::from(*own) - 1.0).abs() < 1e-4);
        if is_standard {
            return Ok(Some(scaling));
        }
        Err(ModelError::Unsupported(format!(
            "{FACTORS} is not the RoPE scaling of a published Llama 3, which is the one that can be read from it"
        )))
    }
}
