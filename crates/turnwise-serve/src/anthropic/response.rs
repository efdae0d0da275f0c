//! The response of a message, whole and in pieces.

use serde_json::{Value, json};
use turnwise_trajectory::StopReason;

use crate::answer::ChatAnswer;

/// Returns a whole response.
pub(crate) fn message(id: u64, model: &str, answer: &ChatAnswer) -> Value {
    json!({
        "id": format!("msg_{id:x}"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks(answer),
        "stop_reason": stop_reason(answer),
        "stop_sequence": answer.stopped_at,
        "usage": {"input_tokens": answer.turn.n_prompt, "output_tokens": answer.turn.n_sampled},
    })
}

/// Returns the names and the data of a response's events.
pub(crate) fn stream_events(
    id: u64,
    model: &str,
    answer: &ChatAnswer,
) -> Vec<(&'static str, Value)> {
    let mut start = message(id, model, answer);
    start["content"] = json!([]);
    start["stop_reason"] = Value::Null;
    start["stop_sequence"] = Value::Null;
    start["usage"]["output_tokens"] = json!(0);
    let mut events = vec![("message_start", json!({"type": "message_start", "message": start}))];
    for (index, block) in blocks(answer).into_iter().enumerate() {
        let (empty, delta) = split(&block);
        events.extend([
            (
                "content_block_start",
                json!({"type": "content_block_start", "index": index, "content_block": empty}),
            ),
            (
                "content_block_delta",
                json!({"type": "content_block_delta", "index": index, "delta": delta}),
            ),
            ("content_block_stop", json!({"type": "content_block_stop", "index": index})),
        ]);
    }
    let delta = json!({"stop_reason": stop_reason(answer), "stop_sequence": answer.stopped_at});
    let usage = json!({"output_tokens": answer.turn.n_sampled});
    events
        .push(("message_delta", json!({"type": "message_delta", "delta": delta, "usage": usage})));
    events.push(("message_stop", json!({"type": "message_stop"})));
    events
}

fn blocks(answer: &ChatAnswer) -> Vec<Value> {
    let mut blocks = Vec::new();
    if let Some(reasoning) = &answer.reasoning {
        blocks.push(json!({"type": "thinking", "thinking": reasoning, "signature": ""}));
    }
    if !answer.text.is_empty() || answer.calls.is_empty() {
        blocks.push(json!({"type": "text", "text": answer.text}));
    }
    blocks.extend(answer.calls.iter().map(|call| {
        json!({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments})
    }));
    blocks
}

/// Splits a block into what starts it and what follows.
fn split(block: &Value) -> (Value, Value) {
    let mut empty = block.clone();
    let delta = match block["type"].as_str() {
        Some("tool_use") => {
            empty["input"] = json!({});
            json!({"type": "input_json_delta", "partial_json": block["input"].to_string()})
        }
        Some("thinking") => {
            empty["thinking"] = json!("");
            json!({"type": "thinking_delta", "thinking": block["thinking"]})
        }
        _ => {
            empty["text"] = json!("");
            json!({"type": "text_delta", "text": block["text"]})
        }
    };
    (empty, delta)
}

fn stop_reason(answer: &ChatAnswer) -> &'static str {
    match answer.turn.stop {
        StopReason::MaxTokens | StopReason::Interrupted => "max_tokens",
        _ if !answer.calls.is_empty() => "tool_use",
        StopReason::StopText => "stop_sequence",
        StopReason::EndOfTurn => "end_turn",
    }
}

#[cfg(test)]
mod tests {
    use turnwise_environment::Action;

    use super::*;
    use crate::answer::TurnReport;

    #[test]
    fn a_stream_adds_up_to_the_whole() {
        let action = Action { text: "Adding.".to_owned(), ..Action::call("add", json!({"a": 1})) };
        let turn = TurnReport { n_prompt: 9, n_sampled: 4, ..TurnReport::default() };
        let answer = ChatAnswer::new(&action, turn, &[], 5);
        let whole = message(5, "m", &answer);
        let events = stream_events(5, "m", &answer);
        let deltas: Vec<&Value> = events
            .iter()
            .map(|(_, data)| &data["delta"])
            .filter(|delta| !delta.is_null())
            .collect();
        assert_eq!(deltas[0]["text"], whole["content"][0]["text"]);
        let input: Value =
            serde_json::from_str(deltas[1]["partial_json"].as_str().unwrap()).unwrap();
        assert_eq!(input, whole["content"][1]["input"]);
        assert_eq!(deltas[2]["stop_reason"], "tool_use");
        assert!(events.iter().all(|(name, data)| data["type"] == *name));
        assert_eq!(events.last().unwrap().0, "message_stop");
    }
}
