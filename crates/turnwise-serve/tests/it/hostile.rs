//! Clients that are not the program.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use turnwise_serve::{Gateway, GatewaySettings};

use crate::support::{Program, Session, run, send, user};

#[test]
fn strangers_get_no_turn() {
    run(async {
        let program = Program::new().await;
        let trajectory = program
            .played(async {
                let session = program.session().await;
                let stranger = Session {
                    path: "/s/0123456789abcdef0123456789abcdef".to_owned(),
                    ..session.clone()
                };
                let request = json!({"messages": [user("a")]});
                let (status, body) = stranger.post("/v1/chat/completions", &request).await;
                let error: Value = serde_json::from_str(&body).unwrap();
                assert_eq!(
                    (status, &error["error"]["type"]),
                    (401, &json!("authentication_error"))
                );
                let without_key = Session { path: String::new(), ..session.clone() };
                assert_eq!(without_key.post("/v1/chat/completions", &request).await.0, 401);
                for header in
                    ["Origin: https://evil.example\r\nHost: localhost", "Host: evil.example"]
                {
                    let path = &session.path;
                    let request = format!(
                        "GET {path}/task HTTP/1.1\r\n{header}\r\nConnection: close\r\n\r\n"
                    );
                    assert_eq!(send(&session.address, &request).await.0, 403, "{header}");
                }
                session.chat(&request).await;
                program.exit(0);
            })
            .await;
        assert_eq!(trajectory.turns.len(), 1);
    });
}

#[test]
fn a_bad_request_is_refused_with_its_reason_and_costs_nothing() {
    run(async {
        let program = Program::new().await;
        let trajectory = program
            .played(async {
                let session = program.session().await;
                for (body, reason) in [
                    (json!({"messages": "hi"}), "cannot read the request"),
                    (json!({"messages": []}), "messages is empty"),
                    (json!({"messages": [user("a")], "n": 0}), "n is 0"),
                ] {
                    let (status, body) = session.post("/v1/chat/completions", &body).await;
                    assert!(status == 400 && body.contains(reason), "{status} {body}");
                }
                let (status, _) = session.post("/reward", &json!({"reward": "much"})).await;
                assert_eq!(status, 400);
                assert_eq!(session.post("/nowhere", &json!({})).await.0, 404);
                let large = json!({"messages": [user(&"x".repeat(20 << 20))]});
                assert!(matches!(session.post("/v1/chat/completions", &large).await.0, 0 | 413));
                session.chat(&json!({"messages": [user("a")]})).await;
                program.exit(0);
            })
            .await;
        assert_eq!(trajectory.turns.len(), 1);
    });
}

#[test]
fn a_client_that_says_nothing_is_shown_the_door() {
    run(async {
        let settings = GatewaySettings { idle_timeout_s: 1, ..GatewaySettings::default() };
        let gateway = Gateway::bind(settings).await.unwrap();
        let address = gateway.url().strip_prefix("http://").unwrap().to_owned();
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local").await.unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest));
        closed.await.expect("the server closes the connection").unwrap();
    });
}

#[test]
fn requests_after_the_end_are_told_so() {
    run(async {
        let program = Program::new().await;
        let mut session = None;
        program
            .played(async {
                let opened = program.session().await;
                opened.chat(&json!({"messages": [user("a")]})).await;
                program.exit(0);
                session = Some(opened);
            })
            .await;
        let (status, body) = session.unwrap().get("/task").await;
        assert!(status == 401 && body.contains("the episode is over"), "{status} {body}");
    });
}
