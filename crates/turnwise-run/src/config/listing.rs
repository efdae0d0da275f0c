//! The settings as a commented TOML file.

use std::fmt::Write as _;

use schemars::schema_for;
use serde_json::{Map, Value};
use toml_edit::{DocumentMut, Item, TableLike};

use super::schema::Config;
use crate::failure::Failure;

/// Examples of the settings that are left out by default.
const EXAMPLES: [(&str, &str); 52] = [
    ("run.directory", r#""runs/mine""#),
    ("environment.options", "{ span = 20 }"),
    ("environment.rubric", r#""none""#),
    ("environment.opponent", r#""self""#),
    ("model.directory", r#""path/to/model""#),
    ("model.base", r#""path/to/base""#),
    ("model.template_file", r#""path/to/chat_template.jinja""#),
    ("model.template_arguments", "{ enable_thinking = false }"),
    ("agent.instructions", "true"),
    ("agent.command", r#""python my_agent.py""#),
    ("agent.system_prompt", r#""Think before you answer.""#),
    (
        "agent.examples",
        r#"[{ role = "user", content = "2 + 2?" }, { role = "assistant", content = "4" }]"#,
    ),
    ("agent.stop", r#"["\n"]"#),
    ("agent.prefill", r#""The answer is""#),
    ("agent.thinking_tokens", "256"),
    ("objective.clip", r#""auto""#),
    ("objective.clip_multiple", "1.0"),
    ("model.template", r#""chatml""#),
    ("model.trust", r#""HASH""#),
    ("model.tools", r#""signatures""#),
    ("model.time", r#""2026-01-31""#),
    ("model.lora", r#"{ rank = 16, alpha = 32.0, targets = ["all-linear"] }"#),
    ("rollout.quantization", r#""q8_0""#),
    ("rollout.vllm", r#"{ urls = ["http://127.0.0.1:8000"] }"#),
    ("train.tinker", r#"{ url = "http://127.0.0.1:8000" }"#),
    ("rollout.sglang", r#"{ urls = ["http://127.0.0.1:30000"] }"#),
    ("rollout.workers", r#"{ address = "127.0.0.1:7700" }"#),
    ("rollout.dynamic_sampling", "{ max_groups = 32, max_seconds = 600.0 }"),
    ("rollout.compaction", r#"{ at_tokens = 2048, prompt = "Sum up what happened so far." }"#),
    ("rollout.constraint", r#"{ regex = "yes|no" }"#),
    ("rollout.constraint.json_schema", r#"{ type = "integer" }"#),
    ("rollout.constraint.regex", r#""yes|no""#),
    ("rollout.constraint.lark", r#"'start: "yes" | "no"'"#),
    ("objective.clip_low", "3e-4"),
    ("objective.clip_high", "4e-4"),
    ("objective.dual_clip", "3.0"),
    ("objective.length_weight", r#""mean""#),
    ("objective.max_tokens", "4096"),
    ("objective.log_clip_low", "0.4"),
    ("objective.log_clip_high", "0.4"),
    ("objective.tau_positive", "1.0"),
    ("objective.tau_negative", "1.05"),
    ("objective.off_policy_mask", "0.5"),
    ("objective.kl.estimator", r#""k3""#),
    ("credit.normalise", r#""mean_std""#),
    ("credit.gamma", "1.0"),
    ("credit.outcome_weight", "1.0"),
    ("credit.turn_weight", "1.0"),
    ("eval.opponent", r#""random""#),
    ("credit.step_weight", "1.0"),
    ("train.overlong", "{ max_tokens = 512, buffer = 128 }"),
    ("train.recompute_layers", "true"),
];

/// The width of a comment, in columns.
const WIDTH: usize = 100;

/// Formats every setting with its value in `config` and its description; a setting that is left out is printed as a
/// comment.
///
/// # Errors
/// When a value has no form in TOML.
pub fn listing(config: &Config) -> Result<String, Failure> {
    let values = toml_edit::ser::to_document(config).map_err(|error| Failure::runtime(&error))?;
    let mut printer = Printer::new(&values);
    for (name, schema) in printer.properties(&printer.root.clone()) {
        printer.table(&name, &schema);
    }
    Ok(printer.out.trim_start().to_owned())
}

struct Printer<'a> {
    root: Value,
    values: &'a DocumentMut,
    out: String,
}

impl<'a> Printer<'a> {
    fn new(values: &'a DocumentMut) -> Self {
        Self { root: schema_for!(Config).to_value(), values, out: String::new() }
    }

    /// Prints a table: its own settings, then its inner tables.
    fn table(&mut self, path: &str, schema: &Value) {
        self.out.push('\n');
        if let Some(text) = self.description(schema) {
            self.comment(&text);
        }
        let _ = writeln!(self.out, "[{path}]");
        let mut inner = Vec::new();
        for (name, schema) in self.properties(schema) {
            let key = format!("{path}.{name}");
            let value = find(self.values, &key);
            match value {
                Some(item) if is_table(item) && !self.properties(&schema).is_empty() => {
                    inner.push((key, schema));
                }
                _ => self.setting(&key, &name, &schema, value.map(text)),
            }
        }
        for (key, schema) in inner {
            self.table(&key, &schema);
        }
    }

    fn setting(&mut self, key: &str, name: &str, schema: &Value, value: Option<String>) {
        let mut says = self.description(schema).unwrap_or_default();
        let choices = self.choices(schema);
        if !choices.is_empty() {
            says = format!("{says} One of {}.", choices.join(", "));
        }
        self.comment(says.trim());
        let _ = match (value, example(key)) {
            (Some(value), _) => writeln!(self.out, "{name} = {value}"),
            (None, Some(example)) => writeln!(self.out, "# {name} = {example}"),
            (None, None) => writeln!(self.out, "# {name} = …"),
        };
    }

    fn comment(&mut self, text: &str) {
        let mut line = String::from("#");
        for word in text.split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                self.out.push_str(&line);
                line = String::from("\n#");
            }
            line.push(' ');
            line.push_str(word);
        }
        if !text.is_empty() {
            self.out.push_str(&line);
            self.out.push('\n');
        }
    }

    /// Follows a schema's reference, and removes the null of an optional setting.
    fn resolved(&self, schema: &Value) -> Value {
        if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
            return self.root["$defs"][name].clone();
        }
        let any = schema["anyOf"].as_array();
        let other = any.and_then(|any| any.iter().find(|one| one["type"] != "null"));
        other.map_or_else(|| schema.clone(), |other| self.resolved(other))
    }

    fn properties(&self, schema: &Value) -> Vec<(String, Value)> {
        let none = Map::new();
        let resolved = self.resolved(schema);
        let properties = resolved["properties"].as_object().unwrap_or(&none);
        properties.iter().map(|(name, schema)| (name.clone(), schema.clone())).collect()
    }

    /// Returns the documentation of the setting, or that of its type.
    fn description(&self, schema: &Value) -> Option<String> {
        let own = schema["description"].as_str().map(str::to_owned);
        own.or_else(|| Some(self.resolved(schema)["description"].as_str()?.to_owned()))
            .map(|text| text.replace("[`", "`").replace("`]", "`"))
    }

    /// Returns the words that the setting accepts.
    fn choices(&self, schema: &Value) -> Vec<String> {
        let resolved = self.resolved(schema);
        let quoted = |word: &Value| word.as_str().map(|word| format!("{word:?}"));
        if let Some(words) = resolved["enum"].as_array() {
            return words.iter().filter_map(quoted).collect();
        }
        let variants = resolved["oneOf"].as_array().cloned().unwrap_or_default();
        let choice = |variant: &Value| match (&variant["const"], &variant["enum"]) {
            (word @ Value::String(_), _) => quoted(word).into_iter().collect(),
            (_, Value::Array(words)) => words.iter().filter_map(quoted).collect(),
            _ => {
                let object = variant["properties"].as_object();
                object.into_iter().flat_map(Map::keys).map(|key| format!("{{{key} = …}}")).collect()
            }
        };
        let choices: Vec<String> =
            variants.iter().flat_map(|one| -> Vec<String> { choice(one) }).collect();
        choices
    }
}

fn example(key: &str) -> Option<&'static str> {
    EXAMPLES.iter().find(|(known, _)| *known == key).map(|(_, example)| *example)
}

fn find<'a>(values: &'a DocumentMut, key: &str) -> Option<&'a Item> {
    let mut parts = key.split('.');
    let mut table: &dyn TableLike = values.as_table();
    let last = parts.next_back()?;
    for part in parts {
        table = table.get(part)?.as_table_like()?;
    }
    table.get(last)
}

fn is_table(item: &Item) -> bool {
    item.as_table_like().is_some()
}

fn text(item: &Item) -> String {
    match item.clone().into_value() {
        Ok(value) => value.to_string().trim().to_owned(),
        Err(item) => item.to_string().trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn what_is_printed_is_read_back_as_the_same_settings() {
        let printed = listing(&Config::default()).unwrap();
        let read =
            parse("printed", &printed, &[]).unwrap_or_else(|error| panic!("{error}\n{printed}"));
        assert_eq!(read.config, Config::default());
    }

    /// Every key of the schema is printed; a key that is left out has an example that can be read.
    ///
    /// Field 19
    #[test]
    fn every_setting_is_printed_and_explained() {
        let printed = listing(&Config::default()).unwrap();
        let mut table = String::new();
        let mut explained = false;
        for line in printed.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                name.clone_into(&mut table);
                explained = false;
                continue;
            }
            let setting = line.trim_start_matches("# ");
            let is_setting = setting.split_once(" = ").is_some_and(|(name, _)| {
                !name.is_empty()
                    && name
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
            });
            if is_setting && (line != setting || !line.starts_with('#')) {
                assert!(explained, "[{table}] {line} is not explained\n{printed}");
                if line.starts_with("# ") {
                    let alone = format!("[{table}]\n{setting}\n");
                    let read: Result<Config, _> = toml_edit::de::from_str(&alone);
                    assert!(read.is_ok(), "{alone}: {:?}", read.err());
                }
                explained = false;
            } else if line.starts_with("# ") {
                explained = true;
            }
        }
    }
}
