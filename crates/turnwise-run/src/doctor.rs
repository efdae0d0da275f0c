//! Why a run does not learn, or how it may go wrong: rules over the files of a run, while it goes on and afterwards.

mod events;
mod evidence;
mod finding;
mod live;
#[cfg(test)]
mod long_messages;
mod rules;
#[cfg(test)]
mod tests;
mod verdict;

use std::path::Path;

use serde::Serialize;
use turnwise_training::{Damage, EvaluationRecord, RunFiles, RunState, SuccessDifference};

pub use finding::{Finding, Severity};
pub use verdict::Verdict;

use crate::config::{self, Config};
use crate::failure::Failure;
use crate::train::SETTINGS;
pub(crate) use events::{FAILED, FAULTS};
use evidence::Evidence;
pub(crate) use evidence::StepMetrics;
pub(crate) use live::Attendance;

/// What [`diagnose`] found in the files of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    /// Whether the run learned; `None` before a second evaluation.
    pub verdict: Option<Verdict>,
    /// What the run is doing: `going on`, `stopped` or `finished`.
    pub state: &'static str,
    /// The number of finished steps.
    pub steps: usize,
    /// The number of steps of the whole run.
    pub of_steps: u64,
    /// The last event of the run, in words; `None` if it logged none.
    pub last_event: Option<String>,
    /// The findings, most important first: those that stop learning before those that slow it, and among these a fault
    /// before those that it can cause.
    pub findings: Vec<Finding>,
    /// What could not be judged, and why, as sentences.
    pub unknown: Vec<String>,
}

impl Diagnosis {
    /// Returns the diagnosis as lines of a screen, the verdict first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.verdict.map_or_else(
            || "no verdict: the run has no evaluation after the one at its start".to_owned(),
            |verdict| verdict.to_string(),
        )];
        lines.extend(self.findings.iter().flat_map(Finding::lines));
        if !self.is_judged() {
            let last = self.last_event.as_deref().unwrap_or("unknown");
            lines.push(format!(
                "? there is nothing to judge yet: 0 of {} steps have ended, and the last event is: {last}",
                self.of_steps
            ));
        } else if self.findings.is_empty() {
            lines.push("✓ nothing is wrong".to_owned());
        }
        lines
    }

    /// Returns whether the run had a step or an evaluation to judge.
    #[must_use]
    pub fn is_judged(&self) -> bool {
        self.steps > 0 || self.verdict.is_some()
    }
}

/// Reads the files of a run, and says whether it learned and what is wrong with it. The run may be going on, or may have
/// been stopped or killed; what its files lack is not judged.
///
/// # Errors
/// When the directory holds no run, or its settings cannot be read.
pub fn diagnose(run: &Path) -> Result<Diagnosis, Failure> {
    let files = RunFiles::open(run)?;
    let settings = run.join(SETTINGS);
    let config = config::load_beside_model(&settings)
        .map_err(|failure| {
            failure.help("a run without its run.toml cannot be judged; the newest checkpoint has a copy, turnwise.toml")
        })?
        .config;
    let state = files.state();
    Ok(examine(&files, config, state))
}

/// Returns the diagnosis of a run with these settings in this state.
pub(crate) fn examine(files: &RunFiles, config: Config, state: RunState) -> Diagnosis {
    let mut unknown: Vec<String> =
        files.damage().unwrap_or_default().iter().map(Damage::to_string).collect();
    let of_steps = config.run.steps;
    let mut evidence = Evidence::new(config);
    evidence.is_whole = state != RunState::Going;
    match files.metrics() {
        Ok(rows) => evidence.steps = rows.iter().map(StepMetrics::of_row).collect(),
        Err(_) => {
            unknown.push("metrics.jsonl cannot be read, so that no step is judged".to_owned());
        }
    }
    let events = files.events().unwrap_or_default();
    evidence.read_faults(&events);
    evidence.failure = events::failure(&events, state);
    evidence.read_episodes(files);
    if evidence.episodes.is_empty() {
        unknown.push(
            "there are no episodes in rollouts/ or eval-*.jsonl, so that findings have no examples"
                .to_owned(),
        );
    }
    let evaluations = files.evaluations();
    evidence.n_held_out = evaluations.iter().rev().find_map(|(_, record)| record.tasks);
    evidence.change = change(&evaluations, state);
    Diagnosis {
        verdict: evidence.change.map(Verdict::of),
        state: match state {
            RunState::Going => "going on",
            RunState::Stopped => "stopped",
            RunState::Finished => "finished",
        },
        steps: evidence.steps.len(),
        of_steps,
        last_event: events::last(&events),
        findings: rules::findings(&evidence),
        unknown,
    }
}

/// Returns the change from the evaluation before training to the one after it, or, in a run that has not finished, to
/// the newest.
fn change(
    evaluations: &[(String, EvaluationRecord)],
    state: RunState,
) -> Option<SuccessDifference> {
    let [(first, before), later @ ..] = evaluations else { return None };
    let is_last = |(name, _): &&(String, EvaluationRecord)| name == "after";
    let last = later.iter().find(is_last).filter(|_| state == RunState::Finished);
    let (_, after) = last.or(later.last()).filter(|_| first == "before")?;
    // An evaluation in which every episode broke shows nothing.
    let has_episodes = [before, after].iter().all(|record| record.success.episodes > 0);
    has_episodes.then(|| before.change_to(after))
}
