//! The nodes of a trace: a message graph in verifiers' terms.

use serde_json::{Value, json};
use turnwise_environment::{Message, Role};
use turnwise_trajectory::{MessageGraph, Node, Span};

/// Returns the nodes of a graph.
pub(super) fn nodes(graph: &MessageGraph) -> Vec<Value> {
    graph.nodes().iter().map(node).collect()
}

fn node(node: &Node) -> Value {
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for span in &node.spans {
        span.extend_ids(&mut ids);
        mask.resize(ids.len(), matches!(span, Span::Sampled(_)));
    }
    // One for each token that was sampled.
    let logprobs: Vec<f32> = node.sampled().map(|token| token.logprob).collect();
    json!({
        "parent": node.parent.map(|parent| parent.0),
        "message": message(&node.message),
        "sampled": !logprobs.is_empty(),
        "token_ids": ids,
        "mask": mask,
        "logprobs": logprobs,
    })
}

fn message(message: &Message) -> Value {
    let mut value = json!({"role": message.role, "content": message.content});
    if message.role == Role::Tool {
        value["tool_call_id"] = json!(message.tool_call_id.as_deref().unwrap_or("call_0"));
    }
    if let Some(reasoning) = &message.reasoning {
        value["reasoning_content"] = json!(reasoning);
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            json!({"id": call.id, "name": call.name, "arguments": call.arguments.to_string()})
        });
        value["tool_calls"] = calls.collect();
    }
    value
}

#[cfg(test)]
mod tests {
    use turnwise_trajectory::{Author, PolicyVersion, SampledToken, SampledTokens};

    use super::*;

    #[test]
    fn a_node_has_its_tokens_a_mask_and_compact_log_probabilities() {
        let mut graph = MessageGraph::default();
        let question = graph.push(Node {
            parent: None,
            author: Author::Environment,
            message: Message::user("hi"),
            spans: vec![Span::Scaffold(vec![1]), Span::Context(vec![2, 3])],
        });
        let sampled: SampledTokens = [(10, -0.5), (11, -0.25)]
            .map(|(id, logprob)| SampledToken::new(id, logprob, PolicyVersion(0)))
            .into_iter()
            .collect();
        graph.push(Node {
            parent: Some(question),
            author: Author::Policy,
            message: Message::assistant("yo"),
            spans: vec![Span::Scaffold(vec![9]), Span::Sampled(sampled)],
        });
        let nodes = nodes(&graph);
        assert_eq!(nodes[0]["token_ids"], json!([1, 2, 3]));
        assert_eq!((&nodes[0]["sampled"], &nodes[0]["logprobs"]), (&json!(false), &json!([])));
        let expected = json!({
            "parent": 0, "message": {"role": "assistant", "content": "yo"}, "sampled": true,
            "token_ids": [9, 10, 11], "mask": [false, true, true], "logprobs": [-0.5, -0.25],
        });
        assert_eq!(nodes[1], expected);
    }
}
