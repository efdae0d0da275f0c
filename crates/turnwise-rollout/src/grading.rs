//! Grading of a finished group by its rubric.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;
use turnwise_environment::{Rubric, Transcript};
use turnwise_trajectory::{InfraFault, InfraReason, Outcome, Score, Trajectory, Turn};

use crate::Group;
use crate::panic_text::panic_text;

/// A graded group, and the members whose verdict changed.
pub(crate) struct Graded {
    pub(crate) group: Group,
    /// The indices of members that had a scored outcome, and that grading made infrastructure faults.
    pub(crate) taken_back: Vec<usize>,
}

/// Adds the rubric's scores, and makes a member without a reward an infrastructure fault. A rubric compares the
/// trajectories of one seat; a fault on one seat is a fault of the whole episode.
pub(crate) async fn grade(
    rubric: Option<Arc<dyn Rubric>>,
    limit: Duration,
    mut group: Group,
) -> Graded {
    let ended_well: Vec<bool> =
        group.members.iter().map(|member| member.outcome.is_scored()).collect();
    if let Some(rubric) = rubric {
        let n_others = group.members.iter().map(|member| member.others.len()).max().unwrap_or(0);
        for seat in 0..=n_others {
            let of_seat = group.members.iter_mut().filter_map(|member| on_seat(member, seat));
            grade_seat(&*rubric, limit, of_seat.filter(|one| is_scorable(one)).collect()).await;
        }
    }
    for member in &mut group.members {
        expect_reward(member);
        member.others.iter_mut().for_each(expect_reward);
        spread_faults(member);
    }
    let taken_back = (0..group.members.len())
        .filter(|place| ended_well[*place] && !group.members[*place].outcome.is_scored())
        .collect();
    Graded { group, taken_back }
}

/// Returns the trajectory of the `index`th seat that the trained policy played.
fn on_seat(member: &mut Trajectory, index: usize) -> Option<&mut Trajectory> {
    match index.checked_sub(1) {
        None => Some(member),
        Some(other) => member.others.get_mut(other),
    }
}

async fn grade_seat(rubric: &dyn Rubric, limit: Duration, mut shown: Vec<&mut Trajectory>) {
    if let Err((reason, message)) = score(rubric, limit, &mut shown).await {
        let message = format!("rubric `{}`: {message}", rubric.name());
        for member in shown {
            put_down(rubric.name(), member, None);
            break_off(member, reason, message.clone());
        }
    }
}

/// Gives an infrastructure fault of one seat to the others.
fn spread_faults(member: &mut Trajectory) {
    let mut outcomes =
        std::iter::once(&member.outcome).chain(member.others.iter().map(|o| &o.outcome));
    let fault = outcomes.find_map(|outcome| match outcome {
        Outcome::InfraFault(fault) => Some(fault.clone()),
        _ => None,
    });
    let Some(InfraFault { reason, message }) = fault.filter(|_| !member.others.is_empty()) else {
        return;
    };
    for other in &mut member.others {
        break_off(other, reason, message.clone());
    }
    break_off(member, reason, message);
}

/// Returns whether the episode is shown to a rubric.
pub(crate) fn is_scorable(member: &Trajectory) -> bool {
    member.outcome.is_scored() && !member.turns.is_empty()
}

/// Marks a member that has acted, and that neither the environment nor the rubric scored, as broken.
pub(crate) fn expect_reward(member: &mut Trajectory) {
    // A seat that never acted has no turn that could earn a reward.
    if is_scorable(member) && member.reward().is_none() {
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
    let total: f64 = member.turns.iter().filter_map(Turn::total_reward).sum();
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
    turn.score = Some(Score { rubric: rubric.to_owned(), value });
}

/// Replaces the outcome of a finished episode by a fault.
fn break_off(member: &mut Trajectory, reason: InfraReason, message: String) {
    member.outcome = Outcome::InfraFault(InfraFault { reason, message });
    member.solved = false;
}
