//! Grading of a finished group by its rubric.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;
use turnwise_environment::{Rubric, Transcript};
use turnwise_trajectory::{InfraFault, InfraReason, Outcome, Score, Trajectory};

use crate::Group;
use crate::panic_text::panic_text;

/// A graded group, and the members whose verdict changed.
pub(crate) struct Graded {
    pub(crate) group: Group,
    /// The indices of members that had a scored outcome, and that grading made infrastructure faults.
    pub(crate) taken_back: Vec<usize>,
}

/// Adds the rubric's scores, and makes a member without a reward an infrastructure fault.
pub(crate) async fn grade(
    rubric: Option<Arc<dyn Rubric>>,
    limit: Duration,
    mut group: Group,
) -> Graded {
    let ended_well: Vec<bool> =
        group.members.iter().map(|member| member.outcome.is_scored()).collect();
    if let Some(rubric) = rubric {
        let mut shown: Vec<&mut Trajectory> =
            group.members.iter_mut().filter(|member| is_scorable(member)).collect();
        if let Err((reason, message)) = score(&*rubric, limit, &mut shown).await {
            let message = format!("rubric `{}`: {message}", rubric.name());
            for member in shown {
                put_down(rubric.name(), member, None);
                break_off(member, reason, message.clone());
            }
        }
    }
    group.members.iter_mut().for_each(expect_reward);
    let taken_back = (0..group.members.len())
        .filter(|place| ended_well[*place] && !group.members[*place].outcome.is_scored())
        .collect();
    Graded { group, taken_back }
}

/// Returns whether the episode is shown to a rubric.
pub(crate) fn is_scorable(member: &Trajectory) -> bool {
    member.outcome.is_scored() && !member.turns.is_empty()
}

/// Marks a member that neither the environment nor the rubric scored as broken.
pub(crate) fn expect_reward(member: &mut Trajectory) {
    if member.outcome.is_scored() && member.reward().is_none() {
        break_off(
            member,
            InfraReason::BadReward,
            "neither environment nor rubric scored the episode".to_owned(),
        );
    }
}

/// Scores members with the rubric; changes nothing if the rubric itself fails.
pub(crate) async fn score(
    rubric: &dyn Rubric,
    limit: Duration,
    shown: &mut [&mut Trajectory],
) -> Result<(), (InfraReason, String)> {
    let transcripts: Vec<_> = shown.iter().map(|member| member.transcript()).collect();
    let scores = scores(rubric, limit, &transcripts).await?;
    for (member, score) in shown.iter_mut().zip(scores) {
        add_score(rubric.name(), member, score);
    }
    Ok(())
}

/// Returns one score for each transcript; an error, a panic, a missed deadline or another number of scores is a fault.
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
    put_down(rubric, member, score);
    let total: f64 = member.turns.iter().filter_map(|turn| turn.reward).sum();
    if let Some(score) = score
        && !total.is_finite()
    {
        put_down(rubric, member, None);
        break_off(member, InfraReason::BadReward, format!("rubric `{rubric}` returned {score}"));
    }
}

/// Writes a verdict into the last turn, and replaces an earlier one.
fn put_down(rubric: &str, member: &mut Trajectory, value: Option<f64>) {
    let turn = member.turns.last_mut().expect("only episodes with turns are scored");
    let before = turn.score.take().map_or(turn.reward, |score| score.before);
    turn.reward = value.map_or(before, |value| Some(before.unwrap_or(0.0) + value));
    turn.score = Some(Score { rubric: rubric.to_owned(), value, before });
}

/// Replaces the outcome of a finished episode by a fault.
fn break_off(member: &mut Trajectory, reason: InfraReason, message: String) {
    member.outcome = Outcome::InfraFault(InfraFault { reason, message });
    member.solved = false;
}
