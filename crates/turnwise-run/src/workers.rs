//! Rollout workers: what a run tells them, and how they make its environments and agents.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use turnwise_environment::Split;
use turnwise_rollout::{ChatAgents, Episode, Preface, StopSignal};
use turnwise_serve::{
    HubSettings, RolloutWorker, RunDescription, WorkEnd, WorkerError, WorkerHub, WorkerReport,
};

use crate::failure::Failure;
use crate::form::{Source, Wanted};
use crate::registry::Registry;
use crate::session::{SETTINGS, Session, trust_by_setting};

/// Where workers join a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkersChoice {
    /// The address at which workers join; at another than one of this machine, a token is needed.
    #[schemars(with = "String")]
    pub address: SocketAddr,
    /// A file with the token that workers send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Seconds after which the episodes of a silent worker are given to others.
    pub lease_s: f64,
}

impl Default for WorkersChoice {
    fn default() -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 7_700));
        Self { address, token_file: None, lease_s: 20.0 }
    }
}

/// The file of what precedes every conversation, among those of a run.
const PREFACE: &str = "preface.json";

/// Opens the door for the workers of a run.
pub(crate) async fn hub(session: &Session, choice: &WorkersChoice) -> Result<WorkerHub, Failure> {
    let files = run_files(session).map_err(|error| Failure::runtime(&error))?;
    let (tasks, agents, opponent) = session.parts_of_training();
    let restore =
        Arc::new(move |snapshot| Episode::restore_against(snapshot, &*tasks, &*agents, &opponent));
    let token = choice.token_file.as_deref().map(read_token).transpose()?;
    let settings = HubSettings {
        address: choice.address,
        token,
        lease_s: choice.lease_s,
        ..HubSettings::default()
    };
    WorkerHub::bind(settings, files, restore).await.map_err(|error| {
        Failure::refused_by(&error)
            .help("choose another with rollout.workers.address = \"127.0.0.1:PORT\"")
    })
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let wrong = |why: String| {
        Failure::refused(format!("cannot read the token in {}: {why}", file.display()))
    };
    let token = fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let token = token.trim().to_owned();
    if token.is_empty() { Err(wrong("it is empty".to_owned())) } else { Ok(token) }
}

/// Returns the files with which a worker makes the same agents: those of a checkpoint without its weights.
fn run_files(session: &Session) -> std::io::Result<RunDescription> {
    let directory = TempDir::new()?;
    session.complete_checkpoint(directory.path())?;
    let mut run = RunDescription::default();
    for entry in fs::read_dir(directory.path())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        run.files.insert(name, fs::read_to_string(entry.path())?);
    }
    run.settings = session.resolved()?;
    run.files.insert(PREFACE.to_owned(), serde_json::to_string(session.preface())?);
    Ok(run)
}

/// Joins a trainer and advances up to `n` of its episodes at a time, until a stop is requested, the run is over, or the trainer is
/// gone. A worker that the trainer has forgotten joins again: so does one whose trainer was stopped and resumed within a minute.
/// `registry` has the trainer's environments.
///
/// # Errors
/// When the trainer cannot be reached, or its environment or chat form cannot be made here.
pub async fn work(
    url: &str,
    token_file: Option<&Path>,
    n: usize,
    registry: &Registry,
    stop: &StopSignal,
) -> Result<WorkerReport, Failure> {
    let mut all = WorkerReport::default();
    loop {
        all = work_until_forgotten(url, token_file, n, registry, stop).await?.after(all);
        if all.end != WorkEnd::Forgotten || stop.requested() {
            return Ok(all);
        }
    }
}

async fn work_until_forgotten(
    url: &str,
    token_file: Option<&Path>,
    n: usize,
    registry: &Registry,
    stop: &StopSignal,
) -> Result<WorkerReport, Failure> {
    let worker = RolloutWorker::join(url, token_file).await.map_err(|error| {
        let failure = Failure::refused_by(&error);
        match error {
            WorkerError::Settings { .. } => failure,
            WorkerError::Join { .. } => {
                failure.help("start the run first, with [rollout.workers] in its settings")
            }
        }
    })?;
    let directory = TempDir::new().map_err(|error| Failure::runtime(&error))?;
    write(directory.path(), worker.run())?;
    let source = Source::of_model(directory.path(), None)?;
    let settings = directory.path().join(SETTINGS);
    let config = crate::config::load_beside_model(&settings)?.config;
    let suite = registry.suite(&config.environment.name, &config.environment.options)?;
    let form = source.form(&Wanted::by(&config), trust_by_setting)?;
    let preface = worker.run().files.get(PREFACE).map_or("{}", String::as_str);
    let preface: Preface = serde_json::from_str(preface).map_err(|error| {
        Failure::refused(format!("cannot read the trainer's system prompt and examples: {error}"))
    })?;
    let agents = ChatAgents {
        renderer: form.renderer,
        sampling: config.rollout.sampling(),
        compaction: config.rollout.compaction.clone(),
        constraint: None,
        preface,
    };
    Ok(worker.work(suite.tasks(Split::Train), Arc::new(agents), n, stop).await)
}

/// Writes the trainer's files. Their names must be plain, so that none can land elsewhere.
fn write(directory: &Path, run: &RunDescription) -> Result<(), Failure> {
    for (name, text) in &run.files {
        let is_plain =
            |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        if name.starts_with('.') || name.is_empty() || !name.chars().all(is_plain) {
            return Err(Failure::refused(format!("the trainer sends a file named {name:?}")));
        }
        fs::write(directory.join(name), text).map_err(|error| Failure::runtime(&error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trainer_cannot_write_outside_of_the_workers_directory() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["../evil", "/etc/evil", "a/b", "..", ".hidden", ""] {
            let files = [(name.to_owned(), String::new())].into();
            let run = RunDescription { files, ..RunDescription::default() };
            let said = write(directory.path(), &run).unwrap_err().to_string();
            assert!(said.contains("the trainer sends a file named"), "{said}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
