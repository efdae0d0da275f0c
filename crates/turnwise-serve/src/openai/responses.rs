//! OpenAI's responses: a request whose conversation is a list of items.

use serde::Deserialize;
use serde_json::{Value, json};
use turnwise_environment::{Message, Role, ToolCall, ToolSpec};
use turnwise_trajectory::StopReason;

use super::response::now;
use crate::answer::ChatAnswer;
use crate::api_error::ApiError;
use crate::call::ModelCall;
use crate::tool_choice::may_call;

/// What a client sends to `/v1/responses`. Fields that are not here are ignored, as with chat completions.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ResponsesRequest {
    #[serde(default)]
    pub(crate) model: String,
    #[serde(default)]
    instructions: Option<String>,
    input: Input,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    tool_choice: Option<Value>,
    #[serde(default)]
    max_output_tokens: Option<usize>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    previous_response_id: Option<Value>,
    #[serde(default)]
    conversation: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Value>),
}

/// An item of a conversation.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Item {
    Message { role: ItemRole, content: ItemText },
    FunctionCall { call_id: String, name: String, arguments: String },
    FunctionCallOutput { call_id: String, output: ItemText },
    Reasoning {},
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ItemRole {
    #[serde(alias = "developer")]
    System,
    User,
    Assistant,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum ItemText {
    Text(String),
    Parts(Vec<ItemPart>),
}

#[derive(Clone, Debug, Deserialize)]
struct ItemPart {
    r#type: String,
    #[serde(default, alias = "refusal")]
    text: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct FunctionTool {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Value>,
}

impl ResponsesRequest {
    pub(crate) fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    pub(crate) fn call(self) -> Result<ModelCall, ApiError> {
        if self.previous_response_id.is_some_and(|id| !id.is_null())
            || self.conversation.is_some_and(|id| !id.is_null())
        {
            return Err(ApiError::bad_request(
                "conversations are not kept here: send all items as `input`, without previous_response_id and conversation",
            ));
        }
        if self.max_output_tokens == Some(0) {
            return Err(ApiError::bad_request("a turn of 0 tokens cannot be sampled"));
        }
        let mut messages: Vec<Message> =
            self.instructions.into_iter().map(Message::system).collect();
        match self.input {
            Input::Text(text) => messages.push(Message::user(text)),
            Input::Items(items) => {
                for item in items {
                    add(&mut messages, item)?;
                }
            }
        }
        if messages.iter().all(|message| message.role == Role::System) {
            return Err(ApiError::bad_request("input is empty"));
        }
        let may_call = may_call(self.tool_choice.as_ref())?;
        let tools = self.tools.filter(|_| may_call).unwrap_or_default();
        Ok(ModelCall {
            messages,
            tools: tools.into_iter().map(spec).collect::<Result<_, _>>()?,
            max_tokens: self.max_output_tokens,
            stop: Vec::new(),
            n: 1,
        })
    }
}

/// Adds an item. A turn's text and its calls are items of their own, and one message here.
fn add(messages: &mut Vec<Message>, mut item: Value) -> Result<(), ApiError> {
    if item.get("type").is_none_or(Value::is_null) {
        item["type"] = json!("message");
    }
    let kind = item["type"].as_str().unwrap_or_default().to_owned();
    let item: Item = serde_json::from_value(item).map_err(|error| {
        ApiError::bad_request(format!("cannot read an item of type `{kind}`: {error}"))
    })?;
    match item {
        Item::Message { role, content } => {
            let role = match role {
                ItemRole::System => Role::System,
                ItemRole::User => Role::User,
                ItemRole::Assistant => Role::Assistant,
            };
            messages.push(Message::new(role, content.text()?));
        }
        Item::FunctionCall { call_id, name, arguments } => {
            let arguments = serde_json::from_str(&arguments).unwrap_or(Value::String(arguments));
            let call = ToolCall { id: call_id, name, arguments };
            match messages.last_mut().filter(|last| last.role == Role::Assistant) {
                Some(turn) => turn.tool_calls.push(call),
                None => messages
                    .push(Message { tool_calls: vec![call], ..Message::assistant(String::new()) }),
            }
        }
        Item::FunctionCallOutput { call_id, output } => {
            messages.push(Message::tool(call_id, output.text()?));
        }
        Item::Reasoning {} => {}
    }
    Ok(())
}

impl ItemText {
    fn text(self) -> Result<String, ApiError> {
        let parts = match self {
            Self::Text(text) => return Ok(text),
            Self::Parts(parts) => parts,
        };
        let texts = parts.into_iter().map(|part| {
            let kind = part.r#type;
            part.text.ok_or_else(|| {
                let what = format!("the model reads text, and an item has a part of type `{kind}`");
                ApiError::bad_request(what)
            })
        });
        Ok(texts.collect::<Result<Vec<_>, _>>()?.concat())
    }
}

fn spec(tool: Value) -> Result<ToolSpec, ApiError> {
    let kind = tool["type"].as_str().unwrap_or_default().to_owned();
    if kind != "function" {
        return Err(ApiError::bad_request(format!(
            "a tool has the type `{kind}`: only `function` can be called"
        )));
    }
    let tool: FunctionTool = serde_json::from_value(tool)
        .map_err(|error| ApiError::bad_request(format!("cannot read a tool: {error}")))?;
    let nothing = || json!({"type": "object", "properties": {}});
    Ok(ToolSpec {
        name: tool.name,
        description: tool.description.unwrap_or_default(),
        parameters: tool.parameters.filter(|of| !of.is_null()).unwrap_or_else(nothing),
    })
}

/// Returns a whole response.
pub(crate) fn responded(id: u64, model: &str, answer: &ChatAnswer) -> Value {
    let is_cut = matches!(answer.turn.stop, StopReason::MaxTokens | StopReason::Interrupted);
    let details = if is_cut { json!({"reason": "max_output_tokens"}) } else { Value::Null };
    let (input, output) = (answer.turn.n_prompt, answer.turn.n_sampled);
    json!({
        "id": format!("resp_{id:x}"),
        "object": "response",
        "created_at": now(),
        "status": if is_cut { "incomplete" } else { "completed" },
        "incomplete_details": details,
        "error": null,
        "instructions": null,
        "metadata": {},
        "model": model,
        "output": items(id, answer),
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "temperature": null,
        "top_p": null,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": input,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input + output,
        },
    })
}

fn items(id: u64, answer: &ChatAnswer) -> Vec<Value> {
    let mut items = Vec::new();
    if !answer.text.is_empty() || answer.calls.is_empty() {
        let text =
            json!({"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []});
        items.push(json!({"type": "message", "id": format!("msg_{id:x}"), "status": "completed", "role": "assistant", "content": [text]}));
    }
    for call in &answer.calls {
        items.push(json!({
            "type": "function_call",
            "id": format!("fc_{}", call.id),
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments.to_string(),
            "status": "completed",
        }));
    }
    items
}

/// Returns the response as events of a stream: their names and data.
pub(crate) fn response_events(
    id: u64,
    model: &str,
    answer: &ChatAnswer,
) -> Vec<(&'static str, Value)> {
    let whole = responded(id, model, answer);
    let mut begun = whole.clone();
    begun["status"] = json!("in_progress");
    begun["output"] = json!([]);
    begun["usage"] = Value::Null;
    let mut events = vec![
        ("response.created", json!({"response": begun})),
        ("response.in_progress", json!({"response": begun})),
    ];
    for (place, item) in items(id, answer).into_iter().enumerate() {
        let of_item = |mut fields: Value| {
            fields["output_index"] = json!(place);
            fields["item_id"] = item["id"].clone();
            fields
        };
        let mut empty = item.clone();
        empty["status"] = json!("in_progress");
        let is_call = item["type"] == "function_call";
        empty[if is_call { "arguments" } else { "content" }] =
            if is_call { json!("") } else { json!([]) };
        events.push(("response.output_item.added", json!({"output_index": place, "item": empty})));
        if is_call {
            let arguments = &item["arguments"];
            events.push((
                "response.function_call_arguments.delta",
                of_item(json!({"delta": arguments})),
            ));
            let done = json!({"arguments": arguments, "name": item["name"]});
            events.push(("response.function_call_arguments.done", of_item(done)));
        } else {
            let part = &item["content"][0];
            let mut no_text = part.clone();
            no_text["text"] = json!("");
            let of_part = |mut fields: Value| {
                fields["content_index"] = json!(0);
                of_item(fields)
            };
            events.push(("response.content_part.added", of_part(json!({"part": no_text}))));
            let delta = json!({"delta": part["text"], "logprobs": []});
            events.push(("response.output_text.delta", of_part(delta)));
            let done = json!({"text": part["text"], "logprobs": []});
            events.push(("response.output_text.done", of_part(done)));
            events.push(("response.content_part.done", of_part(json!({"part": part}))));
        }
        events.push(("response.output_item.done", json!({"output_index": place, "item": item})));
    }
    let last =
        if whole["status"] == "completed" { "response.completed" } else { "response.incomplete" };
    events.push((last, json!({"response": whole})));
    for (number, (name, data)) in events.iter_mut().enumerate() {
        data["type"] = json!(name);
        data["sequence_number"] = json!(number);
    }
    events
}

#[cfg(test)]
mod tests {
    use turnwise_environment::Action;

    use super::*;
    use crate::answer::TurnReport;

    fn call(request: Value) -> Result<ModelCall, ApiError> {
        serde_json::from_value::<ResponsesRequest>(request).unwrap().call()
    }

    #[test]
    fn the_items_of_a_turn_are_one_message() {
        let call = call(json!({
            "model": "any", "instructions": "Be brief.", "store": false,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "1 + 1"}]},
                {"type": "reasoning", "id": "r", "summary": []},
                {"type": "message", "id": "m", "role": "assistant", "status": "completed",
                 "content": [{"type": "output_text", "text": "Adding.", "annotations": []}]},
                {"type": "function_call", "id": "f", "call_id": "c", "name": "add", "arguments": "{\"a\": 1}"},
                {"type": "function_call", "call_id": "d", "name": "add", "arguments": "{\"a\": 2}"},
                {"type": "function_call_output", "call_id": "c", "output": "2"},
            ],
            "tools": [{"type": "function", "name": "add", "strict": true, "parameters": {"type": "object"}}],
            "max_output_tokens": 7,
        }))
        .unwrap();
        let roles: Vec<Role> = call.messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::Tool]);
        let turn = &call.messages[2];
        assert_eq!((turn.content.as_str(), turn.tool_calls.len()), ("Adding.", 2));
        assert_eq!((call.max_tokens, call.tools[0].name.as_str()), (Some(7), "add"));
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_its_reason() {
        for (request, reason) in [
            (json!({"input": []}), "input is empty"),
            (json!({"input": "hi", "previous_response_id": "resp_1"}), "previous_response_id"),
            (json!({"input": "hi", "max_output_tokens": 0}), "0 tokens"),
            (json!({"input": "hi", "tools": [{"type": "web_search"}]}), "`web_search`"),
            (json!({"input": [{"type": "computer_call"}]}), "`computer_call`"),
            (
                json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
                "`input_image`",
            ),
        ] {
            let error = call(request).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_stream_adds_up_to_the_whole() {
        let action = Action { text: "Adding.".to_owned(), ..Action::call("add", json!({"a": 1})) };
        let answer = ChatAnswer::new(&action, TurnReport::default(), &[], 5);
        let events = response_events(5, "m", &answer);
        let of = |name: &str, field: &str| -> Vec<Value> {
            let named = events.iter().filter(|(event, _)| *event == name);
            named.map(|(_, data)| data[field].clone()).collect()
        };
        let items = of("response.output_item.done", "item");
        let (last, whole) = &events[events.len() - 1];
        assert_eq!(*last, "response.completed");
        assert_eq!(whole["response"]["output"], json!(items));
        assert_eq!(of("response.output_text.delta", "delta"), ["Adding."]);
        assert_eq!(of("response.function_call_arguments.delta", "delta"), ["{\"a\":1}"]);
        assert!(events.iter().enumerate().all(|(n, (_, data))| data["sequence_number"] == n));
    }
}
