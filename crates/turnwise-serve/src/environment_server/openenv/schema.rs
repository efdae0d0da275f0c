//! What the server says about itself.

use serde_json::{Value, json};
use turnwise_environment::Suite;

pub(super) fn metadata(suite: &Suite) -> Value {
    json!({
        "name": suite.name(),
        "description": suite.about(),
        "readme_content": suite.instructions_text(),
        "version": env!("CARGO_PKG_VERSION"),
        "author": null,
        "documentation_url": null,
    })
}

/// Returns the JSON Schemas of action, observation and state.
pub(super) fn schemas() -> Value {
    let text = json!({"type": "string"});
    let action = json!({
        "title": "Action",
        "description": "Says something (message), or calls a tool (type = call_tool); list_tools lists them.",
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["message", "call_tool", "list_tools"], "default": "message"},
            "message": text,
            "tool_name": text,
            "arguments": {"type": "object", "additionalProperties": true},
            "metadata": {"type": "object", "additionalProperties": true},
        },
        "additionalProperties": false,
    });
    let observation = json!({
        "title": "Observation",
        "type": "object",
        "properties": {
            "text": text,
            "tools": {"type": "array"},
            "tool_name": text,
            "result": {"type": ["object", "null"]},
            "error": {"type": ["object", "null"]},
            "done": {"type": "boolean"},
            "reward": {"type": ["number", "null"]},
            "metadata": {"type": "object", "additionalProperties": true},
        },
    });
    let state = json!({
        "title": "State",
        "type": "object",
        "properties": {
            "episode_id": {"type": ["string", "null"]},
            "step_count": {"type": "integer", "minimum": 0},
        },
    });
    json!({"action": action, "observation": observation, "state": state})
}

/// Returns the OpenAPI document: the routes, without their bodies.
pub(super) fn open_api(suite: &Suite) -> Value {
    let answered = json!({"responses": {"200": {"description": "Successful Response"}}});
    let (get, post) = (json!({"get": answered}), json!({"post": answered}));
    json!({
        "openapi": "3.1.0",
        "info": {"title": suite.name(), "version": env!("CARGO_PKG_VERSION")},
        "paths": {
            "/health": get, "/metadata": get, "/schema": get, "/state": get,
            "/reset": post, "/step": post, "/mcp": post,
        },
    })
}
