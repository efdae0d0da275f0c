//! The request of a message.

use serde::Deserialize;
use serde_json::Value;
use turnwise_environment::{Message, Role, ToolCall, ToolSpec};

use crate::api_error::ApiError;
use crate::call::ModelCall;
use crate::tool_choice::may_call;

/// What a client sends to `/v1/messages`. Fields that are not here are ignored; the run decides how tokens are sampled.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct MessagesRequest {
    #[serde(default)]
    pub(crate) model: String,
    #[serde(default)]
    system: Option<Content>,
    messages: Vec<SentMessage>,
    #[serde(default)]
    tools: Vec<SentTool>,
    #[serde(default)]
    tool_choice: Option<Value>,
    max_tokens: u64,
    #[serde(default)]
    stop_sequences: Vec<String>,
    #[serde(default)]
    pub(crate) stream: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct SentMessage {
    role: SentRole,
    content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SentRole {
    User,
    Assistant,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        text: String,
    },
    Thinking {
        thinking: String,
    },
    RedactedThinking {},
    ToolUse {
        id: String,
        name: String,
        input: Value,
    },
    ToolResult {
        tool_use_id: String,
        #[serde(default)]
        content: Option<Box<Content>>,
    },
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug, Deserialize)]
struct SentTool {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    input_schema: Option<Value>,
}

impl MessagesRequest {
    pub(crate) fn call(self) -> Result<ModelCall, ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::bad_request("messages is empty"));
        }
        if self.max_tokens == 0 {
            return Err(ApiError::bad_request("a turn of 0 tokens cannot be sampled"));
        }
        let mut messages = Vec::new();
        if let Some(system) = self.system {
            messages.push(Message::system(system.text()?));
        }
        for message in self.messages {
            message.add_to(&mut messages)?;
        }
        let may_call = may_call(self.tool_choice.as_ref())?;
        let tools = if may_call { self.tools } else { Vec::new() };
        Ok(ModelCall {
            messages,
            tools: tools.into_iter().map(SentTool::spec).collect::<Result<_, _>>()?,
            max_tokens: Some(usize::try_from(self.max_tokens).unwrap_or(usize::MAX)),
            stop: self.stop_sequences,
            n: 1,
        })
    }
}

impl SentMessage {
    /// Adds the message, which is several where it has the results of tools.
    fn add_to(self, messages: &mut Vec<Message>) -> Result<(), ApiError> {
        let role = if self.role == SentRole::User { Role::User } else { Role::Assistant };
        let blocks = match self.content {
            Content::Text(text) => vec![Block::Text { text }],
            Content::Blocks(blocks) => blocks,
        };
        let (mut texts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        let mut has_results = false;
        for block in blocks {
            match block {
                Block::Text { text } => texts.push(text),
                Block::Thinking { thinking } => thoughts.push(thinking),
                Block::RedactedThinking {} => {}
                Block::ToolUse { id, name, input } => {
                    calls.push(ToolCall { id, name, arguments: input });
                }
                Block::ToolResult { tool_use_id, content } => {
                    has_results = true;
                    let text = content.map_or(Ok(String::new()), |content| content.text())?;
                    messages.push(Message::tool(tool_use_id, text));
                }
                Block::Other => return Err(not_text()),
            }
        }
        if has_results && texts.is_empty() {
            return Ok(());
        }
        messages.push(Message {
            reasoning: Some(thoughts.concat()).filter(|text| !text.is_empty()),
            tool_calls: calls,
            ..Message::new(role, texts.concat())
        });
        Ok(())
    }
}

impl Content {
    fn text(self) -> Result<String, ApiError> {
        let blocks = match self {
            Self::Text(text) => return Ok(text),
            Self::Blocks(blocks) => blocks,
        };
        let texts = blocks.into_iter().map(|block| match block {
            Block::Text { text } => Ok(text),
            _ => Err(not_text()),
        });
        Ok(texts.collect::<Result<Vec<_>, _>>()?.concat())
    }
}

fn not_text() -> ApiError {
    ApiError::bad_request("the model reads text, and a message has a block of another type")
}

impl SentTool {
    fn spec(self) -> Result<ToolSpec, ApiError> {
        let Some(parameters) = self.input_schema else {
            let name = self.name;
            return Err(ApiError::bad_request(format!(
                "tool `{name}` has no input_schema: tools that the server runs are not available"
            )));
        };
        Ok(ToolSpec {
            name: self.name,
            description: self.description.unwrap_or_default(),
            parameters,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks_become_messages_in_their_order() {
        let request: MessagesRequest = serde_json::from_value(json!({
            "model": "any", "max_tokens": 7, "metadata": {"user_id": "x"},
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "1 + 1"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "Adding."},
                    {"type": "tool_use", "id": "c", "name": "add", "input": {"a": 1}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "2"}]},
                    {"type": "text", "text": "Go on."},
                ]},
            ],
            "tools": [{"name": "add", "input_schema": {"type": "object"}}],
            "stop_sequences": ["END"],
        }))
        .unwrap();
        let call = request.call().unwrap();
        let roles: Vec<Role> = call.messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::Tool, Role::User]);
        let said = &call.messages[2];
        assert_eq!((said.content.as_str(), said.reasoning.as_deref()), ("Adding.", Some("hm")));
        assert_eq!(said.tool_calls[0].arguments, json!({"a": 1}));
        assert_eq!((call.max_tokens, call.tools.len()), (Some(7), 1));
    }

    #[test]
    fn images_and_tools_of_the_server_are_refused() {
        let image = json!([{"type": "image", "source": {}}]);
        for (request, reason) in [
            (
                json!({"max_tokens": 1, "messages": [{"role": "user", "content": image}]}),
                "reads text",
            ),
            (
                json!({"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}],
                    "tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
                "`web_search` has no input_schema",
            ),
            (json!({"max_tokens": 0, "messages": [{"role": "user", "content": "hi"}]}), "0 tokens"),
        ] {
            let request: MessagesRequest = serde_json::from_value(request).unwrap();
            let error = request.call().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
