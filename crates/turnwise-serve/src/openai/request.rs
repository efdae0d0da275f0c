//! The request of a chat completion.

use serde::Deserialize;
use serde_json::Value;
use turnwise_environment::{Message, Role, ToolCall, ToolSpec};

use crate::api_error::ApiError;
use crate::call::ModelCall;
use crate::tool_choice::may_call;

/// What a client sends to `/v1/chat/completions`. Fields that are not here are ignored; the run decides how tokens are
/// sampled (`temperature`, `top_p`, `seed`), because it trains on them.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ChatRequest {
    #[serde(default)]
    pub(crate) model: String,
    messages: Vec<SentMessage>,
    #[serde(default)]
    tools: Option<Vec<SentTool>>,
    #[serde(default)]
    tool_choice: Option<Value>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    stop: Option<OneOrMore>,
    #[serde(default)]
    n: Option<usize>,
    #[serde(default)]
    pub(crate) stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    pub(crate) logprobs: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Clone, Debug, Deserialize)]
struct SentMessage {
    role: SentRole,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Vec<SentCall>>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default, alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SentRole {
    #[serde(alias = "developer")]
    System,
    User,
    Assistant,
    #[serde(alias = "function")]
    Tool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize)]
struct Part {
    r#type: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct SentCall {
    #[serde(default)]
    id: String,
    function: SentFunction,
}

#[derive(Clone, Debug, Deserialize)]
struct SentFunction {
    name: String,
    #[serde(default)]
    arguments: Value,
}

#[derive(Clone, Debug, Deserialize)]
struct SentTool {
    #[serde(default)]
    r#type: Option<String>,
    function: Option<SentSpec>,
}

#[derive(Clone, Debug, Deserialize)]
struct SentSpec {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Value>,
}

/// The most answers to one request.
const MOST_ANSWERS: usize = 128;

impl ChatRequest {
    /// Returns whether a stream ends with a chunk of counts.
    pub(crate) fn counts_in_stream(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage)
    }

    pub(crate) fn call(self) -> Result<ModelCall, ApiError> {
        let n = self.n.unwrap_or(1);
        if !(1..=MOST_ANSWERS).contains(&n) {
            return Err(ApiError::bad_request(format!(
                "n is {n}: ask for 1 to {MOST_ANSWERS} answers"
            )));
        }
        if self.messages.is_empty() {
            return Err(ApiError::bad_request("messages is empty"));
        }
        let max_tokens = self.max_completion_tokens.or(self.max_tokens);
        if max_tokens == Some(0) {
            return Err(ApiError::bad_request("a turn of 0 tokens cannot be sampled"));
        }
        let may_call = may_call(self.tool_choice.as_ref())?;
        let tools = self.tools.filter(|_| may_call).unwrap_or_default();
        Ok(ModelCall {
            messages: self
                .messages
                .into_iter()
                .map(SentMessage::message)
                .collect::<Result<_, _>>()?,
            tools: tools.into_iter().map(SentTool::spec).collect::<Result<_, _>>()?,
            max_tokens: max_tokens.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
            stop: match self.stop {
                None => Vec::new(),
                Some(OneOrMore::One(text)) => vec![text],
                Some(OneOrMore::More(texts)) => texts,
            },
            n,
        })
    }
}

impl SentMessage {
    fn message(self) -> Result<Message, ApiError> {
        let role = match self.role {
            SentRole::System => Role::System,
            SentRole::User => Role::User,
            SentRole::Assistant => Role::Assistant,
            SentRole::Tool => Role::Tool,
        };
        let calls = self.tool_calls.unwrap_or_default().into_iter().map(SentCall::call);
        Ok(Message {
            reasoning: self.reasoning_content.filter(|_| role == Role::Assistant),
            tool_calls: calls.collect(),
            tool_call_id: self.tool_call_id,
            ..Message::new(role, self.content.map_or(Ok(String::new()), Content::text)?)
        })
    }
}

impl Content {
    fn text(self) -> Result<String, ApiError> {
        let parts = match self {
            Self::Text(text) => return Ok(text),
            Self::Parts(parts) => parts,
        };
        let texts = parts.into_iter().map(|part| {
            part.text.or(part.refusal).ok_or_else(|| {
                let kind = part.r#type;
                ApiError::bad_request(format!(
                    "the model reads text, and a message has a part of type `{kind}`"
                ))
            })
        });
        Ok(texts.collect::<Result<Vec<_>, _>>()?.concat())
    }
}

impl SentCall {
    fn call(self) -> ToolCall {
        let arguments = match self.function.arguments {
            // Arguments are JSON in a string; what is no JSON stays a string.
            Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
            other => other,
        };
        ToolCall { id: self.id, name: self.function.name, arguments }
    }
}

impl SentTool {
    fn spec(self) -> Result<ToolSpec, ApiError> {
        let Some(spec) = self.function else {
            let kind = self.r#type.unwrap_or_default();
            return Err(ApiError::bad_request(format!(
                "a tool has the type `{kind}`: only `function` can be called"
            )));
        };
        let nothing = || serde_json::json!({"type": "object", "properties": {}});
        Ok(ToolSpec {
            name: spec.name,
            description: spec.description.unwrap_or_default(),
            parameters: spec.parameters.filter(|of| !of.is_null()).unwrap_or_else(nothing),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(json: Value) -> Result<ModelCall, ApiError> {
        serde_json::from_value::<ChatRequest>(json).unwrap().call()
    }

    #[test]
    fn messages_of_every_form_are_read() {
        let call = call(json!({
            "model": "any", "temperature": 0.3, "future_field": {},
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "1 "}, {"type": "text", "text": "+ 1"}]},
                {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}},
                    {"id": "d", "type": "function", "function": {"name": "add", "arguments": "{oops"}},
                ]},
                {"role": "tool", "tool_call_id": "c", "content": "2"},
            ],
            "tools": [{"type": "function", "function": {"name": "add", "strict": true}}],
            "stop": "\n", "max_completion_tokens": 5, "n": 2,
        }))
        .unwrap();
        let [system, user, assistant, tool] = &call.messages[..] else { panic!("four messages") };
        assert_eq!((system.role, user.content.as_str()), (Role::System, "1 + 1"));
        assert_eq!(assistant.tool_calls[0].arguments, json!({"a": 1}));
        assert_eq!(assistant.tool_calls[1].arguments, json!("{oops"));
        assert_eq!((tool.role, tool.tool_call_id.as_deref()), (Role::Tool, Some("c")));
        assert_eq!(call.tools[0].parameters["type"], "object");
        assert_eq!((call.max_tokens, call.n), (Some(5), 2));
        assert_eq!(call.stop, ["\n"]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_its_reason() {
        let said = json!([{"role": "user", "content": "hi"}]);
        for (request, reason) in [
            (json!({"messages": []}), "messages is empty"),
            (json!({"messages": said, "n": 0}), "n is 0"),
            (json!({"messages": said, "max_tokens": 0}), "0 tokens"),
            (json!({"messages": said, "tools": [{"type": "web_search"}]}), "`web_search`"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
                "`image_url`",
            ),
        ] {
            let error = call(request).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_request_without_tools_has_none() {
        let tool = json!([{"type": "function", "function": {"name": "add"}}]);
        let said = json!([{"role": "user", "content": "hi"}]);
        let none = json!({"messages": said, "tools": tool, "tool_choice": "none"});
        assert!(call(none).unwrap().tools.is_empty());
        let auto = json!({"messages": said, "tools": tool, "tool_choice": "auto"});
        assert_eq!(call(auto).unwrap().tools.len(), 1);
        let required = json!({"messages": said, "tools": tool, "tool_choice": "required"});
        assert!(call(required).is_err());
    }
}
