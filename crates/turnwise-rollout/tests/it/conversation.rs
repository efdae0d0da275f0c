//! What stands in the graph is what the engine saw and drew, and nothing else has what only a sampled token has.

use proptest::prelude::*;
use turnwise_trajectory::{Author, Span, TokenId, TokenKind, Trajectory};

use crate::support::{Cuts, RecordingPolicy, agents, block_on, echoes, identity, limits, play};

fn played(seed: u64, allowances: Vec<u64>, engine: &RecordingPolicy) -> Trajectory {
    let tasks = echoes(5, true);
    let cuts = Cuts { allowances, through_json: false };
    let task = identity(&tasks, seed as usize % 5, seed);
    block_on(play(&tasks, task, &agents(), engine, &limits(), &cuts)).0
}

proptest! {
    /// Rollouts 13.1
    #[test]
    fn every_exchange_is_a_prefix_of_the_branch(
        seed in any::<u64>(),
        allowances in prop::collection::vec(1_u64..9, 0..3),
    ) {
        let engine = RecordingPolicy::new(4);
        let trajectory = played(seed, allowances, &engine);
        let leaves = trajectory.graph.leaves();
        prop_assert_eq!(leaves.len(), 1);
        let branch = trajectory.graph.ids_to(leaves[0]);
        for exchange in engine.exchanges() {
            let drawn = exchange.sample.tokens.iter().map(|token| token.id);
            let seen: Vec<TokenId> = exchange.request.prompt.into_iter().chain(drawn).collect();
            prop_assert!(branch.starts_with(&seen));
        }
    }

    /// Rollouts 13.1: in order and without a gap, the sampled tokens are those the engine returned.
    #[test]
    fn the_sampled_tokens_are_those_the_engine_returned(
        seed in any::<u64>(),
        allowances in prop::collection::vec(1_u64..9, 0..3),
    ) {
        let engine = RecordingPolicy::new(4);
        let trajectory = played(seed, allowances, &engine);
        let returned: Vec<_> =
            engine.exchanges().into_iter().flat_map(|exchange| exchange.sample.tokens).collect();
        let sampled: Vec<_> = trajectory.sampled().collect();
        prop_assert_eq!(sampled, returned);
    }

    /// Rollouts 13.2: on disk too, only sampled tokens have a log-probability or a version.
    #[test]
    fn only_sampled_tokens_have_what_trains(seed in any::<u64>()) {
        let trajectory = played(seed, vec![3], &RecordingPolicy::new(4));
        for node in trajectory.graph.nodes() {
            for span in &node.spans {
                let json = serde_json::to_string(span).expect("a span is plain data");
                let is_sampled = span.kind() == TokenKind::Sampled;
                prop_assert_eq!(json.contains("logprobs"), is_sampled);
                prop_assert_eq!(json.contains("versions"), is_sampled);
                prop_assert!(!is_sampled || node.author == Author::Policy);
            }
        }
    }

    /// Rollouts 13.3
    #[test]
    fn every_sampled_token_is_complete(seed in any::<u64>()) {
        let trajectory = played(seed, vec![2], &RecordingPolicy::swapping(4, vec![3, 9]));
        for token in trajectory.sampled() {
            prop_assert!(token.logprob.is_finite() && token.logprob <= 0.0);
            prop_assert!(usize::from(token.sampling) < trajectory.sampling.len());
            prop_assert!(token.kv_version <= token.version);
            prop_assert!(token.advantage.is_none() && token.mask.is_none());
        }
    }
}

/// Rollouts 13.2: a close the model did not write is forced, and the turn before it stays as it was drawn.
#[test]
fn a_turn_that_was_cut_is_closed_by_a_forced_token() {
    let tasks = echoes(5, true);
    let limits = turnwise_rollout::Limits { max_turn_tokens: 1, ..limits() };
    let (trajectory, _) = block_on(play(
        &tasks,
        identity(&tasks, 4, 3),
        &agents(),
        &RecordingPolicy::new(4),
        &limits,
        &Cuts::default(),
    ));
    let forced: usize = trajectory
        .graph
        .nodes()
        .iter()
        .flat_map(|node| &node.spans)
        .filter(|span| matches!(span, Span::Forced(_)))
        .map(Span::len)
        .sum();
    let cut = trajectory.turns.iter().rev().skip(1);
    let n_cut = cut.filter(|turn| turn.stop == turnwise_trajectory::StopReason::MaxTokens).count();
    assert!(n_cut > 0, "the seed cuts a turn");
    assert_eq!(forced, n_cut);
    assert_eq!(trajectory.n_sampled(), trajectory.turns.len());
}
