use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_objective::AdvantageError;
use turnwise_trajectory::{
    NodeId, PolicyVersion, SampledToken, SampledTokens, Sampling, Span, Trajectory,
};

use crate::credit::assign_batch_credit;
use crate::{Credit, Learner, LearnerError, Row, Target};

/// The tokens that share one importance ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RatioScope {
    /// All tokens of an agent's trajectory, across its rows.
    #[default]
    Trajectory,
    /// The tokens of each branch.
    Branch,
    /// The tokens of each turn.
    Turn,
    /// The consecutive tokens of each policy version.
    VersionSegment,
}

/// The trainer's data of a target; the learner does not need it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainToken {
    /// The log-probability at sampling time, or that under the proximal policy if it was recomputed.
    pub behavior_logprob: f32,
    /// The version that sampled the token.
    pub version: PolicyVersion,
    /// The token's advantage.
    pub advantage: f32,
    /// The ratio group, an index into the batch's sequences.
    pub sequence: usize,
    /// The log-probability under the reference policy, for objectives with a KL penalty.
    pub reference_logprob: Option<f32>,
    /// The node of the token's turn; the tokens of a turn are adjacent.
    pub turn: NodeId,
}

/// Rows for a learner, and the objective's data of each of their targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The rows, in the order of the trajectories.
    pub rows: Vec<Row>,
    /// For each row, the data of each of its targets.
    pub tokens: Vec<Vec<TrainToken>>,
    /// For each ratio group, its share of its trajectory: 1/n for n groups. A mean over sequences weighs each group by
    /// its share, so that a trajectory weighs 1 in every scope. A mean over tokens weighs each group 1, and so each
    /// token once.
    pub weights: Vec<f64>,
    /// For each row, its trajectory, an index into the batch's trajectories.
    pub trajectory_of: Vec<usize>,
}

impl Batch {
    /// Lays trajectories out in rows. Each sampled node trains in the first row that contains it.
    ///
    /// A trajectory shares no ratio group with another, also if both are of one episode with several seats.
    ///
    /// # Errors
    /// If a token that would train has no advantage, or [`check_trajectories`] refuses the trajectories.
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

    /// Returns the number of tokens that train.
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
            ids: HashMap::new(),
            segment: 0,
            last: None,
        };
        let mut trained = vec![false; trajectory.graph.nodes().len()];
        for (branch, leaf) in trajectory.graph.leaves().into_iter().enumerate() {
            let (row, tokens) = lay_out(trajectory, leaf, branch, &mut trained, &mut sequences)?;
            // A branch without targets of its own costs a forward pass and trains nothing.
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

/// The numbering of the ratio groups of one trajectory.
struct Sequences {
    scope: RatioScope,
    first: usize,
    ids: HashMap<u64, usize>,
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
        *self.ids.entry(key).or_insert(next)
    }
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
    // Tokens after the last target change no log-probability; an observation there may even exceed the context.
    row.ids.truncate(row.targets.last().map_or(0, |target| target.position + 1));
    Ok((row, tokens))
}

fn trained_tokens(tokens: &SampledTokens) -> impl Iterator<Item = (usize, SampledToken)> + '_ {
    tokens.iter().enumerate().filter(|(_, token)| token.trains())
}

/// Rejects trajectories that cannot be trained on, or not together. [`Batch::new`] checks its own trajectories; a step
/// with several batches checks all of them first, so that none is rejected after some weights have changed.
///
/// # Errors
/// If two trajectories were rendered by different tokenizers or templates, or a token that would train was sampled from
/// a distribution that a trainer's softmax cannot compute: truncated without recorded kept ids, or at temperature 0.
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

/// Computes the missing reference log-probabilities of tokens.
///
/// # Errors
/// If the learner keeps no reference, or cannot compute a row.
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

/// Assigns the credit of a group that is a batch of its own to the tokens of its members, turn by turn.
///
/// # Errors
/// If a reward is not finite.
pub fn assign_credit(
    credit: &dyn Credit,
    members: &mut [Trajectory],
) -> Result<(), AdvantageError> {
    assign_batch_credit(credit, &mut [members]).map(drop)
}

/// The reason why trajectories cannot be trained on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BatchError {
    /// A token has no advantage, which differs from an advantage of 0.
    #[error(
        "cannot train on group {group} member {member}: a token of node {node} has no advantage"
    )]
    NoAdvantage {
        /// The group's id.
        group: u64,
        /// The member's index.
        member: u32,
        /// The node's id.
        node: u32,
    },
    /// Trajectories of different tokenizers, templates or template settings.
    #[error(
        "cannot train on group {group} member {member}: its renderer is {other}, and that of others in the batch {first}; train on \
         one of them"
    )]
    MixedRenderers {
        /// The hash of the first trajectory.
        first: String,
        /// The hash that differs.
        other: String,
        /// The group's id.
        group: u64,
        /// The member's index.
        member: u32,
    },
    /// Tokens that were sampled from a distribution which the trainer cannot compute.
    #[error(
        "cannot train on group {group} member {member}: tokens were sampled with temperature {}, top_p {}, top_k {}, min_p {} and no \
         record of the ids that were kept; sample with a temperature above 0, top_p 1, top_k 0, min_p 0, or record kept sets",
        sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p
    )]
    Truncated {
        /// The sampling settings.
        sampling: Sampling,
        /// The group's id.
        group: u64,
        /// The member's index.
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
