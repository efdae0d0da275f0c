use std::collections::BTreeMap;
use std::fmt;
use std::fs::{OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use serde_json::Value;
use turnwise_trajectory::{Trajectory, read_line};

use crate::disk::{open_plain, read_plain};
use crate::manifest::entries;
use crate::run_directory::{At, EVENTS, LOCK, METRICS, ROLLOUTS, SUMMARY, check_is_run};
use crate::{EvaluationRecord, RunDirectoryError};

/// The files of a run, for reading. Needs no lock: the run may be going on, or may have been killed.
#[derive(Clone, Debug)]
pub struct RunFiles {
    path: PathBuf,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// A process is training.
    Going,
    /// No process is training, and the run has not finished.
    Stopped,
    /// The run has finished, including its last evaluation.
    Finished,
}

/// A part of a run's files that is not what the run wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The name of the file.
    pub file: String,
    /// The number of damaged lines; `None` if the whole file is damaged.
    pub lines: Option<usize>,
}

impl Damage {
    fn of_lines(name: &str, n: usize) -> Option<Self> {
        (n > 0).then(|| Self { file: name.to_owned(), lines: Some(n) })
    }
}

impl fmt::Display for Damage {
    /// Formats the damage as a sentence: `2 lines of metrics.jsonl are damaged and left out`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = &self.file;
        match self.lines {
            None => write!(formatter, "{file} is damaged and left out"),
            Some(1) => write!(formatter, "1 line of {file} is damaged and left out"),
            Some(n) => write!(formatter, "{n} lines of {file} are damaged and left out"),
        }
    }
}

/// A file of episodes: those of a training step, or those of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EpisodeFile {
    /// Training episodes of the step with this index.
    Step(u64),
    /// Episodes of the evaluation with this name: `before`, `step-000100`, `after`.
    Evaluation(String),
}

/// The largest file with an evaluation.
const MAX_EVALUATION: u64 = 1 << 28;

impl RunFiles {
    /// Opens the directory of a run.
    ///
    /// # Errors
    /// If it does not exist, is not a directory, or holds no run.
    pub fn open(path: &Path) -> Result<Self, RunDirectoryError> {
        check_is_run(path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns every event of `events.jsonl`, without damaged lines.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn events(&self) -> Result<Vec<Value>, RunDirectoryError> {
        read_lines(&self.path.join(EVENTS))
    }

    /// Returns the metrics of every step in `metrics.jsonl`, in order and without damaged lines. If a step was repeated
    /// after a resumption, its last line counts.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn metrics(&self) -> Result<Vec<Value>, RunDirectoryError> {
        let rows = read_lines(&self.path.join(METRICS))?.into_iter();
        let steps: BTreeMap<u64, Value> =
            rows.filter_map(|row| Some((row["step"].as_u64()?, row))).collect();
        Ok(steps.into_values().collect())
    }

    /// Returns what the run is doing.
    #[must_use]
    pub fn state(&self) -> RunState {
        let is_locked = open_plain(&self.path.join(LOCK), OpenOptions::new().read(true))
            .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)));
        if is_locked {
            return RunState::Going;
        }
        let last =
            self.events().unwrap_or_default().into_iter().rev().find_map(|event| {
                match event["event"].as_str()? {
                    "end" => Some(RunState::Finished),
                    "start" | "resume" => Some(RunState::Stopped),
                    _ => None,
                }
            });
        last.unwrap_or(RunState::Stopped)
    }

    /// Returns the evaluations before the run, on the way, and after it, each with its name, oldest first. The one after
    /// the run stands where the run last ended: a run that was resumed has later ones. Runs of earlier versions kept
    /// the success alone.
    #[must_use]
    pub fn evaluations(&self) -> Vec<(String, EvaluationRecord)> {
        let before = self.evaluation("before").map(|record| ("before".to_owned(), record));
        let (mut later, mut end) = (BTreeMap::new(), u64::MAX);
        for event in self.events().unwrap_or_default() {
            let Some(step) = event["step"].as_u64() else { continue };
            let name = step_name(step);
            match event["event"].as_str() {
                Some("eval") => {
                    let kept = self.evaluation(&name);
                    let record = kept.or_else(|| record(event["eval"].clone()));
                    later.extend(record.map(|record| ((step, 0), (name, record))));
                }
                Some("end") => end = step,
                _ => {}
            }
        }
        let after =
            self.evaluation("after").or_else(|| record(self.summary()?["eval_after"].take()));
        later.extend(after.map(|record| ((end, 1), ("after".to_owned(), record))));
        before.into_iter().chain(later.into_values()).collect()
    }

    /// Returns the damaged parts of the logs and evaluations, which the other methods leave out. A last line without its
    /// end is not among them while the run goes on: it is being written.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn damage(&self) -> Result<Vec<Damage>, RunDirectoryError> {
        let mut damage = Vec::new();
        for name in [METRICS, EVENTS] {
            damage.extend(Damage::of_lines(name, self.n_damaged(&self.path.join(name))));
        }
        for path in entries(&self.path).at(&self.path)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(when) = name.strip_prefix("eval-") else { continue };
            if let Some(when) = when.strip_suffix(".jsonl") {
                let n = self.episodes(&EpisodeFile::Evaluation(when.to_owned()));
                damage.extend(Damage::of_lines(&name, n.map_or(0, |(_, n_damaged)| n_damaged)));
            } else if when.strip_suffix(".json").is_some_and(|when| self.evaluation(when).is_none())
            {
                damage.push(Damage { file: name, lines: None });
            }
        }
        Ok(damage)
    }

    /// Returns the number of lines of a log that are not JSON.
    fn n_damaged(&self, path: &Path) -> usize {
        let bytes = read_plain(path, u64::MAX).unwrap_or_default();
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        if self.state() == RunState::Going {
            lines.pop();
        }
        let is_damaged = |line: &&&[u8]| {
            !line.trim_ascii().is_empty() && serde_json::from_slice::<Value>(line).is_err()
        };
        lines.iter().filter(is_damaged).count()
    }

    fn evaluation(&self, name: &str) -> Option<EvaluationRecord> {
        let path = self.path.join(format!("eval-{name}.json"));
        let bytes = read_plain(&path, MAX_EVALUATION).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn summary(&self) -> Option<Value> {
        let bytes = read_plain(&self.path.join(SUMMARY), MAX_EVALUATION).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Returns the files of episodes: training steps in order, then evaluations by name.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn episode_files(&self) -> Result<Vec<EpisodeFile>, RunDirectoryError> {
        let mut files: Vec<EpisodeFile> = Vec::new();
        for (folder, begin) in [(self.path.join(ROLLOUTS), "step-"), (self.path.clone(), "eval-")] {
            for path in entries(&folder).at(&folder)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let Some(name) =
                    name.strip_prefix(begin).and_then(|rest| rest.strip_suffix(".jsonl"))
                else {
                    continue;
                };
                match begin {
                    "eval-" => files.push(EpisodeFile::Evaluation(name.to_owned())),
                    _ => files.extend(name.parse().map(EpisodeFile::Step)),
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// Returns the path of a file of episodes.
    #[must_use]
    pub fn path_of(&self, file: &EpisodeFile) -> PathBuf {
        match file {
            EpisodeFile::Step(step) => {
                self.path.join(ROLLOUTS).join(format!("{}.jsonl", step_name(*step)))
            }
            EpisodeFile::Evaluation(name) => self.path.join(format!("eval-{name}.jsonl")),
        }
    }

    /// Returns the episodes of a file, and the number of damaged lines that were left out.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn episodes(
        &self,
        file: &EpisodeFile,
    ) -> Result<(Vec<Trajectory>, usize), RunDirectoryError> {
        let path = self.path_of(file);
        let bytes = read_plain(&path, u64::MAX).at(&path)?;
        let (mut episodes, mut n_damaged) = (Vec::new(), 0);
        for line in String::from_utf8_lossy(&bytes).lines().filter(|line| !line.trim().is_empty()) {
            match read_line(line) {
                Ok(episode) => episodes.push(episode),
                Err(_) => n_damaged += 1,
            }
        }
        Ok((episodes, n_damaged))
    }
}

/// Returns the name of a step in the names of files.
fn step_name(step: u64) -> String {
    format!("step-{step:06}")
}

fn record(value: Value) -> Option<EvaluationRecord> {
    serde_json::from_value(value).ok()
}

/// Returns the values of a log line by line. Skips lines that are not JSON, which a failed disk or an edit may have
/// left.
fn read_lines(path: &Path) -> Result<Vec<Value>, RunDirectoryError> {
    let bytes = read_plain(path, u64::MAX).at(path)?;
    let lines = bytes.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}
