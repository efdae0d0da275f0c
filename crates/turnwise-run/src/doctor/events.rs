//! What the log of events says about a run.

use serde_json::Value;
use turnwise_training::RunState;

use crate::text::{fit, one_line};

/// The event with the attempts of a step that broke.
pub(crate) const FAULTS: &str = "faults";

/// The event of a run that an error ended.
pub(crate) const FAILED: &str = "failed";

/// The events that accompany a step, and say nothing of their own about what the run did last.
const BESIDE: [&str; 2] = [FAULTS, "alarm"];

/// The longest text of an error: that of a template has the template in it.
const WIDTH: usize = 240;

/// The error that ended a run.
#[derive(Clone, Debug)]
pub(super) struct RunFailure {
    /// What failed.
    pub(super) text: String,
    /// What to do about it.
    pub(super) help: String,
}

/// Returns the error that ended a run, if it has not gone on since.
pub(super) fn failure(events: &[Value], state: RunState) -> Option<RunFailure> {
    let last = last_of_run(events).filter(|_| state == RunState::Stopped)?;
    let text = |key: &str, between: &str| {
        let text = last[key].as_str().unwrap_or_default();
        fit(&one_line(&text.replace('\n', between)), WIDTH)
    };
    (last["event"] == FAILED)
        .then(|| RunFailure { text: text("text", " "), help: text("help", "; ") })
}

/// Returns the last event in words: `checkpoint after 3 steps`.
pub(super) fn last(events: &[Value]) -> Option<String> {
    let last = last_of_run(events)?;
    let name = one_line(last["event"].as_str()?);
    Some(match last["step"].as_u64() {
        None => name,
        Some(1) => format!("{name} after 1 step"),
        Some(n) => format!("{name} after {n} steps"),
    })
}

fn last_of_run(events: &[Value]) -> Option<&Value> {
    let is_own =
        |event: &&Value| event["event"].as_str().is_some_and(|name| !BESIDE.contains(&name));
    events.iter().rfind(is_own)
}
