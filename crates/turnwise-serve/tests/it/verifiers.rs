//! An environment behind verifiers: episodes with tokens, by `ZeroMQ`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use turnwise_environment::Suite;
use turnwise_serve::{VerifiersServer, VerifiersSettings};
use turnwise_testkit::{AlphabetRenderer, Echo, scene};

use crate::peers::{Heard, Served};
use crate::support::run;
use crate::zmq;

/// A DEALER, as libzmq writes one.
struct Dealer(TcpStream);

impl Dealer {
    async fn connect(server: &VerifiersServer) -> Self {
        let url = server.url();
        let mut stream = TcpStream::connect(url.strip_prefix("tcp://").unwrap()).await.unwrap();
        zmq::greet(&mut stream, "DEALER", "ROUTER").await;
        Self(stream)
    }

    async fn send(&mut self, frames: &[&[u8]]) {
        zmq::send(&mut self.0, frames).await;
    }

    async fn ask(&mut self, id: &str, method: &str, payload: &Value) {
        let payload = rmp_serde::to_vec(payload).unwrap();
        self.send(&[id.as_bytes(), method.as_bytes(), &payload]).await;
    }

    /// Returns the next message: its request, its kind, and its payload.
    async fn next(&mut self) -> (String, String, Value) {
        let frames = zmq::message(&mut self.0).await.expect("the server answers");
        let [id, kind, payload] = <[Vec<u8>; 3]>::try_from(frames).unwrap();
        let payload = rmp_serde::from_slice(&payload).unwrap();
        (String::from_utf8(id).unwrap(), String::from_utf8(kind).unwrap(), payload)
    }

    async fn answer(&mut self, id: &str, kind: &str) -> Value {
        let (of, is, payload) = self.next().await;
        assert_eq!((of.as_str(), is.as_str()), (id, kind), "{payload}");
        payload
    }
}

/// An endpoint of a model that says one letter and ends its turn.
struct Endpoint {
    served: Served,
    heard: Heard,
}

impl Endpoint {
    /// `generates` tells whether it has vLLM's own route, and `waits` whether it ever answers.
    fn new(generates: bool, waits: bool) -> Self {
        let heard = Heard::default();
        let (of_generate, of_complete) = (heard.clone(), heard.clone());
        let generate = post(move |body: Json<Value>| async move {
            of_generate.note(json!({"generate": body.0}));
            if waits {
                std::future::pending::<()>().await;
            }
            if !generates {
                return StatusCode::FORBIDDEN.into_response();
            }
            let stop = &body["sampling_params"]["stop_token_ids"][0];
            let content = json!([{"token_id": 3, "logprob": -0.5, "rank": 1}, {"token_id": stop, "logprob": -0.25}]);
            let choice = json!({"index": 0, "finish_reason": "stop", "token_ids": [3, stop], "logprobs": {"content": content}});
            Json(json!({"choices": [choice]})).into_response()
        });
        let complete = post(move |body: Json<Value>| async move {
            of_complete.note(json!({"complete": body.0}));
            let stop = &body["stop_token_ids"][0];
            let choice =
                json!({"token_ids": [3, stop], "logprobs": {"token_logprobs": [-0.5, -0.25]}});
            Json(json!({"choices": [choice]})).into_response()
        });
        let router = Router::new()
            .route("/inference/v1/generate", generate)
            .route("/v1/completions", complete);
        Self { served: Served::routes(router), heard }
    }

    fn asked(&self, task: &Value) -> Value {
        let client = json!({"type": "train", "base_url": format!("{}/v1", self.served.url), "api_key_var": "PATH",
            "headers": {}, "headers_from_env": {}, "renderer": null, "multiplex": 256,
            "timeout": {"connect": 30.0, "read": null, "write": null, "pool": null}});
        let sampling = json!({"temperature": 0.5, "top_p": null, "reasoning_effort": null, "max_tokens": 7, "cache_salt": "3"});
        json!({"task_data": task, "client": client, "model": "m", "sampling": sampling})
    }
}

async fn server(max_sessions: usize) -> VerifiersServer {
    let suite = Suite::divided(
        "echo",
        (1..40).map(|n| Echo::new(n % 2 + 1, false)).collect::<Vec<_>>(),
        0.3,
    );
    let renderer = Arc::new(AlphabetRenderer::new(scene::LETTERS));
    let settings = VerifiersSettings { max_sessions, ..VerifiersSettings::default() };
    VerifiersServer::bind(settings, suite, renderer).await.unwrap()
}

/// Checks the nodes of an episode: ids and mask of one length, and log-probabilities for what was sampled.
fn has_sampled_tokens(delta: &Value) {
    let nodes = delta["nodes"].as_array().unwrap();
    let sampled: Vec<&Value> = nodes.iter().filter(|node| node["sampled"] == true).collect();
    for node in &sampled {
        let (ids, mask) = (node["token_ids"].as_array().unwrap(), node["mask"].as_array().unwrap());
        assert_eq!(ids.len(), mask.len());
        let own = ids.iter().zip(mask).find(|(_, mask)| **mask == true);
        assert_eq!(own.unwrap().0, 3);
        assert_eq!(node["logprobs"], json!([-0.5, -0.25]));
    }
    assert!(!sampled.is_empty());
}

#[test]
fn an_episode_has_token_ids_a_mask_and_log_probabilities() {
    for generates in [true, false] {
        let endpoint = Endpoint::new(generates, false);
        run(async {
            let server = server(4).await;
            let mut dealer = Dealer::connect(&server).await;
            dealer.ask("00", "health", &json!({})).await;
            assert_eq!(dealer.answer("00", "reply").await, json!({"success": true, "error": null}));
            let task = json!({"prompt": "hi", "idx": 0});
            dealer.ask("a1", "run", &endpoint.asked(&task)).await;
            let delta = dealer.answer("a1", "delta").await;
            let reply = dealer.answer("a1", "reply").await;
            assert_eq!((&reply["success"], &reply["head"]["ok"]), (&json!(true), &json!(true)));
            assert_eq!(delta["open"]["task"], json!({"type": "echo", "data": task}));
            assert_eq!(
                reply["traces"],
                json!([{"id": delta["trace"], "nodes": delta["nodes"].as_array().unwrap().len(), "calls": 0}])
            );
            let set = &delta["set"];
            assert_eq!((&set["agent"]["config"], &set["is_completed"]), (&json!({}), &json!(true)));
            assert!(set["rewards"]["reward"]["score"].is_number(), "{set}");
            has_sampled_tokens(&delta);
            // Each prompt is the whole conversation so far, by the ids of the nodes.
            let asked = endpoint.heard.all();
            let asked = asked.last().unwrap();
            let prompt = if generates {
                &asked["generate"]["token_ids"]
            } else {
                &asked["complete"]["prompt"]
            };
            let all: Vec<Value> = delta["nodes"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|node| node["token_ids"].as_array().unwrap().clone())
                .collect();
            let prompt = prompt.as_array().unwrap();
            assert_eq!(all[..prompt.len()], prompt[..]);
        });
        let first = &endpoint.heard.all()[0]["generate"];
        assert_eq!((&first["model"], &first["cache_salt"]), (&json!("m"), &json!("3")));
        assert_eq!(
            (&first["sampling_params"]["temperature"], &first["sampling_params"]["max_tokens"]),
            (&json!(0.5), &json!(7))
        );
        assert_eq!(endpoint.heard.n_with("complete") == 0, generates);
    }
}

#[test]
fn episodes_run_side_by_side_and_one_is_cancelled_alone() {
    let (endpoint, silent) = (Endpoint::new(true, false), Endpoint::new(true, true));
    run(async {
        let server = server(4).await;
        let mut dealer = Dealer::connect(&server).await;
        dealer.ask("b1", "run", &silent.asked(&json!({"idx": 1}))).await;
        dealer.ask("b2", "run", &endpoint.asked(&json!({"idx": 1}))).await;
        dealer.answer("b2", "delta").await;
        assert_eq!(dealer.answer("b2", "reply").await["success"], true);
        for (n, was_running) in [("c1", true), ("c2", false)] {
            dealer.ask(n, "cancel", &json!({"request_id": "b1"})).await;
            if was_running {
                let aborted = dealer.answer("b1", "reply").await;
                assert_eq!(
                    aborted,
                    json!({"success": false, "error": "Cancelled: rollout aborted"})
                );
            }
            let expected = json!({"success": true, "error": null, "cancelled": was_running});
            assert_eq!(dealer.answer(n, "reply").await, expected);
        }
    });
}

#[test]
fn what_cannot_be_played_is_refused_and_the_connection_stays() {
    let endpoint = Endpoint::new(true, false);
    run(async {
        let server = server(1).await;
        let mut dealer = Dealer::connect(&server).await;
        let nobody = |url: &str| {
            let mut asked = endpoint.asked(&json!({"idx": 0}));
            asked["client"]["base_url"] = json!(url);
            asked
        };
        for (method, payload, why) in [
            ("run", endpoint.asked(&json!({"idx": 10_000})), "there is no task 10000"),
            ("run", endpoint.asked(&json!({"prompt": "hi"})), "has no idx"),
            ("run", endpoint.asked(&json!({"idx": 0, "split": "other"})), "neither train nor test"),
            ("run", json!({"task_data": {}}), "cannot read the request"),
            ("run", json!([]), "cannot read the request"),
            ("run", nobody("ftp://127.0.0.1/v1"), "neither http nor https"),
            ("explode", json!({}), "unknown method"),
        ] {
            dealer.ask("d0", method, &payload).await;
            let reply = dealer.answer("d0", "reply").await;
            assert!(
                reply["success"] == false && reply["error"].as_str().unwrap().contains(why),
                "{why}: {reply}"
            );
        }
        // What is no request has no answer.
        dealer.send(&[b"d1", b"run"]).await;
        dealer.send(&[&[7; 300], b"health", b"\x80"]).await;
        dealer.ask("d2", "health", &json!({})).await;
        assert_eq!(dealer.answer("d2", "reply").await["success"], true);
    });
}

#[test]
fn a_client_that_is_killed_ends_its_episodes_and_makes_room() {
    let (endpoint, silent) = (Endpoint::new(true, false), Endpoint::new(true, true));
    run(async {
        let server = server(1).await;
        let mut killed = Dealer::connect(&server).await;
        killed.ask("e1", "run", &silent.asked(&json!({"idx": 0}))).await;
        while silent.heard.n_with("generate") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut other = Dealer::connect(&server).await;
        other.ask("e2", "run", &endpoint.asked(&json!({"idx": 0}))).await;
        assert!(
            other.answer("e2", "reply").await["error"]
                .as_str()
                .unwrap()
                .contains("too many episodes")
        );
        drop(killed);
        let n_tries = AtomicUsize::new(0);
        loop {
            assert!(n_tries.fetch_add(1, Ordering::SeqCst) < 1_000);
            other.ask("e3", "run", &endpoint.asked(&json!({"idx": 0}))).await;
            if other.next().await.1 == "delta" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_variable_that_is_not_listed_is_not_sent_to_the_endpoint() {
    for (key_variables, expected) in
        [(Vec::new(), false), (vec!["CARGO_PKG_NAME".to_owned()], true)]
    {
        let seen = Heard::default();
        let noted = seen.clone();
        let router = Router::new().fallback(move |headers: axum::http::HeaderMap| async move {
            noted.note(json!(
                headers.get("authorization").map(|value| value.to_str().unwrap().to_owned())
            ));
            StatusCode::INTERNAL_SERVER_ERROR
        });
        let endpoint = Served::routes(router);
        run(async {
            let suite = Suite::divided(
                "echo",
                (1..9).map(|n| Echo::new(n, false)).collect::<Vec<_>>(),
                0.3,
            );
            let renderer = Arc::new(AlphabetRenderer::new(scene::LETTERS));
            let settings = VerifiersSettings { key_variables, ..VerifiersSettings::default() };
            let server = VerifiersServer::bind(settings, suite, renderer).await.unwrap();
            let mut dealer = Dealer::connect(&server).await;
            let client = json!({"base_url": format!("{}/v1", endpoint.url), "api_key_var": "CARGO_PKG_NAME"});
            dealer
                .ask("f1", "run", &json!({"task_data": {"idx": 0}, "client": client, "model": "m"}))
                .await;
            // The endpoint's failure is no episode, and no reward.
            let reply = dealer.answer("f1", "reply").await;
            assert!(reply["error"].as_str().unwrap().contains("500"), "{reply}");
        });
        let key = std::env::var("CARGO_PKG_NAME").map(|name| json!(format!("Bearer {name}")));
        assert_eq!(seen.all()[0], if expected { key.unwrap() } else { json!(null) });
    }
}
