use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};
use turnwise_trajectory::write_line;

use crate::{Checkpoints, StepReport, SuccessRate, credit_records};

/// The files a run leaves. The log format is the interface: whatever shows a run only reads these.
///
/// ```text
/// config.toml     what the user wrote           run.toml      the resolved settings
/// metrics.jsonl   one object for each step      events.jsonl  start, checkpoint, resume, end
/// rollouts/       trajectories, a file a step   credit/       what their advantages are made of, line for line
/// checkpoints/    model directories with optimiser and trainer state
/// summary.json    before and after              lock          held while a process runs
/// ```
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    metrics: File,
    events: File,
    /// How often the run was resumed; readers keep the line with the highest where a step stands twice.
    resumes: u64,
    /// Locked for the life of the process; the system releases it however the process ends.
    _lock: File,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Held-out success before reinforcement learning, after the warm start.
    pub eval_before: SuccessRate,
    /// Held-out success at the end.
    pub eval_after: SuccessRate,
    /// Wall time, in seconds.
    pub seconds: f64,
}

impl RunDirectory {
    /// Makes the directory of a new run.
    ///
    /// # Errors
    /// When there is a run already, or the directory cannot be made.
    pub fn create(path: &Path) -> Result<Self, RunDirectoryError> {
        fs::create_dir_all(path.join(ROLLOUTS)).at(path)?;
        fs::create_dir_all(path.join(CREDIT)).at(path)?;
        let lock = lock(path)?;
        if path.join(METRICS).exists() {
            return Err(RunDirectoryError::Exists { path: path.to_owned() });
        }
        Self::open_files(path, lock, 0)
    }

    /// Opens the directory of a run that stopped.
    ///
    /// # Errors
    /// When there is no run, or another process is at it.
    pub fn resume(path: &Path) -> Result<Self, RunDirectoryError> {
        if !path.join(METRICS).exists() {
            return Err(RunDirectoryError::NotARun { path: path.to_owned() });
        }
        let lock = lock(path)?;
        let events = fs::read_to_string(path.join(EVENTS)).at(path)?;
        let resumes =
            events.lines().filter(|line| line.contains("\"event\":\"resume\"")).count() as u64;
        Self::open_files(path, lock, resumes + 1)
    }

    fn open_files(path: &Path, lock: File, resumes: u64) -> Result<Self, RunDirectoryError> {
        let append = |name: &str| {
            OpenOptions::new().create(true).append(true).open(path.join(name)).at(path)
        };
        Ok(Self {
            path: path.to_owned(),
            metrics: append(METRICS)?,
            events: append(EVENTS)?,
            resumes,
            _lock: lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its checkpoints.
    #[must_use]
    pub fn checkpoints(&self, keep: usize) -> Checkpoints {
        Checkpoints::new(self.path.join("checkpoints"), keep)
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: &str) -> Result<(), RunDirectoryError> {
        fs::write(self.path.join(name), content).at(&self.path)
    }

    /// Appends the numbers of a step to `metrics.jsonl`.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write_metrics(&mut self, report: &StepReport) -> Result<(), RunDirectoryError> {
        let mut line = Map::new();
        line.insert("step".to_owned(), json!(report.step));
        line.insert("resume".to_owned(), json!(self.resumes));
        line.extend(report.metrics.iter().map(|(name, value)| (name.to_owned(), number(value))));
        append_line(&mut self.metrics, &Value::Object(line)).at(&self.path)
    }

    /// Appends to `events.jsonl`: what happened, and what there is to say about it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_event(
        &mut self,
        event: &str,
        mut details: Map<String, Value>,
    ) -> Result<(), RunDirectoryError> {
        details.insert("event".to_owned(), json!(event));
        append_line(&mut self.events, &Value::Object(details)).at(&self.path)
    }

    /// Writes what a step trained on, at most `n` episodes: their trajectories to `rollouts/`, and what their credit is made
    /// of to `credit/`, line for line.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write_rollouts(&self, report: &StepReport, n: usize) -> Result<(), RunDirectoryError> {
        if n == 0 || report.trained.is_empty() {
            return Ok(());
        }
        let (mut rollouts, mut credit) = (Vec::new(), Vec::new());
        for trajectory in report.trained.iter().take(n) {
            write_line(&mut rollouts, trajectory).at(&self.path)?;
        }
        for record in credit_records(&report.credit, &report.trained).take(n) {
            serde_json::to_writer(&mut credit, &record).map_err(io::Error::from).at(&self.path)?;
            credit.push(b'\n');
        }
        let name = format!("step-{:06}.jsonl", report.step);
        fs::write(self.path.join(ROLLOUTS).join(&name), rollouts).at(&self.path)?;
        fs::write(self.path.join(CREDIT).join(&name), credit).at(&self.path)
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_summary(&self, summary: &Summary) -> Result<(), RunDirectoryError> {
        let json = serde_json::to_string_pretty(summary).map_err(io::Error::from).at(&self.path)?;
        self.write("summary.json", &(json + "\n"))
    }
}

const METRICS: &str = "metrics.jsonl";
const EVENTS: &str = "events.jsonl";
const ROLLOUTS: &str = "rollouts";
const CREDIT: &str = "credit";

/// Counts are written as whole numbers.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn append_line(file: &mut File, value: &Value) -> io::Result<()> {
    // One write for a line, so that a killed process leaves no half of one in the middle of a file.
    file.write_all(format!("{value}\n").as_bytes())
}

fn lock(path: &Path) -> Result<File, RunDirectoryError> {
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(path.join("lock"))
        .at(path)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).at(path)?;
            write!(file, "{}", std::process::id()).at(path)?;
            Ok(file)
        }
        Err(fs::TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(path.join("lock")).unwrap_or_default();
            Err(RunDirectoryError::Locked { path: path.to_owned(), holder })
        }
        Err(fs::TryLockError::Error(source)) => {
            Err(RunDirectoryError::Io { path: path.to_owned(), source })
        }
    }
}

trait At<T> {
    fn at(self, path: &Path) -> Result<T, RunDirectoryError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, RunDirectoryError> {
        self.map_err(|source| RunDirectoryError::Io { path: path.to_owned(), source })
    }
}

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirectoryError {
    /// There is a run in it.
    #[error("start a run in {}: there is one already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// There is none in it.
    #[error("go on with the run in {}: there is none", path.display())]
    NotARun {
        /// The directory.
        path: PathBuf,
    },
    /// Another process is at it.
    #[error("use {}: process {holder} is at it", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process.
        holder: String,
    },
    /// The file system.
    #[error("use the run directory {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
