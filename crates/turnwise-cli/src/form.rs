//! Which renderer and which tokenizer, from what the command was given.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};
use turnwise::chat::{
    CallForm, ChatMl, ChatMlSettings, Llama3, Llama3Settings, TemplateRenderer, TemplateSettings,
    Thinking, Tokenizer, ToolPrompt, Trust, template_hash,
};
use turnwise::rollout::Renderer;
use turnwise::trajectory::TokenId;

use crate::arguments::TemplateName;
use crate::config::{self, Model};
use crate::failure::Failure;
use crate::session::SETTINGS;

/// The form that a conversation is rendered in.
pub(crate) struct Form {
    pub(crate) renderer: Arc<dyn Renderer>,
    pub(crate) texts: Texts,
    pub(crate) template: TemplateName,
    pub(crate) name: String,
    /// What else a reader should know.
    pub(crate) note: Option<String>,
}

/// How ids become text.
#[derive(Clone)]
pub(crate) struct Texts(pub(crate) Option<Arc<Tokenizer>>);

impl Texts {
    pub(crate) fn text(&self, id: TokenId) -> Option<String> {
        self.0.as_ref()?.token_text(id)
    }

    /// Whether this is the name of a control token.
    pub(crate) fn has(&self, marker: &str) -> bool {
        let id = self.0.as_ref().and_then(|tokenizer| tokenizer.token_id(marker));
        id.is_some_and(|id| self.is_control(id))
    }

    pub(crate) fn is_control(&self, id: TokenId) -> bool {
        self.0.as_ref().is_some_and(|tokenizer| tokenizer.is_control(id))
    }
}

/// What a model directory says about its form.
pub(crate) struct Source<'a> {
    directory: Option<&'a Path>,
    texts: Texts,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// The settings of the run that wrote the directory.
    run: Option<Model>,
    /// The model's own template.
    template: Option<String>,
}

/// What is asked of a form; what is left open is as the model has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) template: Option<TemplateName>,
    pub(crate) thinking: Thinking,
    /// How tools are described, in the forms of `ChatML`.
    pub(crate) tools: Option<ToolPrompt>,
    /// The hash of the model's own template, from somebody who has read it.
    pub(crate) trust: Option<String>,
    /// Arguments of the template.
    pub(crate) arguments: Map<String, Value>,
}

impl Wanted {
    /// What a run's settings ask for.
    pub(crate) fn by(model: &Model) -> Self {
        let Model { template, thinking, tools, trust, .. } = model.clone();
        Self { template, thinking, tools, trust, arguments: Map::new() }
    }
}

/// The tokenizer of a directory, and the hash of the renderer that a run from there has, if it has settings of a run.
pub(crate) fn of_run(directory: &Path) -> Result<(Texts, Option<String>), Failure> {
    let source = Source::from_directory(directory)?;
    let wanted = source.run.as_ref().map(Wanted::by);
    let form = wanted.and_then(|wanted| source.form(&wanted, "--trust ").ok());
    let fingerprint = form.map(|form| form.renderer.fingerprint().to_owned());
    Ok((source.texts, fingerprint))
}

/// A tokenizer alone.
pub(crate) fn of_file(file: &Path) -> Result<Texts, Failure> {
    Ok(Source::from_file(file)?.texts)
}

impl<'a> Source<'a> {
    /// What the settings of its run ask for; nothing without one.
    pub(crate) fn wanted(&self) -> Wanted {
        self.run.as_ref().map(Wanted::by).unwrap_or_default()
    }

    pub(crate) fn from_directory(directory: &'a Path) -> Result<Self, Failure> {
        let shown = directory.display();
        if !directory.join("tokenizer.json").is_file() {
            return Err(Failure::refused(format!("there is no tokenizer.json in {shown}"))
                .help("name a model directory, such as a checkpoint of a run"));
        }
        let tokenizer = Tokenizer::from_directory(directory);
        let tokenizer = Arc::new(tokenizer.map_err(|error| Failure::refused_by(&error))?);
        let settings = directory.join(SETTINGS);
        let run =
            if settings.is_file() { Some(config::load(&settings, &[])?.config) } else { None };
        let template = own_template(directory)?;
        let run = run.map(|config| config.model);
        Ok(Self {
            directory: Some(directory),
            texts: Texts(Some(tokenizer.clone())),
            tokenizer,
            run,
            template,
        })
    }

    pub(crate) fn from_file(file: &Path) -> Result<Self, Failure> {
        let tokenizer = Tokenizer::from_file(file).map_err(|error| Failure::refused_by(&error))?;
        Ok(Self::of_tokenizer(tokenizer))
    }

    /// A tokenizer and nothing else.
    pub(crate) fn of_tokenizer(tokenizer: Tokenizer) -> Self {
        let tokenizer = Arc::new(tokenizer);
        let texts = Texts(Some(tokenizer.clone()));
        Self { directory: None, texts, tokenizer, run: None, template: None }
    }

    /// The form that is wanted, or else the one that fits. `trusting` is how a user says that a template is trusted.
    pub(crate) fn form(&self, wanted: &Wanted, trusting: &str) -> Result<Form, Failure> {
        let of_run = self.run.as_ref().and_then(|run| run.template);
        let template = wanted.template.or(of_run).map_or_else(|| self.fitting(), Ok)?;
        let Wanted { thinking, tools, trust, arguments, .. } = wanted;
        let by_hand = |usual: ToolPrompt| ChatMlSettings {
            tools: tools.clone().unwrap_or(usual),
            thinking: *thinking,
            ..ChatMlSettings::default()
        };
        let renderer: Arc<dyn Renderer> = match template {
            TemplateName::Qwen3 => self.chatml(by_hand(ToolPrompt::Hermes), arguments)?,
            TemplateName::Chatml => self.chatml(by_hand(ToolPrompt::Signatures), arguments)?,
            TemplateName::Llama3 => self.llama3(arguments)?,
            TemplateName::Hf => self.own(trust.as_deref(), trusting, *thinking, arguments)?,
        };
        let thinks = if *thinking == Thinking::Keep { "kept" } else { "as the template has it" };
        let name = match template {
            TemplateName::Qwen3 => format!("qwen3, thinking {thinks}"),
            TemplateName::Chatml => format!("chatml, thinking {thinks}"),
            TemplateName::Llama3 => "llama3".to_owned(),
            TemplateName::Hf => format!("the model's own template, drawn thinking {thinks}"),
        };
        let (texts, note) = (self.texts.clone(), self.note(template));
        Ok(Form { renderer, texts, template, name, note })
    }

    /// The renderer for these control tokens; the model's own template where there is none.
    fn fitting(&self) -> Result<TemplateName, Failure> {
        let is_chatml = self.texts.has("<|im_start|>") && self.texts.has("<|im_end|>");
        let knows_calls = self.template.as_ref().is_some_and(|text| text.contains("<tool_call>"));
        match () {
            () if is_chatml && self.run.is_none() && knows_calls => Ok(TemplateName::Qwen3),
            () if is_chatml => Ok(TemplateName::Chatml),
            () if self.texts.has("<|start_header_id|>") && self.texts.has("<|eot_id|>") => {
                Ok(TemplateName::Llama3)
            }
            () if self.template.is_some() => Ok(TemplateName::Hf),
            () => Err(Failure::refused("the tokenizer has the control tokens of no known form")
                .help(
                    "name one with --template, or a model directory that has its own with --model",
                )),
        }
    }

    fn chatml(
        &self,
        mut settings: ChatMlSettings,
        given: &Map<String, Value>,
    ) -> Result<Arc<dyn Renderer>, Failure> {
        for (key, value) in given {
            match (key.as_str(), value) {
                ("enable_thinking", Value::Bool(thinks)) => settings.enable_thinking = *thinks,
                _ => return Err(unread(key, value, "enable_thinking = true or false")),
            }
        }
        let chat = ChatMl::new(self.tokenizer.clone(), settings);
        Ok(Arc::new(chat.map_err(|error| unfit(&error))?))
    }

    fn llama3(&self, given: &Map<String, Value>) -> Result<Arc<dyn Renderer>, Failure> {
        let mut settings = Llama3Settings::default();
        for (key, value) in given {
            match (key.as_str(), value) {
                ("date_string", Value::String(date)) => settings.date.clone_from(date),
                ("tools_in_user_message", Value::Bool(inside)) => {
                    settings.tools_in_user_message = *inside;
                }
                _ => {
                    let known = "date_string = \"…\" and tools_in_user_message = true or false";
                    return Err(unread(key, value, known));
                }
            }
        }
        let chat = Llama3::new(self.tokenizer.clone(), settings);
        Ok(Arc::new(chat.map_err(|error| unfit(&error))?))
    }

    /// The model's own template, once its hash is trusted.
    fn own(
        &self,
        trust: Option<&str>,
        trusting: &str,
        thinking: Thinking,
        given: &Map<String, Value>,
    ) -> Result<Arc<dyn Renderer>, Failure> {
        let (Some(directory), Some(template)) = (self.directory, &self.template) else {
            return Err(Failure::refused("there is no chat template of the model's own")
                .help("it stands in chat_template.jinja or in tokenizer_config.json of the directory of --model"));
        };
        let hash = template_hash(template);
        if trust != Some(&hash) {
            let what = match trust {
                None => format!(
                    "the template of {} is a program, and nobody has said that it is trusted",
                    directory.display()
                ),
                Some(other) => format!(
                    "the template of {} is not the one with hash {other}",
                    directory.display()
                ),
            };
            return Err(Failure::refused(what).help(format!("read it, then  {trusting}{hash}")));
        }
        let specials = specials(directory)?;
        let stop = specials.get("eos_token").and_then(Value::as_str).map(str::to_owned);
        let Some(stop) = stop else {
            return Err(Failure::refused("the model does not say which token ends a turn")
                .help("it stands in tokenizer_config.json as eos_token"));
        };
        let calls = if self.texts.has("<|eot_id|>") { CallForm::Llama3 } else { CallForm::Hermes };
        let arguments = specials.into_iter().chain(given.clone()).collect();
        let settings = TemplateSettings {
            stop: vec![stop],
            calls,
            arguments,
            thinking,
            ..TemplateSettings::default()
        };
        let trust = Trust::Hash(hash);
        let renderer = TemplateRenderer::new(self.tokenizer.clone(), template, &trust, settings);
        Ok(Arc::new(renderer.map_err(|error| Failure::refused_by(&error))?))
    }

    fn note(&self, template: TemplateName) -> Option<String> {
        let own = self.template.as_ref().filter(|_| template != TemplateName::Hf)?;
        let is_unused = self.run.is_none();
        is_unused.then(|| {
            format!(
                "the model has a template of its own:  --template hf --trust {}",
                template_hash(own)
            )
        })
    }
}

fn unread(key: &str, value: &Value, known: &str) -> Failure {
    Failure::refused(format!("this form does not read the template argument {key} = {value}"))
        .help(format!("it reads {known}; the model's own template, --template hf, is given all"))
}

fn unfit(error: &turnwise::chat::ChatError) -> Failure {
    Failure::refused_by(error).help("choose the form of this model with --template")
}

/// The template of a directory: `chat_template.jinja`, or else what `tokenizer_config.json` says.
fn own_template(directory: &Path) -> Result<Option<String>, Failure> {
    if let Some(text) = read(&directory.join("chat_template.jinja"))? {
        return Ok(Some(text));
    }
    let config = tokenizer_config(directory)?;
    Ok(match config.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        // Several by name: the one without a purpose of its own.
        Some(Value::Array(named)) => {
            let default = named.iter().find(|one| one["name"] == "default");
            default.and_then(|one| one["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    })
}

/// The special tokens that templates are given, by name. A token is a text, or an object that has it as `content`.
fn specials(directory: &Path) -> Result<Map<String, Value>, Failure> {
    let names = ["bos_token", "eos_token", "pad_token", "unk_token"];
    let config = tokenizer_config(directory)?;
    let text =
        |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(Value::from);
    let specials = names.iter().filter_map(|name| {
        let text = config.get(*name).and_then(text)?;
        Some(((*name).to_owned(), text))
    });
    Ok(specials.collect())
}

fn tokenizer_config(directory: &Path) -> Result<Map<String, Value>, Failure> {
    let path = directory.join("tokenizer_config.json");
    let Some(text) = read(&path)? else { return Ok(Map::new()) };
    serde_json::from_str(&text)
        .map_err(|error| Failure::refused(format!("{} is no JSON object: {error}", path.display())))
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::refused(format!("cannot read {}: {error}", path.display()))),
    }
}
