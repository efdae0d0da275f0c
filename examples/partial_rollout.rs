//! A rollout suspended in mid-turn, written to JSON, and resumed under newer weights, by hand.

#![allow(clippy::print_stdout)] // programs that show something

use std::{error::Error, sync::Arc};

use turnwise::environment::{TaskSet, derive_seed};
use turnwise::rollout::{Allowance, ChatAgents, Episode, Limits, Progress};
use turnwise::training::Learner;
use turnwise::trajectory::{GroupId, Identity, Trajectory};
use turnwise_testkit::{AlphabetRenderer, Echo, TabularModel};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let tasks = vec![Echo::new(3, true)];
    let renderer = Arc::new(AlphabetRenderer::new("abc"));
    let mut model = TabularModel::new(renderer.n_ids());
    let agents = ChatAgents::new(renderer);
    let limits = Limits { max_turn_tokens: 4, ..Limits::default() };
    let mut episode = Episode::new(identity(&tasks), tasks.environment(0), &agents, limits);

    let trajectory = loop {
        // Two tokens, and then it must stop: in the middle of a turn, more often than not.
        match episode.advance(&model, &Allowance::tokens(2)).await {
            Progress::Finished(trajectory) => break trajectory,
            Progress::Suspended(suspended) => {
                let json = serde_json::to_string(
                    &suspended.snapshot().ok_or("this environment takes snapshots")?,
                )?;
                println!(
                    "suspended after {} tokens: {} bytes of JSON",
                    suspended.n_drawn(),
                    json.len()
                );
                // New weights while it waits; another process could pick it up here.
                model.publish().await?;
                episode = Episode::restore(serde_json::from_str(&json)?, &tasks, &agents)?;
            }
        }
    };
    report(&trajectory);
    Ok(())
}

fn identity(tasks: &dyn TaskSet) -> Identity {
    Identity {
        environment: tasks.name().to_owned(),
        environment_version: tasks.version(),
        task: tasks.key(0),
        task_index: 0,
        group: GroupId(0),
        member: 0,
        attempt: 0,
        environment_seed: derive_seed(7, 0),
        sampling_seed: derive_seed(7, 1),
    }
}

fn report(trajectory: &Trajectory) {
    let versions: Vec<String> =
        trajectory.sampled().map(|token| token.version.to_string()).collect();
    println!(
        "{:?} after {} turns, reward {:.3?}",
        trajectory.outcome,
        trajectory.turns.len(),
        trajectory.reward()
    );
    println!("each token remembers who drew it: {}", versions.join(" "));
}
