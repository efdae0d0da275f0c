use std::collections::{HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_objective::AdvantageError;
use turnwise_trajectory::{
    EdgeKind, NodeId, PolicyVersion, SampledToken, SampledTokens, Sampling, Span, Trajectory,
};

use crate::credit::assign_batch_credit;
use crate::{Credit, Learner, LearnerError, Row, Target};

/// Which tokens share one importance ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RatioScope {
    /// All of an agent's trajectory, whatever rows hold it.
    #[default]
    Trajectory,
    /// Each branch on its own.
    Branch,
    /// Each turn on its own.
    Turn,
    /// Each stretch drawn by one policy version on its own.
    VersionSegment,
}

/// What the trainer knows of a target, beside what the learner needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainToken {
    /// The log-probability it was drawn with; replaced by the proximal policy's where that is used.
    pub behavior_logprob: f32,
    /// The version that drew it.
    pub version: PolicyVersion,
    /// Its credit.
    pub advantage: f32,
    /// Its ratio group, an index into the batch's sequences.
    pub sequence: usize,
    /// Its log-probability under the reference policy, for objectives that keep close to one.
    pub reference_logprob: Option<f32>,
    /// The node of the turn it was drawn in; the tokens of a turn stand together.
    pub turn: NodeId,
}

/// Rows for a learner, and what the objective needs about each of their targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The rows, in the order of the trajectories.
    pub rows: Vec<Row>,
    /// For each row what is known of each of its targets.
    pub tokens: Vec<Vec<TrainToken>>,
    /// For each ratio group its share of its trajectory, 1/n of n groups: a mean over sequences weighs each group by it, so
    /// that a trajectory weighs 1 in every scope. A mean over tokens weighs each group 1, and so each token once.
    pub weights: Vec<f64>,
    /// For each row the trajectory it belongs to, an index into the batch's trajectories.
    pub trajectory_of: Vec<usize>,
}

impl Batch {
    /// Lays trajectories out in rows. Each sampled node trains in the first row that contains it.
    ///
    /// Every agent has ratio groups of its own: a trajectory shares none with another, and a branch that a subagent began
    /// shares none with the branches of whoever started it.
    ///
    /// # Errors
    /// When a token that would train has no advantage, or for what [`check_trajectories`] refuses.
    pub fn new<'a>(
        trajectories: impl IntoIterator<Item = &'a Trajectory>,
        scope: RatioScope,
    ) -> Result<Self, BatchError> {
        let mut batch = Self::default();
        let trajectories: Vec<&Trajectory> = trajectories.into_iter().collect();
        check_trajectories(trajectories.iter().copied())?;
        for (index, trajectory) in trajectories.into_iter().enumerate() {
            batch.push(index, trajectory, scope)?;
        }
        Ok(batch)
    }

    /// How many tokens train.
    #[must_use]
    pub fn n_targets(&self) -> usize {
        self.tokens.iter().map(Vec::len).sum()
    }

    fn push(
        &mut self,
        index: usize,
        trajectory: &Trajectory,
        scope: RatioScope,
    ) -> Result<(), BatchError> {
        let mut sequences = Sequences {
            scope,
            first: self.weights.len(),
            agents: agents(trajectory),
            ids: HashMap::new(),
            segment: 0,
            last: None,
        };
        let mut trained = vec![false; trajectory.graph.nodes().len()];
        for (branch, leaf) in trajectory.graph.leaves().into_iter().enumerate() {
            let (row, tokens) = lay_out(trajectory, leaf, branch, &mut trained, &mut sequences)?;
            // A branch that trains nothing of its own costs a forward pass and brings nothing.
            if !tokens.is_empty() {
                self.rows.push(row);
                self.tokens.push(tokens);
                self.trajectory_of.push(index);
            }
        }
        let n = sequences.ids.len();
        self.weights.extend(std::iter::repeat_n(1.0 / n as f64, n));
        Ok(())
    }
}

/// Numbers the ratio groups of one trajectory.
struct Sequences {
    scope: RatioScope,
    first: usize,
    /// For each node whose work it belongs to.
    agents: Vec<Option<NodeId>>,
    ids: HashMap<(Option<NodeId>, u64), usize>,
    segment: u64,
    last: Option<PolicyVersion>,
}

impl Sequences {
    fn of(&mut self, branch: usize, node: NodeId, version: PolicyVersion) -> usize {
        if self.last.is_some_and(|last| last != version) {
            self.segment += 1;
        }
        self.last = Some(version);
        let key = match self.scope {
            RatioScope::Trajectory => 0,
            RatioScope::Branch => branch as u64,
            RatioScope::Turn => u64::from(node.0),
            RatioScope::VersionSegment => self.segment,
        };
        let next = self.first + self.ids.len();
        *self.ids.entry((self.agents[node.0 as usize], key)).or_insert(next)
    }
}

/// For each node the node that began the work of the subagent it belongs to; `None` for the trajectory's own agent.
fn agents(trajectory: &Trajectory) -> Vec<Option<NodeId>> {
    let graph = &trajectory.graph;
    let spawned = graph.edges().iter().filter(|edge| edge.kind == EdgeKind::SpawnedBy);
    let starts: HashSet<NodeId> = spawned.map(|edge| edge.from).collect();
    let mut agents: Vec<Option<NodeId>> = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let inherited = graph.node(id).parent.and_then(|parent| agents[parent.0 as usize]);
        agents.push(if starts.contains(&id) { Some(id) } else { inherited });
    }
    agents
}

fn lay_out(
    trajectory: &Trajectory,
    leaf: NodeId,
    branch: usize,
    trained: &mut [bool],
    sequences: &mut Sequences,
) -> Result<(Row, Vec<TrainToken>), BatchError> {
    let mut row = Row::default();
    let mut tokens = Vec::new();
    for id in trajectory.graph.path_to(leaf) {
        let is_new = !std::mem::replace(&mut trained[id.0 as usize], true);
        for span in &trajectory.graph.node(id).spans {
            if let (Span::Sampled(sampled), true) = (span, is_new) {
                for (offset, token) in trained_tokens(sampled) {
                    let advantage =
                        token.advantage.ok_or_else(|| BatchError::no_advantage(trajectory, id))?;
                    if let Some(kept) = sampled.kept(offset) {
                        row.kept.insert(row.targets.len(), kept.to_vec());
                    }
                    let temperature = trajectory.sampling[usize::from(token.sampling)].temperature;
                    row.targets.push(Target { position: row.ids.len() + offset, temperature });
                    tokens.push(TrainToken {
                        behavior_logprob: token.logprob,
                        version: token.version,
                        advantage,
                        sequence: sequences.of(branch, id, token.version),
                        reference_logprob: sampled.reference_logprobs().map(|all| all[offset]),
                        turn: id,
                    });
                }
            }
            span.extend_ids(&mut row.ids);
        }
    }
    // What stands behind the last target changes no log-probability; an observation there may even be beyond the context.
    row.ids.truncate(row.targets.last().map_or(0, |target| target.position + 1));
    Ok((row, tokens))
}

fn trained_tokens(tokens: &SampledTokens) -> impl Iterator<Item = (usize, SampledToken)> + '_ {
    tokens.iter().enumerate().filter(|(_, token)| token.trains())
}

/// Refuses what cannot be trained on together, or not at all. [`Batch::new`] does it for its own trajectories; a step that
/// makes several batches does it for all of them first, so that nothing is refused when some weights have moved.
///
/// # Errors
/// When two trajectories were rendered by different tokenizers or templates, or a token that would train was drawn from a
/// distribution that a trainer's softmax cannot be: truncated without a record of what was kept, or at temperature 0.
pub fn check_trajectories<'a>(
    trajectories: impl IntoIterator<Item = &'a Trajectory>,
) -> Result<(), BatchError> {
    let mut first: Option<&Trajectory> = None;
    for trajectory in trajectories {
        let first = *first.get_or_insert(trajectory);
        if first.renderer != trajectory.renderer {
            return Err(BatchError::mixed_renderers(first, trajectory));
        }
        for tokens in trajectory.sampled_spans() {
            for (offset, token) in trained_tokens(tokens) {
                let sampling = trajectory.sampling[usize::from(token.sampling)];
                let is_replayed = sampling.temperature > 0.0 && tokens.kept(offset).is_some();
                if !(sampling.covers_vocabulary() || is_replayed) {
                    return Err(BatchError::truncated(trajectory, sampling));
                }
            }
        }
    }
    Ok(())
}

/// Asks the learner for the reference policy's log-probabilities of tokens whose record has none.
///
/// # Errors
/// When the learner keeps no reference, or cannot compute a row.
pub async fn fill_references(
    batch: &mut Batch,
    learner: &mut dyn Learner,
) -> Result<(), LearnerError> {
    if batch.tokens.iter().flatten().all(|token| token.reference_logprob.is_some()) {
        return Ok(());
    }
    let logprobs = learner.reference_logprobs(&batch.rows).await?;
    for (token, logprob) in batch.tokens.iter_mut().flatten().zip(logprobs.into_iter().flatten()) {
        token.reference_logprob.get_or_insert(logprob);
    }
    Ok(())
}

/// Writes the credit of a group that is a batch of its own into the tokens of its members, turn by turn.
///
/// # Errors
/// When a reward is not finite.
pub fn assign_credit(
    credit: &dyn Credit,
    members: &mut [Trajectory],
) -> Result<(), AdvantageError> {
    assign_batch_credit(credit, &mut [members]).map(drop)
}

/// Trajectories that cannot be trained on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BatchError {
    /// A token that was not scored; not scored is not 0.
    #[error("lay out group {group} member {member}: a token of node {node} has no advantage")]
    NoAdvantage {
        /// The group.
        group: u64,
        /// The member.
        member: u32,
        /// The node.
        node: u32,
    },
    /// Two tokenizers, templates or template settings.
    #[error(
        "lay out group {group} member {member}: its renderer is {other}, and that of others in the batch {first}; train on \
         one of them"
    )]
    MixedRenderers {
        /// The hash of the trajectory that came first.
        first: String,
        /// The hash that differs.
        other: String,
        /// The group.
        group: u64,
        /// The member.
        member: u32,
    },
    /// Tokens drawn from a distribution that the trainer cannot compute.
    #[error(
        "lay out group {group} member {member}: tokens were drawn with temperature {}, top_p {}, top_k {}, min_p {} and no \
         record of the ids that were kept; sample with a temperature above 0, top_p 1, top_k 0, min_p 0, or record kept sets",
        sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p
    )]
    Truncated {
        /// How they were drawn.
        sampling: Sampling,
        /// The group.
        group: u64,
        /// The member.
        member: u32,
    },
}

impl BatchError {
    fn no_advantage(trajectory: &Trajectory, node: NodeId) -> Self {
        let identity = &trajectory.identity;
        Self::NoAdvantage { group: identity.group.0, member: identity.member, node: node.0 }
    }

    fn mixed_renderers(first: &Trajectory, other: &Trajectory) -> Self {
        Self::MixedRenderers {
            first: first.renderer.clone(),
            other: other.renderer.clone(),
            group: other.identity.group.0,
            member: other.identity.member,
        }
    }

    fn truncated(trajectory: &Trajectory, sampling: Sampling) -> Self {
        let identity = &trajectory.identity;
        Self::Truncated { sampling, group: identity.group.0, member: identity.member }
    }
}
