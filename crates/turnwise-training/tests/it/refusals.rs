//! What cannot be trained on is refused before a weight moves, and says which values were wrong.

use std::sync::Arc;

use proptest::prelude::*;
use turnwise_rollout::{Sampler, StopSignal, uniform_at};
use turnwise_testkit::TabularModel;
use turnwise_training::{
    Admission, Batch, BatchError, Learner, LearnerError, Parts, RatioScope, Row, Target,
    TrainError, Trainer, TrainerSettings, Update, check_trajectories, fill_references,
};
use turnwise_trajectory::{
    PolicyVersion, SampledToken, SampledTokens, Sampling, Span, TokenId, Trajectory,
};

use crate::support::{
    Built, LETTERS, OBJECTIVE, OUTCOME, agents_with, block_on, echoes, pool_settings, token,
};

fn sampling() -> impl Strategy<Value = Sampling> {
    let one_of = prop::sample::select::<f32>;
    (one_of(vec![0.0, 0.5, 1.0]), one_of(vec![0.5, 0.9, 1.0]), 0_u32..3, one_of(vec![0.0, 0.05]))
        .prop_map(|(temperature, top_p, top_k, min_p)| Sampling {
            temperature,
            top_p,
            top_k,
            min_p,
        })
}

fn drawn_with(sampling: Sampling) -> Trajectory {
    let mut trajectory = Built::new(3).turn(vec![token(1, -0.5, 1.0)], 1.0).trajectory;
    trajectory.sampling = vec![sampling];
    trajectory
}

fn with_tokens(mut trajectory: Trajectory, tokens: SampledTokens) -> Trajectory {
    let node = trajectory.turns[0].node;
    trajectory.graph.node_mut(node).spans[1] = Span::Sampled(tokens);
    trajectory
}

/// Samples a token from these logits and returns it with the ids that truncation kept.
fn sample_kept(logits: &[f32], sampling: &Sampling, uniform: f64) -> (TokenId, f32, Vec<TokenId>) {
    let vocabulary: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    let mut sampler = Sampler::default();
    let (id, logprob) = sampler
        .draw_from(logits, &vocabulary, sampling, uniform)
        .expect("the vocabulary is not empty");
    let kept = sampler.support().to_vec();
    (id, logprob, kept)
}

proptest! {
    // Rollouts 13.29, 11.20: refused with its values exactly where a plain softmax is not the sampler's.
    #[test]
    fn truncated_sampling_without_kept_sets_is_refused(sampling in sampling()) {
        let trajectory = drawn_with(sampling);
        let answer = Batch::new([&trajectory], RatioScope::Trajectory);
        if sampling.covers_vocabulary() {
            prop_assert!(answer.is_ok());
        } else {
            let error = answer.expect_err("it cannot be replayed");
            prop_assert_eq!(&error, &BatchError::Truncated { sampling, group: 0, member: 3 });
            let message = error.to_string();
            for value in [sampling.temperature, sampling.top_p, sampling.min_p] {
                prop_assert!(message.contains(&value.to_string()), "{message}");
            }
        }
    }

    // Rollouts 11.20: with its kept set a token is replayed exactly; at temperature 0 nothing can be.
    #[test]
    fn kept_sets_replay_the_distribution_that_was_sampled(
        sampling in sampling(),
        logits in prop::collection::vec(-2.0_f32..2.0, 5),
        uniform in 0.0_f64..1.0,
    ) {
        let (id, logprob, kept) = sample_kept(&logits, &sampling, uniform);
        let mut tokens = SampledTokens::default();
        let drawn = SampledToken::new(id, logprob, PolicyVersion(0));
        tokens.push_kept(SampledToken { advantage: Some(1.0), ..drawn }, &kept);
        let trajectory = with_tokens(drawn_with(sampling), tokens);
        let answer = Batch::new([&trajectory], RatioScope::Trajectory);
        if sampling.temperature == 0.0 {
            let is_refused = matches!(answer, Err(BatchError::Truncated { .. }));
            prop_assert!(is_refused);
            return Ok(());
        }
        let batch = answer.expect("it can be replayed");
        let mut row = batch.rows[0].clone();
        row.ids[..batch.rows[0].targets[0].position].fill(0);
        prop_assert_eq!(&row.kept[&0], &kept);
        let mut model = model_with(&row, &logits);
        let replayed = block_on(model.logprobs(std::slice::from_ref(&row))).expect("a row")[0][0];
        prop_assert!((replayed - logprob).abs() < 1e-5, "{replayed} {logprob}");
        prop_assert!(moved(&mut model, &row).iter().all(|id| kept.contains(id)));
    }

    // Rollouts 13.29, 11.28: two hashes, wherever the second comes.
    #[test]
    fn mixed_renderers_are_refused(n in 1_usize..6, odd in 1_usize..6) {
        let mut trajectories = vec![drawn_with(Sampling::default()); n + 1];
        prop_assert!(check_trajectories(&trajectories).is_ok());
        let odd = 1 + odd % n;
        trajectories[odd].renderer = "another".to_owned();
        trajectories[odd].identity.member = 7;
        let expected = BatchError::MixedRenderers {
            first: "built".to_owned(),
            other: "another".to_owned(),
            group: 0,
            member: 7,
        };
        prop_assert_eq!(check_trajectories(&trajectories), Err(expected.clone()));
        prop_assert_eq!(Batch::new(&trajectories, RatioScope::Turn), Err(expected.clone()));
        prop_assert!(expected.to_string().contains("another"));
    }
}

/// A model whose logits before the row's target are these.
fn model_with(row: &Row, logits: &[f32]) -> TabularModel {
    let mut model = TabularModel::new(logits.len());
    let position = row.targets[0].position;
    let ids = (0..logits.len() as TokenId).map(|id| {
        let ids = row.ids[..position].iter().copied().chain([id]).collect();
        Row { ids, targets: vec![Target { position, temperature: 1.0 }], ..Row::default() }
    });
    let rows: Vec<Row> = ids.collect();
    block_on(async {
        // Σ_id c_id (e_id − p) with Σ c = 0 is c itself, and a step of length 1 subtracts it.
        let mean = logits.iter().sum::<f32>() / logits.len() as f32;
        let mut push = |_: &[Vec<f32>]| Ok(logits.iter().map(|one| vec![mean - one]).collect());
        model.accumulate(&rows, &mut push).await.expect("it adds");
        let update = Update { learning_rate: 1.0, max_grad_norm: f64::INFINITY };
        model.step(update).await.expect("it steps");
    });
    model
}

/// The ids whose logit a gradient of the row's target moves.
fn moved(model: &mut TabularModel, row: &Row) -> Vec<TokenId> {
    let folder = tempfile::tempdir().expect("a folder");
    let logits = |model: &mut TabularModel| -> Vec<f64> {
        block_on(model.save(folder.path())).expect("it is written");
        let table = std::fs::read_to_string(folder.path().join("table.json")).expect("it is read");
        let rows: Vec<serde_json::Value> = serde_json::from_str(&table).expect("it is JSON");
        let numbers = rows[0]["logits"].as_array().expect("numbers");
        numbers.iter().map(|one| one.as_f64().expect("a number")).collect()
    };
    let before = logits(model);
    block_on(async {
        let mut push = |_: &[Vec<f32>]| Ok(vec![vec![1.0]]);
        model.accumulate(std::slice::from_ref(row), &mut push).await.expect("it adds");
        let update = Update { learning_rate: 1.0, max_grad_norm: f64::INFINITY };
        model.step(update).await.expect("it steps");
    });
    let after = logits(model);
    (0..before.len()).filter(|id| before[*id] != after[*id]).map(|id| id as TokenId).collect()
}

/// A trainer of a model that is sampled with these settings.
fn trainer_with(model: &TabularModel, sampling: Sampling) -> Trainer<TabularModel> {
    let parts = Parts {
        tasks: Arc::new(echoes(2, true)),
        agents: Arc::new(agents_with(LETTERS, sampling)),
        rubric: None,
        policy: Arc::new(model.clone()),
        learner: model.clone(),
        objective: Box::new(OBJECTIVE),
        credit: Box::new(OUTCOME),
    };
    let settings = TrainerSettings {
        groups_per_step: 2,
        rollout: pool_settings(),
        admission: Admission { keep_zero_variance: true, ..Admission::default() },
        ..TrainerSettings::default()
    };
    Trainer::new(parts, settings)
}

// Rollouts 13.29: a whole run is refused before its first step, and the weights are as they were.
#[test]
fn a_run_that_cannot_be_replayed_is_refused_before_its_first_step() {
    let model = TabularModel::new(4);
    let mut trainer = trainer_with(&model, Sampling::greedy());
    let error = block_on(trainer.step(&StopSignal::never())).expect_err("it cannot be replayed");
    assert!(matches!(
        error,
        TrainError::Batch(BatchError::Truncated { sampling, .. }) if sampling == Sampling::greedy()
    ));
    assert_eq!(Learner::version(&model), PolicyVersion(0));
}

// Rollouts 11.20: the engine returns the kept ids, the agent records them, and the learner agrees with the engine.
#[test]
fn a_run_with_truncated_sampling_trains_on_the_distribution_that_it_sampled_from() {
    let top_k = Sampling { top_k: 2, ..Sampling::default() };
    let min_p = Sampling { min_p: 0.9, ..Sampling::default() };
    for sampling in [top_k, min_p] {
        let model = TabularModel::new(4);
        let mut trainer = trainer_with(&model, sampling);
        for _ in 0..3 {
            let report = block_on(trainer.step(&StopSignal::never())).expect("it is replayed");
            let report = report.expect("nothing stops it");
            let mismatch = report.metrics.get("engine/mismatch_max").expect("it is measured");
            assert!(mismatch < 1e-5, "{sampling:?}: {mismatch}");
        }
        assert!(Learner::version(&model) > PolicyVersion(0));
    }
}

// Objective 23: the reference stays where it was kept while the weights move, and a record of it comes first.
#[test]
fn a_reference_is_kept_when_asked_for_and_does_not_move() {
    let trajectory =
        Built::new(0).turn(vec![token(1, -0.5, 1.0), token(2, -0.5, 1.0)], 1.0).trajectory;
    let mut batch = Batch::new([&trajectory], RatioScope::Trajectory).expect("scored");
    let mut model = TabularModel::new(10);
    let missing = block_on(fill_references(&mut batch, &mut model)).expect_err("nobody asked");
    assert!(matches!(missing, LearnerError::NoReference));
    model.keep_reference();
    let start = block_on(model.logprobs(&batch.rows)).expect("a row");
    block_on(async {
        let mut push = |_: &[Vec<f32>]| Ok(vec![vec![-1.0, 1.0]]);
        model.accumulate(&batch.rows, &mut push).await.expect("it adds");
        let update = Update { learning_rate: 1.0, max_grad_norm: f64::INFINITY };
        model.step(update).await.expect("it steps");
        assert_ne!(model.logprobs(&batch.rows).await.expect("a row"), start);
        assert_eq!(model.reference_logprobs(&batch.rows).await.expect("it is kept"), start);
        fill_references(&mut batch, &mut model).await.expect("it is kept");
    });
    let filled: Vec<_> = batch.tokens[0].iter().map(|one| one.reference_logprob).collect();
    assert_eq!(filled, start[0].iter().copied().map(Some).collect::<Vec<_>>());

    let mut recorded: SampledTokens = vec![token(1, -0.5, 1.0), token(2, -0.5, 1.0)].into();
    recorded.set_reference_logprobs(vec![-3.0, -4.0]);
    let trajectory = with_tokens(trajectory, recorded);
    let mut batch = Batch::new([&trajectory], RatioScope::Trajectory).expect("scored");
    block_on(fill_references(&mut batch, &mut TabularModel::new(10))).expect("all are recorded");
    let filled: Vec<_> = batch.tokens[0].iter().map(|one| one.reference_logprob).collect();
    assert_eq!(filled, [Some(-3.0), Some(-4.0)]);
}

// Rollouts 11.20: a set that does not hold its token is a programmer's mistake.
#[test]
#[should_panic(expected = "the token must be among the ids that the truncation kept")]
fn a_token_outside_its_kept_set_panics() {
    let (id, _) = Sampler::default().draw(&[0.0; 4], &Sampling::default(), uniform_at(0, 0));
    SampledTokens::default().push_kept(token(id, -0.5, 1.0), &[id + 1]);
}
