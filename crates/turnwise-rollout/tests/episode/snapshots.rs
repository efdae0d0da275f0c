use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use turnwise_environment::{
    Action, Environment, EnvironmentError, Observation, Recovery, Step, async_trait,
};
use turnwise_rollout::{Allowance, Episode, EpisodeSnapshot, Progress, SnapshotError};
use turnwise_testkit::{Echo, Replayed, Shop, Till};
use turnwise_trajectory::InfraReason;

use crate::support::{
    ENGINE, Made, agents, block_on, episode, finished, message, played_in_pieces, reason, reborn,
    suspended,
};

proptest! {
    // Rollouts 13.4, 13.5: from a snapshot of the environment, and by replay.
    #[test]
    fn an_episode_in_pieces_through_bytes_is_the_whole_episode(
        seed in any::<u64>(),
        allowances in prop::collection::vec(1_u64..9, 1..4),
    ) {
        let echoes = vec![Echo::new(5, true)];
        let again = vec![Replayed(Echo::new(5, false))];
        let whole = block_on(finished(episode(&echoes, seed), &ENGINE));
        prop_assert_eq!(&block_on(played_in_pieces(&echoes, seed, &allowances)), &whole);
        let whole = block_on(finished(episode(&again, seed), &ENGINE));
        prop_assert_eq!(&block_on(played_in_pieces(&again, seed, &allowances)), &whole);
    }

    // Rollouts 13.5, 13.20: with tools; every item is sold once, also in a replay.
    #[test]
    fn tools_are_part_of_what_goes_on(
        seed in any::<u64>(),
        allowances in prop::collection::vec(1_u64..9, 1..4),
        is_replayed in any::<bool>(),
    ) {
        let play = |allowances: Option<&[u64]>| {
            let till = Arc::new(Till::new(false));
            let tasks = Made(|| -> Box<dyn Environment> {
                let shop = Shop::new(&till, 4);
                if is_replayed { Box::new(Replayed(shop)) } else { Box::new(shop) }
            });
            let trajectory = block_on(async {
                match allowances {
                    Some(allowances) => played_in_pieces(&tasks, seed, allowances).await,
                    None => finished(episode(&tasks, seed), &ENGINE).await,
                }
            });
            (trajectory, till.sold())
        };
        prop_assert_eq!(play(Some(&allowances)), play(None));
    }

    // Rollouts 13.5
    #[test]
    fn a_flipped_bit_is_refused_with_both_digests(
        seed in any::<u64>(),
        tokens in 1_u64..6,
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let tasks = vec![Echo::new(9, true)];
        let episode = block_on(suspended(episode(&tasks, seed), tokens)).expect("nine turns");
        let mut bytes = episode.snapshot().expect("echoes take snapshots").to_bytes();
        let place = at.index(bytes.len());
        bytes[place] ^= 1 << bit;
        match EpisodeSnapshot::from_bytes(&bytes) {
            Err(SnapshotError::Digest { expected, actual }) => prop_assert_ne!(expected, actual),
            // Name and version of the format precede the digest.
            Err(SnapshotError::Format { .. }) => prop_assert!(place < 20),
            other => prop_assert!(false, "byte {place}: {other:?}"),
        }
    }

    // Rollouts 13.5: torn rather than flipped.
    #[test]
    fn a_torn_snapshot_is_refused(at in any::<prop::sample::Index>()) {
        let tasks = vec![Echo::new(9, true)];
        let episode = block_on(suspended(episode(&tasks, 3), 5)).expect("nine turns");
        let bytes = episode.snapshot().expect("echoes take snapshots").to_bytes();
        prop_assert!(EpisodeSnapshot::from_bytes(&bytes[..at.index(bytes.len())]).is_err());
    }
}

// Rollouts 13.5: the snapshot of a restored episode is the same snapshot.
#[test]
fn a_snapshot_of_what_was_restored_is_the_snapshot() {
    let tasks = vec![Replayed(Echo::new(9, false))];
    let first = block_on(suspended(episode(&tasks, 3), 7)).expect("nine turns");
    let snapshot = first.snapshot();
    assert!(snapshot.is_some());
    assert_eq!(reborn(first, &tasks).snapshot(), snapshot);
}

/// An environment that answers differently each time it is made.
#[derive(Clone, Debug)]
struct Fickle {
    /// The first turn that differs; 0 is the first observation.
    from: u64,
    turn: u64,
    number: u64,
}

static MADE: AtomicU64 = AtomicU64::new(0);

#[async_trait]
impl Environment for Fickle {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        self.number = MADE.fetch_add(1, Ordering::Relaxed);
        Ok(if self.from == 0 { self.number.to_string().into() } else { "On.".into() })
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        self.turn += 1;
        let reward = if self.turn == self.from { self.number as f64 } else { 0.0 };
        Ok(Step::next("On.").reward(reward))
    }

    fn recovery(&self) -> Recovery {
        Recovery::Replay
    }
}

// A replay that differs is found, also if only a reward differs.
#[test]
fn a_replay_that_differs_is_an_infrastructure_fault_with_its_turn() {
    for from in 0..3 {
        let tasks = vec![Fickle { from, turn: 0, number: 0 }];
        let trajectory = block_on(async {
            let mut episode = episode(&tasks, 3);
            // Past the third turn, whose tokens are at most four.
            episode = suspended(episode, 16).await.expect("it has no end");
            finished(reborn(episode, &tasks), &ENGINE).await
        });
        assert_eq!(reason(&trajectory), Some(InfraReason::Snapshot));
        let what = if from == 0 { "first observation".to_owned() } else { format!("turn {from}") };
        assert!(message(&trajectory).contains(&what), "{}", message(&trajectory));
    }
}

// Without snapshot and replay, an episode has no data form once it has begun.
#[test]
fn an_environment_that_starts_anew_has_no_snapshot() {
    let tasks = vec![Echo::new(9, false)];
    let fresh = episode(&tasks, 3);
    assert!(fresh.snapshot().is_some(), "nothing has happened that could be lost");
    let begun = block_on(suspended(fresh, 3)).expect("nine turns");
    assert!(begun.snapshot().is_none());
}

// Rollouts 13.4: an empty allowance only begins the episode, also through bytes.
#[test]
fn an_episode_that_drew_nothing_goes_on_like_any_other() {
    let tasks = vec![Replayed(Echo::new(3, false))];
    block_on(async {
        let Progress::Suspended(begun) =
            episode(&tasks, 8).advance(&ENGINE, &Allowance::tokens(0)).await
        else {
            panic!("it has not drawn a token");
        };
        let whole = finished(episode(&tasks, 8), &ENGINE).await;
        assert_eq!(finished(reborn(begun, &tasks), &ENGINE).await, whole);
        let fresh: Episode = reborn(episode(&tasks, 8), &tasks);
        assert_eq!(finished(fresh, &ENGINE).await, whole);
        assert_eq!(whole.renderer, turnwise_rollout::AgentFactory::renderer(&agents()));
    });
}
