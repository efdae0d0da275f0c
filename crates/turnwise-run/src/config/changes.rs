//! The differences between the settings of a run and the settings of its checkpoint.

use std::collections::BTreeMap;

use toml_edit::{Item, Value};

use super::schema::Config;

/// A setting whose value has changed.
#[derive(Debug, PartialEq)]
pub(crate) struct Change {
    /// The dotted key.
    pub key: String,
    was: String,
    is: String,
}

impl Change {
    /// Formats the change, as in `rollout.group_size was 4 and is 6`.
    #[must_use]
    pub(crate) fn describe(&self) -> String {
        format!("{} was {} and is {}", self.key, self.was, self.is)
    }

    /// Returns whether a resumed run cannot follow the change, because the checkpoint's weights depend on the setting.
    #[must_use]
    pub(crate) fn is_of_the_weights(&self) -> bool {
        let is_size = SIZES.iter().any(|size| self.key.strip_prefix("model.") == Some(size));
        is_size
            || ["model.directory", "model.base"].contains(&&*self.key)
            || self.key.starts_with("model.lora.")
    }

    /// Returns whether the setting is read only at the start of a run.
    #[must_use]
    pub(crate) fn is_of_the_start(&self) -> bool {
        self.key.starts_with("warm_start.") || self.key == "run.directory"
    }
}

/// The settings that determine the sizes of a new model.
const SIZES: [&str; 7] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
];

/// Returns every setting that differs, in the order of the keys.
#[must_use]
pub(crate) fn changes(before: &Config, now: &Config) -> Vec<Change> {
    let (before, now) = (leaves(before), leaves(now));
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let value = |settings: &BTreeMap<String, String>, key: &String| {
        settings.get(key).cloned().unwrap_or_else(|| "left out".to_owned())
    };
    keys.into_iter()
        .map(|key| Change { key: key.clone(), was: value(&before, key), is: value(&now, key) })
        .filter(|change| change.was != change.is)
        .collect()
}

/// Returns every value with its dotted key. A list counts as one value.
fn leaves(config: &Config) -> BTreeMap<String, String> {
    let document = toml_edit::ser::to_document(config).unwrap_or_default();
    let mut found = BTreeMap::new();
    for (key, item) in document.iter() {
        walk(key, item, &mut found);
    }
    found
}

fn walk(key: &str, item: &Item, found: &mut BTreeMap<String, String>) {
    if let Some(table) = item.as_table_like() {
        for (part, item) in table.iter() {
            walk(&format!("{key}.{part}"), item, found);
        }
    } else if let Some(value) = item.as_value() {
        found.insert(key.to_owned(), undecorated(value));
    }
}

fn undecorated(value: &Value) -> String {
    value.clone().decorated("", "").to_string()
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn a_change_is_found_wherever_it_is() {
        let config = |text: &str| parse("config.toml", text, &[]).expect("settings").config;
        let before = config("[environment]\noptions = {span = 4}\n");
        let now = config(
            "[environment]\noptions = {span = 5}\n[model]\nn_layers = 3\n[objective]\nclip_low = 0.1\n[objective.kl]\nbeta = 0.1\n",
        );
        let said: Vec<String> = changes(&before, &now).iter().map(Change::describe).collect();
        assert_eq!(
            said,
            [
                "environment.options.span was 4 and is 5",
                "model.n_layers was 2 and is 3",
                "objective.clip_low was left out and is 0.1",
                "objective.kl.beta was 0.0 and is 0.1",
            ]
        );
        assert!(changes(&before, &now)[1].is_of_the_weights());
        assert!(changes(&now, &now).is_empty());
    }
}
