use serde::{Deserialize, Serialize};
use turnwise_environment::{Message, Seat, TaskKey, Transcript};

use crate::{
    MaskReason, MessageGraph, Node, NodeId, Outcome, PolicyVersion, SampledToken, SampledTokens,
    Sampling,
};

/// Identifies a group: rollouts of one task that are compared with each other. Unique within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u64);

/// The identity of an episode: enough to run it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The environment's name.
    pub environment: String,
    /// The version of its rules and texts.
    pub environment_version: u32,
    /// The task's content key.
    pub task: TaskKey,
    /// The task's index in the task set.
    pub task_index: usize,
    /// The episode's group.
    pub group: GroupId,
    /// The episode's index in the group.
    pub member: u32,
    /// The attempt, starting at 0; each infrastructure fault adds one. The attempt enters names, never seeds.
    pub attempt: u32,
    /// The seed of the environment's reset; equal for all members of a group.
    pub environment_seed: u64,
    /// The seed of the sampler; different for each member.
    pub sampling_seed: u64,
}

/// The reason why a policy stopped sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// It sampled a stop token. The stop token is the last of the tokens, and is among them only for this reason.
    EndOfTurn,
    /// It reached the number of tokens that it was allowed.
    MaxTokens,
    /// A stop was requested; the turn is incomplete.
    Interrupted,
    /// It reached a text at which an agent program ends turns.
    StopText,
}

/// One turn: a node of the policy, and its consequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The node with the turn's tokens.
    pub node: NodeId,
    /// The reason why sampling stopped; never `Interrupted` in a finished turn.
    pub stop: StopReason,
    /// The environment's reward for this turn. `None` means not scored.
    pub reward: Option<f64>,
    /// The rubric's score; only on the last turn of an episode that a rubric has graded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Score>,
    /// The trainer's penalty, for length or for a limit; only on the last turn of an episode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalty: Option<f64>,
    /// The number of malformed calls and answers.
    pub faults: u32,
    /// Wall time from the first request to the environment's answer, in seconds.
    pub seconds: f64,
    /// The engine that sampled the tokens.
    pub engine: String,
    /// A digest of the weights that sampled the last token, if the engine reports one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
}

impl Turn {
    /// Returns the sum of the environment's reward, the rubric's score and the trainer's penalty; `None` if the turn has
    /// none of them.
    #[must_use]
    pub fn total_reward(&self) -> Option<f64> {
        let score = self.score.as_ref().and_then(|score| score.value);
        let parts = [self.reward, score, self.penalty].into_iter().flatten();
        parts.reduce(|sum, part| sum + part)
    }
}

/// A rubric's verdict on an episode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The rubric's name.
    pub rubric: String,
    /// The value that counts beside the reward of the last turn. `None` means not scored.
    pub value: Option<f64>,
}

/// Everything one agent sampled in one episode, with rewards, outcome and provenance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    /// The identity of the episode.
    pub identity: Identity,
    /// Hash of tokenizer, template and template settings. Trajectories with different hashes are never mixed.
    pub renderer: String,
    /// The sampling settings that tokens refer to.
    pub sampling: Vec<Sampling>,
    /// The messages and their tokens.
    pub graph: MessageGraph,
    /// The turns, oldest first.
    pub turns: Vec<Turn>,
    /// How the episode ended.
    pub outcome: Outcome,
    /// Whether the task was solved.
    pub solved: bool,
    /// The seat on which the trajectory was sampled.
    #[serde(default, skip_serializing_if = "Seat::is_first")]
    pub seat: Seat,
    /// The trajectories of the episode's other seats that the trained policy played, in the order of the seats. They are
    /// here until the group of the episode is divided by seat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Trajectory>,
}

impl Trajectory {
    /// Returns the sum of the rewards, scores and penalties; `None` if no turn was scored or the outcome discards rewards.
    ///
    /// A truncated episode keeps the rewards it has received. Without any it counts as 0, so that it stays in its
    /// group's baseline.
    #[must_use]
    pub fn reward(&self) -> Option<f64> {
        if !self.outcome.is_scored() {
            return None;
        }
        let received = self.turns.iter().filter_map(Turn::total_reward);
        let received = received.fold(None, |sum, reward| Some(sum.unwrap_or(0.0) + reward));
        let ran_into_a_limit = matches!(self.outcome, Outcome::Truncated(_));
        received.or_else(|| (ran_into_a_limit && self.n_sampled() > 0).then_some(0.0))
    }

    /// Returns the total reward of each turn, 0 for a turn that was not scored.
    #[must_use]
    pub fn turn_rewards(&self) -> Vec<f64> {
        self.turns.iter().map(|turn| turn.total_reward().unwrap_or(0.0)).collect()
    }

    /// Iterates over the node of each turn.
    pub fn turn_nodes(&self) -> impl Iterator<Item = &Node> {
        self.turns.iter().map(|turn| self.graph.node(turn.node))
    }

    /// Iterates over all sampled tokens by value, in the order of the graph's nodes.
    pub fn sampled(&self) -> impl Iterator<Item = SampledToken> + '_ {
        self.graph.nodes().iter().flat_map(Node::sampled)
    }

    /// Returns the number of sampled tokens.
    #[must_use]
    pub fn n_sampled(&self) -> usize {
        self.sampled_spans().map(SampledTokens::len).sum()
    }

    /// Iterates over the sampled spans, in the order of the graph's nodes.
    pub fn sampled_spans(&self) -> impl Iterator<Item = &SampledTokens> {
        self.graph.nodes().iter().flat_map(Node::sampled_spans)
    }

    /// Returns the number of messages of which the model saw only a part, because they were longer than the renderer's
    /// limit.
    #[must_use]
    pub fn n_shortened(&self) -> usize {
        self.graph.shortened().len()
    }

    /// Masks the tokens of every turn for which `is_masked` returns true. A token that is already masked keeps its
    /// first reason.
    pub fn mask_turns(&mut self, reason: MaskReason, is_masked: impl Fn(&Turn) -> bool) {
        for turn in self.turns.iter().filter(|turn| is_masked(turn)) {
            for tokens in self.graph.node_mut(turn.node).sampled_mut() {
                tokens.mask_where(reason, |_| true);
            }
        }
    }

    /// Returns how many versions the oldest trainable token is behind `newest`; 0 without trainable tokens.
    #[must_use]
    pub fn staleness(&self, newest: PolicyVersion) -> u32 {
        self.sampled()
            .filter(SampledToken::trains)
            .map(|token| token.version.staleness(newest))
            .max()
            .unwrap_or(0)
    }

    /// Returns the conversation as text, along the newest branch.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        let Some(leaf) = self.graph.ids().last() else { return Vec::new() };
        self.graph.path_to(leaf).into_iter().map(|id| self.graph.node(id).message.clone()).collect()
    }

    /// Returns the transcript for a rubric, with the environment's rewards alone.
    #[must_use]
    pub fn transcript(&self) -> Transcript {
        Transcript {
            task: self.identity.task.clone(),
            messages: self.messages(),
            rewards: self.turns.iter().map(|turn| turn.reward).collect(),
        }
    }
}
