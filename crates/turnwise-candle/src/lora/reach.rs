//! The matrices that PEFT's settings reach, and their ranks and scales, as `check_target_module_exists` and
//! `get_pattern_key` of PEFT find them.

use std::collections::HashSet;

use fancy_regex::Regex;
use serde_json::{Map, Value};

use super::MERGE;
use crate::error::brief;
use crate::layout::{Network, ParameterRole, Spec, specs};
use crate::{DecoderConfig, LoraSettings, LoraTarget};

/// The name by which PEFT means all matrices but the head, in any case.
const ALL: &str = "all-linear";

/// A matrix of a model.
struct Module {
    /// The name in PEFT, such as `model.layers.0.self_attn.q_proj`.
    name: String,
    /// `None` for one that cannot have an adapter.
    target: Option<LoraTarget>,
    role: ParameterRole,
}

/// Returns the settings of an adapter of PEFT, or why a model of this configuration cannot have it.
pub(super) fn settings(
    json: &Map<String, Value>,
    config: &DecoderConfig,
) -> Result<LoraSettings, String> {
    let modules = modules(config);
    let targets = Names::of(json, "target_modules")?.ok_or("has no target_modules")?;
    let excluded = Names::of(json, "exclude_modules")?;
    let mut reached = Vec::new();
    for module in &modules {
        let is_excluded = match &excluded {
            Some(excluded) => excluded.has(module)?,
            None => false,
        };
        if !is_excluded && targets.has(module)? {
            reached.push(module);
        }
    }
    let written = || brief(&json["target_modules"]);
    if reached.is_empty() {
        return Err(format!("has target_modules = {}, which is no matrix of the model", written()));
    }
    if let Some(module) = reached.iter().find(|module| module.target.is_none()) {
        return Err(format!(
            "has target_modules = {}, which reaches {}, and that cannot have an adapter; {MERGE}",
            written(),
            module.name
        ));
    }
    let targets = targets_of(&reached, config.n_layers)
        .map_err(|of| format!("has target_modules = {}, which {of}; {MERGE}", written()))?;
    let (rank, alpha) = rank_and_alpha(json, &reached)?;
    Ok(LoraSettings { rank, alpha, targets })
}

/// Returns all matrices of a model. Experts are left out: in transformers they are no modules.
fn modules(config: &DecoderConfig) -> Vec<Module> {
    let network = Network::of(config, None);
    let adaptable: HashSet<&str> =
        network.linears().map(|linear| linear.weight.name.as_str()).collect();
    let is_matrix = |spec: &Spec| {
        !spec.stacked && !matches!(spec.role, ParameterRole::Norm | ParameterRole::Bias)
    };
    let mut modules: Vec<Module> = specs(config, None)
        .into_iter()
        .filter(is_matrix)
        .map(|Spec { name, role, .. }| {
            let module = name.trim_end_matches(".weight");
            let target = LoraTarget::of_module(module).filter(|_| adaptable.contains(&*name));
            Module { name: module.to_owned(), target, role }
        })
        .collect();
    if config.tie_word_embeddings {
        let role = ParameterRole::Head;
        modules.push(Module { name: "lm_head".to_owned(), target: None, role });
    }
    modules
}

/// Returns the targets of matrices, or which of them are not in all layers.
fn targets_of(reached: &[&Module], n_layers: usize) -> Result<Vec<LoraTarget>, String> {
    let mut targets: Vec<LoraTarget> = Vec::new();
    for target in reached.iter().filter_map(|module| module.target) {
        if targets.contains(&target) {
            continue;
        }
        let count = reached.iter().filter(|module| module.target == Some(target)).count();
        if count != n_layers {
            let name = target.name();
            return Err(format!(
                "reaches {name} in {count} of {n_layers} layers, where all of them have an adapter or none"
            ));
        }
        targets.push(target);
    }
    Ok(targets)
}

/// Returns the rank and alpha of all matrices, which must have the same.
fn rank_and_alpha(json: &Map<String, Value>, reached: &[&Module]) -> Result<(usize, f64), String> {
    let is_stabilized = json.get("use_rslora").and_then(Value::as_bool) == Some(true);
    let ranks = Pattern::of(json, "rank_pattern")?;
    let alphas = Pattern::of(json, "alpha_pattern")?;
    let mut found: Option<(u64, f64)> = None;
    for module in reached {
        let rank = ranks.value(module, json.get("r"))?.and_then(Value::as_u64);
        let rank = rank.ok_or("has no rank r")?;
        let alpha = alphas.value(module, json.get("lora_alpha"))?.and_then(Value::as_f64);
        let alpha = alpha.ok_or("has no lora_alpha")?;
        // The factor is alpha over the rank's root instead of the rank (Kalajdzievski, A rank stabilization scaling
        // factor for fine-tuning with LoRA, 2023, section 3).
        let alpha = if is_stabilized { alpha * (rank as f64).sqrt() } else { alpha };
        let (first, first_alpha) = *found.get_or_insert((rank, alpha));
        if (rank, alpha) != (first, first_alpha) {
            let key = if rank == first { "alpha_pattern" } else { "rank_pattern" };
            return Err(format!(
                "has {key} = {}, where all matrices have the same rank and alpha; {MERGE}",
                brief(&json[key])
            ));
        }
    }
    let (rank, alpha) = found.ok_or("has no target_modules")?;
    Ok((usize::try_from(rank).unwrap_or(usize::MAX), alpha))
}

/// Names of modules: whole ones or their ends, or an expression that a whole name matches.
enum Names {
    All,
    Ends(Vec<String>),
    Matching(String, Box<Regex>),
}

impl Names {
    /// Reads the names under a key; `None` if there are none.
    fn of(json: &Map<String, Value>, key: &str) -> Result<Option<Self>, String> {
        match json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) if name.is_empty() => Ok(None),
            Some(Value::String(name)) if name.eq_ignore_ascii_case(ALL) => Ok(Some(Self::All)),
            Some(Value::String(name)) => {
                let regex = expression(key, name, &format!(r"\A(?:{name})\z"))?;
                Ok(Some(Self::Matching(key.to_owned(), Box::new(regex))))
            }
            Some(Value::Array(names)) if names.is_empty() => Ok(None),
            Some(Value::Array(names)) => {
                let text = |name: &Value| {
                    let not_text = || format!("names {} in {key}, which is not text", brief(name));
                    name.as_str().map(str::to_owned).ok_or_else(not_text)
                };
                names.iter().map(text).collect::<Result<_, _>>().map(Self::Ends).map(Some)
            }
            Some(other) => {
                Err(format!("has {key} = {}; write names or an expression", brief(other)))
            }
        }
    }

    fn has(&self, module: &Module) -> Result<bool, String> {
        let name = &module.name;
        match self {
            Self::All => Ok(!matches!(module.role, ParameterRole::Embedding | ParameterRole::Head)),
            Self::Ends(ends) => Ok(ends.iter().any(|end| {
                let before = name.strip_suffix(end.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            })),
            Self::Matching(key, regex) => is_match(key, regex, name),
        }
    }
}

/// Values of single modules, by an expression that the end of a name matches. The first that matches counts.
struct Pattern<'a> {
    key: &'static str,
    values: Vec<(Regex, &'a Value)>,
}

impl<'a> Pattern<'a> {
    fn of(json: &'a Map<String, Value>, key: &'static str) -> Result<Self, String> {
        let entries = match json.get(key) {
            None | Some(Value::Null) => return Ok(Self { key, values: Vec::new() }),
            Some(Value::Object(entries)) => entries,
            Some(other) => return Err(format!("has {key} = {}; write an object", brief(other))),
        };
        let read = |(name, value): (&String, &'a Value)| {
            Ok((expression(key, name, &format!(r"\A(?:.*\.)?(?:{name})\z"))?, value))
        };
        entries.iter().map(read).collect::<Result<_, String>>().map(|values| Self { key, values })
    }

    /// Returns the value of a module, or else `other`.
    fn value(
        &self,
        module: &Module,
        other: Option<&'a Value>,
    ) -> Result<Option<&'a Value>, String> {
        for (regex, value) in &self.values {
            if is_match(self.key, regex, &module.name)? {
                return Ok(Some(value));
            }
        }
        Ok(other)
    }
}

/// Reads an expression; `shown` is the part that stands in the file.
fn expression(key: &str, shown: &str, whole: &str) -> Result<Regex, String> {
    Regex::new(whole).map_err(|error| unusable(key, &format!("{shown}: {error}")))
}

fn is_match(key: &str, regex: &Regex, name: &str) -> Result<bool, String> {
    regex.is_match(name).map_err(|error| unusable(key, &error.to_string()))
}

fn unusable(key: &str, reason: &str) -> String {
    format!("has an expression in {key} that cannot be used ({}); name the modules", brief(reason))
}
