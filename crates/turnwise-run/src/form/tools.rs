//! Checks that a prompt shows the tools, and that the policy's calls can be read.

use serde_json::json;
use turnwise_chat::ToolPrompt;
use turnwise_environment::{Message, Observation, ToolSpec};
use turnwise_rollout::RenderError;

use super::Form;
use crate::failure::Failure;

/// Returns a tool, to probe how a template writes calls.
pub(super) fn probe() -> ToolSpec {
    let parameters = json!({"type": "object", "properties": {"argument": {"type": "string"}}});
    ToolSpec { name: "look".to_owned(), description: "Looks.".to_owned(), parameters }
}

impl Form {
    /// Refuses an environment with tools if the model's own template asks for calls in a form that cannot be read.
    ///
    /// # Errors
    /// When the form of the calls is unknown.
    pub fn check_calls(&self, tools: &[ToolSpec]) -> Result<(), Failure> {
        let (Some(own), Some(tool)) = (&self.own, tools.first()) else { return Ok(()) };
        if own.reads_its_calls(tool) != Some(false) {
            return Ok(());
        }
        Err(Failure::refused(
            "the model's own template writes tool calls in a form that is not known here: each call of the policy would be taken for \
             text, or for a malformed call",
        )
        .help("use another form of conversations, such as model.template = \"qwen3\", or an environment without tools"))
    }

    /// Returns the tools that the form does not show in the first prompt: a policy cannot use a tool that it was never
    /// told about. A name in the task's own text does not count. Empty if the settings leave tools out.
    ///
    /// # Errors
    /// When the prompt cannot be rendered.
    pub fn unmentioned(
        &self,
        opening: &Observation,
        tools: &[ToolSpec],
    ) -> Result<Vec<String>, RenderError> {
        if tools.is_empty() || self.tools == Some(ToolPrompt::Omit) {
            return Ok(Vec::new());
        }
        let prompt = |tools: &[ToolSpec]| -> Result<String, RenderError> {
            let opened = self.renderer.open(opening, tools)?;
            let mut ids = Vec::new();
            opened.messages.iter().flatten().for_each(|span| span.extend_ids(&mut ids));
            ids.extend(opened.generation);
            Ok(self.renderer.text(&ids))
        };
        let (shown, plain) = (prompt(tools)?, prompt(&[])?);
        let count = |text: &str, name: &str| text.matches(name).count();
        let names = tools.iter().map(|tool| tool.name.clone());
        Ok(names.filter(|name| count(&shown, name) <= count(&plain, name)).collect())
    }

    /// Refuses tools that the first prompt does not show, unless the settings leave them out.
    ///
    /// # Errors
    /// When a tool is not shown.
    pub fn check_mentioned(
        &self,
        opening: &Observation,
        tools: &[ToolSpec],
    ) -> Result<(), Failure> {
        // A prompt that cannot be rendered is reported by the first episode.
        let names = self.unmentioned(opening, tools).unwrap_or_default();
        if names.is_empty() {
            return Ok(());
        }
        Err(Failure::refused(format!(
            "the prompt does not show the tools {}: the template leaves tools out, and the policy would not be told of them",
            names.join(", ")
        ))
        .help("set model.tools = \"hermes\", so that the system prompt describes them, or \"omit\" if the task's text does"))
    }

    /// Returns a note for people if the first prompt of an episode does not show all tools.
    #[must_use]
    pub fn tools_note(&self, opening: &[Message], tools: &[ToolSpec]) -> Option<String> {
        let observation = Observation::new(opening.to_vec());
        let names = self.unmentioned(&observation, tools).ok().filter(|names| !names.is_empty())?;
        Some(format!(
            "the prompt does not show the tools {}: the template leaves tools out, and the policy is not told of them",
            names.join(", ")
        ))
    }
}
