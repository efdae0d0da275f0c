//! A learner and its policy on a Tinker server over a model whose every number is known.

use std::time::Duration;

use turnwise_remote::{TinkerError, TinkerLearner, TinkerSettings};
use turnwise_rollout::{Policy, PolicyError, SampleRequest, SessionId, check_sample};
use turnwise_training::{Learner, LearnerError, Row, Target, Update};
use turnwise_trajectory::{PolicyVersion, Sampling, StopReason};

use crate::tinker_adapter::{archive, pack, weights};
use crate::tinker_model::Bigrams;
use crate::tinker_server::{Conduct, Rule, Tinker};

const UPDATE: Update = Update { learning_rate: 0.1, max_grad_norm: f64::INFINITY };

fn settings(server: &Tinker) -> TinkerSettings {
    let url = server.url.clone();
    TinkerSettings { url, max_wait_s: 2.0, weight_decay: 0.0, ..TinkerSettings::default() }
}

async fn connect(server: &Tinker) -> TinkerLearner {
    TinkerLearner::connect(settings(server), None).await.unwrap()
}

/// Rows of different lengths, of which not every token is a target.
fn rows() -> Vec<Row> {
    let row = |ids: &[u32], positions: &[usize]| {
        let target = |position: &usize| Target { position: *position, temperature: 1.0 };
        Row { ids: ids.to_vec(), targets: positions.iter().map(target).collect(), ..Row::default() }
    };
    vec![row(&[1, 2, 3], &[1, 2]), row(&[4, 5, 6, 7, 8, 1, 2], &[3, 6]), row(&[2, 9], &[1])]
}

fn slopes(all: &[Vec<f32>]) -> Vec<Vec<f32>> {
    all.iter().map(|row| row.iter().map(|logprob| logprob.sin() + 0.2).collect()).collect()
}

/// Returns the norm of the gradient of `slopes`, computed here.
fn expected(weights: &[f64]) -> f64 {
    let mut model = Bigrams::new();
    model.logits = weights.to_vec();
    for row in rows() {
        for target in &row.targets {
            let (last, id) = (row.ids[target.position - 1], row.ids[target.position]);
            let slope = (model.logprob(last, id) as f32).sin() + 0.2;
            model.add(last, id, f64::from(slope));
        }
    }
    model.gradient.iter().map(|one| one * one).sum::<f64>().sqrt()
}

async fn accumulate(learner: &mut TinkerLearner, rows: &[Row]) {
    learner.accumulate(rows, &mut |all| Ok(slopes(all))).await.unwrap();
}

#[tokio::test]
async fn the_gradient_is_exact_under_either_rule() {
    let mut after = Vec::new();
    for rule in [Rule::Sum, Rule::Means] {
        let server = Tinker::start(rule).await;
        let mut settings = settings(&server);
        settings.max_request_tokens = 4; // several requests for a step
        let mut learner = TinkerLearner::connect(settings, None).await.unwrap();
        let expected = expected(&server.weights());
        // Two calls, whose sum is the gradient of one step.
        accumulate(&mut learner, &rows()[..1]).await;
        accumulate(&mut learner, &rows()[1..]).await;
        let updated = learner.step(UPDATE).await.unwrap();
        let error = (updated.grad_norm / expected - 1.0).abs();
        assert!(error < 1e-5, "{rule:?}: {} instead of {expected}", updated.grad_norm);
        assert!(updated.applied);
        after.push(server.weights());
    }
    let pairs = after[0].iter().zip(&after[1]);
    assert!(pairs.map(|(one, other)| (one - other).abs()).fold(0.0, f64::max) < 1e-4);
}

#[tokio::test]
async fn a_server_with_another_scale_is_refused() {
    for (rule, reason) in [
        (Rule::Roots, "scaled in an unknown way"),
        (Rule::Half, "unknown constant factor"),
        (Rule::Negative, "unknown constant factor"),
    ] {
        let server = Tinker::start(rule).await;
        let error = TinkerLearner::connect(settings(&server), None).await.unwrap_err();
        assert!(matches!(error, TinkerError::Unfit { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{rule:?}: {error}");
    }
}

#[tokio::test]
async fn a_gradient_beyond_the_limit_is_scaled_down_exactly() {
    let clipped = Tinker::start(Rule::Means).await;
    let mut learner = connect(&clipped).await;
    accumulate(&mut learner, &rows()).await;
    let whole = learner.step(Update { max_grad_norm: 1e3, ..UPDATE }).await.unwrap().grad_norm;
    let limit = whole / 10.0;
    accumulate(&mut learner, &rows()).await;
    let updated = learner.step(Update { max_grad_norm: limit, ..UPDATE }).await.unwrap();
    assert!(updated.grad_norm > 2.0 * limit && updated.applied);

    // The same without the limit, and with the gradient scaled here.
    let scaled = Tinker::start(Rule::Sum).await;
    let mut learner = connect(&scaled).await;
    accumulate(&mut learner, &rows()).await;
    learner.step(UPDATE).await.unwrap();
    let factor = (limit / updated.grad_norm) as f32;
    let smaller = |all: &[Vec<f32>]| {
        slopes(all).iter().map(|row| row.iter().map(|one| one * factor).collect()).collect()
    };
    learner.accumulate(&rows(), &mut |all| Ok(smaller(all))).await.unwrap();
    learner.step(UPDATE).await.unwrap();
    let (one, other) = (clipped.weights(), scaled.weights());
    let gap = one.iter().zip(&other).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max);
    assert!(gap < 1e-4, "{gap}");
    assert_eq!(clipped.count("load_weights"), 1);
    assert_eq!(scaled.count("save_weights"), 0);
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_nothing_is_done_twice() {
    for route in ["forward_backward", "optim_step", "save_weights", "save_weights_for_sampler"] {
        let server = Tinker::start(Rule::Sum).await;
        let mut learner = connect(&server).await;
        let directory = tempfile::tempdir().unwrap();
        let steps = server.count("optim_step");
        let passes = server.count("forward_backward");
        server.conduct(Conduct { lose: Some(route), polls: 3, ..Conduct::default() });
        accumulate(&mut learner, &rows()).await;
        learner.step(UPDATE).await.unwrap();
        learner.publish().await.unwrap();
        learner.save(directory.path()).await.unwrap();
        assert!(directory.path().join("adapter_model.safetensors").is_file());
        assert_eq!(server.count("optim_step"), steps + 1, "{route}");
        assert_eq!(server.count("forward_backward"), passes + 2, "{route}");
        assert_eq!(server.kept.lock().unwrap().conduct.lose, None, "{route}");
    }
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let server = Tinker::start(Rule::Sum).await;
    let mut learner = connect(&server).await;
    server.conduct(Conduct { busy: Some(("optim_step", 2)), ..Conduct::default() });
    accumulate(&mut learner, &rows()).await;
    assert!(learner.step(UPDATE).await.unwrap().applied);
    let kept = server.kept.lock().unwrap();
    let mut keys = kept.keys.clone();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), kept.keys.len(), "each request has a key of its own");
}

#[tokio::test]
async fn after_a_step_whose_end_is_unknown_a_checkpoint_must_be_loaded() {
    let server = Tinker::start(Rule::Sum).await;
    let mut learner = connect(&server).await;
    let directory = tempfile::tempdir().unwrap();
    accumulate(&mut learner, &rows()).await;
    learner.step(UPDATE).await.unwrap();
    learner.save(directory.path()).await.unwrap();
    // It would be an earlier one.
    assert!(!directory.path().join("adapter_model.safetensors").exists());
    let saved = server.weights();

    server.conduct(Conduct { refuse: Some(("optim_step", 409)), ..Conduct::default() });
    accumulate(&mut learner, &rows()).await;
    assert!(learner.step(UPDATE).await.is_err());
    server.conduct(Conduct::default());
    let error = learner.logprobs(&rows()).await.unwrap_err();
    let LearnerError::Failed { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("load the newest checkpoint"), "{source}");

    learner.load(directory.path(), PolicyVersion(7)).await.unwrap();
    assert_eq!((learner.version(), server.weights()), (PolicyVersion(7), saved));
    accumulate(&mut learner, &rows()).await;
    assert!(learner.step(UPDATE).await.unwrap().applied);
}

#[tokio::test]
async fn a_run_continues_from_its_checkpoint_with_the_optimisers_state() {
    let server = Tinker::start(Rule::Means).await;
    let mut learner = connect(&server).await;
    let directory = tempfile::tempdir().unwrap();
    accumulate(&mut learner, &rows()).await;
    learner.step(UPDATE).await.unwrap();
    learner.save(directory.path()).await.unwrap();
    accumulate(&mut learner, &rows()).await;
    learner.step(UPDATE).await.unwrap();
    let uninterrupted = server.weights();

    let mut resumed = connect(&server).await;
    resumed.load(directory.path(), PolicyVersion(1)).await.unwrap();
    accumulate(&mut resumed, &rows()).await;
    resumed.step(UPDATE).await.unwrap();
    assert_eq!(server.weights(), uninterrupted);

    let other = TinkerSettings { rank: 4, ..settings(&server) };
    let mut other = TinkerLearner::connect(other, None).await.unwrap();
    assert!(other.load(directory.path(), PolicyVersion(1)).await.is_err());
}

#[tokio::test]
async fn what_the_protocol_cannot_express_is_refused() {
    let server = Tinker::start(Rule::Sum).await;
    let mut learner = connect(&server).await;
    let mut warm = rows();
    warm[1].targets[0].temperature = 0.7;
    let mut truncated = rows();
    truncated[2].kept.insert(0, vec![9, 1]);
    let mut outside = rows();
    outside[0].targets[1].position = 3;
    for (rows, index, reason) in [
        (warm, 1, "temperature = 1"),
        (truncated, 2, "top_p = 1"),
        (outside, 0, "outside of the row"),
    ] {
        match learner.logprobs(&rows).await.unwrap_err() {
            LearnerError::BadRow { row, reason: given } => {
                assert_eq!(row, index);
                assert!(given.contains(reason), "{given}");
            }
            other => panic!("{other:?}"),
        }
    }
    let reference = learner.reference_logprobs(&rows()).await;
    assert!(matches!(reference, Err(LearnerError::NoReference)));
}

#[tokio::test]
async fn the_reference_stays_while_the_model_is_trained() {
    let server = Tinker::start(Rule::Sum).await;
    let mut learner = connect(&server).await;
    accumulate(&mut learner, &rows()).await;
    learner.step(UPDATE).await.unwrap();
    learner.keep_reference().await.unwrap();
    let before = learner.logprobs(&rows()).await.unwrap();
    accumulate(&mut learner, &rows()).await;
    learner.step(UPDATE).await.unwrap();
    assert_eq!(learner.reference_logprobs(&rows()).await.unwrap(), before);
    assert_ne!(learner.logprobs(&rows()).await.unwrap(), before);
}

#[tokio::test]
async fn a_gradient_that_is_not_finite_is_not_sent() {
    let server = Tinker::start(Rule::Sum).await;
    let mut learner = connect(&server).await;
    let before = (server.weights(), server.count("optim_step"));
    let nan = |all: &[Vec<f32>]| all.iter().map(|row| vec![f32::NAN; row.len()]).collect();
    learner.accumulate(&rows(), &mut |all| Ok(nan(all))).await.unwrap();
    assert!(!learner.step(UPDATE).await.unwrap().applied);
    assert_eq!((server.weights(), server.count("optim_step")), before);
}

#[tokio::test]
async fn hostile_answers_are_errors() {
    let protobuf = "application/x-protobuf";
    for (kind, bytes) in [
        (protobuf, b"\xff\xff\xff\xff".to_vec()),
        (protobuf, Vec::new()),
        ("application/json", b"{}".to_vec()),
        ("text/html", b"<html>Sign in</html>".to_vec()),
        // One record whose offsets are not those of its data.
        (protobuf, b"\x12\x1d\x12\x19\x0a\x08logprobs\x12\x0d\x0a\x00\x12\x07\x00\x00\x00\x00\x00\x00\x00\x18\x01\x18\x01".to_vec()),
    ] {
        let server = Tinker::start(Rule::Sum).await;
        let mut learner = connect(&server).await;
        let result = Some(("forward_backward", kind, bytes.clone()));
        server.conduct(Conduct { result, ..Conduct::default() });
        assert!(learner.logprobs(&rows()).await.is_err(), "{kind} {bytes:?}");
        // Nothing was trained, so the learner goes on.
        assert!(learner.logprobs(&rows()).await.is_ok(), "{kind} {bytes:?}");
    }
}

fn request() -> SampleRequest {
    SampleRequest {
        prompt: vec![1, 2],
        stop: vec![9],
        max_tokens: 6,
        sampling: Sampling::default(),
        seed: 3,
        first_index: 0,
        min_version: PolicyVersion(0),
        session: SessionId(1),
    }
}

#[tokio::test]
async fn tokens_have_the_log_probabilities_and_the_version_of_their_weights() {
    let server = Tinker::start(Rule::Sum).await;
    let mut learner = connect(&server).await;
    let policy = learner.policy();
    let mut stops = Vec::new();
    for seed in 0..20 {
        let request = SampleRequest { seed, ..request() };
        let sample = policy.sample(request.clone()).await.unwrap();
        check_sample(&sample, &request).unwrap();
        assert_eq!(policy.sample(request.clone()).await.unwrap(), sample);
        let mut ids = request.prompt.clone();
        ids.extend(sample.tokens.iter().map(|token| token.id));
        let targets = (2..ids.len()).map(|position| Target { position, temperature: 1.0 });
        let row = Row { targets: targets.collect(), ids, ..Row::default() };
        let logprobs = learner.logprobs(&[row]).await.unwrap();
        let sampled = sample.tokens.iter().map(|token| token.logprob);
        assert_eq!(logprobs[0], sampled.collect::<Vec<_>>());
        stops.push(sample.stop);
    }
    assert!(stops.contains(&StopReason::EndOfTurn) && stops.contains(&StopReason::MaxTokens));
    learner.publish().await.unwrap();
    let sample = policy.sample(request()).await.unwrap();
    assert!(sample.tokens.iter().all(|token| token.version == PolicyVersion(1)));
}

#[tokio::test]
async fn nothing_is_sampled_between_a_step_and_its_publication() {
    let server = Tinker::start(Rule::Sum).await;
    let mut learner = connect(&server).await;
    let policy = learner.policy();
    accumulate(&mut learner, &rows()).await;
    learner.step(UPDATE).await.unwrap();
    let waiting = tokio::spawn(async move { policy.sample(request()).await });
    // The request had every chance to reach the server.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.count("asample"), 0);
    learner.publish().await.unwrap();
    let sample = waiting.await.unwrap().unwrap();
    assert_eq!(sample.tokens[0].version, PolicyVersion(1));
}

#[tokio::test]
async fn requests_that_the_server_cannot_serve_exactly_are_refused() {
    let server = Tinker::start(Rule::Sum).await;
    let learner = connect(&server).await;
    let policy = learner.policy();
    let sampling = Sampling { temperature: 0.5, ..Sampling::default() };
    let warm = SampleRequest { sampling, ..request() };
    let sampling = Sampling { top_k: 2, ..Sampling::default() };
    let truncated = SampleRequest { sampling, ..request() };
    let newer = SampleRequest { min_version: PolicyVersion(1), ..request() };
    for refused in [warm, truncated, newer] {
        let result = policy.sample(refused).await;
        assert!(matches!(result, Err(PolicyError::Refused(_))), "{result:?}");
    }
}

#[tokio::test]
async fn an_exported_adapter_names_its_modules() {
    let server = Tinker::start(Rule::Sum).await;
    let learner = connect(&server).await;
    let directory = tempfile::tempdir().unwrap();
    server.kept.lock().unwrap().archive = archive(&["q_proj", "down_proj"]);
    learner.save_adapter(directory.path()).await.unwrap();
    let config = std::fs::read(directory.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["target_modules"], serde_json::json!(["down_proj", "q_proj"]));
    assert_eq!(config["r"], 8);
    let tensors = std::fs::read(directory.path().join("adapter_model.safetensors")).unwrap();
    assert_eq!(tensors, weights(&["q_proj", "down_proj"]));
    assert!(!directory.path().join("README.md").exists());
}

#[tokio::test]
async fn archives_that_hold_no_adapter_are_refused() {
    let server = Tinker::start(Rule::Sum).await;
    let learner = connect(&server).await;
    let directory = tempfile::tempdir().unwrap();
    let (config, tensors) = ("adapter_config.json", "adapter_model.safetensors");
    let whole = weights(&["q_proj"]);
    let mut other = whole.clone();
    let place = other.windows(6).position(|name| name == b"lora_A").unwrap();
    other[place..place + 6].copy_from_slice(b"weight");
    for (packed, reason) in [
        (b"<html>".to_vec(), ""),
        (archive(&["q_proj"])[..60].to_vec(), ""),
        (pack(&[(tensors, whole.clone())]), "no adapter_config.json"),
        (pack(&[(config, b"{}".to_vec())]), "no adapter_model.safetensors"),
        (pack(&[(config, b"[1]".to_vec()), (tensors, whole.clone())]), config),
        (pack(&[(config, b"{}".to_vec()), (tensors, whole[..40].to_vec())]), "incomplete"),
        (pack(&[(config, b"{}".to_vec()), (tensors, weights(&[]))]), "no tensors"),
        (pack(&[(config, b"{}".to_vec()), (tensors, other)]), "not part of an adapter"),
    ] {
        server.kept.lock().unwrap().archive = packed;
        let error = learner.save_adapter(directory.path()).await.unwrap_err();
        assert!(matches!(error, TinkerError::BadFile { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
