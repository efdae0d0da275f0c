//! Chat forms: the renderer and the tokenizer of a model.

mod files;
mod model_files;
mod spoken;
mod tools;
mod trust;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use turnwise_chat::{
    CallForm, ChatError, ChatMl, ChatMlSettings, Llama3, Llama3Settings, TemplateRenderer,
    TemplateSettings, TextTools, Thinking, Tokenizer, ToolPrompt, TurnShape, TurnShapeSettings,
};
use turnwise_environment::ToolSpec;
use turnwise_rollout::{RenderError, Rendered, Renderer, Said, TokenConstraint};
use turnwise_training::Checkpoints;
use turnwise_trajectory::TokenId;

use crate::config::{self, Config, Model};
use crate::failure::Failure;
use files::Templates;
pub(crate) use model_files::ModelFiles;
use spoken::Own;
pub use spoken::Spoken;
pub use trust::{Trusting, remember_trust_in};

/// The chat forms by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateName {
    /// `ChatML` with tools as JSON schemas
    Qwen3,
    /// `ChatML` with a line for each tool, or as the run of a checkpoint has it
    Chatml,
    /// The form of Llama 3.1
    Llama3,
    /// The model's own Jinja template
    Hf,
}

/// The chat form of a model: its renderer, with everything that is known about it.
#[expect(missing_debug_implementations, reason = "a renderer is behind a trait")]
pub struct Form {
    /// The renderer.
    pub renderer: Arc<dyn Renderer>,
    /// The constraint of stop texts and of a budget of thinking, if there are any.
    pub constraint: Option<Arc<dyn TokenConstraint>>,
    /// The texts of the renderer's tokens.
    pub texts: Texts,
    /// The name of the form.
    pub template: TemplateName,
    /// A line about the form for people.
    pub name: String,
    /// A further note for people.
    pub note: Option<String>,
    /// The part of the form that a saved model carries.
    pub spoken: Spoken,
    /// The renderer, if it is that of the model's own template.
    own: Option<Arc<TemplateRenderer>>,
    /// How tools are described, if this program describes them.
    tools: Option<ToolPrompt>,
}

/// Converts ids to text.
#[derive(Clone, Debug)]
pub struct Texts(pub Option<Arc<Tokenizer>>);

impl Texts {
    /// Returns the text of a token; `None` without a tokenizer, or for a token that it does not have.
    #[must_use]
    pub fn text(&self, id: TokenId) -> Option<String> {
        self.0.as_ref()?.token_text(id)
    }

    /// Returns whether a text is the name of a control token.
    #[must_use]
    pub fn has(&self, marker: &str) -> bool {
        let id = self.0.as_ref().and_then(|tokenizer| tokenizer.token_id(marker));
        id.is_some_and(|id| self.is_control(id))
    }

    /// Returns whether a token is a control token.
    #[must_use]
    pub fn is_control(&self, id: TokenId) -> bool {
        self.0.as_ref().is_some_and(|tokenizer| tokenizer.is_control(id))
    }
}

impl Form {
    /// Renders a whole conversation that no turn follows. The text after the last message is in
    /// [`Rendered::generation`]; only the model's own template has some.
    ///
    /// # Errors
    /// If the conversation cannot be rendered.
    pub fn render_ended(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        if let Some(own) = &self.own {
            return own.render_ended(conversation, tools);
        }
        let rendered = self.renderer.render(conversation, tools)?;
        Ok(Rendered { generation: Vec::new(), prefill: Vec::new(), ..rendered })
    }

    /// Returns whether the thoughts of a message under this key, such as `reasoning_content`, are rendered. The model's
    /// own template may read another key.
    #[must_use]
    pub fn reads_thoughts(&self, key: &str) -> bool {
        self.own.as_ref().is_none_or(|own| own.reads_thoughts(key))
    }
}

/// What the files of a model determine about its chat form.
#[derive(Debug)]
pub struct Source {
    files: Option<ModelFiles>,
    texts: Texts,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The settings of the run that wrote the directory.
    run: Option<Box<Config>>,
    /// The model's own templates.
    templates: Option<Templates>,
    /// The file that replaced them.
    template_file: Option<PathBuf>,
    /// The tokens that end a turn according to the model's files.
    ends: Vec<String>,
}

/// The requested properties of a form; the model decides those that are left out.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The name of the form.
    pub template: Option<TemplateName>,
    /// How prompts treat the thinking of past turns.
    pub thinking: Thinking,
    /// How tools are described, in the `ChatML` forms.
    pub tools: Option<ToolPrompt>,
    /// The hash of the model's own template, if the user trusts it.
    pub trust: Option<String>,
    /// The arguments of the template.
    pub arguments: Map<String, Value>,
    /// The date and time that the model's own template sees.
    pub time: Option<String>,
    /// The most tokens of an observation; `None` for the default.
    pub max_observation_tokens: Option<usize>,
    /// How turns begin and end.
    pub turn: TurnShapeSettings,
}

impl Wanted {
    /// Returns what a run's settings request.
    #[must_use]
    pub fn by(config: &Config) -> Self {
        let Model {
            template,
            thinking,
            tools,
            trust,
            time,
            max_observation_tokens,
            template_arguments,
            ..
        } = config.model.clone();
        Self {
            template,
            thinking,
            tools,
            trust,
            arguments: template_arguments,
            time,
            max_observation_tokens: Some(max_observation_tokens),
            turn: config.agent.turn(),
        }
    }
}

/// Reads the tokenizer of a directory, and returns it with the fingerprint of the run's renderer if the directory has
/// settings of a run.
///
/// # Errors
/// When there is no tokenizer, or the settings are damaged.
pub fn of_run(directory: &Path) -> Result<(Texts, Option<String>), Failure> {
    let source = Source::of_model(directory, None)?;
    let wanted = source.run.as_deref().map(Wanted::by);
    let form = wanted.and_then(|wanted| source.form(&wanted, trust_by_flag).ok());
    let fingerprint = form.map(|form| form.renderer.fingerprint().to_owned());
    Ok((source.texts, fingerprint))
}

/// Returns the flag by which a user trusts the template with a hash.
#[must_use]
pub fn trust_by_flag(hash: &str) -> String {
    format!("--trust {hash}")
}

/// Reads a tokenizer alone.
///
/// # Errors
/// When the file is not a tokenizer.
pub fn of_file(file: &Path) -> Result<Texts, Failure> {
    Ok(Source::from_file(file)?.texts)
}

/// Returns the newest checkpoint in a run, or in a directory of checkpoints.
fn checkpoint_in(directory: &Path) -> Option<PathBuf> {
    [directory.join("checkpoints"), directory.to_owned()]
        .into_iter()
        .find_map(|directory| Checkpoints::new(directory, 0).newest().ok()?)
        .map(|newest| newest.directory)
}

impl Source {
    /// Returns what the settings of the directory's run request; nothing without a run.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.run.as_deref().map(Wanted::by).unwrap_or_default()
    }

    /// Reads the files of a model: a directory, or a GGUF file. `base` is the base of an adapter, if the user names it.
    ///
    /// # Errors
    /// When there is no tokenizer, or a file is damaged.
    pub fn of_model(model: &Path, base: Option<&Path>) -> Result<Self, Failure> {
        let files = ModelFiles::open(model, base)?;
        let tokenizer = files.tokenizer()?.ok_or_else(|| no_tokenizer(model))?;
        Self::of_files(files, tokenizer)
    }

    fn of_files(files: ModelFiles, tokenizer: Arc<Tokenizer>) -> Result<Self, Failure> {
        let run = match files.settings() {
            Some(settings) => Some(config::load_beside_model(&settings)?.config),
            None => None,
        };
        let templates = Templates::of(&files)?;
        let ends = files::ends(&files, &tokenizer)?;
        let run = run.map(Box::new);
        Ok(Self {
            files: Some(files),
            texts: Texts(Some(tokenizer.clone())),
            tokenizer,
            run,
            templates,
            template_file: None,
            ends,
        })
    }

    /// Replaces the model's templates by the one in a file, and returns its hash, which the user trusts by naming it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn use_template(&mut self, file: &Path) -> Result<String, Failure> {
        let usual = std::fs::read_to_string(file).map_err(|error| {
            Failure::refused(format!("cannot read the template {}: {error}", file.display()))
        })?;
        let templates = Templates { usual, tool_use: None };
        let hash = templates.hash();
        self.templates = Some(templates);
        self.template_file = Some(file.to_owned());
        Ok(hash)
    }

    /// Reads a `tokenizer.json` alone.
    ///
    /// # Errors
    /// When the file is not a tokenizer.
    pub fn from_file(file: &Path) -> Result<Self, Failure> {
        let tokenizer = Tokenizer::from_file(file).map_err(|error| Failure::refused_by(&error))?;
        Ok(Self::of_tokenizer(tokenizer))
    }

    /// Creates a source that has only a tokenizer.
    #[must_use]
    pub fn of_tokenizer(tokenizer: Tokenizer) -> Self {
        let tokenizer = Arc::new(tokenizer);
        let texts = Texts(Some(tokenizer.clone()));
        Self {
            files: None,
            texts,
            tokenizer,
            run: None,
            templates: None,
            template_file: None,
            ends: Vec::new(),
        }
    }

    /// Creates the requested form, or else the one that fits. `trusting` returns the syntax by which a user
    /// trusts a template.
    ///
    /// # Errors
    /// When no form fits, or the template is not trusted.
    pub fn form(&self, wanted: &Wanted, trusting: Trusting) -> Result<Form, Failure> {
        let of_run = self.run.as_ref().and_then(|run| run.model.template);
        let template = wanted.template.or(of_run).map_or_else(|| self.fitting(), Ok)?;
        let made = match template {
            TemplateName::Qwen3 => self.chatml(wanted, ToolPrompt::Hermes)?,
            TemplateName::Chatml => self.chatml(wanted, ToolPrompt::Signatures)?,
            TemplateName::Llama3 => self.llama3(wanted)?,
            TemplateName::Hf => self.own(wanted, trusting)?,
        };
        let thinks =
            if wanted.thinking == Thinking::Keep { "kept" } else { "as the template has it" };
        let name = match template {
            TemplateName::Qwen3 => format!("qwen3, thinking {thinks}"),
            TemplateName::Chatml => format!("chatml, thinking {thinks}"),
            TemplateName::Llama3 => "llama3".to_owned(),
            TemplateName::Hf => {
                let own = self.templates.as_ref();
                let of = own.and_then(|own| trust::published(&own.usual));
                let of = of.map_or_else(String::new, |of| format!(" (that of {of})"));
                format!("the model's own template{of}, thinking {thinks}")
            }
        };
        let Made { renderer, saved, own, tools } = made;
        let (renderer, constraint) = self.shaped(renderer, &wanted.turn);
        let ends = renderer.stop_tokens().iter();
        let ends = ends.map(|id| (self.texts.text(*id).unwrap_or_default(), *id)).collect();
        let written = self.templates.as_ref().filter(|_| template == TemplateName::Hf);
        let written = written.map(|templates| Own::new(templates, wanted.time.as_deref()));
        let spoken = Spoken { template: saved, own: written, ends };
        let (texts, note) = (self.texts.clone(), self.note(template));
        Ok(Form { renderer, constraint, texts, template, name, note, spoken, own, tools })
    }

    /// Returns the model's own template, if it has one that a run of this program did not write, or else the form that
    /// fits the control tokens.
    fn fitting(&self) -> Result<TemplateName, Failure> {
        let is_chatml = self.texts.has("<|im_start|>") && self.texts.has("<|im_end|>");
        match () {
            () if self.run.is_none() && self.templates.is_some() => Ok(TemplateName::Hf),
            () if is_chatml => Ok(TemplateName::Chatml),
            () if self.texts.has("<|start_header_id|>") && self.texts.has("<|eot_id|>") => {
                Ok(TemplateName::Llama3)
            }
            () => Err(Failure::refused(
                "the model has no chat template, and the control tokens of no known form",
            )
            .help("write one to a file, and set model.template_file; or name a model directory that has its own")),
        }
    }

    /// Returns the text of a small file of the model, if there is a model that has it.
    pub(crate) fn file(&self, name: &str) -> Option<String> {
        self.files.as_ref()?.text(name).ok()?
    }

    fn chatml(&self, wanted: &Wanted, usual: ToolPrompt) -> Result<Made, Failure> {
        let mut settings = ChatMlSettings {
            tools: wanted.tools.clone().unwrap_or(usual),
            thinking: wanted.thinking,
            stop: self.ends.clone(),
            ..ChatMlSettings::default()
        };
        settings.max_observation_tokens =
            wanted.max_observation_tokens.unwrap_or(settings.max_observation_tokens);
        for (key, value) in &wanted.arguments {
            match (key.as_str(), value) {
                ("enable_thinking", Value::Bool(thinks)) => settings.enable_thinking = *thinks,
                _ => return Err(unread(key, value, "enable_thinking = true or false")),
            }
        }
        let tools = Some(settings.tools.clone());
        let chat = ChatMl::new(self.tokenizer.clone(), settings).map_err(|error| unfit(&error))?;
        Ok(Made { saved: Some(chat.template()), renderer: Arc::new(chat), own: None, tools })
    }

    fn llama3(&self, wanted: &Wanted) -> Result<Made, Failure> {
        let mut settings = Llama3Settings { stop: self.ends.clone(), ..Llama3Settings::default() };
        settings.max_observation_tokens =
            wanted.max_observation_tokens.unwrap_or(settings.max_observation_tokens);
        for (key, value) in &wanted.arguments {
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
        let chat = Llama3::new(self.tokenizer.clone(), settings).map_err(|error| unfit(&error))?;
        let saved = Some(chat.template());
        Ok(Made { saved, renderer: Arc::new(chat), own: None, tools: None })
    }

    /// Returns a renderer whose turns begin and end as wanted, with the constraint that ends them.
    fn shaped(
        &self,
        renderer: Arc<dyn Renderer>,
        turn: &TurnShapeSettings,
    ) -> (Arc<dyn Renderer>, Option<Arc<dyn TokenConstraint>>) {
        if *turn == TurnShapeSettings::default() {
            return (renderer, None);
        }
        let shape = TurnShape::new(renderer, self.tokenizer.clone(), turn.clone());
        let constraint = shape.constraint();
        (Arc::new(shape), constraint)
    }

    /// Creates the renderer of the model's own template, once its hash is trusted.
    fn own(&self, wanted: &Wanted, trusting: Trusting) -> Result<Made, Failure> {
        let (Some(files), Some(templates)) = (&self.files, &self.templates) else {
            return Err(Failure::refused("there is no chat template of the model's own")
                .help("it stands in chat_template.jinja or in tokenizer_config.json of the directory of --model"));
        };
        let trust = trust::trusted(files.path(), templates, wanted.trust.as_deref(), trusting)?;
        let specials = files::specials(files)?;
        let usual = TemplateSettings::default();
        let settings = TemplateSettings {
            stop: self.ends.clone(),
            arguments: specials.into_iter().chain(wanted.arguments.clone()).collect(),
            time: wanted.time.clone(),
            thinking: wanted.thinking,
            max_observation_tokens: wanted
                .max_observation_tokens
                .unwrap_or(usual.max_observation_tokens),
            ..usual
        };
        let Templates { usual, tool_use } = templates;
        let tool_use = tool_use.as_deref();
        let tokenizer = self.tokenizer.clone();
        let made = |calls| {
            let settings = TemplateSettings { calls, ..settings.clone() };
            TemplateRenderer::with_tool_use(tokenizer.clone(), usual, tool_use, &trust, settings)
                .map_err(|error| {
                    let place = self.template_file.as_deref().unwrap_or(files.path());
                    Failure::refused(format!("{}: {error}", place.display()))
                })
        };
        let mut renderer = made(CallForm::Hermes)?;
        // A template that writes calls without tags has the bare form, and so has a model with the tokens of Llama 3
        // whose template writes none.
        let reads = renderer.reads_its_calls(&tools::probe());
        let is_llama = reads.is_none() && self.texts.has("<|eot_id|>") && wanted.tools.is_none();
        if reads == Some(false) || is_llama {
            let bare = made(CallForm::Llama3)?;
            if is_llama || bare.reads_its_calls(&tools::probe()) == Some(true) {
                renderer = bare;
            }
        }
        let renderer = Arc::new(renderer);
        Ok(match wanted.tools.clone() {
            None => {
                Made { renderer: renderer.clone(), saved: None, own: Some(renderer), tools: None }
            }
            // The settings describe tools themselves, for a template that does not.
            Some(prompt) => {
                let renderer = Arc::new(TextTools::new(renderer, prompt.clone()));
                Made { renderer, saved: None, own: None, tools: Some(prompt) }
            }
        })
    }

    /// Returns a note if this program's form replaces the model's own template, which may render differently; `None`
    /// for the checkpoint of a run.
    fn note(&self, template: TemplateName) -> Option<String> {
        let own = self.templates.as_ref().filter(|_| template != TemplateName::Hf)?;
        let is_unused = self.run.is_none();
        is_unused.then(|| {
            format!(
                "the model has a template of its own, which may write other prompts (a system prompt by default, a date, tools, \
                 thinking); once you have read it:  --template hf --trust {}  (in settings, model.template = \"hf\" and model.trust)",
                own.hash()
            )
        })
    }
}

fn no_tokenizer(model: &Path) -> Failure {
    let shown = model.display();
    let has_other = ["tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"];
    let has_other = has_other.iter().find(|name| model.join(name).is_file());
    let help = match (checkpoint_in(model), has_other) {
        (Some(checkpoint), _) => format!("a checkpoint is a model: {}", checkpoint.display()),
        (None, Some(other)) => format!(
            "{other} is the tokenizer in an older form; python -c \"from transformers import AutoTokenizer as T; \
             T.from_pretrained('{shown}').save_pretrained('{shown}')\" writes tokenizer.json beside it"
        ),
        (None, None) => "name a model directory, such as a checkpoint of a run".to_owned(),
    };
    Failure::refused(format!("there is no tokenizer.json in {shown}")).help(help)
}

/// A renderer with its properties.
struct Made {
    renderer: Arc<dyn Renderer>,
    /// The form as a template, if it is not the model's own.
    saved: Option<String>,
    own: Option<Arc<TemplateRenderer>>,
    tools: Option<ToolPrompt>,
}

fn unread(key: &str, value: &Value, known: &str) -> Failure {
    Failure::refused(format!("this form does not read the template argument {key} = {value}"))
        .help(format!("it reads {known}; the model's own template, --template hf, is given all"))
}

fn unfit(error: &ChatError) -> Failure {
    Failure::refused_by(error).help("choose the form of this model with --template")
}
