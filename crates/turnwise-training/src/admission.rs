//! The one place that decides what does not train, and says why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use turnwise_rollout::Group;
use turnwise_trajectory::{MaskReason, NodeId, Outcome, PolicyVersion, Trajectory};

/// What happens to tokens whose policy is more than `max_staleness` versions old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StaleTokens {
    /// Their whole trajectory is dropped.
    #[default]
    Drop,
    /// They alone are masked: out of the sum and the count of their ratio group.
    Mask,
}

/// What happens to an episode that ran into a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncatedEpisodes {
    /// It is scored with the rewards it has received.
    #[default]
    Keep,
    /// This is added to its reward.
    Penalise(f64),
    /// It is neither in the baseline nor in the loss.
    Mask,
}

/// What may train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admission {
    /// The oldest version that trains, counted back from the weights being trained.
    pub max_staleness: u32,
    /// What happens to older tokens.
    pub stale: StaleTokens,
    /// What happens to episodes that ran into a limit.
    pub truncated: TruncatedEpisodes,
    /// Whether groups whose members all have the same reward train all the same.
    pub keep_zero_variance: bool,
}

impl Default for Admission {
    /// Up to 4 versions old; older trajectories are dropped whole, truncated ones kept, groups without variance left out.
    fn default() -> Self {
        Self {
            max_staleness: 4,
            stale: StaleTokens::Drop,
            truncated: TruncatedEpisodes::Keep,
            keep_zero_variance: false,
        }
    }
}

/// The members of a group that are compared with each other, and why the others are not.
#[derive(Debug, Default)]
pub struct Admitted {
    /// They may train.
    pub members: Vec<Trajectory>,
    /// How many do not, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
}

impl Admission {
    /// Applies the rules to a group. `newest` is the version that is being trained.
    #[must_use]
    pub fn admit(&self, group: Group, newest: PolicyVersion) -> Admitted {
        let mut admitted = Admitted::default();
        for mut member in group.members {
            if member.reward().is_none() {
                // Without a reward it is in the pool's books already.
                continue;
            }
            match self.refuse(&mut member, newest) {
                Some(reason) => *admitted.dropped.entry(reason).or_default() += 1,
                None => admitted.members.push(member),
            }
        }
        if !self.keep_zero_variance && has_zero_variance(&admitted.members) {
            *admitted.dropped.entry("zero_variance").or_default() += admitted.members.len() as u64;
            admitted.members.clear();
        }
        admitted
    }

    /// Why the whole member does not train; otherwise masks what of it does not.
    fn refuse(&self, member: &mut Trajectory, newest: PolicyVersion) -> Option<&'static str> {
        mask_unfinished_turn(member);
        if matches!(member.outcome, Outcome::Truncated(_)) {
            match self.truncated {
                TruncatedEpisodes::Keep => {}
                TruncatedEpisodes::Penalise(penalty) => penalise(member, penalty),
                TruncatedEpisodes::Mask => return Some("truncated"),
            }
        }
        if member.staleness(newest) > self.max_staleness {
            match self.stale {
                StaleTokens::Drop => return Some("stale"),
                StaleTokens::Mask => mask_stale(member, newest, self.max_staleness),
            }
        }
        None
    }
}

/// Decided on rewards, not on a standard deviation that rounding may have made.
fn has_zero_variance(members: &[Trajectory]) -> bool {
    members.windows(2).all(|pair| pair[0].reward() == pair[1].reward())
}

fn penalise(member: &mut Trajectory, penalty: f64) {
    if let Some(turn) = member.turns.last_mut() {
        turn.reward = Some(turn.reward.unwrap_or(0.0) + penalty);
    }
}

fn mask_stale(member: &mut Trajectory, newest: PolicyVersion, max_staleness: u32) {
    for id in node_ids(member) {
        for token in member.graph.node_mut(id).sampled_mut() {
            if token.version.staleness(newest) > max_staleness {
                token.mask.get_or_insert(MaskReason::Stale);
            }
        }
    }
}

/// Tokens of a turn that no environment answered have no credit.
fn mask_unfinished_turn(member: &mut Trajectory) {
    let answered: Vec<NodeId> = member.turns.iter().map(|turn| turn.node).collect();
    for id in node_ids(member) {
        if !answered.contains(&id) {
            for token in member.graph.node_mut(id).sampled_mut() {
                token.mask.get_or_insert(MaskReason::Truncated);
            }
        }
    }
}

fn node_ids(member: &Trajectory) -> Vec<NodeId> {
    member.graph.ids().collect()
}
