//! An environment behind OpenEnv: its WebSocket, its HTTP routes, and MCP.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use turnwise_calculator::CalculatorSettings;
use turnwise_serve::{EnvironmentServer, Protocol, ServerSettings};

use crate::support::{run, send};

async fn server(max_sessions: usize) -> EnvironmentServer {
    let calculator = CalculatorSettings { operations: 1, ..CalculatorSettings::default() };
    let suite = turnwise_calculator::suite(calculator).unwrap();
    let settings = ServerSettings { max_sessions, ..ServerSettings::new(Protocol::OpenEnv) };
    EnvironmentServer::bind(settings, suite).await.unwrap()
}

struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    async fn open(server: &EnvironmentServer, query: &str) -> Self {
        let url = format!("{}/ws{query}", server.url().replace("http", "ws"));
        Self(connect_async(url).await.unwrap().0)
    }

    async fn ask(&mut self, message: &Value) -> Value {
        // A server that refuses the connection says so whether it was asked or not.
        let _ = self.0.send(Message::text(message.to_string())).await;
        self.read().await.unwrap()
    }

    /// Returns the next frame, or nothing if the server closed.
    async fn read(&mut self) -> Option<Value> {
        match self.0.next().await {
            Some(Ok(Message::Text(text))) => Some(serde_json::from_str(&text).unwrap()),
            _ => None,
        }
    }

    async fn step(&mut self, action: &Value) -> Value {
        self.ask(&json!({"type": "step", "data": action})).await
    }
}

async fn rpc(server: &EnvironmentServer, headers: &str, body: &Value) -> (u16, Value) {
    let url = server.url();
    let (body, address) = (body.to_string(), url.strip_prefix("http://").unwrap());
    let length = body.len();
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let (status, answer) = send(address, &request).await;
    (status, serde_json::from_str(&answer).unwrap_or(Value::Null))
}

#[test]
fn an_episode_lives_on_its_connection() {
    run(async {
        let server = server(4).await;
        let mut socket = Socket::open(&server, "").await;
        let reset = json!({"type": "reset", "data": {"seed": 4, "episode_id": "E4", "task": 0}});
        let first = socket.ask(&reset).await;
        assert_eq!(
            (&first["type"], &first["data"]["done"]),
            (&json!("observation"), &json!(false))
        );
        let text = first["data"]["observation"]["text"].as_str().unwrap();
        let line =
            text.lines().filter_map(|line| line.strip_prefix("Compute ")).next_back().unwrap();
        let words: Vec<&str> = line.split([' ', ',']).collect();
        let number = |word: &str| word.parse::<i64>().unwrap();
        let arguments = json!({"a": number(words[0]), "op": words[1], "b": number(words[2])});

        let tools = socket.step(&json!({"type": "list_tools"})).await;
        assert!(tools["data"]["observation"]["tools"][0]["input_schema"].is_object());
        let call = json!({"type": "call_tool", "tool_name": "calc", "arguments": arguments});
        let called = socket.step(&call).await["data"].clone();
        assert_eq!(called["reward"], 0.5);
        let result = called["observation"]["result"]["content"][0]["text"].clone();
        let nope = socket.step(&json!({"type": "call_tool", "tool_name": "nope"})).await;
        assert_eq!(nope["data"]["observation"]["error"]["error_type"], "tool_not_found");
        let last = socket.step(&json!({"message": result})).await["data"].clone();
        assert_eq!(
            (&last["done"], &last["observation"]["metadata"]["solved"]),
            (&json!(true), &json!(true))
        );
        let state = socket.ask(&json!({"type": "state"})).await;
        assert_eq!(state["data"], json!({"episode_id": "E4", "step_count": 2}));
        // The end is latched, and a new episode may begin.
        assert_eq!(socket.step(&json!({"message": "1"})).await["data"]["code"], "EXECUTION_ERROR");
        assert_eq!(socket.ask(&json!({"type": "reset"})).await["data"]["done"], false);
        socket.0.send(Message::text(r#"{"type": "close"}"#)).await.unwrap();
        assert_eq!(socket.read().await, None);
    });
}

#[test]
fn mistakes_leave_the_connection_open_and_name_themselves() {
    run(async {
        let server = server(4).await;
        let mut socket = Socket::open(&server, "").await;
        for (message, code) in [
            (json!({"type": "zzz"}), "UNKNOWN_TYPE"),
            (json!({"type": "state", "id": 4}), "VALIDATION_ERROR"),
            (json!({"type": "step", "data": {"message": "hi"}}), "EXECUTION_ERROR"),
            (json!({"type": "reset", "data": {"seed": -1}}), "VALIDATION_ERROR"),
            (json!({"type": "reset", "data": {"task": 1_000_000}}), "VALIDATION_ERROR"),
        ] {
            assert_eq!(socket.ask(&message).await["data"]["code"], code, "{message}");
        }
        socket.0.send(Message::text("{oops")).await.unwrap();
        assert_eq!(socket.read().await.unwrap()["data"]["code"], "INVALID_JSON");
        socket.ask(&json!({"type": "reset"})).await;
        let wrong = socket.step(&json!({"bad": 1})).await;
        assert_eq!(wrong["data"]["errors"][0]["type"], "extra_forbidden");
    });
}

#[test]
fn one_connection_holds_a_session_and_a_full_server_says_so() {
    run(async {
        let server = server(1).await;
        let create = json!({"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create"});
        let created = rpc(&server, "", &create).await.1;
        let id = created["result"]["session_id"].as_str().unwrap().to_owned();
        let refused = Socket::open(&server, "").await.read().await.unwrap();
        assert_eq!(refused["data"]["code"], "CAPACITY_REACHED");
        let mut first = Socket::open(&server, &format!("?session_id={id}")).await;
        first.ask(&json!({"type": "reset", "data": {"episode_id": "kept"}})).await;
        let mut second = Socket::open(&server, &format!("?session_id={id}")).await;
        assert_eq!(second.read().await.unwrap()["data"]["code"], "SESSION_ERROR");
        // Requests of JSON-RPC share the environment with the connection.
        let list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {"session_id": id}});
        assert!(rpc(&server, "", &list).await.1["result"]["tools"].is_array());
        first.0.close(None).await.unwrap();
        while first.read().await.is_some() {}
        // The session outlives its connection.
        let mut again = loop {
            let mut socket = Socket::open(&server, &format!("?session_id={id}")).await;
            if socket.ask(&json!({"type": "state"})).await["data"]["episode_id"] == "kept" {
                break socket;
            }
        };
        let close = json!({"jsonrpc": "2.0", "id": 3, "method": "openenv/session/close", "params": {"session_id": id}});
        assert_eq!(rpc(&server, "", &close).await.1["result"]["closing"], true);
        again.0.close(None).await.unwrap();
        while again.read().await.is_some() {}
        let closed = loop {
            let answer = rpc(&server, "", &close).await.1;
            if answer["error"].is_object() {
                break answer;
            }
        };
        assert_eq!(closed["error"]["code"], -32602);
        let mut unknown = Socket::open(&server, "?session_id=bogus").await;
        assert_eq!(unknown.read().await.unwrap()["data"]["code"], "SESSION_ERROR");
    });
}

#[test]
fn a_client_of_mcp_calls_the_tools_of_an_episode() {
    run(async {
        let server = server(4).await;
        let request = |id: u64, method: &str, params: Value| json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let hello =
            request(0, "initialize", json!({"protocolVersion": "2025-06-18", "capabilities": {}}));
        let (_, hello) = rpc(&server, "", &hello).await;
        assert_eq!(hello["result"]["protocolVersion"], "2025-06-18");
        let session = rpc(&server, "", &request(1, "openenv/session/create", json!({}))).await.1;
        let header =
            format!("Mcp-Session-Id: {}\r\n", session["result"]["session_id"].as_str().unwrap());
        let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(rpc(&server, &header, &note).await.0, 202);
        let tools = rpc(&server, &header, &request(2, "tools/list", json!({}))).await.1;
        assert_eq!(tools["result"]["tools"][1]["name"], "answer");
        assert!(tools["result"]["tools"][0]["inputSchema"].is_object());
        let call = |text: &str| {
            request(3, "tools/call", json!({"name": "answer", "arguments": {"text": text}}))
        };
        let answered = rpc(&server, &header, &call("it is 1")).await.1;
        assert_eq!(answered["result"]["isError"], false);
        // The episode of the session goes on, here to its end.
        let over = rpc(&server, &header, &call("it is 1")).await.1;
        assert_eq!(over["result"]["isError"], true, "{over}");
        let lost =
            rpc(&server, "Mcp-Session-Id: bogus\r\n", &request(4, "tools/list", json!({}))).await;
        assert_eq!(lost.0, 404);
        assert_eq!(rpc(&server, "", &json!({})).await.1["error"]["code"], -32600);
        assert_eq!(
            rpc(&server, "", &request(5, "nope", json!({}))).await.1["error"]["code"],
            -32601
        );
    });
}
