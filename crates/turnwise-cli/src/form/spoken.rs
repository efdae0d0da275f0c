//! What a saved model says about how it is spoken to: the same as in training.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};
use turnwise::trajectory::TokenId;

use super::files::{eos_ids, object};

/// How conversations with a model are written, and where its turns end.
#[derive(Clone, Debug)]
pub(crate) struct Spoken {
    /// The template that makes the prompts of training; `None` where it is the model's own.
    pub(crate) template: Option<String>,
    /// The control tokens that end a turn; the first is the one that the form writes.
    pub(crate) ends: Vec<(String, TokenId)>,
}

impl Spoken {
    /// Writes into a model directory what other programs read of it: the template where a model has another one or none, and the end
    /// tokens where they miss one.
    pub(crate) fn complete(&self, directory: &Path) -> io::Result<()> {
        if let Some(template) = &self.template {
            std::fs::write(directory.join("chat_template.jinja"), template)?;
            change(&directory.join("tokenizer_config.json"), |config| {
                config.insert("chat_template".to_owned(), template.clone().into());
                if let Some((end, _)) = self.ends.first() {
                    config.insert("eos_token".to_owned(), end.clone().into());
                }
            })?;
        }
        let ends = |config: &mut Map<String, Value>| {
            let mut ids: Vec<TokenId> = self.ends.iter().map(|(_, id)| *id).collect();
            let known = eos_ids(config);
            if ids.iter().all(|id| known.contains(id)) {
                return;
            }
            ids.extend(known.into_iter().filter(|id| self.ends.iter().all(|(_, end)| end != id)));
            let ids = if let [id] = ids[..] { json!(id) } else { json!(ids) };
            config.insert("eos_token_id".to_owned(), ids);
        };
        change(&directory.join("generation_config.json"), ends)?;
        let config = directory.join("config.json");
        if config.is_file() { change(&config, ends) } else { Ok(()) }
    }
}

/// Changes a file's JSON object; without a file an empty one.
fn change(path: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> io::Result<()> {
    let before = object(path).map_err(io::Error::other)?;
    let mut config = before.clone();
    change(&mut config);
    if config == before {
        return Ok(());
    }
    std::fs::write(path, format!("{:#}\n", Value::Object(config)))
}
