use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};
use turnwise_trajectory::write_line;

use crate::disk::open_plain;
use crate::json_lines::JsonLines;
use crate::manifest::entries;
use crate::{
    Checkpoints, EvaluationRecord, RunFiles, StepReport, SuccessDifference, SuccessRate,
    credit_records,
};

/// The files of a run. The log format is the interface: a viewer of runs only reads these files.
///
/// ```text
/// config.toml     what the user wrote           run.toml      the resolved settings
/// metrics.jsonl   one object for each step      events.jsonl  start, checkpoint, faults, resume, failed, end
/// rollouts/       trajectories, a file a step   credit/       what their advantages are made of, line for line
/// checkpoints/    model directories with optimiser and trainer state
/// eval-*.json     success and scores            eval-*.jsonl  some of the episodes of an evaluation
/// summary.json    before and after              lock          held while a process runs
/// before-after.txt  a held-out episode as the starting policy and as the trained one played it
/// tool_calls.jsonl  calls of tools that are not idempotent, so that a resumed run makes none twice
/// ```
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    metrics: JsonLines,
    events: JsonLines,
    /// The number of resumptions; if a step has two lines, readers keep the one with the highest number.
    resumes: u64,
    /// The lock, held for the life of the process; the system releases it however the process ends.
    _lock: File,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Held-out success before reinforcement learning, after the warm start; `None` if it was lost.
    pub eval_before: Option<SuccessRate>,
    /// Held-out success at the end.
    pub eval_after: SuccessRate,
    /// The change from the first to the last evaluation.
    pub difference: Option<SuccessDifference>,
    /// The change in words.
    pub verdict: Option<String>,
    /// Wall time, in seconds.
    pub seconds: f64,
    /// The largest resident memory of the process, in bytes, if the system reports it.
    pub peak_bytes: Option<u64>,
    /// What is wrong with the run, as sentences, most important first; empty for a run without findings.
    pub warnings: Vec<String>,
}

impl RunDirectory {
    /// The folder through which a server gets new weights.
    pub const ENGINE: &str = "engine";

    /// Creates the directory of a new run. A run that stopped before its first checkpoint is restarted, because nothing
    /// of it was kept.
    ///
    /// # Errors
    /// If it already holds a run or other files, or cannot be created.
    pub fn create(path: &Path) -> Result<Self, RunDirectoryError> {
        Self::check(path)?;
        for folder in [ROLLOUTS, CREDIT] {
            fs::create_dir_all(path.join(folder)).at(path)?;
        }
        let lock = lock(path)?;
        Self::check(path)?;
        match fs::remove_file(path.join(EVENTS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(path)?,
            _ => {}
        }
        Self::open_files(path, lock, 0)
    }

    /// Rejects a directory in which no new run can begin, and creates nothing.
    ///
    /// # Errors
    /// If it already holds a run or other files, or its name is not UTF-8.
    pub fn check(path: &Path) -> Result<(), RunDirectoryError> {
        check_name(path)?;
        if let Some(name) = foreign_entry(path).at(path)? {
            return Err(RunDirectoryError::NotEmpty { path: path.to_owned(), name });
        }
        let published = |path: &PathBuf| {
            path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.'))
        };
        let has_checkpoints = entries(&path.join(CHECKPOINTS)).at(path)?.iter().any(published);
        let has_steps = fs::metadata(path.join(METRICS)).is_ok_and(|metrics| metrics.len() > 0);
        if has_checkpoints || has_steps {
            return Err(RunDirectoryError::Exists { path: path.to_owned(), has_checkpoints });
        }
        Ok(())
    }

    /// Opens the directory of a stopped run. Removes a line that was cut short by a kill or a full disk.
    ///
    /// # Errors
    /// If it holds no run, or another process uses it.
    pub fn resume(path: &Path) -> Result<Self, RunDirectoryError> {
        check_name(path)?;
        check_is_run(path)?;
        let lock = lock(path)?;
        let mut directory = Self::open_files(path, lock, 0)?;
        let is_resume = |event: &Value| event["event"] == "resume";
        let resumes = directory.events()?.iter().filter(|event| is_resume(event)).count();
        directory.resumes = resumes as u64 + 1;
        Ok(directory)
    }

    fn open_files(path: &Path, lock: File, resumes: u64) -> Result<Self, RunDirectoryError> {
        Ok(Self {
            path: path.to_owned(),
            metrics: JsonLines::open(&path.join(METRICS)).at(&path.join(METRICS))?,
            events: JsonLines::open(&path.join(EVENTS)).at(&path.join(EVENTS))?,
            resumes,
            _lock: lock,
        })
    }

    /// Returns every event of `events.jsonl`, without damaged lines.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn events(&self) -> Result<Vec<Value>, RunDirectoryError> {
        self.files()?.events()
    }

    /// Returns the files of the run, for reading.
    ///
    /// # Errors
    /// If they were removed meanwhile.
    pub fn files(&self) -> Result<RunFiles, RunDirectoryError> {
        RunFiles::open(&self.path)
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the checkpoints of the run.
    #[must_use]
    pub fn checkpoints(&self, keep: usize) -> Checkpoints {
        Checkpoints::new(self.path.join(CHECKPOINTS), keep)
    }

    /// Replaces a file atomically: it has its whole new content, or its old one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, content: &str) -> Result<(), RunDirectoryError> {
        let path = self.path.join(name);
        replace(&path, content.as_bytes()).at(&path)
    }

    /// Writes `eval-NAME.json`: the success and the scores of an evaluation.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_evaluation(
        &self,
        name: &str,
        record: &EvaluationRecord,
    ) -> Result<(), RunDirectoryError> {
        let json = serde_json::to_string(record).map_err(io::Error::from).at(&self.path)?;
        self.write(&format!("eval-{name}.json"), &(json + "\n"))
    }

    /// Appends the metrics of a step to `metrics.jsonl`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_metrics(&mut self, report: &StepReport) -> Result<(), RunDirectoryError> {
        let mut line = Map::new();
        line.insert("step".to_owned(), json!(report.step));
        line.insert("resume".to_owned(), json!(self.resumes));
        line.extend(report.metrics.iter().map(|(name, value)| (name.to_owned(), number(value))));
        self.metrics.append(&Value::Object(line)).at(&self.path.join(METRICS))
    }

    /// Appends an event and its details to `events.jsonl`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_event(
        &mut self,
        event: &str,
        mut details: Map<String, Value>,
    ) -> Result<(), RunDirectoryError> {
        details.insert("event".to_owned(), json!(event));
        self.events.append(&Value::Object(details)).at(&self.path.join(EVENTS))
    }

    /// Writes at most `n` trained episodes of a step: their trajectories to `rollouts/`, and their credit records to
    /// `credit/`, line for line. Of a step that trained on none, writes the episodes that it left out, which have no
    /// credit.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_rollouts(&self, report: &StepReport, n: usize) -> Result<(), RunDirectoryError> {
        let is_trained = !report.trained.is_empty();
        let episodes = if is_trained { &report.trained } else { &report.untrained };
        if n == 0 || episodes.is_empty() {
            return Ok(());
        }
        let (mut rollouts, mut credit) = (Vec::new(), Vec::new());
        for trajectory in episodes.iter().take(n) {
            write_line(&mut rollouts, trajectory).at(&self.path)?;
        }
        for record in credit_records(&report.credit, &report.trained).take(n) {
            serde_json::to_writer(&mut credit, &record).map_err(io::Error::from).at(&self.path)?;
            credit.push(b'\n');
        }
        let name = format!("step-{:06}.jsonl", report.step);
        for (folder, lines) in [(ROLLOUTS, rollouts), (CREDIT, credit)] {
            if lines.is_empty() {
                continue;
            }
            let path = self.path.join(folder).join(&name);
            replace(&path, &lines).at(&path)?;
        }
        Ok(())
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_summary(&self, summary: &Summary) -> Result<(), RunDirectoryError> {
        let json = serde_json::to_string_pretty(summary).map_err(io::Error::from).at(&self.path)?;
        self.write(SUMMARY, &(json + "\n"))
    }
}

pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const EVENTS: &str = "events.jsonl";
pub(crate) const ROLLOUTS: &str = "rollouts";
const CREDIT: &str = "credit";
const CHECKPOINTS: &str = "checkpoints";
pub(crate) const SUMMARY: &str = "summary.json";
pub(crate) const LOCK: &str = "lock";

/// A directory with one of these names holds a run, even if the others were lost.
const OF_A_RUN: [&str; 3] = [METRICS, "run.toml", CHECKPOINTS];

/// Rejects a path that is not the directory of a run.
pub(crate) fn check_is_run(path: &Path) -> Result<(), RunDirectoryError> {
    let own = || path.to_owned();
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(RunDirectoryError::Missing { path: own() })
        }
        Err(source) => Err(RunDirectoryError::Io { path: own(), source }),
        Ok(metadata) if !metadata.is_dir() => Err(RunDirectoryError::NotADirectory { path: own() }),
        Ok(_) if !OF_A_RUN.iter().any(|name| path.join(name).exists()) => {
            Err(RunDirectoryError::NotARun { path: own() })
        }
        Ok(_) => Ok(()),
    }
}

/// Every name that a run may have written before its first checkpoint.
const OWN: [&str; 13] = [
    METRICS,
    EVENTS,
    ROLLOUTS,
    CREDIT,
    CHECKPOINTS,
    SUMMARY,
    LOCK,
    "config.toml",
    "run.toml",
    "reference",
    "tool_calls.jsonl",
    "before-after.txt",
    RunDirectory::ENGINE,
];

/// Rejects names that JSON and TOML, the formats of a run's files, cannot express.
fn check_name(path: &Path) -> Result<(), RunDirectoryError> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(RunDirectoryError::NotText { path: path.to_owned() }),
    }
}

/// Returns an entry that no run has written; ignores hidden files.
fn foreign_entry(path: &Path) -> io::Result<Option<String>> {
    let is_own =
        |name: &str| name.starts_with('.') || name.starts_with("eval-") || OWN.contains(&name);
    let names = entries(path)?;
    let mut names = names.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy()));
    Ok(names.find(|name| !is_own(name)).map(String::from))
}

/// Writes a temporary file, and renames it to the final name when it is whole.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let staging = path.with_file_name(format!(".tmp-{name}"));
    let mut options = OpenOptions::new();
    let mut file = open_plain(&staging, options.create(true).write(true).truncate(true))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&staging, path)
}

/// Converts a value to JSON; a count becomes a whole number.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn lock(path: &Path) -> Result<File, RunDirectoryError> {
    let mut options = OpenOptions::new();
    let options = options.create(true).read(true).write(true).truncate(false);
    let name = path.join(LOCK);
    let mut file = open_plain(&name, options).at(&name)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).at(&name)?;
            write!(file, "{}", std::process::id()).at(&name)?;
            Ok(file)
        }
        Err(fs::TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(name).unwrap_or_default();
            Err(RunDirectoryError::Locked { path: path.to_owned(), holder })
        }
        Err(fs::TryLockError::Error(source)) => Err(RunDirectoryError::Io { path: name, source }),
    }
}

/// Adds the path to an error of the file system.
pub(crate) trait At<T> {
    fn at(self, path: &Path) -> Result<T, RunDirectoryError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, RunDirectoryError> {
        self.map_err(|source| RunDirectoryError::Io { path: path.to_owned(), source })
    }
}

/// The reason why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirectoryError {
    /// The directory holds a run.
    #[error("cannot start a run in {}: there is one already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
        /// Whether that run can continue.
        has_checkpoints: bool,
    },
    /// The directory holds other files.
    #[error("cannot start a run in {}: it holds `{name}`, which is not a file of a run", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// The name of such a file.
        name: String,
    },
    /// The name of the directory is not UTF-8.
    #[error("cannot use the run directory {}: its name is not UTF-8", path.display())]
    NotText {
        /// The directory.
        path: PathBuf,
    },
    /// There is nothing at the path of a run.
    #[error("cannot find a run in {}: it does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The path of a run is not a directory.
    #[error("cannot find a run in {}: it is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The directory holds no run.
    #[error("cannot find a run in {}: it has neither metrics, nor run.toml, nor checkpoints", path.display())]
    NotARun {
        /// The directory.
        path: PathBuf,
    },
    /// Another process uses the directory.
    #[error("cannot use {}: process {holder} is using it", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process id.
        holder: String,
    },
    /// A file-system error.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// The directory, or the file in it.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
