//! What a server offers, found out before the first episode.

use std::time::Duration;

use hyper::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use turnwise_environment::EnvironmentError;

use super::address::segment;
use super::fault::{malformed, shown};
use super::http::Ask;
use super::peer::Peer;
use super::tasks::TaskRange;

/// Waits for work on a thread with a runtime of its own, because environments are made outside of any.
pub(super) fn wait_for<T: Send>(
    work: impl Future<Output = Result<T, EnvironmentError>> + Send,
) -> Result<T, EnvironmentError> {
    let failed = |error: std::io::Error| {
        EnvironmentError::new("cannot start a thread for the server's client").caused_by(error)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(failed)?.block_on(work)
        });
        let joined = thread.map_err(failed)?.join();
        joined.unwrap_or_else(|_| Err(EnvironmentError::new("the server's client panicked")))
    })
}

/// Waits until the server says that it is well.
pub(super) async fn wait_until_healthy(peer: &Peer) -> Result<(), EnvironmentError> {
    const PAUSE: Duration = Duration::from_millis(500);
    let deadline = tokio::time::Instant::now() + peer.patience.ready;
    loop {
        let failure = match peer.answer(Ask::get("/health")).await {
            Ok(answer) if answer.status.is_success() => {
                match answer.json("/health")?["status"].as_str() {
                    Some("healthy" | "degraded" | "ok") => return Ok(()),
                    status => {
                        let status = shown(status.unwrap_or("nothing"));
                        EnvironmentError::new(format!("the server says of its health: {status}"))
                    }
                }
            }
            Ok(answer) => answer.refused("/health"),
            Err(error) => error,
        };
        if tokio::time::Instant::now() + PAUSE >= deadline {
            let seconds = peer.patience.ready.as_secs_f64();
            let what = format!("the server at {} was not ready after {seconds} s", peer.address);
            return Err(EnvironmentError::new(what).caused_by(failure));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns the environment's name at the server: the one that is wanted, or the only one. `None` if the server has no names.
pub(super) async fn environment_name(
    peer: &Peer,
    wanted: Option<&str>,
) -> Result<Option<String>, EnvironmentError> {
    const ROUTE: &str = "/list_environments";
    let answer = peer.answer(Ask::get(ROUTE)).await?;
    if is_without(answer.status) {
        return Ok(wanted.map(str::to_owned));
    }
    let names: Vec<String> = serde_json::from_value(answer.expected(ROUTE)?.json(ROUTE)?)
        .map_err(|error| malformed(ROUTE, error))?;
    let all = || shown(&names.join(", "));
    match (wanted, names.as_slice()) {
        // Servers of ORS compare without case.
        (Some(wanted), names) => {
            let name = names.iter().find(|name| name.eq_ignore_ascii_case(wanted));
            name.cloned().map(Some).ok_or_else(|| {
                let what = format!("the server has no environment `{wanted}`; it has {}", all());
                EnvironmentError::new(what)
            })
        }
        (None, [only]) => Ok(Some(only.clone())),
        (None, []) => Err(EnvironmentError::new("the server has no environments")),
        (None, _) => Err(EnvironmentError::new(format!(
            "the server has several environments; set `env_name` to one of {}",
            all()
        ))),
    }
}

/// Which tasks are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct WantedTasks {
    pub(super) split: Option<String>,
    pub(super) held_out_split: Option<String>,
    /// The most for training.
    pub(super) tasks: Option<usize>,
    /// The most for evaluation.
    pub(super) held_out: Option<usize>,
}

/// The tasks to train on, and those for evaluation.
pub(super) type DividedTasks = (TaskRange, TaskRange);

/// A split, as a server describes it.
#[derive(Clone, Debug, Deserialize)]
struct RemoteSplit {
    name: String,
    #[serde(rename = "type", default)]
    kind: String,
}

/// Asks for the splits of an environment; `None` if the server knows no tasks.
pub(super) async fn tasks(
    peer: &Peer,
    environment: &str,
    wanted: &WantedTasks,
) -> Result<Option<DividedTasks>, EnvironmentError> {
    let route = format!("/{}/splits", segment(environment));
    let answer = peer.answer(Ask::get(&route)).await?;
    if is_without(answer.status) {
        return Ok(None);
    }
    let splits: Vec<RemoteSplit> = serde_json::from_value(answer.expected(&route)?.json(&route)?)
        .map_err(|error| malformed(&route, error))?;
    let (train, held_out) = chosen(&splits, wanted)?;
    let n_train = n_tasks(peer, environment, &train).await?;
    let (n_train, first, held_out, n_held_out) = if let Some(held_out) = held_out {
        let n = n_tasks(peer, environment, &held_out).await?;
        (n_train, 0, held_out, n)
    } else {
        // The server has one split, of which the last tasks are kept.
        let kept = (n_train / 10).max(1);
        (n_train - kept, n_train - kept, train.clone(), kept)
    };
    let range = |split: String, first, n: u64, most: Option<usize>| {
        let n = n.min(most.map_or(u64::MAX, |most| most as u64));
        TaskRange::of_split(split, first, n)
    };
    let train = range(train, 0, n_train, wanted.tasks)?;
    let held_out = range(held_out, first, n_held_out, wanted.held_out)?;
    Ok(Some((train, held_out)))
}

/// Returns the splits for training and evaluation; `None` for a split of its own.
fn chosen(
    splits: &[RemoteSplit],
    wanted: &WantedTasks,
) -> Result<(String, Option<String>), EnvironmentError> {
    let all =
        || shown(&splits.iter().map(|split| split.name.as_str()).collect::<Vec<_>>().join(", "));
    let named = |option: &str, name: &String| {
        let known = splits.iter().any(|split| split.name == *name);
        known.then(|| name.clone()).ok_or_else(|| {
            let what = format!("`{option}` is `{name}`, and the server has {}", all());
            EnvironmentError::new(what)
        })
    };
    let of_kind =
        |kind: &str| splits.iter().find(|split| split.kind == kind).map(|split| &split.name);
    let train = match (&wanted.split, of_kind("train"), splits) {
        (Some(name), _, _) => named("split", name)?,
        (None, Some(train), _) => train.clone(),
        (None, None, [only]) => only.name.clone(),
        (None, None, []) => return Err(EnvironmentError::new("the server has no splits")),
        (None, None, _) => {
            let what =
                format!("no split of the server is for training; set `split` to one of {}", all());
            return Err(EnvironmentError::new(what));
        }
    };
    let held_out = match &wanted.held_out_split {
        Some(name) => Some(named("held_out_split", name)?),
        None => [of_kind("test"), of_kind("validation")].into_iter().flatten().next().cloned(),
    };
    if wanted.held_out_split.as_ref() == Some(&train) {
        return Err(EnvironmentError::new("`split` and `held_out_split` are the same"));
    }
    Ok((train.clone(), held_out.filter(|held_out| *held_out != train)))
}

async fn n_tasks(peer: &Peer, environment: &str, split: &str) -> Result<u64, EnvironmentError> {
    let route = format!("/{}/num_tasks", segment(environment));
    let answer: Value = peer.json(Ask::post(&route, json!({"split": split}))).await?;
    let n =
        answer["num_tasks"].as_u64().ok_or_else(|| malformed(&route, "num_tasks is no count"))?;
    if n == 0 {
        return Err(EnvironmentError::new(format!("the split `{}` has no tasks", shown(split))));
    }
    Ok(n)
}

/// Returns whether a server says that it does not have a route.
fn is_without(status: StatusCode) -> bool {
    matches!(status.as_u16(), 404 | 405 | 501)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(
        splits: &[(&str, &str)],
        split: &str,
        held_out: &str,
    ) -> Option<(String, Option<String>)> {
        let splits: Vec<RemoteSplit> = splits
            .iter()
            .map(|(name, kind)| RemoteSplit { name: (*name).to_owned(), kind: (*kind).to_owned() })
            .collect();
        let named = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
        let wanted = WantedTasks {
            split: named(split),
            held_out_split: named(held_out),
            ..WantedTasks::default()
        };
        chosen(&splits, &wanted).ok()
    }

    #[test]
    fn splits_are_chosen_by_what_they_are_for() {
        let own = |train: &str, held_out: &str| {
            Some((train.to_owned(), Some(held_out.to_owned()).filter(|name| !name.is_empty())))
        };
        let three = [("train", "train"), ("validation", "validation"), ("test", "test")];
        assert_eq!(choose(&three, "", ""), own("train", "test"));
        assert_eq!(choose(&three[..2], "", ""), own("train", "validation"));
        assert_eq!(choose(&three[..1], "", ""), own("train", ""));
        assert_eq!(choose(&three, "validation", ""), own("validation", "test"));
        assert_eq!(choose(&three, "", "validation"), own("train", "validation"));
        let own_names = [("easy", "validation"), ("hard", "validation")];
        assert_eq!(choose(&own_names, "", ""), None);
        assert_eq!(choose(&own_names, "hard", ""), own("hard", "easy"));
        assert_eq!(choose(&own_names[..1], "", ""), own("easy", ""));
        assert_eq!(choose(&[], "", ""), None);
        assert_eq!(choose(&three, "nope", ""), None);
        assert_eq!(choose(&three, "train", "train"), None);
    }
}
