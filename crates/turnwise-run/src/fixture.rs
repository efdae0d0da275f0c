//! Episodes for the tests of texts and findings.

use turnwise_environment::{Message, Seat, TaskKey};
use turnwise_trajectory::{
    Author, GroupId, Identity, MessageGraph, Node, Outcome, StopReason, Trajectory, Turn,
};

/// A turn of a test: the agent's message, its reward, the number of malformed answers, and the environment's reply.
pub(crate) struct Played<'a> {
    pub(crate) said: Message,
    pub(crate) reward: Option<f64>,
    pub(crate) faults: u32,
    pub(crate) reply: Message,
    pub(crate) stop: StopReason,
    pub(crate) task: &'a str,
}

/// A turn of text without faults.
pub(crate) fn said<'a>(text: &str, reward: f64, reply: &str) -> Played<'a> {
    Played {
        said: Message::assistant(text),
        reward: Some(reward),
        faults: 0,
        reply: Message::user(reply),
        stop: StopReason::EndOfTurn,
        task: "secret 15",
    }
}

/// Returns the episode with this number, in which these turns were played.
pub(crate) fn episode(number: u64, opening: &str, played: &[Played<'_>]) -> Trajectory {
    let mut graph = MessageGraph::default();
    let mut turns = Vec::new();
    let opening = Node {
        parent: None,
        author: Author::Environment,
        message: Message::user(opening),
        spans: Vec::new(),
    };
    let mut last = graph.push(opening);
    for turn in played {
        let message = turn.said.clone();
        last = graph.push(Node {
            parent: Some(last),
            author: Author::Policy,
            message,
            spans: Vec::new(),
        });
        turns.push(Turn {
            node: last,
            stop: turn.stop,
            reward: turn.reward,
            score: None,
            penalty: None,
            faults: turn.faults,
            seconds: 0.0,
            engine: String::new(),
            weights: None,
        });
        let message = turn.reply.clone();
        last = graph.push(Node {
            parent: Some(last),
            author: Author::Tool,
            message,
            spans: Vec::new(),
        });
    }
    let task = played.first().map_or("", |turn| turn.task);
    let reward: f64 = played.iter().filter_map(|turn| turn.reward).sum();
    Trajectory {
        identity: identity(number, task),
        renderer: String::new(),
        sampling: Vec::new(),
        graph,
        turns,
        outcome: Outcome::Done,
        solved: reward >= 1.0,
        seat: Seat::default(),
        others: Vec::new(),
    }
}

fn identity(number: u64, task: &str) -> Identity {
    Identity {
        environment: "guess".to_owned(),
        environment_version: 1,
        task: TaskKey::of(task),
        task_index: 3,
        group: GroupId(number),
        member: 0,
        attempt: 0,
        environment_seed: 0,
        sampling_seed: 0,
    }
}
