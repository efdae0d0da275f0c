//! What servers of the Open Reward Standard do that a client has to know, and what hostile ones may do.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};
use turnwise_environment::{Action, Environment, Split, Suite};
use turnwise_serve::{OrsOptions, RewardReading, ors_tasks};

use crate::peers::{Heard, Served, begun, broken, chain, end, next, refused};
use crate::support::run;

/// The answer to the request with this route, body and number among those of the route; `None` for the usual one.
type Script = dyn Fn(&str, &Value, usize) -> Option<Response> + Send + Sync;

struct Rig {
    served: Served,
    heard: Heard,
}

#[derive(Clone)]
struct Shared {
    heard: Heard,
    script: Arc<Script>,
}

impl Rig {
    fn new(
        script: impl Fn(&str, &Value, usize) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let heard = Heard::default();
        let shared = Shared { heard: heard.clone(), script: Arc::new(script) };
        let router = Router::new().fallback(answer).with_state(shared);
        Self { served: Served::routes(router), heard }
    }

    /// A server that answers each call with the next of these.
    fn calls(calls: &[Value]) -> Self {
        let calls = calls.to_vec();
        Self::new(move |route, _, n| (route == "/toy/call").then(|| ended(&calls[n])))
    }

    fn options(&self) -> OrsOptions {
        OrsOptions { url: self.served.url.clone(), ..OrsOptions::default() }
    }

    fn suite(&self) -> Suite {
        ors_tasks(&self.options()).unwrap()
    }
}

async fn answer(
    State(shared): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let route = uri.path().to_owned();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let n = shared.heard.all().iter().filter(|heard| heard["route"] == json!(route)).count();
    let session = headers.get("x-session-id").map(|id| id.to_str().unwrap().to_owned());
    let key = headers.get("x-api-key").map(|key| key.to_str().unwrap().to_owned());
    shared.heard.note(json!({"route": route, "body": body, "session": session, "key": key}));
    (shared.script)(&route, &body, n).unwrap_or_else(|| usual(&route))
}

/// What the echo environment of the SDK answers.
fn usual(route: &str) -> Response {
    let echo = json!({"name": "echo", "description": "Echoes.", "input_schema":
        {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}});
    let value = match route {
        "/health" | "/ping" => json!({"status": "ok"}),
        "/list_environments" => json!(["toy"]),
        "/toy/splits" => {
            json!([{"name": "train", "type": "train"}, {"name": "test", "type": "test"}])
        }
        "/toy/num_tasks" => json!({"num_tasks": 2}),
        "/toy/tools" => json!({"tools": [echo], "terminal_tool": null}),
        "/create_session" => {
            return events("event: task_id\r\ndata: 90d5-abfd\r\n\r\nevent: end\r\ndata: \r\n\r\n");
        }
        "/create" | "/delete" | "/delete_session" => json!({"sid": "90d5-abfd"}),
        "/toy/prompt" => json!([{"type": "text", "text": "Echo 'hello' to win.", "detail": null}]),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    Json(value).into_response()
}

fn events(text: &str) -> Response {
    ([("content-type", "text/event-stream")], text.to_owned()).into_response()
}

fn ended(answer: &Value) -> Response {
    events(&format!("event: task_id\r\ndata: 77aa\r\n\r\nevent: end\r\ndata: {answer}\r\n\r\n"))
}

fn output(text: &str, reward: Value, finished: bool) -> Value {
    let blocks = json!([{"text": text, "detail": null, "type": "text"}]);
    json!({"ok": true, "output": {"blocks": blocks, "metadata": null, "reward": reward, "finished": finished}})
}

fn echo(text: &str) -> Action {
    Action::call("echo", json!({"text": text}))
}

#[test]
fn an_episode_is_a_session_that_is_deleted_at_its_end() {
    let rig = Rig::calls(&[output("no", json!(null), false), output("match", json!(1.0), true)]);
    let suite = rig.suite();
    assert_eq!(suite.about(), format!("toy at {}", rig.served.url));
    run(async {
        let (mut environment, first) = begun(&suite).await;
        assert_eq!(first.messages[0].content, "Echo 'hello' to win.");
        let step = environment.step(echo("hallo")).await.unwrap();
        assert_eq!(next(step), (vec!["no".to_owned()], None, 0));
        let step = environment.step(echo("hello")).await.unwrap();
        assert_eq!(end(&step), (Some(1.0), true));
        while rig.heard.n_with("/delete_session") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let error = broken(environment.as_mut(), echo("hello")).await;
        assert!(error.contains("it is over"), "the end is latched: {error}");
    });
    let of_session: Vec<Value> =
        rig.heard.all().into_iter().filter(|heard| heard["session"] == "90d5-abfd").collect();
    assert_eq!(of_session[0]["body"], json!({"split": "train", "index": 0, "env_name": "toy"}));
    assert_eq!(rig.heard.n_with("/toy/call"), 2);
}

#[test]
fn keys_may_be_missing_and_rewards_are_read_as_they_are_asked_to() {
    // Servers without the SDK leave out what they do not have.
    let bare = json!({"ok": true, "output": {"blocks": [{"text": "match"}]}});
    let rig = Rig::calls(&[bare]);
    let suite = rig.suite();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        let step = environment.step(echo("hello")).await.unwrap();
        assert_eq!(next(step), (vec!["match".to_owned()], None, 0));
    });
    let sent = [json!(0.5), json!(null), json!(true)];
    for (reading, expected) in [
        (RewardReading::Turn, [Some(0.5), None, Some(1.0)]),
        (RewardReading::Last, [Some(0.5), None, Some(0.5)]),
    ] {
        let calls: Vec<Value> = (0..3).map(|n| output("x", sent[n].clone(), n == 2)).collect();
        let rig = Rig::calls(&calls);
        let suite = ors_tasks(&OrsOptions { reward: reading, ..rig.options() }).unwrap();
        run(async {
            let (mut environment, _) = begun(&suite).await;
            for expected in &expected[..2] {
                assert_eq!(next(environment.step(echo("a")).await.unwrap()).1, *expected);
            }
            let step = environment.step(echo("a")).await.unwrap();
            assert_eq!(end(&step), (expected[2], true));
        });
    }
}

#[test]
fn a_redirect_is_followed_at_the_server_itself_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let token_file = Some(directory.path().join("token"));
    std::fs::write(token_file.as_ref().unwrap(), "s3cret").unwrap();
    let moved = |to: String| (StatusCode::PERMANENT_REDIRECT, [("location", to)]).into_response();
    let rig = Rig::new(move |route, body, _| match route {
        "/toy/call" => Some(moved("/v2/toy/call".to_owned())),
        "/v2/toy/call" => Some(ended(&output(&body["input"].to_string(), json!(1.0), true))),
        _ => None,
    });
    let suite = ors_tasks(&OrsOptions { token_file: token_file.clone(), ..rig.options() }).unwrap();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        assert_eq!(end(&environment.step(echo("a")).await.unwrap()).0, Some(1.0));
    });
    let redirected =
        rig.heard.all().into_iter().find(|heard| heard["route"] == "/v2/toy/call").unwrap();
    assert_eq!(
        redirected["body"],
        json!({"name": "echo", "input": {"text": "a"}}),
        "the body goes along"
    );
    assert_eq!(
        (&redirected["session"], &redirected["key"]),
        (&json!("90d5-abfd"), &json!("s3cret"))
    );

    let elsewhere = Rig::new(|_, _, _| None);
    for (status, to) in [
        (StatusCode::PERMANENT_REDIRECT, format!("{}/toy/call", elsewhere.served.url)),
        (StatusCode::TEMPORARY_REDIRECT, "/v2/toy/call".to_owned()),
        (StatusCode::FOUND, "/v2/toy/call".to_owned()),
        (StatusCode::PERMANENT_REDIRECT, "/toy/call".to_owned()),
    ] {
        let rig = Rig::new(move |route, _, _| {
            (route == "/toy/call").then(|| (status, [("location", to.clone())]).into_response())
        });
        let suite =
            ors_tasks(&OrsOptions { token_file: token_file.clone(), ..rig.options() }).unwrap();
        run(async {
            let (mut environment, _) = begun(&suite).await;
            let error = broken(environment.as_mut(), echo("a")).await;
            assert!(error.contains("redirects /toy/call"), "{error}");
        });
    }
    assert_eq!(
        elsewhere.heard.all(),
        [json!(null); 0],
        "another server hears nothing, the token least of all"
    );
}

#[test]
fn a_server_that_starts_is_waited_for_and_its_own_wish_is_capped() {
    let busy = |status: u16, headers: [(&'static str, &'static str); 2]| {
        (StatusCode::from_u16(status).unwrap(), headers, "busy").into_response()
    };
    let starting = [("x-backend-state", "starting"), ("retry-after", "0")];
    let plain = [("x-other", "1"), ("retry-after", "0")];
    let rig = Rig::new(move |route, _, n| match (route, n) {
        ("/toy/prompt" | "/toy/call", 0) => Some(busy(503, starting)),
        ("/toy/prompt", 1) => Some(busy(429, plain)),
        ("/toy/prompt", 2) => Some(busy(502, plain)),
        ("/toy/prompt", 3) => Some(busy(504, plain)),
        ("/toy/call", _) => Some(ended(&output("match", json!(1.0), true))),
        _ => None,
    });
    let suite = rig.suite();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        assert_eq!(end(&environment.step(echo("a")).await.unwrap()).0, Some(1.0));
    });
    assert_eq!((rig.heard.n_with("/toy/prompt"), rig.heard.n_with("/toy/call")), (5, 2));

    // A wish of a day would be no wait but an end.
    let day = [("x-backend-state", "starting"), ("retry-after", "86400")];
    let rig = Rig::new(move |route, _, _| (route == "/toy/prompt").then(|| busy(503, day)));
    let suite = ors_tasks(&OrsOptions { ready_timeout_s: 1.0, ..rig.options() }).unwrap();
    run(async {
        let error = refused(&suite).await;
        assert!(error.contains("503 Service Unavailable: busy"), "{error}");
    });
}

#[test]
fn a_call_that_may_have_been_carried_out_is_not_made_again() {
    for status in [429, 500, 502, 503, 504] {
        let rig = Rig::new(move |route, _, _| {
            (route == "/toy/call").then(|| StatusCode::from_u16(status).unwrap().into_response())
        });
        let suite = rig.suite();
        run(async {
            let (mut environment, _) = begun(&suite).await;
            let error = broken(environment.as_mut(), echo("a")).await;
            assert!(error.contains(&status.to_string()), "{error}");
        });
        assert_eq!(rig.heard.n_with("/toy/call"), 1, "{status}");
    }
    // An error in the code of the server stays one.
    let rig = Rig::new(|route, _, _| {
        (route == "/toy/prompt").then(|| StatusCode::INTERNAL_SERVER_ERROR.into_response())
    });
    let suite = rig.suite();
    run(async {
        assert!(refused(&suite).await.contains("500"));
    });
    assert_eq!(rig.heard.n_with("/toy/prompt"), 1);
}

#[test]
fn an_answer_that_breaks_off_is_asked_for_by_its_id() {
    let whole = output("a long answer", json!(1.0), true).to_string();
    let (first, second) = whole.split_at(40);
    let chunked = format!(
        "event: task_id\r\ndata: 77aa\r\n\r\n: ping\r\n\r\nevent: chunk\r\ndata: {first}\r\n\r\nevent: end\r\ndata: {second}\r\n\r\n"
    );
    let rig = Rig::new(move |route, _, n| match (route, n) {
        ("/toy/call", 0) => {
            Some(events("event: task_id\r\ndata: 77aa\r\n\r\nevent: chunk\r\ndata: {\"ok"))
        }
        ("/toy/call", _) => Some(events(&chunked)),
        _ => None,
    });
    let suite = rig.suite();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        assert_eq!(end(&environment.step(echo("a")).await.unwrap()), (Some(1.0), true));
    });
    let calls: Vec<Value> =
        rig.heard.all().into_iter().filter(|heard| heard["route"] == "/toy/call").collect();
    assert_eq!(calls.len(), 2);
    assert_eq!(
        (&calls[0]["body"]["task_id"], &calls[1]["body"]["task_id"]),
        (&json!(null), &json!("77aa"))
    );

    // Without an id, nobody knows what happened.
    let rig = Rig::new(|route, _, _| {
        (route == "/toy/call").then(|| events("event: chunk\r\ndata: {\"ok"))
    });
    let suite = rig.suite();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        let error = broken(environment.as_mut(), echo("a")).await;
        assert!(error.contains("ended before its end"), "{error}");
    });
    assert_eq!(rig.heard.n_with("/toy/call"), 1);
}

#[test]
fn the_models_mistakes_are_answers() {
    let failed = |reason: Value| json!({"ok": false, "error": "it went wrong", "reason": reason});
    let mistakes = [
        (failed(json!("not_found")), "error: not_found: it went wrong"),
        (failed(json!("input_validation")), "error: invalid_args: it went wrong"),
        (failed(json!(null)), "error: invalid_args: it went wrong"),
    ];
    let rig = Rig::calls(&mistakes.clone().map(|(call, _)| call));
    let suite = rig.suite();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        for (_, answer) in &mistakes {
            let step = environment.step(echo("a")).await.unwrap();
            assert_eq!(next(step), (vec![(*answer).to_owned()], None, 1));
        }
        // What cannot be right is not sent.
        let n = rig.heard.n_with("/toy/call");
        let deep = (0..110).fold(json!(1), |value, _| json!([value]));
        for wrong in [
            Action::call("rm", json!({})),
            Action::call("echo", json!([1])),
            Action::call("echo", json!({"text": deep})),
            Action::call("echo", json!({"text": "x".repeat((1 << 20) + 1)})),
        ] {
            assert_eq!(next(environment.step(wrong).await.unwrap()).2, 1);
        }
        assert_eq!(rig.heard.n_with("/toy/call"), n);
    });
}

#[test]
fn arguments_that_the_server_refuses_are_the_models_mistake() {
    let detail = json!({"detail": [{"loc": ["body", "input"], "msg": "Input should be a valid dictionary"}]});
    let rig = Rig::new(move |route, _, _| {
        let refusal = || (StatusCode::UNPROCESSABLE_ENTITY, Json(detail.clone())).into_response();
        (route == "/toy/call").then(refusal)
    });
    let suite = rig.suite();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        let (texts, _, faults) = next(environment.step(echo("a")).await.unwrap());
        assert!(
            texts[0].contains("Input should be a valid dictionary") && faults == 1,
            "{texts:?}"
        );
    });
}

#[test]
fn an_answer_that_is_none_is_the_servers_fault() {
    let failed = |reason: Value| json!({"ok": false, "error": "it went wrong", "reason": reason});
    let huge = "x".repeat((16 << 20) + 1);
    for (said, why) in [
        (ended_text(&failed(json!("name_collision")).to_string()), "name_collision"),
        (ended_text(&failed(json!("episode_finished")).to_string()), "episode_finished"),
        (ended_text(&failed(json!("something_new")).to_string()), "something_new"),
        (ended_text("{}"), "neither a result nor an error"),
        (ended_text("[1]"), "neither a result nor an error"),
        (ended_text("oops"), "malformed"),
        (ended_text(""), "malformed"),
        (ended_text(r#"{"ok": true, "output": {"blocks": [], "reward": NaN}}"#), "malformed"),
        (ended_text(r#"{"ok": true, "output": {"blocks": [], "reward": "1"}}"#), "is no number"),
        (ended_text(r#"{"ok": true, "output": {"blocks": [], "finished": "yes"}}"#), "finished is"),
        (ended_text(r#"{"ok": true, "output": {"blocks": "text"}}"#), "no blocks"),
        ("event: error\r\ndata: boom\r\n\r\n".to_owned(), "the tool failed at the server: boom"),
        (ended_text(&huge), "longer than 16 MiB"),
        (huge, "longer than 16 MiB"),
    ] {
        let said = Arc::new(said);
        let rig = Rig::new(move |route, _, _| (route == "/toy/call").then(|| events(&said)));
        let suite = rig.suite();
        run(async {
            let (mut environment, _) = begun(&suite).await;
            let error = broken(environment.as_mut(), echo("a")).await;
            assert!(error.contains(why), "{why}: {error}");
        });
    }
}

fn ended_text(data: &str) -> String {
    format!("event: task_id\r\ndata: 77aa\r\n\r\nevent: end\r\ndata: {data}\r\n\r\n")
}

#[test]
fn a_stream_without_an_end_is_given_up() {
    let rig = Rig::new(|route, _, _| {
        (route == "/toy/call").then(|| {
            let pings = futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Some((Ok::<_, std::convert::Infallible>(": ping\r\n\r\n"), ()))
            });
            Body::from_stream(pings).into_response()
        })
    });
    let suite = ors_tasks(&OrsOptions { timeout_s: 0.5, ..rig.options() }).unwrap();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        let error = broken(environment.as_mut(), echo("a")).await;
        assert!(error.contains("did not answer /toy/call in 0.5 s"), "{error}");
    });
}

#[test]
fn a_text_goes_to_the_tool_that_ends_the_episode_or_to_the_one_for_texts() {
    let call = |name: &'static str| {
        move |heard: &Heard| {
            let calls = heard.all().into_iter().filter(|heard| heard["route"] == "/toy/call");
            calls
                .filter(|call| call["body"]["name"] == name)
                .map(|call| call["body"]["input"].clone())
                .collect::<Vec<_>>()
        }
    };
    for (terminal, input) in [
        (json!({"name": "submit", "arg": "text", "description": ""}), json!({"text": "hello"})),
        (json!({"name": "submit", "arg": null}), json!({})),
    ] {
        let rig = Rig::new(move |route, _, _| match route {
            "/toy/tools" => {
                Some(Json(json!({"tools": [], "terminal_tool": terminal})).into_response())
            }
            // The text ends the episode whether or not the tool says so.
            "/toy/call" => Some(ended(&output("graded", json!(1), false))),
            _ => None,
        });
        let suite = rig.suite();
        run(async {
            let (mut environment, _) = begun(&suite).await;
            assert_eq!(
                end(&environment.step(Action::text("hello")).await.unwrap()),
                (Some(1.0), true)
            );
        });
        assert_eq!(call("submit")(&rig.heard), [input]);
    }
    let rig = Rig::calls(&[output("match", json!(1), true)]);
    let options = OrsOptions { text_tool: "echo".to_owned(), ..rig.options() };
    let suite = ors_tasks(&options).unwrap();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        assert_eq!(end(&environment.step(Action::text("hello")).await.unwrap()).0, Some(1.0));
    });
    assert_eq!(call("echo")(&rig.heard), [json!({"text": "hello"})]);
    let suite = rig.suite();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        let step = environment.step(Action::text("hello")).await.unwrap();
        assert_eq!(next(step), (vec!["error: call one of the tools".to_owned()], None, 1));
    });
}

#[test]
fn tools_of_tasks_are_found_by_a_short_session() {
    let look = json!({"name": "look", "description": "", "input_schema": null});
    let rig = Rig::new(move |route, _, _| match route {
        "/toy/tools" => Some(Json(json!({"tools": []})).into_response()),
        "/toy/task_tools" => Some(Json(json!({"tools": [look]})).into_response()),
        _ => None,
    });
    let suite = rig.suite();
    assert_eq!(suite.tasks(Split::Train).environment(0).tools()[0].name, "look");
    assert_eq!(rig.heard.n_with("/toy/task_tools"), 1);
}

#[test]
fn a_session_whose_id_is_none_is_refused() {
    let long = "a".repeat(257);
    for id in ["", "a b", "a\u{e9}", long.as_str()] {
        let said = format!("event: task_id\r\ndata: {id}\r\n\r\nevent: end\r\ndata: \r\n\r\n");
        let rig = Rig::new(move |route, _, _| (route == "/create_session").then(|| events(&said)));
        let suite = rig.suite();
        run(async {
            let error = refused(&suite).await;
            assert!(error.contains("it has no id"), "{error}");
        });
    }
}

#[test]
fn a_session_is_kept_open_while_the_model_thinks() {
    let rig = Rig::new(|_, _, _| None);
    let suite = rig.suite();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (_environment, _) = begun(&suite).await;
        tokio::time::pause();
        for _ in 0..60 {
            tokio::time::advance(Duration::from_mins(1)).await;
            // The clock stands still while a thread works.
            let wait = || std::thread::sleep(Duration::from_millis(5));
            tokio::task::spawn_blocking(wait).await.unwrap();
        }
    });
    // Servers delete sessions after 15 minutes of silence.
    assert!(rig.heard.n_with("/ping") > 60 / 15, "{:?}", rig.heard);
}

#[test]
fn a_server_that_is_gone_is_an_error() {
    let rig = Rig::calls(&[output("no", json!(null), false)]);
    let suite = ors_tasks(&OrsOptions { ready_timeout_s: 0.6, ..rig.options() }).unwrap();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        drop(rig);
        let error = broken(environment.as_mut(), echo("a")).await;
        assert!(error.contains("/toy/call broke off") || error.contains("cannot reach"), "{error}");
    });
    let error = ors_tasks(&OrsOptions {
        url: "http://127.0.0.1:9".to_owned(),
        ready_timeout_s: 0.6,
        ..OrsOptions::default()
    });
    assert!(chain(&error.expect_err("nobody is there")).contains("cannot reach"));
}
