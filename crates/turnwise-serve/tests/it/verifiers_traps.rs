//! What a server of verifiers may do wrong: always a fault of the infrastructure, never a reward.

use serde_json::{Value, json};
use turnwise_testkit::scene;
use turnwise_trajectory::{InfraReason, Outcome};

use crate::support::run;
use crate::verifiers_router::{Rollout, VerifiersRouter, ended, replied};

/// Plays an episode that a script spoils, and returns the message of its fault.
fn fault<F: Future<Output = ()> + Send + 'static>(
    script: impl Fn(Rollout) -> F + Send + Sync + 'static,
) -> String {
    let router = VerifiersRouter::new(script);
    let mut message = String::new();
    run(async {
        let trajectory = router.played(scene::limits()).await;
        let Outcome::InfraFault(fault) = &trajectory.outcome else {
            panic!("{:?}", trajectory.outcome)
        };
        assert_eq!(fault.reason, InfraReason::EnvError, "{}", fault.message);
        assert_eq!((trajectory.reward(), trajectory.solved), (None, false), "{}", fault.message);
        message.clone_from(&fault.message);
    });
    message
}

/// Asserts that an episode whose server sends these messages after a turn is a fault that says why.
fn spoiled(messages: Vec<(&'static str, Value)>, why: &str) {
    let said = messages.clone();
    let message = fault(move |mut rollout: Rollout| {
        let messages = said.clone();
        async move {
            rollout.begin().await;
            for (kind, value) in messages {
                rollout.send(kind, &value).await;
            }
            rollout.wait().await;
        }
    });
    assert!(message.contains(why), "{messages:?}: {message}");
}

fn one() -> Value {
    json!({"r": {"score": 1.0, "weight": 1.0}})
}

/// A reply with another field.
fn reply_with(name: &str, value: Value) -> (&'static str, Value) {
    let mut reply = replied();
    reply[name] = value;
    ("reply", reply)
}

/// A well ended trace with another field.
fn delta_with(name: &str, value: Value) -> (&'static str, Value) {
    let mut delta = ended(&one());
    delta["set"][name] = value;
    ("delta", delta)
}

#[test]
fn an_episode_that_did_not_end_well_has_no_reward() {
    let good = || ("delta", ended(&one()));
    let reply = || ("reply", replied());
    let error = json!([{"type": "TaskError", "message": "boom", "traceback": "at line 1"}]);
    let mut failed = ended(&one());
    failed["errors"] = error.clone();
    for (messages, why) in [
        (
            vec![
                good(),
                ("reply", json!({"success": false, "error": "Cancelled: rollout aborted"})),
            ],
            "did not play the episode: Cancelled: rollout aborted",
        ),
        (vec![good(), ("reply", json!({"success": false}))], "it gives no reason"),
        (vec![("delta", failed), reply()], "failed at the verifiers server: TaskError: boom"),
        (
            vec![good(), reply_with("head", json!({"ok": false, "errors": error}))],
            "TaskError: boom",
        ),
        (vec![good(), reply_with("head", json!({"ok": false, "errors": []}))], "agent_completed"),
        (vec![delta_with("ok", json!(false)), reply()], "failed at the verifiers server"),
        (vec![delta_with("is_completed", json!(false)), reply()], "failed at the verifiers server"),
        (vec![good(), ("delta", json!({"trace": "T", "discard": true}))], "set its retries to 0"),
    ] {
        spoiled(messages, why);
    }
}

#[test]
fn a_reward_that_is_none_is_a_fault() {
    let of = |rewards: Value| vec![("delta", ended(&rewards)), ("reply", replied())];
    for (rewards, why) in [
        (json!({}), "scored the episode with no reward; give its task a method with @vf.reward"),
        (json!({"r": null}), "scored the episode with no reward"),
        (json!({"r": {"score": "1.0", "weight": 1.0}}), "is malformed"),
        (json!({"r": {"weight": 1.0}}), "is malformed"),
        (json!({"r": 1.0}), "is malformed"),
        (json!([1.0]), "is malformed"),
        (json!({"r": {"score": 1e200, "weight": 1e200}}), "the reward `r` is"),
        (
            json!({"a": {"score": f64::MAX}, "b": {"score": f64::MAX}}),
            "the rewards sum to no number",
        ),
    ] {
        spoiled(of(rewards), why);
    }
}

/// A value of JSON cannot have them.
#[test]
fn a_reward_that_is_no_finite_number_is_a_fault() {
    const MARK: f64 = 0.123_456_789;
    for (wrong, name) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (f64::NEG_INFINITY, "-inf")] {
        let message = fault(move |mut rollout: Rollout| async move {
            rollout.begin().await;
            let delta = ended(&json!({"r": {"score": MARK, "weight": 1.0}}));
            let mut packed = rmp_serde::to_vec(&delta).unwrap();
            let mark = MARK.to_be_bytes();
            let place = packed.windows(8).position(|bytes| bytes == mark).unwrap();
            packed[place..place + 8].copy_from_slice(&wrong.to_be_bytes());
            rollout.frames(&[&rollout.id.clone(), b"delta", &packed]).await;
            rollout.send("reply", &replied()).await;
            rollout.wait().await;
        });
        assert!(message.contains(&format!("the reward `r` is {name}")), "{message}");
    }
}

#[test]
fn a_reply_that_does_not_fit_its_episode_is_a_fault() {
    let good = || ("delta", ended(&one()));
    let mut other = ended(&one());
    (other["trace"], other["set"]["agent"]["name"]) = (json!("U"), json!("judge"));
    let both = json!([{"id": "T"}, {"id": "U"}]);
    for (messages, why) in [
        (vec![good(), reply_with("head", Value::Null)], "it has no head"),
        (vec![("reply", replied())], "a trace of it was never sent"),
        (vec![good(), reply_with("traces", json!([]))], "has no trace"),
        (
            vec![good(), ("delta", other), reply_with("traces", both)],
            "has 2 agents (agent, judge), and turnwise trains one",
        ),
        (vec![good(), reply_with("traces", json!(3))], "is malformed"),
        (vec![good(), ("reply", json!([]))], "is malformed"),
        (vec![good(), ("reply", json!("done"))], "is malformed"),
        (vec![("delta", json!({"set": {}}))], "missing field `trace`"),
        (vec![("news", json!({}))], "neither delta nor reply but \"news\""),
    ] {
        spoiled(messages, why);
    }
}

#[test]
fn many_traces_are_not_kept() {
    let delta = |n: usize| ("delta", json!({"trace": n.to_string(), "set": {}}));
    spoiled((0..100).map(delta).collect(), "too many traces");
}

#[test]
fn bytes_that_are_no_frames_are_a_fault() {
    let spoiled = |bytes: Vec<u8>, why: &str| {
        let message = fault(move |mut rollout: Rollout| {
            let bytes = bytes.clone();
            async move {
                rollout.begin().await;
                rollout.bytes(&bytes).await;
                // What was announced never comes.
                drop(rollout);
            }
        });
        assert!(message.contains(why), "{message}");
    };
    let broke = "the connection to the verifiers server at tcp://127.0.0.1";
    spoiled([&[2], u64::MAX.to_be_bytes().as_slice()].concat(), "a frame that is too large");
    spoiled([&[2], (1_u64 << 40).to_be_bytes().as_slice()].concat(), "a frame that is too large");
    spoiled([&[2], (1_u64 << 20).to_be_bytes().as_slice(), b"few"].concat(), broke);
    spoiled([1, 1, b'a'].repeat(20), "a message of too many frames");
    spoiled(vec![0xFF; 300], broke);
    spoiled(Vec::new(), broke);
}

#[test]
fn messages_that_are_no_answers_are_a_fault() {
    let spoiled = |frames: Vec<Vec<u8>>, why: &str| {
        let message = fault(move |mut rollout: Rollout| {
            let frames = frames.clone();
            async move {
                rollout.begin().await;
                let id = rollout.id.clone();
                let own = |frame: &Vec<u8>| if frame == b"ID" { id.clone() } else { frame.clone() };
                let frames: Vec<Vec<u8>> = frames.iter().map(own).collect();
                let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
                rollout.frames(&frames).await;
                rollout.wait().await;
            }
        });
        assert!(message.contains(why), "{message}");
    };
    let frames = |frames: &[&[u8]]| frames.iter().map(|frame| frame.to_vec()).collect::<Vec<_>>();
    spoiled(frames(&[b"ID", b"\x80"]), "it has 2 frames; the server has to be of verifiers 0.4");
    spoiled(frames(&[b"ID", b"delta", b"\xc1"]), "is malformed");
    spoiled(frames(&[b"ID", b"delta", b""]), "is malformed");
    spoiled(frames(&[b"ID", b"reply", b"\xdf\xff\xff\xff\xff"]), "is malformed");
    // An array in an array, and so on.
    spoiled(frames(&[b"ID", b"delta", &vec![0x91; 100_000]]), "is malformed");
    let mut deep = b"\x82\xa5trace\xa1T\xa5nodes".to_vec();
    deep.resize(100_000, 0x91);
    spoiled(frames(&[b"ID", b"delta", &deep]), "is malformed");
}

#[test]
fn an_episode_in_which_nobody_asks_the_model_is_a_fault() {
    let message = fault(async |mut rollout: Rollout| {
        rollout.send("delta", &ended(&one())).await;
        rollout.send("reply", &replied()).await;
        rollout.wait().await;
    });
    assert!(message.contains("before it asked the model"), "{message}");
}
