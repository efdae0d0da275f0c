//! What a saved model says about how it is spoken to: the same as in training.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};
use turnwise_chat::with_moment;
use turnwise_trajectory::TokenId;

use super::files::{Templates, eos_ids, object};

/// How conversations with a model are written, and where its turns end.
#[derive(Clone, Debug)]
pub struct Spoken {
    /// The template that makes the prompts of training; `None` where it is the model's own.
    pub template: Option<String>,
    /// The model's own templates, where a checkpoint cannot have them byte for byte.
    pub own: Option<Own>,
    /// The control tokens that end a turn; the first is the one that the form writes.
    pub ends: Vec<(String, TokenId)>,
}

impl Spoken {
    /// Writes into a model directory what other programs read of it: the template where a model has another one or none, and the end
    /// tokens where they miss one.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn complete(&self, directory: &Path) -> io::Result<()> {
        if let Some(template) = &self.template {
            std::fs::write(directory.join("chat_template.jinja"), template)?;
            change(&directory.join("tokenizer_config.json"), |config| {
                config.insert("chat_template".to_owned(), template.clone().into());
                if let Some((end, _)) = self.ends.first() {
                    config.insert("eos_token".to_owned(), end.clone().into());
                }
            })?;
        }
        if let Some(own) = &self.own {
            own.write(directory)?;
        }
        // No more and no fewer: what else a file names, such as the default of an architecture for another tokenizer, would cut
        // turns short that training went on with.
        let ends = |config: &mut Map<String, Value>| {
            let ids: Vec<TokenId> = self.ends.iter().map(|(_, id)| *id).collect();
            let known = eos_ids(config);
            if ids.iter().all(|id| known.contains(id)) && known.iter().all(|id| ids.contains(id)) {
                return;
            }
            let ids = if let [id] = ids[..] { json!(id) } else { json!(ids) };
            config.insert("eos_token_id".to_owned(), ids);
        };
        change(&directory.join("generation_config.json"), ends)?;
        let config = directory.join("config.json");
        if config.is_file() { change(&config, ends) } else { Ok(()) }
    }
}

/// The templates of a model, as a checkpoint has them: with the moment of training, and in no folder.
#[derive(Clone, Debug)]
pub struct Own {
    usual: String,
    tool_use: Option<String>,
}

impl Own {
    pub(super) fn new(templates: &Templates, time: Option<&str>) -> Self {
        let at_time = |template: &String| {
            time.and_then(|time| with_moment(template, time)).unwrap_or_else(|| template.clone())
        };
        Self {
            usual: at_time(&templates.usual),
            tool_use: templates.tool_use.as_ref().map(at_time),
        }
    }

    /// Writes one template where the model has it, and two into `tokenizer_config.json`: `chat_template.jinja` would go before it, and
    /// the second would need a folder.
    fn write(&self, directory: &Path) -> io::Result<()> {
        let file = directory.join("chat_template.jinja");
        if file.is_file() {
            if self.tool_use.is_none() {
                return std::fs::write(file, &self.usual);
            }
            std::fs::remove_file(file)?;
        }
        change(&directory.join("tokenizer_config.json"), |config| {
            let Some(tool_use) = &self.tool_use else {
                config.insert("chat_template".to_owned(), self.usual.clone().into());
                return;
            };
            let mut named = match config.remove("chat_template") {
                Some(Value::Array(named)) => named,
                _ => Vec::new(),
            };
            for (name, template) in [("default", &self.usual), ("tool_use", tool_use)] {
                let one = json!({"name": name, "template": template});
                match named.iter_mut().find(|one| one["name"] == name) {
                    Some(old) => *old = one,
                    None => named.push(one),
                }
            }
            config.insert("chat_template".to_owned(), named.into());
        })
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
