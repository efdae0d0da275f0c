//! A token's version is that of the weights that drew it.

use proptest::prelude::*;
use turnwise_rollout::Policy;
use turnwise_testkit::{AlphabetRenderer, Interrupting, TabularModel};
use turnwise_training::Learner;
use turnwise_trajectory::{PolicyVersion, Trajectory};

use crate::support::{
    Cuts, LETTERS, RecordingPolicy, agents, block_on, echoes, identity, limits, play,
};

fn played(seed: u64, policy: &dyn Policy, allowances: &[u64]) -> Trajectory {
    let tasks = echoes(6, true);
    let cuts = Cuts { allowances: allowances.to_vec(), through_json: true };
    block_on(play(&tasks, identity(&tasks, 5, seed), &agents(), policy, &limits(), &cuts)).0
}

fn versions(trajectory: &Trajectory) -> Vec<PolicyVersion> {
    trajectory.sampled().map(|token| token.version).collect()
}

proptest! {
    /// Rollouts 13.6 and 13.7: between turns, in mid-turn and in mid-request.
    #[test]
    fn versions_change_exactly_where_the_weights_did(
        seed in any::<u64>(),
        mut swaps in prop::collection::vec(0_u64..30, 0..5),
        allowances in prop::collection::vec(1_u64..7, 0..3),
    ) {
        swaps.sort_unstable();
        let engine = RecordingPolicy::swapping(4, swaps);
        let trajectory = played(seed, &engine, &allowances);
        let versions = versions(&trajectory);
        let drawn: Vec<_> = (0..versions.len() as u64).map(|n| engine.version_at(n)).collect();
        prop_assert_eq!(&versions, &drawn);
        prop_assert!(versions.is_sorted());
    }

    /// Rollouts 13.7: new weights change what comes after them and nothing before.
    #[test]
    fn what_was_drawn_is_never_rewritten(seed in any::<u64>(), swap in 0_u64..12) {
        let old = played(seed, &RecordingPolicy::new(4), &[]);
        let swapped = played(seed, &RecordingPolicy::swapping(4, vec![swap]), &[2]);
        let n = (swap as usize).min(old.n_sampled());
        prop_assert!(old.sampled().take(n).eq(swapped.sampled().take(n)));
    }

    /// Rollouts 13.7: a request says what it must not be older than.
    #[test]
    fn a_request_carries_the_newest_version_of_its_branch(
        seed in any::<u64>(),
        swap in 0_u64..12,
    ) {
        let engine = RecordingPolicy::swapping(4, vec![swap]);
        played(seed, &engine, &[3]);
        let mut newest = PolicyVersion(0);
        for exchange in engine.exchanges() {
            prop_assert_eq!(exchange.request.min_version, newest);
            newest = exchange.sample.tokens.last().expect("it drew one").version;
        }
    }
}

/// Rollouts 13.6 with a model that publishes: the tokens before a publication keep the old version.
#[test]
fn publishing_shows_in_the_next_token_and_no_earlier() {
    let mut model = TabularModel::new(AlphabetRenderer::new(LETTERS).n_ids());
    let tasks = echoes(6, true);
    let agents = agents();
    block_on(async {
        let mut episode = turnwise_rollout::Episode::new(
            identity(&tasks, 5, 2),
            turnwise_environment::TaskSet::environment(&tasks, 5),
            &agents,
            limits(),
        );
        let interrupting = Interrupting { inner: model.clone(), after: 1 };
        let mut expected = Vec::new();
        let trajectory = loop {
            let before = episode.n_drawn();
            let version = Learner::version(&model);
            let unlimited = turnwise_rollout::Allowance::unlimited();
            match episode.advance(&interrupting, &unlimited).await {
                turnwise_rollout::Progress::Finished(trajectory) => {
                    let n = trajectory.n_sampled() - before;
                    expected.extend(std::iter::repeat_n(version, n));
                    break trajectory;
                }
                turnwise_rollout::Progress::Suspended(suspended) => {
                    let n = suspended.n_drawn() - before;
                    expected.extend(std::iter::repeat_n(version, n));
                    episode = suspended;
                }
            }
            model.publish().await.expect("a table is published");
        };
        assert_eq!(versions(&trajectory), expected);
        assert!(expected.last() > expected.first());
    });
}
