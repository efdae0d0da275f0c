//! The chat templates and end tokens of a saved model, with which other programs prompt it as in training.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};
use turnwise_chat::with_moment;
use turnwise_trajectory::TokenId;

use super::files::{Templates, eos_ids};
use super::model_files::object;

/// The templates of a model, and the tokens that end its turns.
#[derive(Clone, Debug)]
pub struct Spoken {
    /// The template that renders prompts as in training; `None` if it is the model's own.
    pub template: Option<String>,
    /// The model's own templates, if a checkpoint cannot copy them byte for byte.
    pub own: Option<Own>,
    /// The control tokens that end a turn; the form writes the first.
    pub ends: Vec<(String, TokenId)>,
}

impl Spoken {
    /// Writes into a model directory what other programs read: the template if the model has another one or none, and
    /// the end tokens if its files have others.
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
        // The files get exactly these end tokens. A further one, such as an architecture's default for another
        // tokenizer, would end turns that went on in training.
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

/// The templates of a model, as a checkpoint has them: with the date and time of training, and without a separate
/// directory.
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

    /// Writes a single template to the file in which the model has it, and two to `tokenizer_config.json`:
    /// `chat_template.jinja` would take precedence, and the second template would need a directory.
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

/// Changes a file's JSON object; a missing file counts as an empty one.
fn change(path: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> io::Result<()> {
    let before = object(path).map_err(io::Error::other)?;
    let mut config = before.clone();
    change(&mut config);
    if config == before {
        return Ok(());
    }
    std::fs::write(path, format!("{:#}\n", Value::Object(config)))
}
