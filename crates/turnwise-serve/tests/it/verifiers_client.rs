//! Episodes that a server of verifiers plays.

use std::net::SocketAddr;

use serde_json::{Value, json};
use turnwise_environment::{Environment, Split, TaskSet};
use turnwise_rollout::Allowance;
use turnwise_serve::{VerifiersClient, VerifiersOptions, VerifiersTasks, verifiers_tasks};
use turnwise_testkit::scene;
use turnwise_trajectory::{InfraReason, Outcome};

use crate::peers::{Served, chain, next};
use crate::support::{Program, run, user};
use crate::verifiers_router::{Rollout, VerifiersRouter, ended, replied};

/// What a server of verifiers 0.4.0 sent for an episode of two turns (kind and payload of each message), and for one whose model
/// answered with an error.
const PLAYED: &str = include_str!("verifiers_played.txt");
const FAILED: &str = include_str!("verifiers_failed.txt");

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.bytes().map(|digit| (digit as char).to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Sends the messages of a recording.
async fn replay(mut rollout: Rollout, recorded: &str) {
    for line in recorded.lines() {
        let (kind, payload) = line.split_once(' ').unwrap();
        rollout.frames(&[&rollout.id.clone(), kind.as_bytes(), &bytes(payload)]).await;
    }
    rollout.wait().await;
}

#[test]
fn a_recorded_episode_has_the_models_tokens_and_the_servers_reward() {
    let router = VerifiersRouter::new(async |rollout: Rollout| {
        let first = json!([user("Write numbers 1.")]);
        let said = rollout.ask(&first).await;
        rollout.ask(&json!([first[0], said, user("again.")])).await;
        replay(rollout, PLAYED).await;
    });
    run(async {
        let trajectory = router.played(scene::limits()).await;
        assert_eq!(trajectory.outcome, Outcome::Done);
        // A score of 1 with a weight of 0.5, which belongs to the last turn.
        let rewards: Vec<_> = trajectory.turns.iter().map(|turn| turn.reward).collect();
        assert_eq!(rewards, [None, Some(0.5)]);
        assert!(!trajectory.solved);
        // One conversation, whose turns have sampled tokens.
        assert_eq!(trajectory.graph.leaves().len(), 1);
        let sampled = trajectory.graph.nodes().iter().filter(|node| node.sampled().count() > 0);
        assert_eq!(sampled.count(), 2);
        let request = &router.heard.all()[0];
        assert_eq!(request["task_data"], json!({"idx": 0}));
        assert_eq!(
            (&request["client"]["type"], &request["sampling"]),
            (&json!("eval"), &json!({}))
        );
    });
}

#[test]
fn an_episode_that_failed_at_the_server_is_a_fault_and_has_no_reward() {
    let router = VerifiersRouter::new(async |rollout: Rollout| {
        rollout.begin().await;
        replay(rollout, FAILED).await;
    });
    run(async {
        let trajectory = router.played(scene::limits()).await;
        let Outcome::InfraFault(fault) = &trajectory.outcome else {
            panic!("{:?}", trajectory.outcome)
        };
        assert_eq!(fault.reason, InfraReason::EnvError);
        assert!(fault.message.contains("ProviderError: upstream 409"), "{}", fault.message);
        assert_eq!((trajectory.reward(), trajectory.solved), (None, false));
    });
}

/// Plays an episode of one turn with these rewards and this end, and returns its outcome, reward and whether it is solved.
fn scored(rewards: Value, stop: &'static str) -> (Outcome, Option<f64>, bool) {
    let router = VerifiersRouter::new(move |mut rollout: Rollout| {
        let rewards = rewards.clone();
        async move {
            rollout.begin().await;
            rollout.send("delta", &ended(&json!({}))).await;
            let later = json!({"trace": "T", "set": {"rewards": rewards, "stop_condition": stop}});
            rollout.send("delta", &later).await;
            rollout.send("reply", &replied()).await;
            rollout.wait().await;
        }
    });
    let mut scored = None;
    run(async {
        let trajectory = router.played(scene::limits()).await;
        scored = Some((trajectory.outcome.clone(), trajectory.reward(), trajectory.solved));
    });
    scored.unwrap()
}

#[test]
fn the_reward_is_the_sum_of_scores_times_weights() {
    let done = "agent_completed";
    let one = |score: f64, weight: f64| json!({"score": score, "weight": weight});
    let (outcome, reward, solved) =
        scored(json!({"a": one(0.5, 2.0), "b": null, "c": one(-1.0, 0.25)}), done);
    assert_eq!((outcome, reward, solved), (Outcome::Done, Some(0.75), false));
    let (outcome, reward, solved) = scored(json!({"a": {"score": 1}}), done);
    assert_eq!((outcome, reward, solved), (Outcome::Done, Some(1.0), true));
    // A limit of the server is no end of the environment, and what was scored counts.
    let (outcome, reward, solved) = scored(json!({"a": one(1.0, 1.0)}), "max_turns");
    assert!(matches!(outcome, Outcome::Truncated(_)), "{outcome:?}");
    assert_eq!((reward, solved), (Some(1.0), false));
}

#[test]
fn what_belongs_to_another_request_and_what_is_not_read_changes_nothing() {
    let router = VerifiersRouter::new(async |mut rollout: Rollout| {
        rollout.begin().await;
        let wrong = rmp_serde::to_vec(&json!({"success": false, "error": "of another"})).unwrap();
        rollout.frames(&[b"another", b"reply", &wrong]).await;
        // A heartbeat, a map with numbers as keys, and an array as bytes, which messages of verifiers have.
        rollout.bytes(b"\x04\x09\x04PING\0\x0aab").await;
        let mut delta =
            b"\x83\xa5trace\xa1T\xa5links\x81\x02\x90\xa4data\xc4\x03\xff\xfe\xfd".to_vec();
        rollout.frames(&[&rollout.id.clone(), b"delta", &delta]).await;
        delta.truncate(9);
        delta[0] = 0x81;
        rollout.frames(&[&rollout.id.clone(), b"delta", &delta]).await;
        rollout.send("delta", &ended(&json!({"a": {"score": 0.25, "weight": 1.0}}))).await;
        rollout.send("reply", &replied()).await;
        rollout.wait().await;
    });
    run(async {
        let trajectory = router.played(scene::limits()).await;
        assert_eq!((&trajectory.outcome, trajectory.reward()), (&Outcome::Done, Some(0.25)));
    });
}

#[test]
fn an_episode_that_stops_is_cancelled_at_the_server() {
    let router = VerifiersRouter::new(async |rollout: Rollout| {
        let session = rollout.session();
        // The episode is gone before the answer.
        tokio::spawn(async move {
            session.post("/v1/chat/completions", &json!({"messages": [user("a")]})).await
        });
        rollout.wait().await;
    });
    run(async {
        let program = Program::new().await;
        let options = router.options();
        let suite = verifiers_tasks(&options).unwrap();
        let client = VerifiersClient::new(&options).unwrap();
        let tasks = VerifiersTasks::new(suite.tasks(Split::Train), program.gateway.clone(), client);
        assert_eq!((tasks.name(), tasks.len()), ("verifiers", 18));
        let mut environment = tasks.environment(3);
        let first = environment.reset(7).await.unwrap();
        assert_eq!(first.messages[0].content, "a");
        drop(environment);
        let cancelled = json!({"method": "cancel", "is_of_this_run": true});
        while !router.heard.all().contains(&cancelled) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_server_that_is_silent_in_an_episode_is_a_fault_and_is_told_to_stop() {
    let router = VerifiersRouter::new(async |rollout: Rollout| {
        rollout.begin().await;
        rollout.wait().await;
    });
    run(async {
        let program = Program::new().await;
        let mut limits = scene::limits();
        limits.environment_timeout_s = 0.3;
        let episode = router.episode(&program, limits);
        let progress = episode.advance(&program.model, &Allowance::unlimited()).await;
        let trajectory = crate::support::finished(progress);
        let Outcome::InfraFault(fault) = &trajectory.outcome else {
            panic!("{:?}", trajectory.outcome)
        };
        assert_eq!((fault.reason, trajectory.reward()), (InfraReason::EnvTimeout, None));
        while router.heard.n_with("cancel") == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn the_model_may_be_at_an_address_of_its_own() {
    let router = VerifiersRouter::new(async |_| {});
    let model_address: SocketAddr = "127.0.0.1:8123".parse().unwrap();
    let options = VerifiersOptions { model_address, ..router.options() };
    assert!(verifiers_tasks(&options).is_ok());
    let wrong = VerifiersOptions { model_address: "[::]:0".parse().unwrap(), ..options };
    let error = refused(&wrong);
    assert!(error.contains("`model_address` names no machine"), "{error}");
}

#[test]
fn tasks_are_divided_or_come_from_two_files() {
    let router = VerifiersRouter::new(async |_| {});
    let n = |options: &VerifiersOptions| {
        let suite = verifiers_tasks(options).unwrap();
        [Split::Train, Split::HeldOut].map(|split| suite.tasks(split).len())
    };
    assert_eq!(n(&router.options()), [18, 2]);
    let other = router.tasks_file().with_file_name("other.jsonl");
    std::fs::write(&other, "{\"idx\": 100}\n").unwrap();
    let two = VerifiersOptions { held_out: Some(other.clone()), ..router.options() };
    assert_eq!(n(&two), [20, 1]);
    let one = VerifiersOptions { tasks: other.clone(), ..router.options() };
    let error = refused(&one);
    assert!(error.contains("`tasks` has one task"), "{error}");
    // A task on which a run trains says nothing when it is evaluated.
    std::fs::write(&other, "{\"idx\": 7}\n").unwrap();
    let error = refused(&two);
    assert!(error.contains("repeats a task"), "{error}");
}

/// Nobody plays the tasks outside of a run: they know their data, and have no reward.
#[test]
fn the_environments_of_the_suite_know_their_data_alone() {
    let router = VerifiersRouter::new(async |_| {});
    let suite = verifiers_tasks(&router.options()).unwrap();
    run(async {
        let mut environment: Box<dyn Environment> = suite.tasks(Split::Train).environment(0);
        let first = environment.reset(7).await.unwrap();
        assert_eq!(first.messages[0].content, "{\"idx\":0}");
        let end = environment.step("a".into()).await.unwrap();
        assert_eq!(crate::peers::end(&end), (None, false));
    });
}

/// Returns the error of options from which no suite is made, with its causes.
fn refused(options: &VerifiersOptions) -> String {
    match verifiers_tasks(options) {
        Ok(_) => panic!("the options are refused"),
        Err(error) => chain(&error),
    }
}

/// Returns the error of the suite of a server that answers like this, or not at all.
fn unwell(served: &Served) -> String {
    let router = VerifiersRouter::new(async |_| {});
    let options = VerifiersOptions {
        address: served.url.replace("http://", "tcp://"),
        connect_timeout_s: 0.3,
        ready_timeout_s: 0.6,
        ..router.options()
    };
    refused(&options)
}

#[test]
fn a_server_that_is_none_is_refused_before_the_run() {
    use tokio::io::AsyncWriteExt;
    let closed = Served::connections(async |stream| drop(stream));
    let error = unwell(&closed);
    assert!(error.contains("was not ready after 0.6 s; start it, or set `address`"), "{error}");
    let silent = Served::connections(async |stream| {
        std::future::pending::<()>().await;
        drop(stream);
    });
    assert!(unwell(&silent).contains("it did not answer in time"));
    let web = Served::routes(axum::Router::new());
    assert!(unwell(&web).contains("cannot connect"), "a web server");
    let dealer = Served::connections(async |mut stream| {
        crate::zmq::greet(&mut stream, "DEALER", "DEALER").await;
    });
    assert!(unwell(&dealer).contains("that is not ROUTER"));
    let deaf = Served::connections(async |mut stream| {
        crate::zmq::greet(&mut stream, "ROUTER", "DEALER").await;
        crate::zmq::send(&mut stream, &[b"another", b"reply", b"\x80"]).await;
        std::future::pending::<()>().await;
    });
    assert!(unwell(&deaf).contains("did not answer `health`"));
    let garbage = Served::connections(async |mut stream| {
        let _ = stream.write_all(&[0xFF; 4_096]).await;
        std::future::pending::<()>().await;
    });
    assert!(unwell(&garbage).contains("the peer sent"), "garbage");
    let ill = Served::connections(async |mut stream| {
        crate::zmq::greet(&mut stream, "ROUTER", "DEALER").await;
        let frames = crate::zmq::message(&mut stream).await.unwrap();
        let reply = rmp_serde::to_vec(&json!({"success": false, "error": "no disk"})).unwrap();
        crate::zmq::send(&mut stream, &[&frames[0], b"reply", &reply]).await;
    });
    assert!(unwell(&ill).contains("the server says of its health: no disk"));
}

#[test]
fn a_request_of_several_answers_has_several_turns() {
    let router = VerifiersRouter::new(async |rollout: Rollout| {
        let asked = json!({"messages": [user("a")], "n": 2});
        let (status, body) = rollout.session().post("/v1/chat/completions", &asked).await;
        assert_eq!(status, 200, "{body}");
        rollout.wait().await;
    });
    run(async {
        let program = Program::new().await;
        let options = router.options();
        let suite = verifiers_tasks(&options).unwrap();
        let client = VerifiersClient::new(&options).unwrap();
        let tasks = VerifiersTasks::new(suite.tasks(Split::Train), program.gateway.clone(), client);
        let mut environment = tasks.environment(0);
        environment.reset(7).await.unwrap();
        let (texts, reward, faults) = next(environment.step("x".into()).await.unwrap());
        assert_eq!((texts, reward, faults), (vec!["a".to_owned()], None, 0));
    });
}
