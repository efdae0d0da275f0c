//! How an agent speaks: its system prompt and examples, and how its turns begin and end.

use std::fs;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_chat::TurnShapeSettings;
use turnwise_environment::{Message, Suite};
use turnwise_rollout::Preface;

use crate::failure::Failure;

/// The settings of the agent, in training and in evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AgentChoice {
    /// Whether the system prompt has the environment's instructions; by default if the run loads a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<bool>,
    /// A program that is the agent, as a command line: it runs once for each episode, asks the model at `OPENAI_BASE_URL` or
    /// `ANTHROPIC_BASE_URL`, and finds the environment's task at `TURNWISE_SESSION`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// A system prompt, before the environment's instructions: a text, or `{ file = "PATH" }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<PromptText>,
    /// Examples before the first observation: messages of `user` and `assistant` in turn, the user's first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<ExampleMessage>,
    /// Texts that end a turn, outside of thoughts. The environment reads what stands before the first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// The text with which every turn begins; the policy does not sample it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefill: String,
    /// The most tokens of thinking in a turn, after which the closing tag, such as `</think>`, is forced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking_tokens: Option<usize>,
}

/// A text in the settings, or in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text, or { file = \"PATH\" }")]
pub enum PromptText {
    /// The text.
    Text(String),
    /// The file that has it.
    File {
        /// The path.
        file: PathBuf,
    },
}

/// A message of an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExampleMessage {
    /// The author.
    pub role: ExampleRole,
    /// The text.
    pub content: String,
}

/// The author of an example's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExampleRole {
    /// The environment.
    User,
    /// The model.
    Assistant,
}

impl AgentChoice {
    /// Returns what precedes every conversation, and makes the settings independent of files and of defaults.
    /// `is_loaded` tells whether the run loads a model.
    pub(crate) fn preface(
        &mut self,
        suite: &Suite,
        is_loaded: bool,
        is_in_user_message: bool,
    ) -> Result<Preface, Failure> {
        let has_instructions = *self.instructions.get_or_insert(is_loaded);
        let own = self.embed()?;
        let instructions = suite.instructions_text().filter(|_| has_instructions);
        let parts = own.as_deref().into_iter().chain(instructions);
        let system = parts.collect::<Vec<_>>().join("\n\n");
        let examples = self.examples.iter().map(|ExampleMessage { role, content }| match role {
            ExampleRole::User => Message::user(content.clone()),
            ExampleRole::Assistant => Message::assistant(content.clone()),
        });
        Ok(Preface { system, examples: examples.collect(), is_in_user_message })
    }

    /// Returns how turns begin and end.
    pub(crate) fn turn(&self) -> TurnShapeSettings {
        TurnShapeSettings {
            prefill: self.prefill.clone(),
            stop: self.stop.clone(),
            thinking_tokens: self.thinking_tokens,
        }
    }

    /// Returns the system prompt, and replaces its file by its text.
    fn embed(&mut self) -> Result<Option<String>, Failure> {
        let text = match &self.system_prompt {
            None => return Ok(None),
            Some(PromptText::Text(text)) => text.clone(),
            Some(PromptText::File { file }) => read(file)?,
        };
        self.system_prompt = Some(PromptText::Text(text.clone()));
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(file).map_err(|error| {
        Failure::refused(format!("cannot read the system prompt in {}: {error}", file.display()))
    })?;
    Ok(text.trim_end().to_owned())
}
