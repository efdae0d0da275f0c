//! Admission: decides which episodes and tokens train, and records why the others do not.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_objective::SoftOverlong;
use turnwise_rollout::Group;
use turnwise_trajectory::{Limit, MaskReason, NodeId, Outcome, PolicyVersion, Trajectory};

use crate::credit::has_equal_rewards;

/// The treatment of tokens whose policy is more than `max_staleness` versions old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StaleTokens {
    /// Drops the whole trajectory.
    #[default]
    Drop,
    /// Masks only these tokens: they leave the sum and the count of their ratio group.
    Mask,
}

/// The treatment of an episode that reached a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TruncatedEpisodes {
    /// Scores the episode with the rewards that it has received.
    #[default]
    Keep,
    /// Adds this number to the episode's reward.
    Penalise(f64),
    /// Leaves the episode out of both the baseline and the loss.
    Mask,
}

/// A penalty that grows with the length of an episode: soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13).
///
/// ```
/// use turnwise_training::Overlong;
///
/// let overlong = Overlong { max_tokens: 100, buffer: 20 };
/// assert_eq!([80, 90, 100, 101].map(|n| overlong.penalty(n)), [0.0, -0.5, -1.0, -1.0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overlong {
    /// The number of sampled tokens of an episode at which the penalty reaches -1.
    pub max_tokens: usize,
    /// The number of tokens before `max_tokens` at which the penalty begins; 0 makes the penalty a step just above
    /// `max_tokens`.
    pub buffer: usize,
}

impl Overlong {
    /// Returns the number added to the reward of an episode of `n_sampled` tokens: 0 up to `max_tokens - buffer`, then
    /// falling linearly to -1 at `max_tokens`, and -1 beyond.
    #[must_use]
    pub fn penalty(&self, n_sampled: usize) -> f64 {
        SoftOverlong { max_tokens: self.max_tokens, buffer_tokens: self.buffer }.penalty(n_sampled)
    }
}

/// The rules of admission.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admission {
    /// The largest number of versions that a trained token may be behind the weights being trained.
    pub max_staleness: u32,
    /// The treatment of older tokens.
    pub stale: StaleTokens,
    /// The treatment of episodes that reached a limit.
    pub truncated: TruncatedEpisodes,
    /// The minimal number of remaining members; a group with fewer is dropped whole.
    pub min_group_size: usize,
    /// Whether a group whose members all have the same reward trains, with advantages of 0.
    pub keep_zero_variance: bool,
    /// The penalty for length, if any.
    pub overlong: Option<Overlong>,
    /// Whether to mask the tokens of episodes that ended by the agent's fault. Their rewards stay in the baseline.
    pub mask_agent_faults: bool,
    /// Whether to mask the tokens of turns with malformed answers or calls.
    pub mask_parse_errors: bool,
}

impl Default for Admission {
    /// Returns rules that admit up to 4 versions of staleness, drop older trajectories whole, keep truncated ones,
    /// leave out groups with fewer than two members or without variance, penalise no length, and train on mistakes.
    fn default() -> Self {
        Self {
            max_staleness: 4,
            stale: StaleTokens::Drop,
            truncated: TruncatedEpisodes::Keep,
            min_group_size: 2,
            keep_zero_variance: false,
            overlong: None,
            mask_agent_faults: false,
            mask_parse_errors: false,
        }
    }
}

/// The reason why a scored member does not train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// The member has tokens of a policy that is too old.
    Stale,
    /// The episode reached a limit.
    Truncated,
    /// Too few members of the group were left.
    GroupDropped,
    /// All members had the same reward and solved the task.
    AllSolved,
    /// All members had the same reward and none solved the task.
    NoneSolved,
    /// All members had the same reward, although only some solved the task.
    SameReward,
}

impl DropReason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::Stale,
        Self::Truncated,
        Self::GroupDropped,
        Self::AllSolved,
        Self::NoneSolved,
        Self::SameReward,
    ];

    /// Returns the word used in books and records.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Truncated => "truncated",
            Self::GroupDropped => "group_dropped",
            Self::AllSolved => "all_solved",
            Self::NoneSolved => "none_solved",
            Self::SameReward => "same_reward",
        }
    }
}

/// The number of episodes and their total length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// The number of episodes.
    pub episodes: u64,
    /// The number of the episodes' sampled tokens.
    pub tokens: u64,
}

impl Lengths {
    /// Returns the mean number of sampled tokens per episode; `None` without episodes.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.episodes > 0).then(|| self.tokens as f64 / self.episodes as f64)
    }

    /// Adds the counts of another value.
    pub fn merge(&mut self, other: Self) {
        self.episodes += other.episodes;
        self.tokens += other.tokens;
    }

    fn record(&mut self, member: &Trajectory) {
        self.merge(Self { episodes: 1, tokens: member.n_sampled() as u64 });
    }
}

/// The members of a group that are compared with each other, and the reasons why others are not.
#[derive(Debug, Default)]
pub struct Admitted {
    /// The members that may train.
    pub members: Vec<Trajectory>,
    /// The lengths of the other members, by reason: dropping stale or long episodes favours short ones.
    pub dropped: BTreeMap<DropReason, Lengths>,
    /// The reason of each dropped member, by its index in the group.
    pub reasons: BTreeMap<u32, DropReason>,
    /// The dropped members.
    pub left_out: Vec<Trajectory>,
}

impl Admitted {
    /// Returns the lengths of the members that may train.
    #[must_use]
    pub fn kept(&self) -> Lengths {
        let mut kept = Lengths::default();
        self.members.iter().for_each(|member| kept.record(member));
        kept
    }

    fn drop_one(&mut self, reason: DropReason, member: Trajectory) {
        self.dropped.entry(reason).or_default().record(&member);
        self.reasons.insert(member.identity.member, reason);
        self.left_out.push(member);
    }

    fn drop_all(&mut self, reason: DropReason) {
        for member in std::mem::take(&mut self.members) {
            self.drop_one(reason, member);
        }
    }
}

impl Admission {
    /// Applies the rules to a group. `newest` is the version that is being trained.
    ///
    /// Whether the rewards of a group differ is decided on the environment's rewards: a penalty for truncation or
    /// length shapes the rewards of a group that differs, and never makes an equal group differ.
    #[must_use]
    pub fn admit(&self, group: Group, newest: PolicyVersion) -> Admitted {
        let mut admitted = Admitted::default();
        for mut member in group.members {
            if member.reward().is_none() {
                // The pool has already counted a member without a reward.
                continue;
            }
            self.mask(&mut member);
            match self.refuse(&mut member, newest) {
                Some(reason) => admitted.drop_one(reason, member),
                None => admitted.members.push(member),
            }
        }
        if admitted.members.len() < self.min_group_size {
            admitted.drop_all(DropReason::GroupDropped);
        }
        match zero_variance(&admitted.members) {
            None => admitted.members.iter_mut().for_each(|member| self.shape(member)),
            Some(reason) if !self.keep_zero_variance => admitted.drop_all(reason),
            Some(_) => {}
        }
        admitted
    }

    /// Masks the tokens that do not train at any age.
    fn mask(&self, member: &mut Trajectory) {
        mask_unfinished_turn(member);
        if self.mask_agent_faults && matches!(member.outcome, Outcome::AgentFault(_)) {
            mask_where(member, MaskReason::AgentFault, |_| true);
        }
        if self.mask_parse_errors {
            member.mask_turns(MaskReason::ParseError, |turn| turn.faults > 0);
        }
    }

    /// Returns the reason why the whole member does not train, or masks its tokens that are too old.
    fn refuse(&self, member: &mut Trajectory, newest: PolicyVersion) -> Option<DropReason> {
        if self.truncated == TruncatedEpisodes::Mask && reached_limit(member) {
            return Some(DropReason::Truncated);
        }
        if member.staleness(newest) > self.max_staleness {
            match self.stale {
                StaleTokens::Drop => return Some(DropReason::Stale),
                StaleTokens::Mask => mask_where(member, MaskReason::Stale, |version| {
                    version.staleness(newest) > self.max_staleness
                }),
            }
        }
        None
    }

    /// Adds the penalties to the last turn.
    fn shape(&self, member: &mut Trajectory) {
        let mut penalty =
            self.overlong.map_or(0.0, |overlong| overlong.penalty(member.n_sampled()));
        if let TruncatedEpisodes::Penalise(truncated) = self.truncated
            && reached_limit(member)
        {
            penalty += truncated;
        }
        if let Some(turn) = member.turns.last_mut()
            && penalty != 0.0
        {
            turn.penalty = Some(penalty);
        }
    }
}

/// Returns whether the episode was truncated, and not because of another seat.
fn reached_limit(member: &Trajectory) -> bool {
    matches!(member.outcome, Outcome::Truncated(limit) if limit != Limit::OtherSeat)
}

/// Returns the reason to drop a group whose rewards are all equal; `None` if they differ. The rewards decide, because
/// rounding may make a standard deviation positive.
fn zero_variance(members: &[Trajectory]) -> Option<DropReason> {
    if !has_equal_rewards(&members.iter().collect::<Vec<_>>()) {
        return None;
    }
    Some(match members.iter().filter(|member| member.solved).count() {
        0 => DropReason::NoneSolved,
        n if n == members.len() => DropReason::AllSolved,
        _ => DropReason::SameReward,
    })
}

fn mask_where(
    member: &mut Trajectory,
    reason: MaskReason,
    is_masked: impl Fn(PolicyVersion) -> bool,
) {
    for id in node_ids(member) {
        for tokens in member.graph.node_mut(id).sampled_mut() {
            tokens.mask_where(reason, |token| is_masked(token.version));
        }
    }
}

/// Masks the tokens of a turn that no environment answered, because they have no credit.
fn mask_unfinished_turn(member: &mut Trajectory) {
    let answered: Vec<NodeId> = member.turns.iter().map(|turn| turn.node).collect();
    for id in node_ids(member) {
        if !answered.contains(&id) {
            for tokens in member.graph.node_mut(id).sampled_mut() {
                tokens.mask_where(MaskReason::Truncated, |_| true);
            }
        }
    }
}

fn node_ids(member: &Trajectory) -> Vec<NodeId> {
    member.graph.ids().collect()
}
