use super::episode::{ObservedEpisode, ObservedTurn, Subject, step};
use super::guard::{caught, guarded};
use crate::{Action, Environment, Step};

/// Takes a snapshot before every turn of an episode and plays the rest from each; returns the snapshots.
pub(super) async fn continues(
    subject: &Subject<'_>,
    seed: u64,
    episode: &ObservedEpisode,
) -> Result<Vec<Vec<u8>>, String> {
    let snapshots = take(subject, seed, episode).await?;
    for (turn, snapshot) in snapshots.iter().enumerate() {
        let Some(snapshot) = snapshot else { continue };
        resume(subject, snapshot, &episode.turns[turn..])
            .await
            .map_err(|why| format!("restored before turn {}: {why}", turn + 1))?;
    }
    Ok(snapshots.into_iter().flatten().collect())
}

/// Takes a snapshot before each turn of an episode; taking one must not change the episode.
async fn take(
    subject: &Subject<'_>,
    seed: u64,
    episode: &ObservedEpisode,
) -> Result<Vec<Option<Vec<u8>>>, String> {
    let mut environment = subject.environment()?;
    guarded(environment.reset(seed)).await.map_err(|why| format!("reset {why}"))?;
    let mut snapshots = Vec::with_capacity(episode.turns.len());
    for turn in &episode.turns {
        snapshots.push(caught(|| environment.snapshot())?);
        if step(environment.as_mut(), turn.action.clone()).await? != turn.step {
            return Err(format!("turn {} differs once a snapshot was taken", snapshots.len()));
        }
    }
    Ok(snapshots)
}

async fn resume(
    subject: &Subject<'_>,
    snapshot: &[u8],
    rest: &[ObservedTurn],
) -> Result<(), String> {
    let mut environment = subject.environment()?;
    restore(environment.as_mut(), snapshot)??;
    for (n_played, turn) in rest.iter().enumerate() {
        if step(environment.as_mut(), turn.action.clone()).await? != turn.step {
            return Err(format!("what follows differs after {n_played} more turns"));
        }
    }
    Ok(())
}

/// Checks that bytes other than snapshots are refused, and that damaged snapshots cause no panic.
pub(super) async fn refuses(subject: &Subject<'_>, snapshots: &[Vec<u8>]) -> Result<(), String> {
    for (what, bytes) in garbage(snapshots) {
        let mut environment = subject.environment()?;
        let result =
            restore(environment.as_mut(), &bytes).map_err(|why| format!("{what}: {why}"))?;
        if result.is_ok() {
            return Err(format!("{what} were taken for a snapshot"));
        }
    }
    for bytes in snapshots.iter().flat_map(|snapshot| damaged(snapshot)) {
        harmless(subject, &bytes).await.map_err(|why| format!("damaged bytes: {why}"))?;
    }
    Ok(())
}

/// Returns bytes that an environment does not write.
fn garbage(snapshots: &[Vec<u8>]) -> Vec<(&'static str, Vec<u8>)> {
    let mut garbage = vec![
        ("no bytes", Vec::new()),
        ("bytes of noise", (0_u8..=255).rev().collect()),
        ("bytes of prose", b"this is not a snapshot".to_vec()),
        ("100,000 open brackets", vec![b'['; 100_000]),
    ];
    if let Some(snapshot) = snapshots.first().filter(|snapshot| !snapshot.is_empty()) {
        garbage.push(("all but the last byte", snapshot[..snapshot.len() - 1].to_vec()));
    }
    // An environment without state may legitimately write no bytes.
    garbage.retain(|(_, bytes)| !snapshots.contains(bytes));
    garbage
}

/// Returns copies of a snapshot with one bit flipped, at up to 32 places.
fn damaged(snapshot: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let stride = snapshot.len().div_ceil(32).max(1);
    (0..snapshot.len()).step_by(stride).map(|at| {
        let mut bytes = snapshot.to_vec();
        bytes[at] ^= 1 << (at % 8);
        bytes
    })
}

/// Checks that restoring these bytes, and stepping once if that succeeds, does not panic.
async fn harmless(subject: &Subject<'_>, bytes: &[u8]) -> Result<(), String> {
    let mut environment = subject.environment()?;
    if restore(environment.as_mut(), bytes)?.is_ok() {
        // After tampering, an error is a valid answer; only a panic counts.
        let answer = guarded(environment.step(Action::default())).await;
        if let Err(why) = answer.map(|_: Step| ())
            && why.starts_with("panicked")
        {
            return Err(why);
        }
    }
    Ok(())
}

/// Restores the bytes. The inner result is the environment's answer; the outer error is a panic.
fn restore(environment: &mut dyn Environment, bytes: &[u8]) -> Result<Result<(), String>, String> {
    caught(|| environment.restore(bytes).map_err(|error| error.to_string()))
}
