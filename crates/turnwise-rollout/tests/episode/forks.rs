use std::sync::Arc;

use proptest::prelude::*;
use turnwise_environment::{Environment, derive_seed};
use turnwise_rollout::{Fork, ForkError, SessionId};
use turnwise_testkit::{Echo, Replayed, Sessions, Shop, Till};
use turnwise_trajectory::MaskReason;

use crate::support::{ENGINE, Made, agents, block_on, episode, finished, suspended};

fn forks(n: u32) -> Vec<Fork> {
    let fork = |member| Fork { member, sampling_seed: derive_seed(99, u64::from(member)) };
    (0..n).map(fork).collect()
}

proptest! {
    // Rollouts 13.13 (5.1): a shared prefix trains once.
    #[test]
    fn forks_share_what_was_drawn_and_train_it_once(
        seed in any::<u64>(),
        tokens in 0_u64..12,
        is_replayed in any::<bool>(),
    ) {
        let tasks = Made(|| -> Box<dyn Environment> {
            let echo = Echo::new(6, true);
            if is_replayed { Box::new(Replayed(echo)) } else { Box::new(echo) }
        });
        let Ok(trunk) = block_on(suspended(episode(&tasks, seed), tokens)) else { return Ok(()) };
        let n_shared = trunk.n_drawn();
        let branches = trunk.fork(&forks(4), &tasks, &agents()).expect("it can be forked");
        let whole = block_on(finished(trunk, &ENGINE));
        let ended: Vec<_> =
            branches.into_iter().map(|branch| block_on(finished(branch, &ENGINE))).collect();
        for (member, branch) in ended.iter().enumerate() {
            prop_assert_eq!(branch.identity.member as usize, member);
            let shared = branch.sampled().zip(whole.sampled()).take(n_shared);
            for (ours, theirs) in shared {
                prop_assert_eq!((ours.id, ours.logprob), (theirs.id, theirs.logprob));
                let mask = (member > 0).then_some(MaskReason::SharedPrefix);
                prop_assert_eq!(ours.mask, mask);
            }
            prop_assert!(branch.sampled().skip(n_shared).all(|token| token.trains()));
        }
        let tails: Vec<Vec<_>> = ended
            .iter()
            .map(|one| one.sampled().skip(n_shared).map(|token| token.id).collect())
            .collect();
        prop_assert!(tails[0].len() < 6 || tails.windows(2).any(|pair| pair[0] != pair[1]));
    }

    // Rollouts 13.4: a fork that keeps its seed equals the episode itself.
    #[test]
    fn a_fork_with_the_same_seed_is_the_same_episode(seed in any::<u64>(), tokens in 0_u64..12) {
        let tasks = vec![Echo::new(6, true)];
        let Ok(trunk) = block_on(suspended(episode(&tasks, seed), tokens)) else { return Ok(()) };
        let same = Fork { member: 0, sampling_seed: trunk.identity().sampling_seed };
        let copy = trunk.fork(&[same], &tasks, &agents()).expect("it can be forked").remove(0);
        prop_assert_eq!(block_on(finished(copy, &ENGINE)), block_on(finished(trunk, &ENGINE)));
    }
}

// Rollouts 13.13: forks of forks.
#[test]
fn a_fork_of_a_fork_leaves_the_first_prefix_masked() {
    let tasks = vec![Echo::new(9, true)];
    block_on(async {
        let trunk = suspended(episode(&tasks, 5), 3).await.expect("nine turns");
        let second = trunk.fork(&forks(2), &tasks, &agents()).expect("snapshots").remove(1);
        let second = suspended(second, 4).await.expect("nine turns");
        let leaves = second.fork(&forks(2), &tasks, &agents()).expect("snapshots");
        let expected = [3, 7];
        for (leaf, n_masked) in leaves.into_iter().zip(expected) {
            let leaf = finished(leaf, &ENGINE).await;
            assert_eq!(leaf.sampled().filter(|token| !token.trains()).count(), n_masked);
            assert!(leaf.sampled().take(n_masked).all(|token| !token.trains()));
        }
    });
}

// Rollouts 13.20: a tool call before the fork is not made again for any fork.
#[test]
fn forks_do_not_call_tools_again() {
    for is_replayed in [false, true] {
        let till = Arc::new(Till::new(false));
        let tasks = Made(|| -> Box<dyn Environment> {
            let shop = Shop::new(&till, 4);
            if is_replayed { Box::new(Replayed(shop)) } else { Box::new(shop) }
        });
        block_on(async {
            let trunk = suspended(episode(&tasks, 3), 9).await.expect("four turns");
            let n_before = till.sold().len();
            assert!(n_before > 0, "something was sold before the fork");
            let mut n_after = 0;
            for branch in trunk.fork(&forks(3), &tasks, &agents()).expect("it goes on elsewhere") {
                let n_drawn = branch.n_drawn();
                let ended = finished(branch, &ENGINE).await;
                let later = ended.turn_nodes().flat_map(|node| node.message.content.chars());
                n_after += later.count();
                assert!(ended.n_sampled() > n_drawn);
            }
            // Each branch's text is all it asked for; the trunk's part of it was sold once, before the fork.
            assert_eq!(till.sold().len(), n_before + n_after - 3 * n_before);
        });
    }
}

// A fork has its own session at the engine.
#[test]
fn forks_do_not_share_a_session() {
    let tasks = vec![Echo::new(9, true)];
    let engine = Sessions::new(ENGINE);
    block_on(async {
        let trunk = suspended(episode(&tasks, 5), 3).await.expect("nine turns");
        let sessions = forks(3).iter().map(|fork| SessionId::of(fork.sampling_seed, 0)).collect();
        let mut begun = Vec::new();
        for branch in trunk.fork(&forks(3), &tasks, &agents()).expect("snapshots") {
            let allowance = turnwise_rollout::Allowance::tokens(2);
            begun.push(branch.advance(&engine, &allowance).await);
        }
        let mut expected: Vec<SessionId> = sessions;
        expected.sort_unstable();
        assert_eq!(engine.open(), expected);
    });
}

// Forking needs a state that can be restored twice.
#[test]
fn what_starts_anew_cannot_be_forked() {
    let tasks = vec![Echo::new(9, false)];
    let trunk = block_on(suspended(episode(&tasks, 5), 3)).expect("nine turns");
    let refused = trunk.fork(&forks(2), &tasks, &agents());
    assert!(matches!(refused, Err(ForkError::NoSnapshot)));
}
