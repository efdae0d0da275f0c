use std::collections::BTreeMap;
use std::time::Duration;

use turnwise_environment::Rubric;
use turnwise_trajectory::{AgentId, GroupId, Trajectory};

use crate::grading::{expect_reward, is_scorable, score};

/// Scores stored trajectories with a rubric, in the place of the one that scored them before, if any did.
///
/// The trajectories may be of any number of groups and agents, in any order: those of one agent of one group are shown
/// together, in member order, and never with others. The rubric sees what it would have seen when the episodes finished: the
/// environment's rewards without an earlier score, and the episodes that were shown then. The same rubric so gives the same
/// rewards, to the bit. An episode that was taken out when it was first scored stays out. What a trainer's admission has added
/// to a reward is not part of what is scored, and is gone afterwards.
///
/// # Errors
/// When the rubric breaks or takes longer than `limit` over a group; that group and those after it are as they were.
pub async fn rescore(
    rubric: &dyn Rubric,
    limit: Duration,
    trajectories: &mut [Trajectory],
) -> Result<(), RescoreError> {
    let mut groups: BTreeMap<(GroupId, AgentId), Vec<&mut Trajectory>> = BTreeMap::new();
    for trajectory in trajectories.iter_mut().filter(|one| was_shown(one)) {
        groups.entry((trajectory.identity.group, trajectory.agent)).or_default().push(trajectory);
    }
    for ((group, agent), mut members) in groups {
        members.sort_by_key(|member| member.identity.member);
        let broke = |(_, message)| RescoreError {
            rubric: rubric.name().to_owned(),
            group: group.0,
            agent: agent.0,
            message,
        };
        score(rubric, limit, &mut members).await.map_err(broke)?;
        members.into_iter().for_each(expect_reward);
    }
    Ok(())
}

/// Whether a rubric saw the episode, or would have.
fn was_shown(trajectory: &Trajectory) -> bool {
    let has_score = trajectory.turns.last().is_some_and(|turn| turn.score.is_some());
    has_score || is_scorable(trajectory)
}

/// A rubric that did not score.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("score agent {agent} of group {group} with rubric `{rubric}`: {message}")]
pub struct RescoreError {
    /// The rubric's name.
    pub rubric: String,
    /// The group.
    pub group: u64,
    /// The agent.
    pub agent: u32,
    /// What it did instead.
    pub message: String,
}
