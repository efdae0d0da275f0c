//! The response of a chat completion, whole and in pieces.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use turnwise_environment::ToolCall;
use turnwise_trajectory::StopReason;

use crate::answer::ChatAnswer;

/// Returns a whole response.
pub(crate) fn completion(
    id: u64,
    model: &str,
    answers: &[ChatAnswer],
    has_logprobs: bool,
) -> Value {
    let choices = answers.iter().enumerate().map(|(index, answer)| {
        let mut message = json!({"role": "assistant", "content": content(answer), "refusal": null});
        if !answer.calls.is_empty() {
            message["tool_calls"] = answer.calls.iter().map(call).collect();
        }
        if let Some(reasoning) = &answer.reasoning {
            message["reasoning_content"] = json!(reasoning);
        }
        json!({
            "index": index,
            "message": message,
            "finish_reason": finish(answer),
            "logprobs": if has_logprobs { logprobs(answer) } else { Value::Null },
        })
    });
    json!({
        "id": format!("chatcmpl-{id:x}"),
        "object": "chat.completion",
        "created": now(),
        "model": model,
        "choices": choices.collect::<Vec<_>>(),
        "usage": usage(answers),
    })
}

/// A response as events of a stream.
#[derive(Clone, Debug)]
pub(crate) struct ChatStream {
    pub(crate) id: u64,
    pub(crate) model: String,
    pub(crate) has_logprobs: bool,
    /// Whether a last chunk has the counts.
    pub(crate) counts: bool,
}

impl ChatStream {
    /// Returns the data of each event.
    pub(crate) fn events(&self, answers: &[ChatAnswer]) -> Vec<String> {
        let mut events = Vec::new();
        for (index, answer) in answers.iter().enumerate() {
            let mut push = |delta: Value, finish: Value, logprobs: Value| {
                let choice = json!({"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs});
                events.push(self.chunk(&json!([choice]), None));
            };
            push(json!({"role": "assistant", "content": ""}), Value::Null, Value::Null);
            if let Some(reasoning) = &answer.reasoning {
                push(json!({"reasoning_content": reasoning}), Value::Null, Value::Null);
            }
            if !answer.text.is_empty() {
                let logprobs = if self.has_logprobs { logprobs(answer) } else { Value::Null };
                push(json!({"content": answer.text}), Value::Null, logprobs);
            }
            for (place, one) in answer.calls.iter().enumerate() {
                let mut call = call(one);
                call["index"] = json!(place);
                push(json!({"tool_calls": [call]}), Value::Null, Value::Null);
            }
            push(json!({}), json!(finish(answer)), Value::Null);
        }
        if self.counts {
            events.push(self.chunk(&json!([]), Some(usage(answers))));
        }
        events.push("[DONE]".to_owned());
        events
    }

    fn chunk(&self, choices: &Value, usage: Option<Value>) -> String {
        let mut chunk = json!({
            "id": format!("chatcmpl-{:x}", self.id),
            "object": "chat.completion.chunk",
            "created": now(),
            "model": self.model,
            "choices": choices,
        });
        if self.counts {
            chunk["usage"] = usage.unwrap_or(Value::Null);
        }
        chunk.to_string()
    }
}

fn content(answer: &ChatAnswer) -> Value {
    let is_only_calls = answer.text.is_empty() && !answer.calls.is_empty();
    if is_only_calls { Value::Null } else { json!(answer.text) }
}

fn call(call: &ToolCall) -> Value {
    let function = json!({"name": call.name, "arguments": call.arguments.to_string()});
    json!({"id": call.id, "type": "function", "function": function})
}

fn finish(answer: &ChatAnswer) -> &'static str {
    match answer.turn.stop {
        StopReason::MaxTokens | StopReason::Interrupted => "length",
        _ if !answer.calls.is_empty() => "tool_calls",
        StopReason::EndOfTurn | StopReason::StopText => "stop",
    }
}

fn logprobs(answer: &ChatAnswer) -> Value {
    let token = |(text, logprob): &(String, f32)| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes(), "top_logprobs": []});
    json!({"content": answer.turn.tokens.iter().map(token).collect::<Vec<_>>(), "refusal": null})
}

fn usage(answers: &[ChatAnswer]) -> Value {
    // The prompt is one, however many answers it has.
    let prompt = answers.first().map_or(0, |answer| answer.turn.n_prompt);
    let sampled: usize = answers.iter().map(|answer| answer.turn.n_sampled).sum();
    json!({"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled})
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use turnwise_environment::Action;

    use super::*;
    use crate::answer::TurnReport;

    fn answer() -> ChatAnswer {
        let action = Action { text: "Adding.".to_owned(), ..Action::call("add", json!({"a": 1})) };
        let tokens = vec![("Adding".to_owned(), -0.5)];
        let turn = TurnReport { n_prompt: 9, n_sampled: 4, tokens, ..TurnReport::default() };
        ChatAnswer::new(&action, turn, &[], 5)
    }

    #[test]
    fn a_response_has_what_clients_read() {
        let whole = completion(5, "m", &[answer(), answer()], true);
        assert_eq!(
            whole["choices"][1]["message"]["tool_calls"][0]["function"]["arguments"],
            "{\"a\":1}"
        );
        assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(whole["choices"][0]["logprobs"]["content"][0]["logprob"], -0.5);
        assert_eq!(
            whole["usage"],
            json!({"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17})
        );
    }

    #[test]
    fn a_stream_adds_up_to_the_whole() {
        let stream = ChatStream { id: 5, model: "m".to_owned(), has_logprobs: false, counts: true };
        let events = stream.events(&[answer()]);
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
        let chunks: Vec<Value> = events[..events.len() - 1]
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        let deltas = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]);
        let text: String = deltas.filter_map(|delta| delta["content"].as_str()).collect();
        assert_eq!(text, "Adding.");
        let call = &chunks[2]["choices"][0]["delta"]["tool_calls"][0];
        assert_eq!((&call["index"], &call["function"]["name"]), (&json!(0), &json!("add")));
        assert_eq!(chunks[3]["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(chunks[4]["usage"]["total_tokens"], 13);
        assert!(chunks[4]["choices"].as_array().is_some_and(Vec::is_empty));
    }
}
