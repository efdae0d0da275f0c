//! `turnwise render`: the tokens that the model sees, with kind and mask.

mod branches;
mod conversation;
mod record;
mod shown;
mod table;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use turnwise_chat::Thinking;
use turnwise_environment::Role;
use turnwise_trajectory::MessageGraph;

use crate::arguments::{RenderArguments, ThinkingChoice};
use crate::say;
use crate::screen::Style;
use conversation::Conversation;
use shown::{Branch, Turns, shown};
use turnwise_run::form::{Form, Source, TemplateName, Texts, trust_by_flag};
use turnwise_run::{Failure, locate_model};

/// The content of a page: the graph with its tokens, and the text around it.
struct Page {
    /// Lines above the tokens.
    header: Vec<String>,
    graph: MessageGraph,
    turns: Turns,
    /// The texts of ids.
    texts: Texts,
    /// The renderer of the tokens: its hash and description.
    renderer: String,
}

/// Prints a conversation or a recorded trajectory.
pub(crate) async fn render(arguments: &RenderArguments) -> Result<(), Failure> {
    let page = match (&arguments.conversation, &arguments.rollout) {
        (Some(path), None) => conversation_page(arguments, path).await?,
        (_, Some(path)) => record::page(arguments, path)?,
        (None, None) => {
            return Err(Failure::refused("there is nothing to render")
                .help("turnwise render --model MODEL CONVERSATION.json\nturnwise render --rollout FILE.jsonl --index N"));
        }
    };
    let branches = shown(&page.graph, &page.turns, &page.texts);
    if arguments.json {
        let tokens = branches.iter().flat_map(Branch::tokens);
        return say(&tokens.map(json_line).collect::<Result<String, _>>()?);
    }
    let color = matches!(Style::detect(false, false), Style::Live { color: true, .. });
    say(&table::table(&page.header, &branches, &page.renderer, color))
}

fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    let json = serde_json::to_string(value).map_err(|error| Failure::runtime(&error))?;
    Ok(json + "\n")
}

async fn conversation_page(arguments: &RenderArguments, path: &Path) -> Result<Page, Failure> {
    let name = path.display().to_string();
    let conversation = conversation::parse(&name, &read(path)?)?;
    let form = form_of(arguments, &conversation)?;
    let graph = if arguments.branches {
        branches::play(&conversation, &form).await?
    } else {
        branches::render(&conversation, &form)?
    };
    let mut header = vec![format!(
        "{} messages, {} tools, as {}",
        conversation.messages.len(),
        conversation.tools.len(),
        form.name
    )];
    header.extend(form.note.clone());
    let n_task = conversation.messages.iter().take_while(|one| one.role != Role::Assistant).count();
    if let Some(note) = form.tools_note(&conversation.messages[..n_task], &conversation.tools) {
        tracing::warn!("{note}");
    }
    Ok(Page {
        header,
        graph,
        turns: Turns::default(),
        renderer: form.renderer.fingerprint().to_owned(),
        texts: form.texts,
    })
}

/// Returns the path of a model. A directory without weights will do, because none are needed.
fn located(model: &Path) -> Result<PathBuf, Failure> {
    match locate_model(model) {
        Err(_) if model.is_dir() => Ok(model.to_owned()),
        found => found,
    }
}

/// Returns the format of the arguments, or else the one that fits the model.
fn form_of(arguments: &RenderArguments, conversation: &Conversation) -> Result<Form, Failure> {
    let source = match (&arguments.model, &arguments.tokenizer) {
        (Some(model), _) => Source::of_model(&located(model)?, None)?,
        (None, Some(file)) => Source::from_file(file)?,
        (None, None) => {
            return Err(Failure::refused("a conversation needs a tokenizer").help(
                "name a model with --model MODEL, or a tokenizer.json with --tokenizer FILE",
            ));
        }
    };
    let mut wanted = source.wanted();
    let template = arguments.template.map(TemplateName::from);
    if template.is_some() && template != wanted.template {
        wanted.tools = wanted.tools.filter(|_| template == Some(TemplateName::Chatml));
        wanted.template = template;
    }
    match arguments.thinking {
        Some(ThinkingChoice::Keep) => wanted.thinking = Thinking::Keep,
        Some(ThinkingChoice::Follow) => wanted.thinking = Thinking::Follow,
        None => {}
    }
    wanted.trust = arguments.trust.clone().or(wanted.trust);
    wanted.time = arguments.time.clone().or_else(|| conversation.time.clone()).or(wanted.time);
    wanted.arguments.clone_from(&conversation.arguments);
    source.form(&wanted, trust_by_flag)
}

/// Reads a file, or standard input for `-`.
fn read(path: &Path) -> Result<String, Failure> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    text.map_err(|error| Failure::refused(format!("cannot read {}: {error}", path.display())))
}
