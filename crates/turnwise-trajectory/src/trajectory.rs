use serde::{Deserialize, Serialize};
use turnwise_environment::{Message, TaskKey, Transcript};

use crate::{
    MaskReason, MessageGraph, Node, NodeId, Outcome, PolicyVersion, SampledToken, SampledTokens,
    Sampling,
};

/// The rollouts of one task that are compared with each other; unique within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u64);

/// Which agent of an episode; 0 is the one that the episode was started with.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct AgentId(pub u32);

impl AgentId {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
    fn is_first(&self) -> bool {
        *self == Self::default()
    }
}

/// What started a subagent: a turn of another agent of the same episode.
///
/// The two have trajectories of their own and never share a ratio group. Whether they share a reward is for credit to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SpawnedBy {
    /// The agent that started it.
    pub agent: AgentId,
    /// The node of that agent's trajectory in which it did.
    pub node: NodeId,
}

/// Which episode this is: enough to run it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The environment's name.
    pub environment: String,
    /// The version of its rules and texts.
    pub environment_version: u32,
    /// The task, by content.
    pub task: TaskKey,
    /// The task, by its place in the task set.
    pub task_index: usize,
    /// The group.
    pub group: GroupId,
    /// Its place in the group.
    pub member: u32,
    /// 0 for the first try, one more after each infrastructure fault. It enters names, never seeds.
    pub attempt: u32,
    /// What the environment is reset with; equal for all members of a group.
    pub environment_seed: u64,
    /// What the sampler is keyed by; different for each member.
    pub sampling_seed: u64,
}

/// Why a policy stopped drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// It drew a stop token, which is the last of the tokens: it is among the ids exactly for this reason to stop.
    EndOfTurn,
    /// It drew as many tokens as it was allowed to.
    MaxTokens,
    /// It was asked to stop; the turn is not over.
    Interrupted,
}

/// One turn: a policy node, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The node with the tokens.
    pub node: NodeId,
    /// Why it ended; never `Interrupted` in a finished turn.
    pub stop: StopReason,
    /// The environment's reward for this turn, and a rubric's on the last. `None` is not scored.
    pub reward: Option<f64>,
    /// What a rubric made of the reward; only ever on the last turn of an episode that a rubric has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Score>,
    /// Mistakes of form.
    pub faults: u32,
    /// Wall time from the first request to the environment's answer, in seconds.
    pub seconds: f64,
    /// Which engine drew the tokens.
    pub engine: String,
    /// A digest of the weights that drew the last of them, where the engine tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
}

/// A rubric's verdict on an episode, or a trainer's penalty, kept apart so that stored episodes can be scored again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The rubric's name; "admission" where no rubric scored and a penalty was added.
    pub rubric: String,
    /// What it added to the reward of the last turn. `None` is not scored.
    pub value: Option<f64>,
    /// The reward of that turn before.
    pub before: Option<f64>,
}

/// Everything one agent sampled in one episode, with rewards, outcome and provenance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    /// Which episode this is.
    pub identity: Identity,
    /// Hash of tokenizer, template and template settings. Trajectories of two hashes are never mixed.
    pub renderer: String,
    /// The sampling settings that tokens refer to.
    pub sampling: Vec<Sampling>,
    /// The messages and their tokens.
    pub graph: MessageGraph,
    /// The turns, oldest first.
    pub turns: Vec<Turn>,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the task was solved.
    pub solved: bool,
    /// Which agent of the episode sampled it.
    #[serde(default, skip_serializing_if = "AgentId::is_first")]
    pub agent: AgentId,
    /// What started that agent; `None` for the agent that the episode was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spawned_by: Option<SpawnedBy>,
}

impl Trajectory {
    /// The sum of the rewards; `None` when nothing was scored, or when the outcome says that no reward counts.
    ///
    /// A policy that runs into a limit keeps what it has received. Where rewards come at the end, that is nothing, and
    /// nothing is 0: without it whoever never comes to an end would be compared with nobody.
    #[must_use]
    pub fn reward(&self) -> Option<f64> {
        if !self.outcome.is_scored() {
            return None;
        }
        let received = self.turns.iter().filter_map(|turn| turn.reward);
        let received = received.fold(None, |sum, reward| Some(sum.unwrap_or(0.0) + reward));
        let ran_into_a_limit = matches!(self.outcome, Outcome::Truncated(_));
        received.or_else(|| (ran_into_a_limit && self.n_sampled() > 0).then_some(0.0))
    }

    /// The reward of each turn, 0 where a turn was not scored.
    #[must_use]
    pub fn turn_rewards(&self) -> Vec<f64> {
        self.turns.iter().map(|turn| turn.reward.unwrap_or(0.0)).collect()
    }

    /// The node of each turn.
    pub fn turn_nodes(&self) -> impl Iterator<Item = &Node> {
        self.turns.iter().map(|turn| self.graph.node(turn.node))
    }

    /// Every token the policy drew, by value, in the order of the graph's nodes.
    pub fn sampled(&self) -> impl Iterator<Item = SampledToken> + '_ {
        self.graph.nodes().iter().flat_map(Node::sampled)
    }

    /// How many tokens the policy drew.
    #[must_use]
    pub fn n_sampled(&self) -> usize {
        self.sampled_spans().map(SampledTokens::len).sum()
    }

    /// The stretches of tokens that the policy drew, in the order of the graph's nodes.
    pub fn sampled_spans(&self) -> impl Iterator<Item = &SampledTokens> {
        self.graph.nodes().iter().flat_map(Node::sampled_spans)
    }

    /// Masks the tokens of every turn of which `is_masked` holds. A token that is masked keeps its first reason.
    pub fn mask_turns(&mut self, reason: MaskReason, is_masked: impl Fn(&Turn) -> bool) {
        for turn in self.turns.iter().filter(|turn| is_masked(turn)) {
            for tokens in self.graph.node_mut(turn.node).sampled_mut() {
                tokens.mask_where(reason, |_| true);
            }
        }
    }

    /// How far its oldest trainable token is behind `newest`; 0 without one.
    #[must_use]
    pub fn staleness(&self, newest: PolicyVersion) -> u32 {
        self.sampled()
            .filter(SampledToken::trains)
            .map(|token| token.version.staleness(newest))
            .max()
            .unwrap_or(0)
    }

    /// The conversation as text, along the newest branch.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        let Some(leaf) = self.graph.ids().last() else { return Vec::new() };
        self.graph.path_to(leaf).into_iter().map(|id| self.graph.node(id).message.clone()).collect()
    }

    /// What a rubric sees of it: rewards are the environment's, without what a rubric has added.
    #[must_use]
    pub fn transcript(&self) -> Transcript {
        let of_environment =
            |turn: &Turn| turn.score.as_ref().map_or(turn.reward, |score| score.before);
        Transcript {
            task: self.identity.task.clone(),
            messages: self.messages(),
            rewards: self.turns.iter().map(of_environment).collect(),
        }
    }
}
