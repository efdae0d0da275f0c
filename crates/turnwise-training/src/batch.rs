use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use turnwise_objective::AdvantageError;
use turnwise_trajectory::{NodeId, PolicyVersion, Span, Trajectory};

use crate::credit::assign_batch_credit;
use crate::{Credit, Row, Target};

/// Which tokens share one importance ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// For each ratio group what its loss weighs: together 1 for each trajectory, however many it has.
    pub weights: Vec<f64>,
    /// For each row the trajectory it belongs to, an index into the batch's trajectories.
    pub trajectory_of: Vec<usize>,
}

impl Batch {
    /// Lays trajectories out in rows. Each sampled node trains in the first row that contains it.
    ///
    /// # Errors
    /// When a token that would train has no advantage.
    pub fn new<'a>(
        trajectories: impl IntoIterator<Item = &'a Trajectory>,
        scope: RatioScope,
    ) -> Result<Self, BatchError> {
        let mut batch = Self::default();
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
        let first_sequence = self.weights.len();
        let mut sequences =
            Sequences { scope, first: first_sequence, ids: HashMap::new(), segment: 0, last: None };
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
                for (offset, token) in
                    sampled.iter().enumerate().filter(|(_, token)| token.trains())
                {
                    let advantage =
                        token.advantage.ok_or_else(|| BatchError::no_advantage(trajectory, id))?;
                    let temperature = trajectory.sampling[usize::from(token.sampling)].temperature;
                    row.targets.push(Target { position: row.ids.len() + offset, temperature });
                    tokens.push(TrainToken {
                        behavior_logprob: token.logprob,
                        version: token.version,
                        advantage,
                        sequence: sequences.of(branch, id, token.version),
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

/// A trajectory that cannot be trained on.
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
}

impl BatchError {
    fn no_advantage(trajectory: &Trajectory, node: NodeId) -> Self {
        let identity = &trajectory.identity;
        Self::NoAdvantage { group: identity.group.0, member: identity.member, node: node.0 }
    }
}
