use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::sleep;
use turnwise_rollout::{Allowance, Progress, stop_signal};
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
