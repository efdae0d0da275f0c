//! Reports and an episode for the tests of the screen.

use turnwise_environment::{Message, Seat, TaskKey};
use turnwise_training::{StepReport, metric};
use turnwise_trajectory::{
    Author, GroupId, Identity, MessageGraph, Node, NodeId, Outcome, StopReason, Trajectory, Turn,
};

use super::history::History;

/// Returns a step of half a second with plausible metrics.
pub(super) fn report(step: u64, reward: f64) -> StepReport {
    let mut report = StepReport::default();
    report.step = step;
    let values = [
        (metric::REWARD_MEAN, reward),
        (metric::MIXED_FRAC, 0.71),
        (metric::SOLVED_FRAC, 0.12),
        (metric::NONE_SOLVED_FRAC, 0.17),
        (metric::LOG_RATIO_MEAN, 0.0001),
        (metric::LOG_RATIO_STD, 0.0005),
        (metric::CLIP_FRAC, 0.25),
        (metric::CLIP_LOW_FRAC, 0.14),
        (metric::CLIP_HIGH_FRAC, 0.11),
        (metric::TOKENS_MEAN, 22.0),
        (metric::TURNS_MEAN, 3.4),
        (metric::TRUNCATED_FRAC, 0.0),
        (metric::STALENESS_MEAN, 0.8),
        (metric::STALENESS_MAX, 2.0),
        (metric::SUSPENDED, 6.0),
        (metric::RESUMED, 4.0),
        (metric::FAULTS, 1.0),
        (metric::AGENT_FAULTS, 3.0),
        (metric::ENTROPY, 1.31),
        (metric::K3, 6e-4),
        (metric::EPISODES, 12.0),
        (metric::DROPPED, 4.0),
        (metric::STEP_S, 0.5),
        (metric::ROLLOUT_S, 0.3),
        (metric::TRAIN_S, 0.2),
    ];
    for (metric, value) in values {
        report.metrics.set(metric, value);
    }
    report.sample = Some(episode());
    report
}

/// Returns the first `n` of 60 steps with a reward that rises to 0.9.
pub(super) fn run(n: u64) -> History {
    let mut history = History::new(60);
    for step in 0..n {
        history.record(&report(step, reward_at(step)));
    }
    history
}

pub(super) fn reward_at(step: u64) -> f64 {
    0.1 + 0.8 * step as f64 / (step as f64 + 16.0)
}

/// Returns an episode that finds a number in three turns.
pub(crate) fn episode() -> Trajectory {
    let mut graph = MessageGraph::default();
    let said = ["Guess 1-40 in 6.", "20", "lower", "10", "higher", "15"];
    let mut turns = Vec::new();
    for (i, text) in said.into_iter().enumerate() {
        let (author, message) = match i % 2 {
            0 => (Author::Environment, Message::user(text)),
            _ => (Author::Policy, Message::assistant(text)),
        };
        let parent = (i > 0).then(|| NodeId(i as u32 - 1));
        let node = graph.push(Node { parent, author, message, spans: Vec::new() });
        if author == Author::Policy {
            turns.push(turn(node, if i == 5 { 1.0 } else { 0.0 }));
        }
    }
    Trajectory {
        identity: identity(),
        renderer: String::new(),
        sampling: Vec::new(),
        graph,
        turns,
        outcome: Outcome::Done,
        solved: true,
        seat: Seat::default(),
        others: Vec::new(),
    }
}

fn turn(node: NodeId, reward: f64) -> Turn {
    Turn {
        node,
        stop: StopReason::EndOfTurn,
        reward: Some(reward),
        score: None,
        penalty: None,
        faults: 0,
        seconds: 0.0,
        engine: String::new(),
        weights: None,
    }
}

fn identity() -> Identity {
    Identity {
        environment: "guess".to_owned(),
        environment_version: 1,
        task: TaskKey::of("secret 15"),
        task_index: 118,
        group: GroupId(0),
        member: 0,
        attempt: 0,
        environment_seed: 0,
        sampling_seed: 0,
    }
}
