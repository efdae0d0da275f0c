//! Adapters in the format of Hugging Face's PEFT.

use std::path::Path;

use serde_json::{Map, Value, json};
use turnwise_rollout::Meter;

use super::{MERGE, reach};
use crate::checkpoint::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, Piece, Precision, Tensors, Values, read_object, write_json,
    write_tensors,
};
use crate::error::brief;
use crate::layout::{Spec, specs};
use crate::numbers::host_numbers;
use crate::{Decoder, DecoderConfig, LoraSettings, LoraTarget, ModelError};

/// Options of PEFT that change the computation, with their neutral values.
const PLAIN: [(&str, &[&str]); 16] = [
    ("alora_invocation_tokens", &["null"]),
    ("arrow_config", &["null"]),
    ("bias", &["\"none\""]),
    ("fan_in_fan_out", &["false"]),
    ("kasa_config", &["null"]),
    ("layer_replication", &["null"]),
    ("layers_to_transform", &["null"]),
    ("lora_bias", &["false"]),
    ("modules_to_save", &["null", "[]"]),
    ("monteclora_config", &["null"]),
    ("target_parameters", &["null", "[]"]),
    ("trainable_token_indices", &["null"]),
    ("use_bdlora", &["null", "false"]),
    ("use_dora", &["false"]),
    ("use_qalora", &["false"]),
    ("velora_config", &["null"]),
];

/// Settings of an adapter's initialisation or placement, which do not matter for a trained one.
const HARMLESS: [&str; 6] = [
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "runtime_config",
];

/// Initialisations that leave the base model unchanged. The others move a part of the base into the adapter: the
/// trained adapter does not fit the base that the file names.
const KEEPING: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// The content of an adapter's directory.
#[derive(Debug)]
pub(crate) struct Peft {
    pub(crate) settings: LoraSettings,
    /// Values in the order of the parameters.
    pub(crate) values: Vec<Vec<f32>>,
}

impl Peft {
    /// Reads an adapter for a model with this configuration.
    pub(crate) fn read(directory: &Path, config: &DecoderConfig) -> Result<Self, ModelError> {
        let path = directory.join(ADAPTER_CONFIG);
        let json = read_object(&path)?;
        let settings = settings(&json, config)
            .map_err(|reason| ModelError::BadAdapter(format!("{} {reason}", path.display())))?;
        settings.validate(config).map_err(|error| match error {
            ModelError::BadAdapter(reason) => ModelError::BadAdapter(format!(
                "{} cannot be used (r = {}, lora_alpha = {}, target_modules): {reason}; {MERGE}",
                path.display(),
                settings.rank,
                settings.alpha
            )),
            other => other,
        })?;
        let specs = specs(config, Some(&settings));
        let specs: Vec<Spec> = specs.into_iter().filter(|spec| spec.role.is_adapter()).collect();
        let tensors = Tensors::in_file(&directory.join(ADAPTER_WEIGHTS))?;
        if let Some(name) = tensors.names().find(|name| !name.contains(".lora_")) {
            return Err(ModelError::BadAdapter(format!(
                "{} holds {}, a weight of the model itself, which an adapter here has not; where training left it as it was, \
                 save with PEFT's save_embedding_layers=False, and otherwise {MERGE}",
                directory.join(ADAPTER_WEIGHTS).display(),
                brief(name)
            )));
        }
        let loaded = tensors.read(&specs, &Meter::default())?;
        Ok(Self { settings, values: loaded.into_iter().map(|loaded| loaded.values).collect() })
    }
}

impl Decoder {
    /// Writes the adapters into an existing directory in the format of PEFT: `adapter_config.json` and
    /// `adapter_model.safetensors`, F32. `PeftModel.from_pretrained(base, directory)` reads it.
    ///
    /// # Errors
    /// [`ModelError::BadAdapter`] for a model without adapters; an error when a file cannot be written.
    pub fn save_adapter(&self, directory: &Path) -> Result<(), ModelError> {
        let Some(settings) = self.lora() else {
            return Err(ModelError::BadAdapter("it has no adapters to save".to_owned()));
        };
        let adapters = || self.parameters().iter().filter(|p| p.spec.role.is_adapter());
        let held = adapters().map(|parameter| host_numbers(parameter.var()));
        let held = held.collect::<candle_core::Result<Vec<_>>>()?;
        let pieces = adapters().zip(&held).map(|(parameter, values)| Piece {
            name: parameter.spec.name.clone(),
            shape: &parameter.spec.shape,
            values: Values::Numbers(values),
            adapter: None,
            precision: Precision::Single,
        });
        write_tensors(&directory.join(ADAPTER_WEIGHTS), pieces, &Meter::default())?;
        write_json(&directory.join(ADAPTER_CONFIG), &to_json(settings, self))
    }

    /// Attaches adapters that [`Self::save_adapter`] or PEFT wrote for this model.
    ///
    /// # Errors
    /// When a file is missing or damaged, the kind of adapter is not supported, or tensors are missing, unknown or of
    /// another shape; the error names all of them.
    pub fn with_adapter(self, directory: &Path) -> Result<Self, ModelError> {
        let Peft { settings, values } = Peft::read(directory, self.config())?;
        let mut values = values.into_iter();
        self.adapted(&settings, |_| values.next().unwrap_or_default())
    }
}

/// Writes the settings as PEFT does, with its defaults for the rest.
fn to_json(settings: &LoraSettings, model: &Decoder) -> Map<String, Value> {
    let LoraSettings { rank, alpha, .. } = settings;
    let base = model.directory();
    let targets: Vec<&str> = settings.reached_in(model.config()).map(LoraTarget::name).collect();
    // An integer in Python.
    let alpha = if alpha.fract() == 0.0 { json!(*alpha as i64) } else { json!(alpha) };
    let json = json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base.map(|base| base.to_string_lossy()),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    json.as_object().cloned().unwrap_or_default()
}

/// Reads the settings of PEFT, or returns why they are not supported.
fn settings(json: &Map<String, Value>, config: &DecoderConfig) -> Result<LoraSettings, String> {
    let kind = json.get("peft_type").and_then(Value::as_str).unwrap_or_default();
    if kind != "LORA" {
        let kind = brief(kind);
        return Err(format!(
            "has the peft_type {kind:?}; only LORA is supported, and of the others PEFT can merge most: {MERGE}"
        ));
    }
    check_options(json)?;
    reach::settings(json, config)
}

/// Rejects options that change the computation.
fn check_options(json: &Map<String, Value>) -> Result<(), String> {
    for (key, value) in json {
        let is_plain = match PLAIN.iter().find(|(known, _)| known == key) {
            Some((_, plain)) => plain.contains(&value.to_string().as_str()),
            // PEFT adds new options under such keys, and the effect of an unknown one is unknown.
            None if key.starts_with("use_") => value == false || key == "use_rslora",
            None if key.ends_with("_config") && !HARMLESS.contains(&key.as_str()) => {
                value.as_object().is_some_and(Map::is_empty)
            }
            None => true,
        };
        if !is_plain && !value.is_null() {
            let (key, value) = (brief(key), brief(value));
            return Err(format!("has {key} = {value}, which is not supported; {MERGE}"));
        }
    }
    match json.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(name)) if KEEPING.contains(&name.to_lowercase().as_str()) => Ok(()),
        Some(name) => Err(format!(
            "has init_lora_weights = {}, which changes the base model as well; convert it with PEFT first: \
             save_pretrained(…, path_initial_model_for_weight_conversion=…)",
            brief(name)
        )),
    }
}
