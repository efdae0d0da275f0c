use super::episode::{ObservedEpisode, ObservedTurn, Subject, step};
use super::guard::guarded;
use crate::Environment;

/// A hint at the most frequent reason why episodes disturb each other.
pub(super) const SHARED: &str = "Do its episodes share state? An `Arc<Mutex<…>>` inside an environment that is cloned for each episode is one \
     for all of them: make the state in `reset`, or where the environment is made";

/// Checks that episodes of one task do not affect each other: plays a whole episode in the middle of another, as in the
/// rollouts of a group.
pub(super) async fn isolated(
    subject: &Subject<'_>,
    seed: u64,
    episode: &ObservedEpisode,
) -> Result<(), String> {
    let (before, after) = episode.turns.split_at(episode.turns.len() / 2);
    let mut outer = begun(subject, seed, episode).await?;
    same(outer.as_mut(), before).await?;
    let mut inner = begun(subject, seed, episode).await?;
    same(inner.as_mut(), &episode.turns).await?;
    same(outer.as_mut(), after).await
}

async fn begun(
    subject: &Subject<'_>,
    seed: u64,
    episode: &ObservedEpisode,
) -> Result<Box<dyn Environment>, String> {
    let mut environment = subject.environment()?;
    let first = guarded(environment.reset(seed)).await.map_err(|why| format!("reset {why}"))?;
    if first != episode.first {
        return Err(format!("an episode begins otherwise while another is under way. {SHARED}"));
    }
    Ok(environment)
}

/// Checks that the recorded actions lead to the recorded steps.
async fn same(environment: &mut dyn Environment, turns: &[ObservedTurn]) -> Result<(), String> {
    for ObservedTurn { action, step: expected } in turns {
        if step(environment, action.clone()).await? != *expected {
            return Err(format!("an episode goes on otherwise when another was played. {SHARED}"));
        }
    }
    Ok(())
}
