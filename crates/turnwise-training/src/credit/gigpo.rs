use turnwise_environment::Role;
use turnwise_objective::{AdvantageError, GroupAdvantage, by_anchor_state};
use turnwise_trajectory::{Author, NodeId, Trajectory};

use super::outcome::outcome;
use super::returns::discounted_returns;
use super::turn::{compared, mixed};
use super::{Conservation, Credit, CreditStream, CreditStreams, settled};

/// GiGPO (arXiv 2505.10978): the advantage of the episode, plus that of the turn among the turns of the group with the
/// same anchor state.
///
/// ```text
/// A_ik = A_i + step_weight · (G_ik − mean G) / F     over the turns with the same anchor; F = std G or 1
/// ```
///
/// The anchor state of a turn is the observation that the turn answered: role and text of the messages between the
/// policy's previous turn and this one. If an observation does not determine the state, different states share an
/// anchor. A group whose episodes have equal rewards gets 0, as in every credit here; the paper would still compare its
/// discounted steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GigpoCredit {
    /// The comparison of the episodes' rewards, and of the returns from one anchor.
    pub advantage: GroupAdvantage,
    /// γ, from 0 to 1; the paper's is 0.95.
    pub gamma: f64,
    /// ω, the weight of the step; the paper's is 1.
    pub step_weight: f64,
}

impl Credit for GigpoCredit {
    fn name(&self) -> &'static str {
        "gigpo"
    }

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        let to_go = discounted_returns(group, self.gamma)?;
        let anchors: Vec<Vec<Anchor<'_>>> = group.iter().map(|member| anchors(member)).collect();
        let steps = compared(group, || {
            let settled = settled(to_go.values.clone(), group);
            by_anchor_state(&settled, &anchors, self.advantage)
        })?;
        let anchor =
            CreditStream { name: "anchor", values: steps, conserves: Conservation::TurnsSumToZero };
        let outcome = outcome(self.advantage, group)?;
        Ok(mixed(vec![to_go, outcome, anchor], [1.0, self.step_weight]))
    }
}

/// Role and text of the messages of one observation, last first.
type Anchor<'a> = Vec<(Role, &'a str)>;

fn anchors(member: &Trajectory) -> Vec<Anchor<'_>> {
    member.turns.iter().map(|turn| anchor(member, turn.node)).collect()
}

fn anchor(member: &Trajectory, turn: NodeId) -> Anchor<'_> {
    let mut said = Vec::new();
    let mut parent = member.graph.node(turn).parent;
    while let Some(id) = parent {
        let node = member.graph.node(id);
        if node.author == Author::Policy {
            break;
        }
        said.push((node.message.role, node.message.content.as_str()));
        parent = node.parent;
    }
    said
}
