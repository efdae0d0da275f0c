//! Ratio groups span rows, micro-batches and shards, and no two agents.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use turnwise_environment::{Seat, TaskSet};
use turnwise_objective::{
    Clip, Denominator, DrGrpo, LengthWeight, Objective, ObjectiveError, Reinforce, Sequence,
    SequenceLoss, SequenceStats,
};
use turnwise_rollout::{Allowance, ChatAgents, Compaction, Episode, Fork, Progress, uniform_at};
use turnwise_testkit::{AlphabetRenderer, Echo, TabularModel};
use turnwise_training::{
    Batch, Learner, RatioScope, TrainToken, Update, accumulate, accumulate_in, assign_credit,
    batch_loss, micro_batches,
};
use turnwise_trajectory::{EdgeKind, MaskReason, NodeId, Span, TokenId, Trajectory};

use crate::batches::{Probe, SCOPES, WHOLE, build_all, measured, members};
use crate::support::{
    Built, Cuts, LETTERS, OBJECTIVE, RecordingPolicy, agents, block_on, echoes, identity, limits,
    play, token,
};

/// Any log-probability in f64, by id.
fn logprob(id: TokenId) -> f64 {
    -0.5 - uniform_at(1, u64::from(id)) - 0.1 * uniform_at(3, u64::from(id))
}

fn logprobs(batch: &Batch) -> Vec<Vec<f64>> {
    let of = |row: &turnwise_training::Row| {
        row.targets.iter().map(|target| logprob(row.ids[target.position])).collect()
    };
    batch.rows.iter().map(of).collect()
}

/// Loss, and the coefficient of every token by its id.
fn exactly(objective: &dyn Objective, batch: &Batch) -> (f64, BTreeMap<TokenId, f64>) {
    let loss = batch_loss(objective, batch, &logprobs(batch)).expect("finite numbers");
    let mut gradient = BTreeMap::new();
    for (row, coefficients) in batch.rows.iter().zip(&loss.gradient) {
        for (target, coefficient) in row.targets.iter().zip(coefficients) {
            let before = gradient.insert(row.ids[target.position], *coefficient);
            assert!(before.is_none(), "a token trains once");
        }
    }
    (loss.loss, gradient)
}

fn equal(a: &(f64, BTreeMap<TokenId, f64>), b: &(f64, BTreeMap<TokenId, f64>)) -> bool {
    (a.0 - b.0).abs() <= 1e-12
        && a.1.keys().eq(b.1.keys())
        && a.1.iter().all(|(id, value)| (value - b.1[id]).abs() <= 1e-12)
}

fn permuted(batch: &Batch, order: &[usize]) -> Batch {
    Batch {
        rows: order.iter().map(|row| batch.rows[*row].clone()).collect(),
        tokens: order.iter().map(|row| batch.tokens[*row].clone()).collect(),
        weights: batch.weights.clone(),
        trajectory_of: order.iter().map(|row| batch.trajectory_of[*row]).collect(),
    }
}

/// A permutation of `n` places and a cut of it into some parts.
fn cut(n: usize, seed: u64, n_parts: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| uniform_at(seed, *a as u64).total_cmp(&uniform_at(seed, *b as u64)));
    let mut parts = vec![Vec::new(); n_parts];
    for (place, row) in order.into_iter().enumerate() {
        let part = (uniform_at(seed + 1, place as u64) * n_parts as f64).floor();
        let part = (0..n_parts).rfind(|number| *number as f64 <= part).expect("a part");
        parts[part].push(row);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Ratio times advantage, clipped and summed over tokens: what a mean over tokens is made of.
#[derive(Debug)]
struct TokenMean(Denominator);

impl Objective for TokenMean {
    fn name(&self) -> &'static str {
        "token_mean"
    }

    fn denominator(&self) -> Denominator {
        self.0
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        // Ratios and advantages come out of the token form of the objective that has them, undone by its length.
        let grpo = turnwise_objective::Grpo { clip: turnwise_objective::Clip::PAPER_GRPO };
        let loss = grpo.evaluate(sequence, gradient)?;
        let n = sequence.len() as f64;
        for coefficient in gradient.iter_mut() {
            *coefficient *= n;
        }
        Ok(SequenceLoss { loss: loss.loss * n, stats: SequenceStats { ..loss.stats } })
    }
}

/// The gradient of a model with one row of five logits for each last digit of the id before, in f64.
fn model_gradient(batch: &Batch, coefficients: &[Vec<f64>], rows: &[usize]) -> Vec<[f64; 5]> {
    let mut gradient = vec![[0.0; 5]; 10];
    for row in rows {
        let laid_out = &batch.rows[*row];
        for (target, coefficient) in laid_out.targets.iter().zip(&coefficients[*row]) {
            let context = laid_out.ids[target.position - 1] as usize % 10;
            let logits: Vec<f64> = (0..5).map(|id| uniform_at(context as u64, id).exp()).collect();
            let total: f64 = logits.iter().sum();
            for (id, (sum, weight)) in gradient[context].iter_mut().zip(logits).enumerate() {
                let drawn = f64::from(u8::from(laid_out.ids[target.position] as usize % 5 == id));
                *sum += coefficient * (drawn - weight / total);
            }
        }
    }
    gradient
}

proptest! {
    // Rollouts 13.12, 5.2; Objective 14, 19
    #[test]
    fn any_cut_of_the_rows_into_micro_batches_changes_nothing(
        members in members(),
        seed in 0_u64..1 << 40,
        n_parts in 1_usize..6,
    ) {
        let forked = build_all(&members, true);
        for scope in SCOPES {
            let (whole, expected) = measured(&forked, scope, WHOLE, 0.3);
            let batch = Batch::new(&forked, scope).expect("everything is scored");
            let parts = cut(batch.rows.len(), seed, n_parts);
            let mut probe = Probe { drift: 0.3, ..Probe::default() };
            let report = block_on(accumulate_in(&mut probe, &OBJECTIVE, &batch, &parts, true));
            let report = report.expect("finite numbers");
            prop_assert_eq!(report.loss, whole.loss, "{:?}", scope);
            prop_assert_eq!(&probe.gradient, &expected, "{:?}", scope);
            prop_assert_eq!(report.mismatch.n, whole.mismatch.n);
            prop_assert_eq!(report.metrics, whole.metrics);
        }
    }

    // Rollouts 13.12: in f64 to 1e-12, one row or many, in any order.
    #[test]
    fn cutting_and_permuting_rows_changes_no_coefficient(
        members in members(),
        seed in 0_u64..1 << 40,
    ) {
        let (linear, forked) = (build_all(&members, false), build_all(&members, true));
        for scope in SCOPES {
            let batch = Batch::new(&forked, scope).expect("everything is scored");
            let expected = exactly(&OBJECTIVE, &batch);
            let order = cut(batch.rows.len(), seed, 1).concat();
            prop_assert!(equal(&exactly(&OBJECTIVE, &permuted(&batch, &order)), &expected));
            if matches!(scope, RatioScope::Trajectory | RatioScope::Turn) {
                let one_row = Batch::new(&linear, scope).expect("everything is scored");
                prop_assert!(equal(&exactly(&OBJECTIVE, &one_row), &expected), "{scope:?}");
            }
        }
    }

    // Rollouts 13.12: shards that each carry back their own rows, summed, in f64 to 1e-12 and through a softmax.
    #[test]
    fn shards_add_up_to_the_whole_gradient(
        members in members(),
        seed in 0_u64..1 << 40,
        n_shards in 1_usize..5,
    ) {
        let batch = Batch::new(&build_all(&members, true), RatioScope::Trajectory).expect("scored");
        let loss = batch_loss(&OBJECTIVE, &batch, &logprobs(&batch)).expect("finite numbers");
        let all: Vec<usize> = (0..batch.rows.len()).collect();
        let whole = model_gradient(&batch, &loss.gradient, &all);
        let mut sum = vec![[0.0; 5]; 10];
        for shard in cut(batch.rows.len(), seed, n_shards) {
            let part = model_gradient(&batch, &loss.gradient, &shard);
            for (sum, part) in sum.iter_mut().flatten().zip(part.iter().flatten()) {
                *sum += part;
            }
        }
        for (a, b) in whole.iter().flatten().zip(sum.iter().flatten()) {
            prop_assert!((a - b).abs() <= 1e-12, "{} {}", a, b);
        }
    }

    // Rollouts 13.12: what is made has every row once, and is no larger than it may be.
    #[test]
    fn micro_batches_hold_each_row_once_and_keep_to_their_size(
        members in members(),
        tokens in 1_usize..200,
    ) {
        let batch = Batch::new(&build_all(&members, true), RatioScope::Trajectory).expect("scored");
        let cut = micro_batches(&batch, tokens);
        prop_assert_eq!(cut.concat(), (0..batch.rows.len()).collect::<Vec<_>>());
        for rows in cut {
            // What a row has in common with the start of another is computed once.
            let starts = rows.iter().flat_map(|row| {
                let ids = &batch.rows[*row].ids;
                (1..=ids.len()).map(move |length| &ids[..length])
            });
            let distinct = starts.collect::<std::collections::HashSet<_>>().len();
            prop_assert!(rows.len() == 1 || distinct <= tokens);
        }
    }

    // Rollouts 5.5, 11.17: a mean over tokens counts each trained token once whatever the scope.
    #[test]
    fn a_mean_over_tokens_does_not_depend_on_the_scope(members in members()) {
        let forked = build_all(&members, true);
        let n_tokens: usize = forked.iter().map(Trajectory::n_sampled).sum();
        for denominator in [Denominator::Tokens, Denominator::Constant(n_tokens as f64)] {
            let objective = TokenMean(denominator);
            let of = |scope| exactly(&objective, &Batch::new(&forked, scope).expect("scored"));
            let expected = of(RatioScope::Trajectory);
            for scope in SCOPES {
                prop_assert!(equal(&of(scope), &expected), "{scope:?}");
            }
            let on_policy = Batch::new(&forked, RatioScope::Turn).expect("scored");
            let behavior: Vec<Vec<f64>> = on_policy
                .tokens
                .iter()
                .map(|row| row.iter().map(|one| f64::from(one.behavior_logprob)).collect())
                .collect();
            let loss = batch_loss(&objective, &on_policy, &behavior).expect("finite");
            let tokens = on_policy.tokens.iter().flatten().zip(loss.gradient.iter().flatten());
            for (token, coefficient) in tokens {
                let expected = -f64::from(token.advantage) / n_tokens as f64;
                prop_assert!((coefficient - expected).abs() < 1e-12);
            }
        }
    }

    // Rollouts 5.5: nor does a sum over tokens that is divided by the number of sequences.
    #[test]
    fn a_sum_over_tokens_does_not_depend_on_the_scope(members in members()) {
        let forked = build_all(&members, true);
        let (clip, max_tokens) = (Clip::PAPER_PPO, 8);
        let sum = Reinforce { length_weight: LengthWeight::Tokens };
        for objective in [&DrGrpo { clip, max_tokens } as &dyn Objective, &sum] {
            let of = |scope| exactly(objective, &Batch::new(&forked, scope).expect("scored"));
            let expected = of(RatioScope::Trajectory);
            for scope in SCOPES {
                prop_assert!(equal(&of(scope), &expected), "{objective:?} {scope:?}");
            }
        }
    }

    // Rollouts 13.14, 5.4: the seats of an episode have ratio groups of their own in every scope.
    #[test]
    fn a_seats_tokens_are_in_no_group_of_another_seat(members in members()) {
        for first in build_all(&members, false) {
            let mut second = first.clone();
            second.seat = Seat(1);
            for scope in SCOPES {
                let batch = Batch::new([&first, &second], scope).expect("everything is scored");
                let mut groups = [BTreeSet::new(), BTreeSet::new()];
                for (tokens, trajectory) in batch.tokens.iter().zip(&batch.trajectory_of) {
                    groups[*trajectory].extend(tokens.iter().map(|token| token.sequence));
                }
                prop_assert!(groups[0].is_disjoint(&groups[1]), "{:?}", scope);
                prop_assert_eq!(groups[0].len(), groups[1].len());
                prop_assert_eq!(batch.n_targets(), 2 * first.n_sampled());
            }
        }
    }

    // Rollouts 13.2: what others said moves nothing, whatever it is and however much of it there is.
    #[test]
    fn context_scaffold_and_forced_tokens_have_no_share(
        members in members(),
        ids in prop::collection::vec(1_u32..999, 0..6),
    ) {
        let before = build_all(&members, true);
        let mut after = before.clone();
        for trajectory in &mut after {
            for id in trajectory.graph.ids().collect::<Vec<_>>() {
                let spans = &mut trajectory.graph.node_mut(id).spans;
                spans.insert(0, Span::Context(ids.clone()));
                spans.push(Span::Forced(ids.clone()));
                spans.push(Span::Scaffold(ids.clone()));
            }
        }
        for scope in SCOPES {
            let (a, expected) = measured(&before, scope, WHOLE, 0.3);
            let (b, gradient) = measured(&after, scope, WHOLE, 0.3);
            prop_assert_eq!(a.loss, b.loss);
            prop_assert_eq!(a.n_tokens, b.n_tokens);
            prop_assert!(gradient.keys().all(|id| *id >= 1000), "only sampled ids have a gradient");
            prop_assert_eq!(gradient, expected);
        }
    }
}

// Rollouts 13.14, 5.4: the trajectory of another seat shares no group with the first, and weighs as one.
#[test]
fn a_seats_trajectory_has_its_own_group_and_weight() {
    let first = Built::new(0).turn(vec![token(1, -0.5, 1.0), token(2, -0.5, 1.0)], 1.0).trajectory;
    let mut second = Built::new(0).turn(vec![token(3, -0.5, 1.0)], 0.0).trajectory;
    second.seat = Seat(1);
    for scope in SCOPES {
        let batch = Batch::new([&first, &second], scope).expect("scored");
        let of = |row: usize| batch.tokens[row].iter().map(|one| one.sequence).collect::<Vec<_>>();
        assert_eq!((of(0), of(1)), (vec![0, 0], vec![1]));
        let loss = batch_loss(&OBJECTIVE, &batch, &[vec![-0.5; 2], vec![-0.5]]).expect("finite");
        assert_eq!(loss.gradient, [vec![-0.25, -0.25], vec![-0.5]]);
    }
}

// Rollouts 5.1, 11.16, 13.13: with three branches behind one turn, that turn's gradient comes once.
#[test]
fn a_prefix_of_many_branches_contributes_its_gradient_once() {
    let mut built = Built::new(0).turn(vec![token(1, -0.5, 1.0)], 0.0);
    for id in 2..5 {
        built = built.turn_after(NodeId(2), vec![token(id, -0.5, 1.0)], 0.0);
    }
    let batch = Batch::new([&built.trajectory], RatioScope::Trajectory).expect("scored");
    let holding = batch.rows.iter().filter(|row| row.ids.contains(&1)).count();
    assert_eq!((batch.rows.len(), holding), (3, 3), "every branch holds the first turn's token");
    let on_policy: Vec<Vec<f64>> = batch.tokens.iter().map(|row| vec![-0.5; row.len()]).collect();
    let loss = batch_loss(&OBJECTIVE, &batch, &on_policy).expect("finite");
    assert_eq!(loss.gradient, [vec![-0.25, -0.25], vec![-0.25], vec![-0.25]]);
}

/// Three episodes that go on from one after so many tokens, to their ends, every token with the advantage 1.
fn forked(tokens: u64, seed: u64) -> Vec<Trajectory> {
    let (tasks, engine) = (echoes(6, true), RecordingPolicy::new(4));
    let begun = Episode::new(identity(&tasks, 5, seed), tasks.environment(5), &agents(), limits());
    let advanced = block_on(begun.advance(&engine, &Allowance::tokens(tokens)));
    let Progress::Suspended(trunk) = advanced else { panic!("six turns take longer") };
    let fork = |member| Fork { member, sampling_seed: 100 * seed + u64::from(member) };
    let forks: Vec<Fork> = (0..3).map(fork).collect();
    let end = |episode: Episode| match block_on(episode.advance(&engine, &Allowance::unlimited())) {
        Progress::Finished(trajectory) => scored(trajectory),
        Progress::Suspended(_) => panic!("nothing stops it"),
    };
    trunk
        .fork(&forks, &tasks, &agents())
        .expect("they take snapshots")
        .into_iter()
        .map(end)
        .collect()
}

fn scored(mut trajectory: Trajectory) -> Trajectory {
    for id in trajectory.graph.ids() {
        let tokens = trajectory.graph.node_mut(id).sampled_mut();
        tokens.for_each(|tokens| tokens.set_advantage(Some(1.0)));
    }
    trajectory
}

// Rollouts 13.12, 13.13, 5.1: what several episodes have from the one they were forked from trains in the first, and in the
// others is no part of a ratio or a length; each still weighs as one.
#[test]
fn the_prefix_of_forked_episodes_is_laid_out_to_train_once() {
    for (n_shared, seed) in [(1, 1), (4, 2), (7, 3), (9, 4)] {
        let ended = forked(n_shared as u64, seed);
        let n_drawn: usize = ended.iter().map(Trajectory::n_sampled).sum();
        for scope in SCOPES {
            let batch = Batch::new(&ended, scope).expect("everything is scored");
            assert_eq!(batch.n_targets(), n_drawn - 2 * n_shared, "{scope:?}");
            let of_row = |row: &Vec<TrainToken>| {
                row.iter().map(|one| f64::from(one.behavior_logprob)).collect()
            };
            let recorded: Vec<Vec<f64>> = batch.tokens.iter().map(of_row).collect();
            let loss = batch_loss(&OBJECTIVE, &batch, &recorded).expect("finite");
            let mut sums = [0.0; 3];
            for (trajectory, gradient) in batch.trajectory_of.iter().zip(&loss.gradient) {
                sums[*trajectory] += gradient.iter().sum::<f64>();
            }
            assert!(sums.iter().all(|sum| (sum + 1.0 / 3.0).abs() < 1e-12), "{scope:?}: {sums:?}");
        }
        let first: Vec<TokenId> = ended[0].sampled().take(n_shared).map(|token| token.id).collect();
        for (place, one) in ended.iter().enumerate() {
            let batch = Batch::new([one], RatioScope::Trajectory).expect("scored");
            let n_masked = if place == 0 { 0 } else { n_shared };
            assert_eq!(batch.n_targets(), one.n_sampled() - n_masked);
            let shared = one.sampled().take(n_shared).map(|token| token.id);
            assert!(shared.eq(first.iter().copied()), "all of them hold it");
        }
    }
}

// Rollouts 11.25, 5.7: the branch that ends in a summary and the one that goes on from it both train, each token once.
#[test]
fn a_summary_and_what_goes_on_from_it_both_train() {
    let compaction = Some(Compaction { at_tokens: 40, prompt: "Sum up.".to_owned() });
    let (agents, tasks) = (ChatAgents { compaction, ..agents() }, vec![Echo::new(7, true)]);
    for seed in 0..10 {
        let (engine, task) = (RecordingPolicy::new(4), identity(&tasks, 0, seed));
        let (limits, cuts) = (limits(), Cuts::default());
        let (played, _) = block_on(play(&tasks, task, &agents, &engine, &limits, &cuts));
        let edges = played.graph.edges().iter();
        let summaries =
            edges.filter(|edge| edge.kind == EdgeKind::Summarises).map(|edge| edge.from);
        let summaries: BTreeSet<u32> = summaries.map(|node| node.0).collect();
        assert!(!summaries.is_empty(), "seed {seed} makes a summary");
        let n_drawn = played.n_sampled();
        let mut members = vec![played];
        assign_credit(&crate::support::OUTCOME, &mut members).expect("finite rewards");
        let batch = Batch::new(&members, RatioScope::Trajectory).expect("every turn has credit");
        assert_eq!(batch.n_targets(), n_drawn);
        let tokens = batch.tokens.iter().map(|row| row.iter().map(|token| token.turn.0));
        let rows: Vec<BTreeSet<u32>> = tokens.map(Iterator::collect).collect();
        assert!(rows.len() > summaries.len(), "each summary ends a row");
        let last_row = rows.last().expect("a row");
        assert!(last_row.is_disjoint(&summaries) && !last_row.is_empty());
        assert!(summaries.iter().all(|node| rows.iter().any(|row| row.contains(node))));
    }
}

// Rollouts 11.18: at the weights that drew them the trained log-probabilities are the recorded ones, token by token.
#[test]
fn trained_log_probabilities_are_the_recorded_ones_on_policy() {
    let mut model = TabularModel::new(AlphabetRenderer::new(LETTERS).n_ids());
    let tasks = echoes(4, true);
    let mut nowhere_uniform = false;
    for round in 0..6 {
        let identity = identity(&tasks, tasks.len() - 1, 1);
        let (agents, limits, cuts) = (agents(), limits(), Cuts::default());
        let played = play(&tasks, identity, &agents, &model, &limits, &cuts);
        let mut members = vec![block_on(played).0];
        assign_credit(&crate::support::OUTCOME, &mut members).expect("finite rewards");
        let batch = Batch::new(&members, RatioScope::Trajectory).expect("scored");
        let report = block_on(accumulate(&mut model, &OBJECTIVE, &batch, WHOLE, true));
        let mismatch = report.expect("finite numbers").mismatch;
        assert_eq!(mismatch.n, batch.n_targets());
        assert!(mismatch.max < 1e-6, "round {round}: {}", mismatch.max);
        let recorded: Vec<f32> =
            members[0].sampled_spans().flat_map(|s| s.logprobs().to_vec()).collect();
        let sums = |values: &[f32]| values.iter().map(|value| f64::from(*value)).sum::<f64>();
        let trained =
            block_on(model.logprobs(&batch.rows)).expect("rows of this vocabulary").concat();
        assert!((sums(&trained) - sums(&recorded)).abs() < 1e-5);
        nowhere_uniform |= recorded.windows(2).any(|pair| pair[0] != pair[1]);
        // Something to tell one position from the next in the next round.
        let mut push = |logprobs: &[Vec<f32>]| {
            Ok(logprobs
                .iter()
                .map(|row| (0..row.len()).map(|t| t as f32 - 0.5).collect())
                .collect())
        };
        block_on(async {
            model.accumulate(&batch.rows, &mut push).await.expect("it adds");
            let update = Update { learning_rate: 0.3, max_grad_norm: f64::INFINITY };
            model.step(update).await.expect("it steps");
            model.publish().await.expect("it publishes");
        });
    }
    assert!(nowhere_uniform, "the model has learnt to tell contexts apart");
}

// A stop token alone, one token over and over, all masked: a loss by the rule, and no NaN.
#[test]
fn degenerate_answers_have_a_defined_loss() {
    let stop_only = Built::new(0).turn(vec![token(1, -0.5, 1.0)], 1.0).trajectory;
    let repeated = Built::new(1).turn(vec![token(2, -0.25, -1.0); 300], 0.0).trajectory;
    let mut masked = Built::new(2).turn(vec![token(3, -0.5, 1.0); 4], 0.0).trajectory;
    masked.mask_turns(MaskReason::AgentFault, |_| true);
    let empty = Built::new(3).trajectory;
    let all = [&stop_only, &repeated, &masked, &empty];
    let batch = Batch::new(all, RatioScope::Trajectory).expect("scored");
    assert_eq!((batch.weights.len(), batch.n_targets()), (2, 301));
    let recorded: Vec<Vec<f64>> = batch
        .tokens
        .iter()
        .map(|row| row.iter().map(|one| f64::from(one.behavior_logprob)).collect())
        .collect();
    let loss = batch_loss(&OBJECTIVE, &batch, &recorded).expect("finite");
    // Two trajectories with tokens: −(1·1 + 1·(−1))/2, and each weighs a half.
    assert!(loss.loss.abs() < 1e-15);
    assert_eq!(loss.gradient[0], [-0.5]);
    assert!((loss.gradient[1].iter().sum::<f64>() - 0.5).abs() < 1e-12);
}
