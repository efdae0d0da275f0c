//! An episode and the messages that drive it.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use turnwise_environment::{Split, Suite, ToolSpec, derive_seed};

use super::super::hosted::{ANSWER, CallFailure, Called, HostedEpisode};
use super::super::settings::ServerSettings;
use super::fault::EpisodeFault;

/// What all episodes of a server share.
#[derive(Debug)]
pub(super) struct Game {
    pub(super) suite: Suite,
    pub(super) settings: ServerSettings,
}

/// One client's environment: an episode after another.
pub(super) struct Play {
    game: Arc<Game>,
    episode: Option<HostedEpisode>,
    episode_id: Option<String>,
    n_steps: u64,
    pub(super) attachment: Attachment,
}

/// Whether a WebSocket holds the environment; requests of JSON-RPC share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    Free,
    Attached,
    /// The session closes with its connection.
    Closing,
}

/// What an action asks for.
#[derive(Clone, Debug, PartialEq)]
enum Asked {
    ListTools,
    CallTool(String, Value),
    Say(String),
}

impl Play {
    pub(super) fn new(game: Arc<Game>) -> Self {
        Self { game, episode: None, episode_id: None, n_steps: 0, attachment: Attachment::Free }
    }

    /// Starts an episode: of the task that `index` (or `task`) and `split` name, or else of one that the seed chooses.
    pub(super) async fn reset(&mut self, data: &Value) -> Result<Value, EpisodeFault> {
        let split = match data["split"].as_str() {
            None | Some("train") => Split::Train,
            Some("test" | "validation") => Split::HeldOut,
            Some(_) => {
                return Err(EpisodeFault::field(
                    "literal_error",
                    "split",
                    "Input should be 'train' or 'test'",
                    &data["split"],
                ));
            }
        };
        let seed = match &data["seed"] {
            Value::Null => None,
            seed => Some(seed.as_u64().ok_or_else(|| {
                EpisodeFault::field(
                    "greater_than_equal",
                    "seed",
                    "Input should be an integer greater than or equal to 0",
                    seed,
                )
            })?),
        };
        let tasks = self.game.suite.tasks(split);
        // OpenEnv's own environments with tasks call it `index`.
        let named = if data["index"].is_null() { &data["task"] } else { &data["index"] };
        let index = match named {
            Value::Null => {
                let chosen = derive_seed(seed.unwrap_or_else(random), TASK) % tasks.len() as u64;
                usize::try_from(chosen).unwrap_or(0)
            }
            task => {
                let index = task.as_u64().and_then(|index| usize::try_from(index).ok());
                index.filter(|index| *index < tasks.len()).ok_or_else(|| {
                    let most = tasks.len() - 1;
                    EpisodeFault::field(
                        "less_than_equal",
                        "task",
                        &format!("Input should be an integer from 0 to {most}"),
                        task,
                    )
                })?
            }
        };
        let seed = seed.unwrap_or_else(|| derive_seed(index as u64, 0));
        let form = self.game.settings.reward_form;
        let episode = HostedEpisode::start(&*tasks, index, seed, form).await;
        let episode = episode.map_err(|error| EpisodeFault::execution(error.to_string()))?;
        let text = episode.prompt(&self.game.suite);
        self.episode = Some(episode);
        self.episode_id = data["episode_id"].as_str().map(str::to_owned);
        self.n_steps = 0;
        let observation = json!({"text": text, "metadata": {"task": index}});
        Ok(json!({"observation": observation, "reward": null, "done": false}))
    }

    /// Takes an action.
    pub(super) async fn step(&mut self, action: &Value) -> Result<Value, EpisodeFault> {
        let asked = Asked::read(action)?;
        let episode = self.episode.as_mut();
        let episode =
            episode.ok_or_else(|| EpisodeFault::execution("no episode runs: reset starts one"))?;
        let (name, arguments) = match asked {
            Asked::ListTools => {
                let tools = episode.tools().into_iter().map(|ToolSpec { name, description, parameters }| {
                    json!({"name": name, "description": description, "input_schema": parameters})
                });
                let observation = json!({"tools": tools.collect::<Vec<_>>(), "metadata": {}});
                return Ok(json!({"observation": observation, "reward": null, "done": false}));
            }
            Asked::CallTool(name, arguments) => (name, arguments),
            Asked::Say(text) => {
                let called = episode.say(text).await.map_err(|failure| fault(&failure, ""))?;
                self.n_steps += 1;
                let observation = json!({"text": called.text, "metadata": metadata(&called)});
                return Ok(
                    json!({"observation": observation, "reward": called.reward, "done": called.is_over}),
                );
            }
        };
        let failed = |kind: &str, message: String| {
            let error = json!({"error_type": kind, "message": message});
            let observation =
                json!({"tool_name": name, "result": null, "error": error, "metadata": {}});
            Ok(json!({"observation": observation, "reward": null, "done": false}))
        };
        match episode.call(&name, arguments).await {
            Ok(called) => {
                self.n_steps += 1;
                let observation = json!({
                    "tool_name": name,
                    "result": tool_result(&called.text, false),
                    "error": null,
                    "metadata": metadata(&called),
                });
                Ok(
                    json!({"observation": observation, "reward": called.reward, "done": called.is_over}),
                )
            }
            Err(CallFailure::UnknownTool) => {
                failed("tool_not_found", format!("Unknown tool: '{name}'"))
            }
            Err(CallFailure::NoText) => {
                failed("invalid_args", format!("{ANSWER} needs a string, text"))
            }
            Err(failure) => Err(fault(&failure, &name)),
        }
    }

    pub(super) fn state(&self) -> Value {
        json!({"episode_id": self.episode_id, "step_count": self.n_steps})
    }

    /// Returns the tools of the episode; without one, those of the first task.
    pub(super) async fn tools(&mut self) -> Result<Vec<ToolSpec>, EpisodeFault> {
        Ok(self.started().await?.tools())
    }

    /// Calls a tool; without an episode, in one of the first task.
    pub(super) async fn call(
        &mut self,
        name: &str,
        arguments: Value,
    ) -> Result<Called, CallFailure> {
        let episode = self.started().await.map_err(|fault| {
            CallFailure::Broken(turnwise_environment::EnvironmentError::new(fault.message))
        })?;
        let called = episode.call(name, arguments).await?;
        self.n_steps += 1;
        Ok(called)
    }

    async fn started(&mut self) -> Result<&mut HostedEpisode, EpisodeFault> {
        if self.episode.is_none() {
            self.reset(&json!({"task": 0})).await?;
        }
        self.episode.as_mut().ok_or_else(|| EpisodeFault::execution("no episode runs"))
    }
}

/// The purpose of the seed that chooses a task.
const TASK: u64 = 1;

fn random() -> u64 {
    getrandom::u64().expect("the system has random numbers")
}

impl Asked {
    fn read(action: &Value) -> Result<Self, EpisodeFault> {
        let Some(fields) = action.as_object() else {
            return Err(EpisodeFault::field(
                "dict_type",
                "action",
                "Input should be a valid dictionary",
                action,
            ));
        };
        let known = |names: &[&str]| {
            let extra = fields.iter().find(|(name, _)| !names.contains(&name.as_str()));
            extra.map_or(Ok(()), |(name, value)| Err(EpisodeFault::extra(name, value)))
        };
        match fields.get("type").and_then(Value::as_str) {
            Some("list_tools") => known(&["type", "metadata"]).map(|()| Self::ListTools),
            Some("call_tool") => {
                known(&["type", "tool_name", "arguments", "metadata"])?;
                let name = text(fields, "tool_name", action)?;
                let arguments = fields.get("arguments").cloned().unwrap_or_else(|| json!({}));
                Ok(Self::CallTool(name, arguments))
            }
            _ => {
                known(&["type", "message", "metadata"])?;
                text(fields, "message", action).map(Self::Say)
            }
        }
    }
}

fn text(fields: &Map<String, Value>, name: &str, action: &Value) -> Result<String, EpisodeFault> {
    match fields.get(name) {
        None => Err(EpisodeFault::missing(name, action)),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => {
            Err(EpisodeFault::field("string_type", name, "Input should be a valid string", other))
        }
    }
}

fn metadata(called: &Called) -> Value {
    if called.is_over { json!({"solved": called.solved}) } else { json!({}) }
}

/// Returns a tool's result with the names that MCP has for its fields and those that OpenEnv's clients read.
pub(super) fn tool_result(text: &str, is_error: bool) -> Value {
    json!({
        "content": [{"type": "text", "text": text}],
        "structured_content": null,
        "meta": null,
        "data": text,
        "is_error": is_error,
    })
}

fn fault(failure: &CallFailure, name: &str) -> EpisodeFault {
    match failure {
        CallFailure::Over => EpisodeFault::execution("the episode is over: reset starts another"),
        CallFailure::UnknownTool => EpisodeFault::execution(format!("Unknown tool: '{name}'")),
        CallFailure::NoText => EpisodeFault::execution("text is missing"),
        CallFailure::Broken(error) => EpisodeFault::execution(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_of_every_form_are_read_and_others_refused_field_by_field() {
        let read = |action: Value| Asked::read(&action);
        assert_eq!(read(json!({"type": "list_tools"})), Ok(Asked::ListTools));
        assert_eq!(read(json!({"message": "hi", "metadata": {}})), Ok(Asked::Say("hi".to_owned())));
        let call = json!({"type": "call_tool", "tool_name": "add", "arguments": {"a": 1}});
        assert_eq!(read(call), Ok(Asked::CallTool("add".to_owned(), json!({"a": 1}))));
        for (action, kind, field) in [
            (json!({"bad": 1}), "extra_forbidden", "bad"),
            (json!({}), "missing", "message"),
            (json!({"message": 1}), "string_type", "message"),
            (json!({"type": "call_tool"}), "missing", "tool_name"),
            (json!([]), "dict_type", "action"),
        ] {
            let error = &read(action).unwrap_err().errors[0];
            assert_eq!((&error["type"], &error["loc"][0]), (&json!(kind), &json!(field)));
        }
    }
}
