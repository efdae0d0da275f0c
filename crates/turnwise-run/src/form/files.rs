//! The files of a model that determine its chat form.

use serde_json::{Map, Value};
use turnwise_chat::{Tokenizer, template_hash, without_moment};
use turnwise_trajectory::TokenId;

use super::model_files::ModelFiles;
use crate::failure::Failure;

/// The chat templates of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Templates {
    pub(super) usual: String,
    /// The template for conversations with tools, if the model has a separate one.
    pub(super) tool_use: Option<String>,
}

impl Templates {
    /// Reads `chat_template.jinja` with `additional_chat_templates` beside it, or else the templates in
    /// `tokenizer_config.json`.
    pub(super) fn of(model: &ModelFiles) -> Result<Option<Self>, Failure> {
        let own = |template: String| without_moment(&template).to_owned();
        let written = Self::as_written(model)?;
        Ok(written.map(|Self { usual, tool_use }| Self {
            usual: own(usual),
            tool_use: tool_use.map(own),
        }))
    }

    fn as_written(model: &ModelFiles) -> Result<Option<Self>, Failure> {
        if let Some(usual) = model.text("chat_template.jinja")? {
            let tool_use = model.text("additional_chat_templates/tool_use.jinja")?;
            return Ok(Some(Self { usual, tool_use }));
        }
        let config = model.object("tokenizer_config.json")?;
        Ok(match config.get("chat_template") {
            Some(Value::String(usual)) => Some(Self { usual: usual.clone(), tool_use: None }),
            Some(Value::Array(named)) => {
                let by_name = |name: &str| {
                    let one = named.iter().find(|one| one["name"] == name);
                    one.and_then(|one| one["template"].as_str()).map(str::to_owned)
                };
                let tool_use = by_name("tool_use");
                let usual = by_name("default").or_else(|| tool_use.clone());
                usual.map(|usual| Self { usual, tool_use })
            }
            _ => None,
        })
    }

    pub(super) fn hash(&self) -> String {
        template_hash(&self.usual)
    }

    /// Returns whether this is the hash of one of the templates: both come from the same files.
    pub(super) fn has(&self, hash: &str) -> bool {
        self.hash() == hash || self.tool_use.as_deref().map(template_hash).as_deref() == Some(hash)
    }
}

/// Returns the special tokens that templates receive, by name. In the files, a token is a string, or an object with
/// `content`.
pub(super) fn specials(model: &ModelFiles) -> Result<Map<String, Value>, Failure> {
    let names = [
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
        "sep_token",
        "cls_token",
        "mask_token",
    ];
    let config = model.object("tokenizer_config.json")?;
    let map = model.object("special_tokens_map.json")?;
    let text =
        |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(Value::from);
    let specials = names.iter().filter_map(|name| {
        let own = config.get(*name).and_then(text);
        Some(((*name).to_owned(), own.or_else(|| map.get(*name).and_then(text))?))
    });
    Ok(specials.collect())
}

/// Returns the control tokens that end a turn: those of `generation_config.json` and `config.json`, and the tokenizer's
/// `eos_token`.
pub(super) fn ends(model: &ModelFiles, tokenizer: &Tokenizer) -> Result<Vec<String>, Failure> {
    let mut ends: Vec<String> = Vec::new();
    let mut add = |name: Option<String>| {
        let is_control =
            |name: &String| tokenizer.token_id(name).is_some_and(|id| tokenizer.is_control(id));
        if let Some(name) = name.filter(is_control)
            && !ends.contains(&name)
        {
            ends.push(name);
        }
    };
    for file in ["generation_config.json", "config.json"] {
        for id in eos_ids(&model.object(file)?) {
            add(tokenizer.token_text(id));
        }
    }
    let eos = specials(model)?.remove("eos_token");
    add(eos.and_then(|eos| eos.as_str().map(str::to_owned)));
    Ok(ends)
}

/// Returns the ids under `eos_token_id`: one, or a list.
pub(super) fn eos_ids(config: &Map<String, Value>) -> Vec<TokenId> {
    let own = config.get("eos_token_id").filter(|value| !value.is_null());
    let ids = match own.or_else(|| config.get("text_config")?.get("eos_token_id")) {
        Some(Value::Array(ids)) => ids.iter().collect(),
        Some(id) => vec![id],
        None => Vec::new(),
    };
    ids.into_iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}
