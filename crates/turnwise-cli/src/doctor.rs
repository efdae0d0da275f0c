//! `turnwise doctor`: why a run does not learn, or how it may go wrong.

use std::path::Path;

use turnwise_run::text::one_line;
use turnwise_run::{Diagnosis, ExitCode, Failure, diagnose};

use crate::say;

/// Prints the diagnosis of a run. A run with findings is a failure, as an environment that fails a check is, and so is
/// one of which nothing can be said.
pub(crate) fn doctor(run: &Path, json: bool) -> Result<(), Failure> {
    let diagnosis = diagnose(run)?;
    if json {
        let json =
            serde_json::to_string_pretty(&diagnosis).map_err(|error| Failure::runtime(&error))?;
        say(&(json + "\n"))?;
    } else {
        say(&page(run, &diagnosis))?;
    }
    let what = match diagnosis.findings.len() {
        0 if diagnosis.is_judged() => return Ok(()),
        0 => format!("{} has nothing to judge yet", run.display()),
        1 => format!("{} has a finding", run.display()),
        n => format!("{} has {n} findings", run.display()),
    };
    Err(Failure::new(ExitCode::Runtime, what))
}

/// Formats a diagnosis: the verdict and the findings, then the state of the run.
fn page(run: &Path, diagnosis: &Diagnosis) -> String {
    let Diagnosis { state, steps, of_steps, .. } = diagnosis;
    let mut lines = diagnosis.lines();
    let last = match &diagnosis.last_event {
        Some(event) if diagnosis.is_judged() && *state == "stopped" => {
            format!("; the last event is: {event}")
        }
        _ => String::new(),
    };
    lines.push(format!("run    {}: {steps} of {of_steps} steps, {state}{last}", run.display()));
    lines.extend(diagnosis.unknown.iter().map(|unknown| format!("note   {unknown}")));
    if !diagnosis.findings.is_empty() {
        lines.push(format!("next   turnwise show {}", run.display()));
    }
    lines.iter().map(|line| one_line_keeping_indent(line) + "\n").collect()
}

/// Removes control characters, which may come from the run's files, and keeps the spaces at the start.
fn one_line_keeping_indent(line: &str) -> String {
    let indent = line.len() - line.trim_start_matches(' ').len();
    format!("{}{}", " ".repeat(indent), one_line(line))
}
