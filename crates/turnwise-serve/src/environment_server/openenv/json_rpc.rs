//! JSON-RPC: MCP's methods, and OpenEnv's own for sessions.

use serde_json::{Value, json};
use turnwise_environment::ToolSpec;

use super::super::hosted::{ANSWER, CallFailure};
use super::play::{Play, tool_result};

/// A request, or a notification if it has no id.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RpcRequest {
    pub(super) id: Option<Value>,
    pub(super) method: String,
    pub(super) params: Value,
}

/// An error: its code and message.
pub(super) type RpcError = (i64, String);

impl RpcRequest {
    /// Reads a request; an error comes with the answer that says so.
    pub(super) fn read(value: &Value) -> Result<Self, Value> {
        let id = value.get("id").cloned();
        let wrong = |code, message: &str| Err(error(id.as_ref(), code, message));
        let Some(fields) = value.as_object() else {
            return wrong(INVALID_REQUEST, "Invalid Request");
        };
        let known = ["jsonrpc", "id", "method", "params"];
        if let Some(extra) = fields.keys().find(|key| !known.contains(&key.as_str())) {
            return wrong(INVALID_REQUEST, &format!("Invalid Request: unknown field '{extra}'"));
        }
        match fields.get("method").and_then(Value::as_str) {
            Some(method) => Ok(Self {
                id: id.clone(),
                method: method.to_owned(),
                params: fields.get("params").cloned().unwrap_or(Value::Null),
            }),
            None => wrong(INVALID_REQUEST, "Invalid Request: method is missing"),
        }
    }
}

pub(super) const PARSE_ERROR: i64 = -32700;
pub(super) const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
pub(super) const INVALID_PARAMS: i64 = -32602;
const INTERNAL_ERROR: i64 = -32603;
pub(super) const SERVER_ERROR: i64 = -32000;

/// Returns the answer that is an error.
pub(super) fn error(id: Option<&Value>, code: i64, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message, "data": null}})
}

/// Returns the answer to a request.
pub(super) fn answer(id: Option<&Value>, result: Result<Value, RpcError>) -> Value {
    match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err((code, message)) => error(id, code, &message),
    }
}

/// The versions of MCP that a client may ask for; the first is answered to any other.
const MCP_VERSIONS: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// Answers a method of MCP.
pub(super) async fn respond(play: &mut Play, request: &RpcRequest) -> Result<Value, RpcError> {
    let params = &request.params;
    match request.method.as_str() {
        "initialize" => {
            let asked = params["protocolVersion"].as_str().unwrap_or_default();
            let version = MCP_VERSIONS.iter().find(|version| **version == asked);
            Ok(json!({
                "protocolVersion": version.unwrap_or(&MCP_VERSIONS[0]),
                "capabilities": {"tools": {"listChanged": false}},
                "serverInfo": {"name": "turnwise", "version": env!("CARGO_PKG_VERSION")},
            }))
        }
        "ping" => Ok(json!({})),
        "tools/list" => {
            let tools = play.tools().await.map_err(|fault| (INTERNAL_ERROR, fault.message))?;
            let tools = tools.into_iter().map(|ToolSpec { name, description, parameters }| {
                json!({"name": name, "description": description, "inputSchema": parameters})
            });
            Ok(json!({"tools": tools.collect::<Vec<_>>()}))
        }
        "tools/call" => call(play, params).await,
        method => Err((METHOD_NOT_FOUND, format!("Method not found: {method}"))),
    }
}

async fn call(play: &mut Play, params: &Value) -> Result<Value, RpcError> {
    let name = params["name"].as_str();
    let name = name.ok_or_else(|| (INVALID_PARAMS, "name is missing".to_owned()))?;
    let arguments = params.get("arguments").cloned().unwrap_or_else(|| json!({}));
    let (text, is_error) = match play.call(name, arguments).await {
        Ok(called) => (called.text, false),
        Err(CallFailure::UnknownTool) => {
            return Err((INTERNAL_ERROR, format!("Unknown tool: '{name}'")));
        }
        Err(CallFailure::NoText) => (format!("{ANSWER} needs a string, text"), true),
        Err(CallFailure::Over) => ("the episode is over".to_owned(), true),
        Err(CallFailure::Broken(error)) => return Err((INTERNAL_ERROR, error.to_string())),
    };
    let mut result = tool_result(&text, is_error);
    result["isError"] = json!(is_error);
    Ok(result)
}
