use super::episode::{ObservedEpisode, Subject, step};
use super::guard::{caught, guarded};
use crate::{Environment, Recovery, Services, ToolLedger};

/// Checks that an episode can go on the way that its environment declares; returns the declared recovery.
pub(super) async fn recovers(
    subject: &Subject<'_>,
    seed: u64,
    episode: &ObservedEpisode,
) -> Result<Recovery, String> {
    let ledger = ToolLedger::new(0, 0, 0);
    let declared = declares(subject, seed, episode, &ledger).await?;
    if declared == Recovery::Replay {
        let again = ToolLedger::new(0, 0, 0);
        again.restore(ledger.records());
        replays(subject, seed, episode, &again).await?;
    }
    Ok(declared)
}

/// Plays an episode once and reads the declared recovery before every turn: it must be constant and fit the snapshots.
async fn declares(
    subject: &Subject<'_>,
    seed: u64,
    episode: &ObservedEpisode,
    ledger: &ToolLedger,
) -> Result<Recovery, String> {
    let mut environment = begun(subject, seed, episode, ledger).await?;
    let declared = caught(|| environment.recovery())?;
    for (turn, played) in episode.turns.iter().enumerate() {
        let at = format!("before turn {}", turn + 1);
        let now = caught(|| environment.recovery())?;
        if now != declared {
            return Err(format!("declares {declared:?} at first and {now:?} {at}"));
        }
        let takes_snapshots = caught(|| environment.snapshot())?.is_some();
        match (declared, takes_snapshots) {
            (Recovery::Snapshot, false) => {
                return Err(format!("declares snapshots and takes none {at}"));
            }
            (Recovery::Restart, true) => {
                return Err(format!("takes a snapshot {at} and declares that it starts anew"));
            }
            _ => {}
        }
        ledger.begin_turn(turn);
        if step(environment.as_mut(), played.action.clone()).await? != played.step {
            return Err(format!("turn {} differs once it is connected and asked", turn + 1));
        }
    }
    Ok(declared)
}

/// Plays the recorded actions on a fresh environment.
async fn replays(
    subject: &Subject<'_>,
    seed: u64,
    episode: &ObservedEpisode,
    ledger: &ToolLedger,
) -> Result<(), String> {
    let mut environment = begun(subject, seed, episode, ledger).await?;
    for (turn, played) in episode.turns.iter().enumerate() {
        ledger.begin_turn(turn);
        if step(environment.as_mut(), played.action.clone()).await? != played.step {
            return Err(format!("declares a replay, which differs at turn {}", turn + 1));
        }
    }
    Ok(())
}

async fn begun(
    subject: &Subject<'_>,
    seed: u64,
    episode: &ObservedEpisode,
    ledger: &ToolLedger,
) -> Result<Box<dyn Environment>, String> {
    let mut environment = subject.environment()?;
    caught(|| environment.connect(&Services::new(ledger.clone())))?;
    let first =
        guarded(environment.reset(seed)).await.map_err(|why| format!("reset again {why}"))?;
    if first == episode.first {
        Ok(environment)
    } else {
        Err("the first observation differs on another environment".to_owned())
    }
}
