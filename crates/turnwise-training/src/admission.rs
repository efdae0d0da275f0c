//! The one place that decides what does not train, and says why.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_objective::SoftOverlong;
use turnwise_rollout::Group;
use turnwise_trajectory::{MaskReason, NodeId, Outcome, PolicyVersion, Score, Trajectory};

/// What happens to tokens whose policy is more than `max_staleness` versions old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StaleTokens {
    /// Their whole trajectory is dropped.
    #[default]
    Drop,
    /// They alone are masked: out of the sum and the count of their ratio group.
    Mask,
}

/// What happens to an episode that ran into a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// The sampled tokens of an episode at which the penalty is whole.
    pub max_tokens: usize,
    /// How many tokens before that it begins; with 0 it is whole just above `max_tokens`.
    pub buffer: usize,
}

impl Overlong {
    /// What is added to the reward of an episode of so many sampled tokens: 0 up to `max_tokens - buffer`, then falling
    /// evenly to -1 at `max_tokens`, and -1 beyond.
    #[must_use]
    pub fn penalty(&self, n_sampled: usize) -> f64 {
        SoftOverlong { max_tokens: self.max_tokens, buffer_tokens: self.buffer }.penalty(n_sampled)
    }
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
    /// A group that is left with fewer members is dropped whole.
    pub min_group_size: usize,
    /// Whether groups whose members all have the same reward train all the same, with advantages of 0.
    pub keep_zero_variance: bool,
    /// The penalty for length, if there is one.
    pub overlong: Option<Overlong>,
    /// Whether the tokens of episodes that ended by the agent's fault are masked. Their rewards stay in the baseline.
    pub mask_agent_faults: bool,
    /// Whether the tokens of turns with mistakes of form are masked.
    pub mask_parse_errors: bool,
}

impl Default for Admission {
    /// Up to 4 versions old; older trajectories are dropped whole, truncated ones kept, groups of less than two or without
    /// variance left out; no penalty for length, and mistakes train.
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

/// Why a scored member does not train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// It holds tokens of a policy too old.
    Stale,
    /// It ran into a limit.
    Truncated,
    /// Too few of its group were left.
    GroupDropped,
    /// All members had the same reward, and solved the task.
    AllSolved,
    /// All members had the same reward, and none solved the task.
    NoneSolved,
    /// All members had the same reward, though some solved the task and some did not.
    SameReward,
}

impl DropReason {
    /// Every reason there is.
    pub const ALL: [Self; 6] = [
        Self::Stale,
        Self::Truncated,
        Self::GroupDropped,
        Self::AllSolved,
        Self::NoneSolved,
        Self::SameReward,
    ];

    /// The word in books and records.
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

/// How many episodes there were, and of what length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// The episodes.
    pub episodes: u64,
    /// Their sampled tokens.
    pub tokens: u64,
}

impl Lengths {
    /// Sampled tokens of an episode; `None` without one.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.episodes > 0).then(|| self.tokens as f64 / self.episodes as f64)
    }

    /// Adds others.
    pub fn merge(&mut self, other: Self) {
        self.episodes += other.episodes;
        self.tokens += other.tokens;
    }

    fn record(&mut self, member: &Trajectory) {
        self.merge(Self { episodes: 1, tokens: member.n_sampled() as u64 });
    }
}

/// The members of a group that are compared with each other, and why the others are not.
#[derive(Debug, Default)]
pub struct Admitted {
    /// They may train.
    pub members: Vec<Trajectory>,
    /// Those that do not, by reason, with their lengths: dropping what is old or long drops the long more often.
    pub dropped: BTreeMap<DropReason, Lengths>,
}

impl Admitted {
    /// The lengths of the members that may train.
    #[must_use]
    pub fn kept(&self) -> Lengths {
        let mut kept = Lengths::default();
        self.members.iter().for_each(|member| kept.record(member));
        kept
    }

    fn drop_one(&mut self, reason: DropReason, member: &Trajectory) {
        self.dropped.entry(reason).or_default().record(member);
    }

    fn drop_all(&mut self, reason: DropReason) {
        for member in std::mem::take(&mut self.members) {
            self.drop_one(reason, &member);
        }
    }
}

impl Admission {
    /// Applies the rules to a group. `newest` is the version that is being trained.
    ///
    /// Whether the rewards of a group differ is decided on what the environment gave: a penalty for truncation or length
    /// shapes the rewards of a group that differs, and never makes one that does.
    #[must_use]
    pub fn admit(&self, group: Group, newest: PolicyVersion) -> Admitted {
        let mut admitted = Admitted::default();
        for mut member in group.members {
            if member.reward().is_none() {
                // Without a reward it is in the pool's books already.
                continue;
            }
            self.mask(&mut member);
            match self.refuse(&mut member, newest) {
                Some(reason) => admitted.drop_one(reason, &member),
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

    /// Masks what does not train whatever its age.
    fn mask(&self, member: &mut Trajectory) {
        mask_unfinished_turn(member);
        if self.mask_agent_faults && matches!(member.outcome, Outcome::AgentFault(_)) {
            mask_where(member, MaskReason::AgentFault, |_| true);
        }
        if self.mask_parse_errors {
            member.mask_turns(MaskReason::ParseError, |turn| turn.faults > 0);
        }
    }

    /// Why the whole member does not train; otherwise masks what of it is too old.
    fn refuse(&self, member: &mut Trajectory, newest: PolicyVersion) -> Option<DropReason> {
        if self.truncated == TruncatedEpisodes::Mask
            && matches!(member.outcome, Outcome::Truncated(_))
        {
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

    /// Adds the penalties to the reward of the last turn.
    fn shape(&self, member: &mut Trajectory) {
        let mut penalty =
            self.overlong.map_or(0.0, |overlong| overlong.penalty(member.n_sampled()));
        if let (TruncatedEpisodes::Penalise(truncated), Outcome::Truncated(_)) =
            (self.truncated, &member.outcome)
        {
            penalty += truncated;
        }
        if let Some(turn) = member.turns.last_mut()
            && penalty != 0.0
        {
            let before = turn.reward;
            turn.reward = Some(before.unwrap_or(0.0) + penalty);
            // What the environment gave stays to be read: a stored episode is replayed and scored again without penalties.
            let rubric = "admission".to_owned();
            turn.score.get_or_insert(Score { rubric, value: Some(penalty), before });
        }
    }
}

/// Which kind of equal the rewards are. Decided on rewards, not on a standard deviation that rounding may have made.
fn zero_variance(members: &[Trajectory]) -> Option<DropReason> {
    if members.windows(2).any(|pair| pair[0].reward() != pair[1].reward()) {
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

/// Tokens of a turn that no environment answered have no credit.
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
