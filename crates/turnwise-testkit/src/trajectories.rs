use turnwise_environment::{Message, Seat, TaskKey};
use turnwise_trajectory::{
    Author, GroupId, Identity, MessageGraph, Node, NodeId, Outcome, PolicyVersion, SampledToken,
    Sampling, Span, StopReason, TokenId, Trajectory, Turn,
};

/// A trajectory built by hand: turns are added to the newest node or to any other, and carry their tokens.
#[derive(Clone, Debug)]
pub struct Built {
    /// The trajectory so far; its outcome is [`Outcome::Done`].
    pub trajectory: Trajectory,
}

impl Built {
    /// Creates the trajectory of a member of a group, with the environment's first message.
    #[must_use]
    pub fn new(member: u32) -> Self {
        let mut graph = MessageGraph::default();
        graph.push(context(None, &[7, 8]));
        let identity = Identity {
            environment: "built".to_owned(),
            environment_version: 1,
            task: TaskKey::of("built"),
            task_index: 0,
            group: GroupId(0),
            member,
            attempt: 0,
            environment_seed: 0,
            sampling_seed: u64::from(member),
        };
        let trajectory = Trajectory {
            identity,
            renderer: "built".to_owned(),
            sampling: vec![Sampling::default()],
            graph,
            turns: Vec::new(),
            outcome: Outcome::Done,
            solved: false,
            seat: Seat::default(),
            others: Vec::new(),
        };
        Self { trajectory }
    }

    /// Adds a turn after the newest node.
    #[must_use]
    pub fn turn(self, tokens: Vec<SampledToken>, reward: f64) -> Self {
        let last = NodeId(self.trajectory.graph.nodes().len() as u32 - 1);
        self.turn_after(last, tokens, reward)
    }

    /// Adds a turn after any node, and the environment's answer.
    #[must_use]
    pub fn turn_after(mut self, parent: NodeId, tokens: Vec<SampledToken>, reward: f64) -> Self {
        let graph = &mut self.trajectory.graph;
        let node = graph.push(Node {
            parent: Some(parent),
            author: Author::Policy,
            message: Message::assistant(""),
            spans: vec![Span::Scaffold(vec![5]), Span::Sampled(tokens.into())],
        });
        graph.push(context(Some(node), &[9]));
        self.trajectory.turns.push(Turn {
            node,
            stop: StopReason::EndOfTurn,
            reward: Some(reward),
            score: None,
            penalty: None,
            faults: 0,
            seconds: 0.0,
            engine: "built".to_owned(),
            weights: None,
        });
        self
    }
}

fn context(parent: Option<NodeId>, ids: &[TokenId]) -> Node {
    Node {
        parent,
        author: Author::Environment,
        message: Message::user(""),
        spans: vec![Span::Context(ids.to_vec())],
    }
}

/// Returns a sampled token with an advantage, for [`Built`].
#[must_use]
pub fn scored_token(id: TokenId, logprob: f32, advantage: f32) -> SampledToken {
    SampledToken { advantage: Some(advantage), ..SampledToken::new(id, logprob, PolicyVersion(0)) }
}

/// Returns the trajectories of a group whose turns have these rewards, `[members][turns]`.
#[must_use]
pub fn rewarded(rewards: &[Vec<f64>]) -> Vec<Trajectory> {
    let member = |(member, rewards): (usize, &Vec<f64>)| {
        let start = Built::new(member as u32);
        let turn =
            |built: Built, reward: &f64| built.turn(vec![scored_token(1, -0.5, 0.0)], *reward);
        rewards.iter().fold(start, turn).trajectory
    };
    rewards.iter().enumerate().map(member).collect()
}
