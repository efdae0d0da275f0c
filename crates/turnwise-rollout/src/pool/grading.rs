//! A group's last station: the rubric, and what it may not do.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;
use turnwise_environment::{Rubric, Transcript};
use turnwise_trajectory::{InfraFault, InfraReason, Outcome, Trajectory};

use crate::Group;
use crate::panic_text::panic_text;

/// A group, and what became of its members' verdicts.
pub(super) struct Graded {
    pub(super) group: Group,
    /// Members that ended well and turned out to be broken.
    pub(super) taken_back: Vec<usize>,
}

/// Adds the rubric's scores, and makes a member that nobody scored an infrastructure fault.
pub(super) async fn grade(
    rubric: Option<Arc<dyn Rubric>>,
    limit: Duration,
    mut group: Group,
) -> Graded {
    let ended_well: Vec<bool> =
        group.members.iter().map(|member| member.outcome.is_scored()).collect();
    if let Some(rubric) = rubric {
        score(&*rubric, limit, &mut group.members).await;
    }
    for member in group
        .members
        .iter_mut()
        .filter(|member| member.outcome.is_scored() && member.reward().is_none())
    {
        break_off(member, InfraReason::BadReward, "nobody scored the episode".to_owned());
    }
    let taken_back = (0..group.members.len())
        .filter(|place| ended_well[*place] && !group.members[*place].outcome.is_scored())
        .collect();
    Graded { group, taken_back }
}

async fn score(rubric: &dyn Rubric, limit: Duration, members: &mut [Trajectory]) {
    let mut scorable: Vec<&mut Trajectory> = members
        .iter_mut()
        .filter(|member| member.outcome.is_scored() && !member.turns.is_empty())
        .collect();
    let transcripts: Vec<_> = scorable.iter().map(|member| member.transcript()).collect();
    match scores(rubric, limit, &transcripts).await {
        Ok(scores) => {
            for (member, score) in scorable.iter_mut().zip(scores) {
                add_score(rubric.name(), member, score);
            }
        }
        Err((reason, message)) => {
            let message = format!("rubric `{}`: {message}", rubric.name());
            for member in scorable {
                break_off(member, reason, message.clone());
            }
        }
    }
}

/// One score for each transcript; whatever else the rubric does is a fault of its.
async fn scores(
    rubric: &dyn Rubric,
    limit: Duration,
    transcripts: &[Transcript],
) -> Result<Vec<Option<f64>>, (InfraReason, String)> {
    let call = AssertUnwindSafe(async { rubric.score(transcripts).await }).catch_unwind();
    let broke = |message: String| (InfraReason::RubricError, message);
    let scores = match timeout(limit, call).await {
        Ok(Ok(Ok(scores))) => scores,
        Ok(Ok(Err(error))) => return Err(broke(error.to_string())),
        Ok(Err(panic)) => return Err(broke(format!("panicked: {}", panic_text(&*panic)))),
        Err(_) => return Err(broke(format!("took over {} s", limit.as_secs_f64()))),
    };
    if scores.len() == transcripts.len() {
        Ok(scores)
    } else {
        let message = format!("{} scores for {} episodes", scores.len(), transcripts.len());
        Err((InfraReason::BadReward, message))
    }
}

fn add_score(rubric: &str, member: &mut Trajectory, score: Option<f64>) {
    let Some(score) = score else { return };
    if !(member.reward().unwrap_or(0.0) + score).is_finite() {
        break_off(member, InfraReason::BadReward, format!("rubric `{rubric}` returned {score}"));
        return;
    }
    let turn = member.turns.last_mut().expect("only episodes with turns are scored");
    turn.reward = Some(turn.reward.unwrap_or(0.0) + score);
}

/// Takes the verdict on a finished episode back.
fn break_off(member: &mut Trajectory, reason: InfraReason, message: String) {
    member.outcome = Outcome::InfraFault(InfraFault { reason, message });
    member.solved = false;
}
