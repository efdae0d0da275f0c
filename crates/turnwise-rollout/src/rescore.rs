use std::collections::BTreeMap;
use std::time::Duration;

use turnwise_environment::{Rubric, Seat};
use turnwise_trajectory::{GroupId, Trajectory};

use crate::grading::{expect_reward, is_scorable, score};

/// Scores stored trajectories with a rubric, and replaces earlier scores.
///
/// The trajectories may belong to any number of groups and seats, in any order: the rubric sees those of one seat of
/// one group together, in member order, and never with others. The rubric sees the episodes as they were when they
/// finished: the episodes that were shown to a rubric then, with the environment's rewards and without an earlier
/// score. Therefore the same rubric gives the same rewards, to the bit. An episode that the first grading made an
/// infrastructure fault remains one. A penalty that a trainer's admission added to a reward is removed.
///
/// # Errors
/// If the rubric breaks or takes longer than `limit` over a group; that group and later ones stay unchanged.
pub async fn rescore(
    rubric: &dyn Rubric,
    limit: Duration,
    trajectories: &mut [Trajectory],
) -> Result<(), RescoreError> {
    let mut groups: BTreeMap<(GroupId, Seat), Vec<&mut Trajectory>> = BTreeMap::new();
    for trajectory in trajectories.iter_mut().filter(|one| was_shown(one)) {
        groups.entry((trajectory.identity.group, trajectory.seat)).or_default().push(trajectory);
    }
    for ((group, seat), mut members) in groups {
        members.sort_by_key(|member| member.identity.member);
        let broke = |(_, message)| RescoreError {
            rubric: rubric.name().to_owned(),
            group: group.0,
            seat,
            message,
        };
        score(rubric, limit, &mut members).await.map_err(broke)?;
        for member in members {
            if let Some(turn) = member.turns.last_mut() {
                turn.penalty = None;
            }
            expect_reward(member);
        }
    }
    Ok(())
}

/// Returns whether the episode was shown to a rubric, or would have been.
fn was_shown(trajectory: &Trajectory) -> bool {
    let has_score = trajectory.turns.last().is_some_and(|turn| turn.score.is_some());
    has_score || is_scorable(trajectory)
}

/// The error of a rubric that failed on a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot score seat {seat} of group {group} with rubric `{rubric}`: {message}")]
pub struct RescoreError {
    /// The rubric's name.
    pub rubric: String,
    /// The group's id.
    pub group: u64,
    /// The seat.
    pub seat: Seat,
    /// The cause.
    pub message: String,
}
