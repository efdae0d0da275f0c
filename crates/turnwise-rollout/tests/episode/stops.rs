use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::sleep;
use turnwise_rollout::{Allowance, Opponent, Progress, stop_signal};
use turnwise_testkit::{Duel, Echo, Interruptible, conformance};
use turnwise_trajectory::Trajectory;

use crate::support::{ENGINE, block_on, episode, finished, reborn, timeless};

/// The policy that hands over the tokens sampled so far keeps the contract of policies.
#[test]
fn an_interruptible_policy_keeps_the_contract() {
    block_on(conformance::policy(Arc::new(Interruptible::new(ENGINE)), 4));
}

proptest! {
    // Rollouts 13.4: a stop takes the tokens that the engine has sampled so far. The episode continues behind them: no token
    // is sampled twice, and the episode equals one that was never stopped.
    #[test]
    fn a_stop_takes_over_what_the_engine_has_sampled(
        seed in any::<u64>(),
        is_duel in any::<bool>(),
        stops in prop::collection::vec(0_u64..12, 1..6),
    ) {
        let echoes = vec![Echo::new(5, true)];
        let duels = vec![Duel::new(2, 4)];
        let tasks: &dyn turnwise_environment::TaskSet = if is_duel { &duels } else { &echoes };
        let at_once = block_on(finished(episode(tasks, seed), &ENGINE));
        let engine = Interruptible::new(ENGINE);
        let mut episode = episode(tasks, seed);
        let mut stops = stops.into_iter();
        let stopped = loop {
            let ms = stops.next();
            let advanced = block_on(async {
                let (handle, stop) = stop_signal();
                if let Some(ms) = ms {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(ms)).await;
                        handle.stop();
                    });
                } else {
                    std::mem::forget(handle);
                }
                let allowance = Allowance { stop, ..Allowance::unlimited() };
                episode.advance(&engine, &allowance).await
            });
            match advanced {
                Progress::Finished(trajectory) => break timeless(trajectory),
                Progress::Suspended(suspended) => {
                    prop_assert_eq!(suspended.n_drawn() as u64, engine.n_sampled());
                    episode = reborn(suspended, tasks);
                }
            }
        };
        let n_sampled: usize =
            std::iter::once(&stopped).chain(&stopped.others).map(Trajectory::n_sampled).sum();
        prop_assert_eq!(n_sampled as u64, engine.n_sampled(), "no token is sampled twice");
        // The name of the engine is the only difference.
        let named = |mut one: Trajectory| {
            let others = one.others.iter_mut().flat_map(|other| &mut other.turns);
            one.turns.iter_mut().chain(others).for_each(|turn| turn.engine.clear());
            one
        };
        prop_assert_eq!(named(stopped), named(at_once));
    }
}

/// The tokens of the trained policy in each iteration of a budget of `share` tokens, until the episode ends. In iteration
/// *n*, a stop comes after `stops[n]` milliseconds, and the iteration continues with the rest of its share.
fn iterations(seed: u64, share: u64, stops: &[u64]) -> Vec<u64> {
    let tasks = vec![Duel::new(2, 5)];
    let opponent = Opponent::Frozen(Arc::new(Interruptible::new(ENGINE)));
    let mut episode = episode(&tasks, seed).against(&opponent);
    let mut ends = Vec::new();
    loop {
        let (before, mut stop_after) = (episode.n_drawn() as u64, stops.get(ends.len()).copied());
        loop {
            let left = share - (episode.n_drawn() as u64 - before);
            let is_stopped = stop_after.is_some();
            let advanced = block_on(async {
                let (handle, stop) = stop_signal();
                match stop_after.take() {
                    Some(ms) => drop(tokio::spawn(async move {
                        sleep(Duration::from_millis(ms)).await;
                        handle.stop();
                    })),
                    None => std::mem::forget(handle),
                }
                episode.advance(&ENGINE, &Allowance { stop, ..Allowance::tokens(left) }).await
            });
            match advanced {
                Progress::Finished(trajectory) => {
                    ends.push(trajectory.n_sampled() as u64);
                    return ends;
                }
                Progress::Suspended(suspended) => episode = suspended,
            }
            if !is_stopped || episode.n_drawn() as u64 - before == share {
                break;
            }
        }
        ends.push(episode.n_drawn() as u64);
    }
}

proptest! {
    // Rollouts 13.5: a stop moves no token to another iteration, also while a frozen opponent samples.
    #[test]
    fn a_stop_changes_no_iteration_against_a_frozen_opponent(
        seed in any::<u64>(),
        share in 1_u64..9,
        stops in prop::collection::vec(0_u64..8, 0..8),
    ) {
        prop_assert_eq!(iterations(seed, share, &stops), iterations(seed, share, &[]));
    }
}
