use std::error::Error;
use std::sync::{Arc, Mutex};

use turnwise_rollout::{Policy, SessionId};
use turnwise_training::{Learner, LearnerError, Row, Target, Update};
use turnwise_trajectory::PolicyVersion;

use super::block_on;
use super::fixture::Fixture;
use crate::layout::FeedForward;
use crate::trainer::LearnerState;
use crate::{
    AdamW, CandleLearner, CandlePolicy, Decoder, DecoderConfig, EngineSettings, EngineWeights,
    LearnerSettings,
};

type Answer = Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>>;

fn row(ids: &[u32]) -> Row {
    let targets = (1..ids.len()).map(|position| Target { position, temperature: 1.0 }).collect();
    Row { ids: ids.to_vec(), targets, ..Row::default() }
}

/// Returns the gradient of the mean negative log-likelihood.
#[expect(clippy::unnecessary_wraps, reason = "what a learner calls")]
fn likelihood(logprobs: &[Vec<f32>]) -> Answer {
    let count: usize = logprobs.iter().map(Vec::len).sum();
    Ok(logprobs.iter().map(|row| vec![-1.0 / count as f32; row.len()]).collect())
}

fn model() -> Decoder {
    Decoder::random(DecoderConfig::small(29), 4).unwrap()
}

fn learner() -> CandleLearner {
    CandleLearner::new(model(), AdamW::default()).unwrap()
}

const UPDATE: Update = Update { learning_rate: 1e-3, max_grad_norm: f64::INFINITY };

#[test]
fn the_gradient_norm_is_that_of_the_reference() {
    block_on(async {
        for fixture in Fixture::all() {
            let expected = &fixture.expected["gradients"]["len64"];
            let rows = [row(&fixture.ids("len64"))];
            let mut learner = CandleLearner::new(fixture.model, AdamW::default()).unwrap();
            learner.accumulate(&rows, &mut likelihood).await.unwrap();
            let updated = learner.step(UPDATE).await.unwrap();
            let theirs = expected["global_grad_l2_norm_f64"].as_f64().unwrap();
            assert!((updated.grad_norm / theirs - 1.0).abs() < 1e-5 && updated.applied);
        }
    });
}

#[test]
fn a_plain_step_along_the_gradient_lowers_the_loss_as_the_reference_says() {
    for fixture in Fixture::all() {
        let expected = &fixture.expected["gradients"]["len64"]["loss_after_sgd_step_f64"];
        let ids = fixture.ids("len64");
        let gradients = super::forward::gradients(&fixture.model, &ids).1;
        let mut values = fixture.model.values().unwrap();
        for (values, gradient) in values.iter_mut().zip(&gradients) {
            let rate = expected["lr"].as_f64().unwrap() as f32;
            values.iter_mut().zip(gradient).for_each(|(value, gradient)| *value -= rate * gradient);
        }
        fixture.model.set_values(values).unwrap();
        let scored = fixture.model.score(&[ids]).unwrap().concat();
        let loss = -scored.iter().map(|x| f64::from(*x)).sum::<f64>() / scored.len() as f64;
        assert!((loss - expected["loss"].as_f64().unwrap()).abs() < 1e-5, "{loss}");
    }
}

#[test]
fn micro_batches_add_up() {
    block_on(async {
        // Enough rows for one call to compute them in several parts.
        let rows: Vec<Row> = (0..60)
            .map(|i| row(&(0..2 + i % 30).map(|t| (t * t + i) % 29).collect::<Vec<_>>()))
            .collect();
        let mut ones = |logprobs: &[Vec<f32>]| -> Answer {
            Ok(logprobs.iter().map(|row| vec![-1.0; row.len()]).collect())
        };
        let (mut together, mut apart) = (learner(), learner());
        together.accumulate(&rows, &mut ones).await.unwrap();
        for row in rows {
            apart.accumulate(&[row], &mut ones).await.unwrap();
        }
        let (a, b) = (together.step(UPDATE).await.unwrap(), apart.step(UPDATE).await.unwrap());
        assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-5);
        // A step clears what was accumulated.
        assert_eq!(together.step(UPDATE).await.unwrap().grad_norm, 0.0);
    });
}

#[test]
fn log_probabilities_follow_temperature_and_order() {
    block_on(async {
        let mut learner = learner();
        let target = |position, temperature| Target { position, temperature };
        let ids = vec![3, 1, 4, 1, 5, 9];
        let rows = [
            Row {
                ids: ids.clone(),
                targets: vec![target(2, 1.0), target(5, 0.5), target(5, 1.0)],
                ..Row::default()
            },
            Row { ids: ids.clone(), ..Row::default() },
            Row { ids: ids.clone(), targets: vec![target(1, 2.0)], ..Row::default() },
        ];
        let logprobs = learner.logprobs(&rows).await.unwrap();
        assert_eq!(logprobs.iter().map(Vec::len).collect::<Vec<_>>(), [3, 0, 1]);
        let scored = model().score(&[ids]).unwrap();
        assert!((logprobs[0][0] - scored[0][1]).abs() < 1e-6);
        assert!((logprobs[0][2] - scored[0][4]).abs() < 1e-6);
        assert_ne!(logprobs[0][1], logprobs[0][2]);
        let nothing = learner.logprobs(&rows[1..2]).await.unwrap();
        assert_eq!(nothing, [Vec::<f32>::new()]);
        learner.accumulate(&rows[1..2], &mut likelihood).await.unwrap();
        learner.accumulate(&[], &mut likelihood).await.unwrap();
    });
}

#[test]
fn a_short_sequence_is_learnt_by_heart() {
    block_on(async {
        let mut learner = learner();
        let policy = learner.policy(EngineSettings::default()).unwrap();
        learner.check_gradients().await.unwrap();
        let rows = [row(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9])];
        let update = Update { learning_rate: 5e-3, max_grad_norm: 1.0 };
        for _ in 0..120 {
            learner.accumulate(&rows, &mut likelihood).await.unwrap();
            learner.step(update).await.unwrap();
        }
        let logprobs = learner.logprobs(&rows).await.unwrap().concat();
        assert!(logprobs.iter().all(|logprob| *logprob > -0.1), "{logprobs:?}");

        // The policy samples with the new weights after publication, and not before.
        let asked = turnwise_rollout::SampleRequest {
            prompt: rows[0].ids[..4].to_vec(),
            stop: vec![],
            max_tokens: 11,
            sampling: turnwise_trajectory::Sampling::greedy(),
            seed: 0,
            first_index: 0,
            min_version: PolicyVersion(0),
            session: SessionId(0),
        };
        let draw = async || {
            let tokens = policy.sample(asked.clone()).await.unwrap().tokens;
            tokens.iter().map(|token| token.id).collect::<Vec<_>>()
        };
        assert_ne!(draw().await, rows[0].ids[4..]);
        assert_eq!(learner.publish().await.unwrap(), PolicyVersion(1));
        assert_eq!((policy.version(), learner.version()), (PolicyVersion(1), PolicyVersion(1)));
        assert_eq!(draw().await, rows[0].ids[4..]);
    });
}

/// Weights are packed for engines alone, and the first engine gets a version that says what it samples with.
#[test]
fn the_first_engine_gets_the_current_weights_under_a_version_of_their_own() {
    let mut trainer =
        LearnerState::new(model(), AdamW::default(), LearnerSettings::default()).unwrap();
    trainer.publish().unwrap();
    assert!(trainer.published().newest().is_none());
    let first = trainer.offer(EngineWeights::Compute).unwrap();
    assert_eq!(first.version, PolicyVersion(1));
    trainer.publish().unwrap();
    assert_eq!(trainer.published().newest().unwrap().version, PolicyVersion(2));

    let (policy, mut learner) = block_on(async {
        let rows = [row(&[3, 1, 4, 1, 5, 9, 2, 6])];
        let mut learner = learner();
        learner.accumulate(&rows, &mut likelihood).await.unwrap();
        learner.step(Update { learning_rate: 5e-2, ..UPDATE }).await.unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let versions = told.clone();
        let follow = move |version: PolicyVersion, _: &Decoder| {
            versions.lock().unwrap().push(version.0);
            Ok(())
        };
        learner.on_publish(follow).await.unwrap();
        let policy = learner.policy(EngineSettings::default()).unwrap();
        // A second engine changes nothing.
        let second = learner.policy(EngineSettings::default()).unwrap();
        assert_eq!(*told.lock().unwrap(), [0, 1]);
        let versions = [policy.version(), second.version(), learner.version()];
        assert_eq!(versions, [PolicyVersion(1); 3]);
        (policy, learner)
    });
    let (far, _) = super::rounded::distance(&policy, &mut learner, 29);
    assert!(far < 1e-4, "{far}");
}

/// An engine in int8 must not be what an exact one gets its weights from.
#[test]
fn a_second_engine_of_another_form_gets_exact_weights() {
    let mut learner = learner();
    let rounded = EngineSettings { weights: EngineWeights::Int8, ..EngineSettings::default() };
    let _first = learner.policy(rounded).unwrap();
    let exact = learner.policy(EngineSettings::default()).unwrap();
    let (far, _) = super::rounded::distance(&exact, &mut learner, 29);
    assert!(far < 1e-4, "{far}");
}

#[test]
fn a_saved_learner_goes_on_as_if_nothing_had_happened() {
    block_on(async {
        let rows = [row(&[1, 2, 3, 4, 5]), row(&[9, 8, 7])];
        let train = async |learner: &mut CandleLearner| {
            learner.accumulate(&rows, &mut likelihood).await.unwrap();
            learner.step(UPDATE).await.unwrap();
        };
        let mut first = learner();
        train(&mut first).await;
        train(&mut first).await;
        let directory = tempfile::tempdir().unwrap();
        first.save(directory.path()).await.unwrap();
        let expected_now = first.logprobs(&rows).await.unwrap();
        train(&mut first).await;
        let expected_later = first.logprobs(&rows).await.unwrap();

        let other = Decoder::random(DecoderConfig::small(29), 77).unwrap();
        let mut second = CandleLearner::new(other, AdamW::default()).unwrap();
        second.accumulate(&rows, &mut likelihood).await.unwrap();
        second.load(directory.path(), PolicyVersion(2)).await.unwrap();
        assert_eq!(second.version(), PolicyVersion(2));
        assert_eq!(second.logprobs(&rows).await.unwrap(), expected_now);
        train(&mut second).await;
        assert_eq!(second.logprobs(&rows).await.unwrap(), expected_later);
        assert_eq!(second.publish().await.unwrap(), PolicyVersion(3));
    });
}

#[test]
fn files_that_do_not_fit_change_nothing() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        learner().save(directory.path()).await.unwrap();
        let other = DecoderConfig { n_layers: 1, ..DecoderConfig::small(29) };
        let mut other =
            CandleLearner::new(Decoder::random(other, 1).unwrap(), AdamW::default()).unwrap();
        assert!(other.load(directory.path(), PolicyVersion(3)).await.is_err());
        std::fs::remove_file(directory.path().join("optimizer.safetensors")).unwrap();
        let mut same = CandleLearner::new(
            Decoder::random(DecoderConfig::small(29), 9).unwrap(),
            AdamW::default(),
        )
        .unwrap();
        let before = same.logprobs(&[row(&[1, 2])]).await.unwrap();
        let error = same.load(directory.path(), PolicyVersion(3)).await.unwrap_err();
        assert!(error.source().unwrap().to_string().contains("optimizer.safetensors"));
        assert_eq!(same.logprobs(&[row(&[1, 2])]).await.unwrap(), before);
        assert_eq!(same.version(), PolicyVersion(0));
        assert!(same.save(&directory.path().join("nowhere")).await.is_err());
    });
}

#[test]
fn bad_rows_are_errors_that_say_why() {
    block_on(async {
        let mut learner = learner();
        let target = |position, temperature| Target { position, temperature };
        let cases = [
            (vec![1, 29], vec![target(1, 1.0)], "token 29 at position 1"),
            (vec![], vec![], "no tokens"),
            (vec![1, 2], vec![target(0, 1.0)], "target position 0"),
            (vec![1, 2], vec![target(2, 1.0)], "target position 2"),
            (vec![1, 2], vec![target(1, 0.0)], "temperature 0"),
            (vec![1, 2], vec![target(1, f32::NAN)], "temperature NaN"),
            (vec![1; 257], vec![target(1, 1.0)], "256 positions"),
        ];
        for (ids, targets, expected) in cases {
            let rows = [row(&[1, 2]), Row { ids, targets, ..Row::default() }];
            for error in [
                learner.logprobs(&rows).await.unwrap_err(),
                learner.accumulate(&rows, &mut likelihood).await.unwrap_err(),
            ] {
                let LearnerError::BadRow { row: 1, reason } = error else { panic!("{error}") };
                assert!(reason.contains(expected), "{reason}");
            }
        }
    });
}

#[test]
fn threads_that_cannot_be_meant_are_refused() {
    let learner = learner();
    let settings = EngineSettings { threads: 100_000, ..EngineSettings::default() };
    let refused = [
        learner.policy(settings).unwrap_err(),
        CandlePolicy::new(&model(), settings).unwrap_err(),
        CandleLearner::with_settings(
            model(),
            AdamW::default(),
            LearnerSettings { threads: usize::MAX, ..LearnerSettings::default() },
        )
        .unwrap_err(),
    ];
    for error in refused {
        assert!(error.to_string().contains("are more than 1024"), "{error}");
    }
}

// The reference is kept on request, and does not change when the weights do.
#[test]
fn a_reference_is_kept_when_asked_for_and_does_not_move() {
    block_on(async {
        let mut learner = learner();
        let rows = [row(&[1, 2, 3, 4])];
        let missing = learner.reference_logprobs(&rows).await.unwrap_err();
        assert!(matches!(missing, LearnerError::NoReference));
        learner.keep_reference().await.unwrap();
        let start = learner.logprobs(&rows).await.unwrap();
        learner.accumulate(&rows, &mut likelihood).await.unwrap();
        assert!(learner.step(UPDATE).await.unwrap().applied);
        assert_ne!(learner.logprobs(&rows).await.unwrap(), start);
        assert_eq!(learner.reference_logprobs(&rows).await.unwrap(), start);
    });
}

#[test]
fn a_failed_objective_adds_no_gradient() {
    block_on(async {
        let mut learner = learner();
        let rows = [row(&[1, 2, 3])];
        let failing = learner.accumulate(&rows, &mut |_| Err("no advantage".into())).await;
        assert!(matches!(failing, Err(LearnerError::Gradient(_))));
        let short = learner.accumulate(&rows, &mut |_| Ok(vec![vec![1.0]])).await;
        assert!(matches!(short, Err(LearnerError::Gradient(_))));
        assert_eq!(learner.step(UPDATE).await.unwrap().grad_norm, 0.0);
    });
}

#[test]
fn a_gradient_that_is_not_finite_is_not_applied() {
    block_on(async {
        let mut learner = learner();
        let rows = [row(&[1, 2, 3])];
        let before = learner.logprobs(&rows).await.unwrap();
        let mut infinite = |_: &[Vec<f32>]| -> Answer { Ok(vec![vec![f32::INFINITY, 1.0]]) };
        learner.accumulate(&rows, &mut infinite).await.unwrap();
        let updated = learner.step(UPDATE).await.unwrap();
        assert!(!updated.applied && !updated.grad_norm.is_finite());
        let name = updated.not_finite.expect("a parameter with a gradient that is not finite");
        assert!(name.starts_with("model."), "{name}");
        assert_eq!(learner.logprobs(&rows).await.unwrap(), before);
        assert_eq!(learner.step(UPDATE).await.unwrap().grad_norm, 0.0);
        for update in [
            Update { learning_rate: f64::NAN, ..UPDATE },
            Update { max_grad_norm: 0.0, ..UPDATE },
            Update { max_grad_norm: f64::NAN, ..UPDATE },
        ] {
            assert!(learner.step(update).await.is_err());
        }
    });
}

/// Objective 26: the check finds a parameter that the loss does not reach, which no other check does.
#[test]
fn a_parameter_without_a_gradient_is_named() {
    let trainer = LearnerState::new(model(), AdamW::default(), LearnerSettings::default()).unwrap();
    trainer.check_gradients().unwrap();
    let miswired = trainer.check_gradients_in(|network| {
        let norms = network.layers[1].head_norms.as_mut().unwrap();
        norms.key.index = norms.query.index;
        let FeedForward::Dense(mlp) = &mut network.layers[0].feed_forward else { panic!() };
        mlp.gate_up[1].weight.index = mlp.gate_up[0].weight.index;
    });
    match miswired {
        Err(LearnerError::NoGradient { names }) => assert_eq!(
            names,
            ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.k_norm.weight"]
        ),
        other => panic!("{other:?}"),
    }
}
