//! What servers of OpenEnv do that a client has to know, and what hostile ones may do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use turnwise_environment::{Action, Environment, Split, Suite};
use turnwise_serve::{OpenEnvOptions, RewardReading, openenv_tasks};

use crate::peers::{Heard, Served, begun, broken, chain, end, next, refused};
use crate::support::run;

/// What a server does at a message.
enum Said {
    Frame(Value),
    Raw(String),
    Ping,
    Close,
    Nothing,
}

/// What a server says: on connection `n`, at null when it opens and at each message.
type Script = dyn Fn(usize, &Value) -> Vec<Said> + Send + Sync;

/// A server whose environment is a script.
struct Rig {
    served: Served,
    heard: Heard,
}

impl Rig {
    fn new(script: impl Fn(usize, &Value) -> Vec<Said> + Send + Sync + 'static) -> Self {
        Self::with(guess_schema(), None, script)
    }

    fn with(
        action: Value,
        more: Option<Router>,
        script: impl Fn(usize, &Value) -> Vec<Said> + Send + Sync + 'static,
    ) -> Self {
        let (heard, script): (Heard, Arc<Script>) = (Heard::default(), Arc::new(script));
        let n_connections = Arc::new(AtomicUsize::new(0));
        let of_sockets = heard.clone();
        let upgrade = move |upgrade: WebSocketUpgrade| async move {
            let n = n_connections.fetch_add(1, Ordering::SeqCst);
            of_sockets.note(json!({"opened": n}));
            upgrade.on_upgrade(move |socket| play(socket, n, script, of_sockets))
        };
        let schema = json!({"action": action, "observation": {}, "state": {}});
        let router = Router::new()
            .route("/metadata", get(|| async { Json(json!({"name": "Guess", "version": null})) }))
            .route("/schema", get(|| async { Json(schema) }))
            .route("/ws", get(upgrade))
            .merge(more.unwrap_or_else(|| health(get(|| async { healthy_from(0, 0) }))));
        Self { served: Served::routes(router), heard }
    }

    fn options(&self) -> OpenEnvOptions {
        OpenEnvOptions { url: self.served.url.clone(), ..OpenEnvOptions::default() }
    }

    fn suite(&self) -> Suite {
        openenv_tasks(&self.options()).unwrap()
    }
}

async fn play(mut socket: WebSocket, n: usize, script: Arc<Script>, heard: Heard) {
    let mut said = script(n, &Value::Null);
    loop {
        for one in said {
            let message = match one {
                Said::Frame(frame) => Message::Text(frame.to_string().into()),
                Said::Raw(text) => Message::Text(text.into()),
                Said::Ping => Message::Ping(Vec::new().into()),
                Said::Close => return,
                Said::Nothing => continue,
            };
            if socket.send(message).await.is_err() {
                return;
            }
        }
        said = match socket.recv().await {
            Some(Ok(Message::Text(text))) => {
                let value: Value = serde_json::from_str(&text).unwrap();
                heard.note(value.clone());
                script(n, &value)
            }
            Some(Ok(Message::Ping(_))) => {
                heard.note(json!("ping"));
                Vec::new()
            }
            Some(Ok(Message::Pong(_))) => {
                heard.note(json!("pong"));
                Vec::new()
            }
            Some(Ok(Message::Binary(_))) => Vec::new(),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
        };
    }
}

fn guess_schema() -> Value {
    json!({"type": "object", "properties": {"guess": {"type": "string"}}, "required": ["guess"]})
}

fn observation(observation: Value, reward: Value, done: bool) -> Said {
    let data = json!({"observation": observation, "reward": reward, "done": done});
    Said::Frame(json!({"type": "observation", "data": data}))
}

fn refusal(code: &str, message: &str) -> Said {
    Said::Frame(json!({"type": "error", "data": {"message": message, "code": code}}))
}

/// A game whose secret is 4; the reward of the last guess is `won`.
fn game(won: Value) -> impl Fn(usize, &Value) -> Vec<Said> + Send + Sync + 'static {
    move |_, frame| match (frame["type"].as_str(), frame["data"]["guess"].as_str()) {
        (Some("reset"), _) => vec![observation(json!({"hint": "guess 0-9"}), json!(null), false)],
        (Some("step"), Some("4")) => vec![observation(json!({"hint": "ok"}), won.clone(), true)],
        (Some("step"), _) => vec![observation(json!({"hint": "no"}), json!(-0.1), false)],
        _ => vec![Said::Nothing],
    }
}

#[test]
fn an_environment_without_tools_takes_the_models_text_as_its_one_field() {
    let rig = Rig::new(game(json!(1.0)));
    let suite = rig.suite();
    assert_eq!(suite.about(), format!("Guess at {}", rig.served.url));
    assert_eq!((suite.tasks(Split::Train).len(), suite.tasks(Split::HeldOut).len()), (1000, 100));
    run(async {
        let (mut environment, first) = begun(&suite).await;
        assert_eq!(first.messages[0].content, "guess 0-9");
        assert!(environment.tools().is_empty());
        let step = environment.step(Action::text(" 1 ")).await.unwrap();
        assert_eq!(next(step), (vec!["no".to_owned()], Some(-0.1), 0));
        // A call where there are no tools is the model's mistake, and the server does not hear of it.
        let step = environment.step(Action::call("guess", json!({"guess": "4"}))).await.unwrap();
        let expected = "error: not_found: no tool has this name".to_owned();
        assert_eq!(next(step), (vec![expected], None, 1));
        let step = environment.step(Action::text("4")).await.unwrap();
        assert_eq!(end(&step), (Some(1.0), false), "the rewards sum to 0.9");
    });
    let heard = rig.heard.all();
    assert_eq!(heard[1]["data"]["seed"], 0, "a task without a name is a seed: {heard:?}");
    assert_eq!(heard[1]["data"]["episode_id"].as_str().map(str::len), Some(32));
    assert_eq!(heard[2], json!({"type": "step", "data": {"guess": "1"}}));
    assert_eq!(rig.heard.n_with("step"), 2);
}

#[test]
fn an_action_of_several_fields_is_written_as_json() {
    let properties = json!({"row": {"type": "integer"}, "column": {"type": "integer"}});
    let schema = json!({"type": "object", "properties": properties, "required": ["row", "column"]});
    let wrong = json!({"message": "Invalid message", "code": "VALIDATION_ERROR", "errors": [
        {"type": "missing", "loc": ["column"], "msg": "Field required", "input": {}},
    ]});
    let rig = Rig::with(schema, None, move |_, frame| match frame["type"].as_str() {
        Some("reset") => vec![observation(json!({"board": [0, 0], "turn": 1}), json!(0), false)],
        Some("step") if frame["data"]["column"].is_null() => {
            vec![Said::Frame(json!({"type": "error", "data": wrong}))]
        }
        Some("step") => vec![observation(json!({"board": [1, 0]}), json!(true), true)],
        _ => vec![Said::Nothing],
    });
    let suite = rig.suite();
    assert!(suite.instructions_text().is_some_and(|text| text.contains("\"column\"")));
    run(async {
        let (mut environment, first) = begun(&suite).await;
        assert_eq!(first.messages[0].content, r#"{"board":[0,0],"turn":1}"#);
        for (said, answer) in [
            ("row 1", "error: the action is no JSON: expected value at line 1 column 1"),
            ("{\"row\": 1}", "error: invalid_args: column: Field required"),
        ] {
            let step = environment.step(Action::text(said)).await.unwrap();
            assert_eq!(next(step), (vec![answer.to_owned()], None, 1), "{said}");
        }
        let step = environment.step(Action::text("{\"row\": 1, \"column\": 2}")).await.unwrap();
        assert_eq!(end(&step), (Some(1.0), true));
    });
}

/// What `openenv-core` 0.3.0 sent, whose tools have schemas under another key than those of 0.10.
#[test]
fn tools_are_found_and_called_as_recorded_servers_have_them() {
    let message = json!({"type": "string", "description": "The message to echo back"});
    let parameters = json!({"type": "object", "additionalProperties": false,
        "properties": {"message": message}, "required": ["message"]});
    for key in ["input_schema", "inputSchema"] {
        let tool = json!({"name": "echo_message", "title": "Echo Message", "execution": null, "icons": null,
            "description": "Echo back the provided message.", key: parameters, "annotations": null,
            "output_schema": {"type": "object", "x-fastmcp-wrap-result": true},
            "meta": {"fastmcp": {"tags": []}}});
        let list = json!({"type": "mcp", "data": {"jsonrpc": "2.0", "id": 1, "result": {"tools": [tool]}}});
        let result = json!({"content": [{"type": "text", "text": "Hello", "annotations": null, "meta": null}],
            "structured_content": {"result": "Hello"}, "data": "Hello", "is_error": false,
            "meta": {"fastmcp": {"wrap_result": true}}});
        let failed = |kind: &str| json!({"error_type": kind, "message": format!("{kind}!")});
        let answers = [
            json!({"tool_name": "echo_message", "result": result, "error": null}),
            json!({"tool_name": "echo_message", "result": null, "error": failed("invalid_args")}),
            json!({"tool_name": "echo_message", "result": null, "error": failed("execution_error")}),
            json!({"tool_name": "echo_message", "result": null, "error": failed("timeout")}),
            json!({"tool_name": "echo_message", "result": null, "error": failed("tool_not_found")}),
            json!({"tool_name": "echo_message", "result": null, "error": failed("transport_error")}),
        ];
        let n_steps = AtomicUsize::new(0);
        let schema = json!({"type": "object", "properties": {"tool_name": {"type": "string"},
            "arguments": {"type": "object"}, "type": {"const": "call_tool"}}, "required": ["tool_name"]});
        let rig = Rig::with(schema, None, move |_, frame| match frame["type"].as_str() {
            Some("mcp") => vec![Said::Frame(list.clone())],
            Some("reset") => vec![observation(json!({}), json!(0.0), false)],
            Some("step") => {
                let answer = answers[n_steps.fetch_add(1, Ordering::SeqCst)].clone();
                vec![observation(answer, json!(null), false)]
            }
            _ => vec![Said::Nothing],
        });
        let suite = rig.suite();
        run(async {
            let (mut environment, first) = begun(&suite).await;
            assert_eq!(first.messages[0].content, "The episode begins.");
            assert_eq!(environment.tools()[0].parameters, parameters);
            let call = || Action::call("echo_message", json!({"message": "Hello"}));
            for (answer, faults) in [
                ("Hello", 0),
                ("error: invalid_args: invalid_args!", 1),
                ("error: execution_error!", 1),
                ("error: timeout: timeout!", 1),
                ("error: not_found: tool_not_found!", 1),
            ] {
                let step = environment.step(call()).await.unwrap();
                assert_eq!(next(step), (vec![answer.to_owned()], None, faults));
            }
            let error = broken(environment.as_mut(), call()).await;
            assert!(error.contains("the server cannot reach its tool"), "{error}");
        });
        let sent = json!({"type": "call_tool", "tool_name": "echo_message", "arguments": {"message": "Hello"}});
        assert!(rig.heard.all().contains(&json!({"type": "step", "data": sent})));
    }
}

#[test]
fn a_server_that_is_full_says_so_unasked_and_is_tried_again() {
    let full = "Server at capacity: 1/1 sessions active. Cannot accept new connections.";
    let won = game(json!(1.0));
    let rig = Rig::new(move |n, frame| match n {
        0 | 1 if frame.is_null() => vec![refusal("CAPACITY_REACHED", full), Said::Close],
        _ => won(n, frame),
    });
    let suite = rig.suite();
    run(async {
        let (_environment, first) = begun(&suite).await;
        assert_eq!(first.messages[0].content, "guess 0-9");
    });
    assert_eq!(rig.heard.n_with("opened"), 3);

    let rig = Rig::new(move |_, _| vec![refusal("CAPACITY_REACHED", full), Said::Close]);
    let options = OpenEnvOptions { ready_timeout_s: 0.6, ..rig.options() };
    let suite = openenv_tasks(&options).unwrap();
    run(async {
        let error = refused(&suite).await;
        assert!(error.contains("CAPACITY_REACHED: Server at capacity: 1/1"), "{error}");
    });

    let rig =
        Rig::new(move |_, _| vec![refusal("SESSION_ERROR", "Unknown session_id"), Said::Close]);
    let suite = rig.suite();
    run(async {
        let error = refused(&suite).await;
        assert!(error.contains("SESSION_ERROR"), "{error}");
    });
    assert_eq!(rig.heard.n_with("opened"), 1, "nothing but a full server is tried again");
}

#[test]
fn each_episode_has_a_connection_of_its_own_which_ends_with_it() {
    let rig = Rig::new(game(json!(1.0)));
    let suite = rig.suite();
    run(async {
        let (mut one, _) = begun(&suite).await;
        let (other, _) = begun(&suite).await;
        assert_eq!(rig.heard.n_with("opened"), 2);
        assert!(matches!(one.step(Action::text("4")).await, Ok(step) if end(&step).0 == Some(1.0)));
        drop(other);
        while rig.heard.n_with("close") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn pings_are_answered_while_the_model_thinks_and_none_are_sent() {
    let won = game(json!(1.0));
    let rig = Rig::new(move |n, frame| {
        let mut said = won(n, frame);
        if frame["type"] == "reset" {
            said.push(Said::Ping);
        }
        said
    });
    let suite = rig.suite();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        // Nobody asks anything, and the server hears the answer to its ping.
        while rig.heard.n_with("pong") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        environment.step(Action::text("1")).await.unwrap();
        assert_eq!(rig.heard.n_with("ping"), 0, "a server that is busy cannot answer one");
    });
}

#[test]
fn nothing_is_asked_after_the_end() {
    let rig = Rig::new(game(json!(1.0)));
    let suite = rig.suite();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        environment.step(Action::text("4")).await.unwrap();
        let error = broken(environment.as_mut(), Action::text("4")).await;
        assert!(error.contains("it is over"), "{error}");
    });
    assert_eq!(rig.heard.n_with("\"step\""), 1);
}

#[test]
fn rewards_of_every_kind_are_read_and_wrong_ones_are_the_servers_fault() {
    for (sent, expected) in [
        (json!(true), Some(1.0)),
        (json!(false), Some(0.0)),
        (json!(2), Some(2.0)),
        (json!(null), None),
        (json!(-1.5), Some(-1.5)),
    ] {
        let rig = Rig::new(game(sent));
        let suite = rig.suite();
        run(async {
            let (mut environment, _) = begun(&suite).await;
            let step = environment.step(Action::text("4")).await.unwrap();
            assert_eq!(end(&step).0, expected);
        });
    }
    for (sent, why) in [
        ("NaN", "malformed"),
        ("Infinity", "malformed"),
        ("1e999", "malformed"),
        ("\"1.0\"", "its reward \"1.0\" is no number"),
        ("[1]", "is no number"),
    ] {
        let frame = format!(
            r#"{{"type": "observation", "data": {{"observation": {{"hint": "ok"}}, "reward": {sent}, "done": true}}}}"#
        );
        let fails = breaks_with(move |n, asked| match asked["type"].as_str() {
            Some("step") => vec![Said::Raw(frame.clone())],
            _ => game(json!(1.0))(n, asked),
        });
        assert!(fails.contains(why), "{sent}: {fails}");
    }
}

#[test]
fn a_reward_out_of_range_is_outside_the_range_that_the_environment_declares() {
    let rig = Rig::new(game(json!(1e9)));
    let options = OpenEnvOptions {
        reward_min: Some(-1.0),
        reward_max: Some(1.0),
        reward: RewardReading::Last,
        ..rig.options()
    };
    let suite = openenv_tasks(&options).unwrap();
    run(async {
        let (environment, _) = begun(&suite).await;
        assert_eq!(environment.reward_range(), -1.0..=1.0);
    });
}

/// Plays one step with a server of this script, and returns the error.
fn breaks_with(script: impl Fn(usize, &Value) -> Vec<Said> + Send + Sync + 'static) -> String {
    let rig = Rig::new(script);
    let suite = openenv_tasks(&OpenEnvOptions { timeout_s: 1.0, ..rig.options() }).unwrap();
    let mut error = String::new();
    run(async {
        let mut environment = suite.tasks(Split::Train).environment(0);
        error = match environment.reset(1).await {
            Ok(_) => broken(environment.as_mut(), Action::text("1")).await,
            Err(error) => chain(&error),
        };
    });
    error
}

/// What a server does at a step, and what the error says.
type Case = (fn() -> Said, &'static str);

#[test]
fn whatever_a_server_does_wrong_is_an_error_and_never_an_observation() {
    let at_step = |said: fn() -> Said| {
        move |n: usize, frame: &Value| match frame["type"].as_str() {
            Some("step") => vec![said()],
            _ => game(json!(1.0))(n, frame),
        }
    };
    let cases: [Case; 11] = [
        (|| refusal("EXECUTION_ERROR", "boom!"), "EXECUTION_ERROR: boom!"),
        (|| refusal("FACTORY_ERROR", "no"), "FACTORY_ERROR"),
        (|| refusal("INVALID_JSON", "no"), "INVALID_JSON"),
        (|| refusal("CAPACITY_REACHED", "full"), "CAPACITY_REACHED"),
        (|| Said::Close, "the connection broke"),
        (|| Said::Nothing, "did not answer step in 1 s"),
        (|| Said::Raw("not json".to_owned()), "malformed"),
        (|| Said::Raw("[]".to_owned()), "malformed"),
        (|| Said::Raw("[".repeat(200_000)), "malformed"),
        (|| Said::Raw("x".repeat((16 << 20) + 1)), "the connection broke"),
        (|| Said::Frame(json!({"type": "mcp", "data": {}})), "it is one of MCP"),
    ];
    for (said, why) in cases {
        let error = breaks_with(at_step(said));
        assert!(error.contains(why), "{why}: {error}");
    }
    let over = breaks_with(|_, frame| match frame["type"].as_str() {
        Some("reset") => vec![observation(json!({}), json!(1), true)],
        _ => vec![Said::Nothing],
    });
    assert!(over.contains("over before it began"), "{over}");
}

#[test]
fn an_answer_before_its_question_is_not_taken_for_that_of_another() {
    let won = game(json!(1.0));
    let rig = Rig::new(move |n, frame| {
        let mut said = won(n, frame);
        if frame["type"] == "reset" {
            said.push(Said::Ping);
            said.push(observation(json!({"hint": "you win"}), json!(1), true));
        }
        said
    });
    let suite = rig.suite();
    run(async {
        let (mut environment, _) = begun(&suite).await;
        while rig.heard.n_with("pong") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // What follows the ping arrives with it, or right behind it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let error = broken(environment.as_mut(), Action::text("1")).await;
        assert!(error.contains("nobody asked for"), "{error}");
    });
    assert_eq!(rig.heard.n_with("\"step\""), 0);
}

#[test]
fn a_server_that_is_not_ready_is_waited_for_and_one_that_never_is_refused() {
    let n_asked = Arc::new(AtomicUsize::new(0));
    let route = {
        let n_asked = n_asked.clone();
        get(move || {
            let n = n_asked.fetch_add(1, Ordering::SeqCst);
            async move { healthy_from(2, n) }
        })
    };
    let rig = Rig::with(guess_schema(), Some(health(route)), game(json!(1)));
    assert_eq!(rig.suite().name(), "openenv");
    assert_eq!(n_asked.load(Ordering::SeqCst), 3);

    let route = get(|| async { healthy_from(1, 0) });
    let rig = Rig::with(guess_schema(), Some(health(route)), game(json!(1)));
    let options = OpenEnvOptions { ready_timeout_s: 0.6, ..rig.options() };
    let error = chain(&openenv_tasks(&options).expect_err("it is ill"));
    assert!(
        error.contains("was not ready after 0.6 s: the server says of its health: unhealthy"),
        "{error}"
    );
}

fn health(route: MethodRouter) -> Router {
    Router::new().route("/health", route)
}

fn healthy_from(first: usize, n: usize) -> Response {
    let status = if n >= first { "healthy" } else { "unhealthy" };
    Json(json!({"status": status})).into_response()
}

#[test]
fn tasks_of_splits_are_named_at_the_reset() {
    let splits = json!([{"name": "train", "type": "train"}, {"name": "test", "type": "test"}]);
    let routes = health(get(|| async { healthy_from(0, 0) }))
        .route("/list_environments", get(|| async { Json(json!(["toy"])) }))
        .route("/toy/splits", get(|| async { Json(splits) }))
        .route(
            "/toy/num_tasks",
            post(|body: Json<Value>| async move {
                Json(json!({"num_tasks": if body["split"] == "train" { 3 } else { 2 }}))
            }),
        );
    let rig = Rig::with(guess_schema(), Some(routes), game(json!(1)));
    let suite = rig.suite();
    assert_eq!((suite.tasks(Split::Train).len(), suite.tasks(Split::HeldOut).len()), (3, 2));
    run(async {
        let mut environment = suite.tasks(Split::HeldOut).environment(1);
        environment.reset(u64::MAX).await.unwrap();
    });
    let reset = rig.heard.all()[1]["data"].clone();
    assert_eq!((&reset["split"], &reset["index"]), (&json!("test"), &json!(1)));
    assert_eq!(reset["seed"], (1_u64 << 31) - 1, "random generators of NumPy take 32 bits");
    let fewer =
        OpenEnvOptions { tasks: Some(2), env_name: Some("TOY".to_owned()), ..rig.options() };
    assert_eq!(openenv_tasks(&fewer).unwrap().tasks(Split::Train).len(), 2);
    let unknown = OpenEnvOptions { env_name: Some("nope".to_owned()), ..rig.options() };
    let error = openenv_tasks(&unknown).expect_err("it has another").to_string();
    assert_eq!(error, "the server has no environment `nope`; it has toy");
}

#[test]
fn a_hostile_description_is_refused() {
    let splits = json!([{"name": "train", "type": "train"}]);
    for (route, answer, why) in [
        ("/list_environments", json!({"a": 1}), "malformed"),
        ("/list_environments", json!(["a", "b"]), "set `env_name` to one of a, b"),
        ("/toy/splits", json!([1]), "malformed"),
        ("/toy/num_tasks", json!({"num_tasks": u64::MAX}), "more than 10000000"),
        ("/toy/num_tasks", json!({"num_tasks": -1}), "no count"),
        ("/toy/num_tasks", json!({"num_tasks": 0}), "has no tasks"),
        ("/toy/num_tasks", json!({"num_tasks": 1}), "too few tasks"),
    ] {
        let answering = |own: &'static str, value: Value| {
            let answer = if own == route { answer.clone() } else { value };
            Router::new().route(own, axum::routing::any(|| async { Json(answer) }))
        };
        let routes = health(get(|| async { healthy_from(0, 0) }))
            .merge(answering("/list_environments", json!(["toy"])))
            .merge(answering("/toy/splits", splits.clone()))
            .merge(answering("/toy/num_tasks", json!({"num_tasks": 9})));
        let rig = Rig::with(guess_schema(), Some(routes), game(json!(1)));
        let error = openenv_tasks(&rig.options()).expect_err("it is refused");
        assert!(chain(&error).contains(why), "{route} {answer}: {}", chain(&error));
    }
    // A schema that is none leaves the form to the model.
    for schema in [json!(null), json!([]), json!({"properties": 1}), json!("text")] {
        let rig = Rig::with(schema, None, game(json!(1)));
        assert!(rig.suite().instructions_text().is_some());
    }
}
