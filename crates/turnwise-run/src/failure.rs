//! The failure of a command: what failed, where, what to do about it, and an exit code.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use turnwise_candle::ModelError;
use turnwise_rollout::RolloutError;
use turnwise_serve::VerifiersOptions;
use turnwise_training::{
    CanaryError, CheckpointError, Checkpoints, LearnerError, RunDirectoryError, TrainError,
};
use turnwise_trajectory::InfraReason;

use crate::run::begin_again;
use crate::text::presentable;

/// The exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Disk, memory or another failure at run time.
    Runtime = 1,
    /// Refused before anything started.
    Refused = 2,
    /// Another process uses the run directory.
    Locked = 3,
    /// A number became NaN or infinite.
    Numeric = 4,
    /// Too many infrastructure faults.
    Infrastructure = 5,
    /// The terminal was closed; the run can be resumed.
    HungUp = 129,
    /// Interrupted; the run can be resumed.
    Interrupted = 130,
    /// Terminated; the run can be resumed.
    Terminated = 143,
}

/// A failure of a command, ready to be shown.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: ExitCode,
    what: String,
    /// The place in a file, as lines to print.
    place: Option<String>,
    help: Option<String>,
}

impl Failure {
    /// Creates a failure with a sentence that says what failed.
    #[must_use]
    pub fn new(code: ExitCode, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), place: None, help: None }
    }

    /// Creates a refusal, before anything has begun.
    #[must_use]
    pub fn refused(what: impl Into<String>) -> Self {
        Self::new(ExitCode::Refused, what)
    }

    /// Creates a refusal from an error and its causes.
    #[must_use]
    pub fn refused_by(error: &(dyn Error + 'static)) -> Self {
        Self::caused_by(ExitCode::Refused, error)
    }

    /// Creates a failure at run time from an error and its causes.
    #[must_use]
    pub fn runtime(error: &(dyn Error + 'static)) -> Self {
        Self::caused_by(ExitCode::Runtime, error)
    }

    /// Creates a failure from an error. Numbers that are not finite have an exit code and a help of their own.
    fn caused_by(code: ExitCode, error: &(dyn Error + 'static)) -> Self {
        if is_caused_by_numbers(error) && code == ExitCode::Refused {
            Self::new(ExitCode::Numeric, chain(error)).help(
                "the weights are broken: download the model again, or use an earlier checkpoint of its training",
            )
        } else if is_caused_by_numbers(error) {
            Self::not_finite(chain(error))
        } else {
            Self::new(code, chain(error))
        }
    }

    /// Creates the failure for a number that is NaN or infinite.
    fn not_finite(what: String) -> Self {
        Self::new(ExitCode::Numeric, what).help(
            "the weights are broken, not the environment: use an earlier checkpoint;\nwhere training broke them, a smaller step: train.learning_rate / 3, or train.max_grad_norm = 0.5",
        )
    }

    /// Adds the place in a file, as lines to print.
    #[must_use]
    pub fn at(mut self, place: String) -> Self {
        self.place = Some(place);
        self
    }

    /// Replaces the placeholder in the help by what plays the episodes: the environment, or the agent program.
    #[must_use]
    pub(crate) fn in_environment(mut self, name: &str, program: Option<&str>) -> Self {
        self.help = self.help.map(|help| naming(&help, name, program));
        self
    }

    /// Replaces the placeholder in the help by the run's directory; for a run without a checkpoint, the help says to
    /// start again.
    pub(crate) fn in_run(mut self, path: &Path) -> Self {
        let Some(help) = self.help.take_if(|help| help.contains(RESUME)) else { return self };
        let shown = path.display().to_string();
        let go_on = if Checkpoints::new(path.join("checkpoints"), 0)
            .newest()
            .is_ok_and(|newest| newest.is_some())
        {
            help.replace(RESUME, &format!("turnwise resume {shown}"))
        } else {
            let begin = begin_again(&shown);
            help.replace(DISK, &format!("make room, or see to the disk, and\n{begin}"))
        };
        self.help = Some(go_on);
        self
    }

    /// Returns what failed, and what to do about it.
    pub(crate) fn texts(&self) -> (&str, &str) {
        (&self.what, self.help.as_deref().unwrap_or_default())
    }

    /// Adds a line to the help.
    #[must_use]
    pub fn also(mut self, more: impl Into<String>) -> Self {
        let help = self.help.take().map(|help| help + "\n").unwrap_or_default();
        self.help = Some(help + &more.into());
        self
    }

    /// Sets the help: what to do about the failure.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names, values and causes come from files and other programs, and all of them are cleaned here.
        writeln!(formatter, "error: {}", presentable(&self.what))?;
        if let Some(place) = &self.place {
            writeln!(formatter, "{}", presentable(place))?;
        }
        match &self.help {
            Some(help) => {
                writeln!(formatter, "  help: {}", presentable(help).replace('\n', "\n        "))
            }
            None => Ok(()),
        }
    }
}

impl Error for Failure {}

/// Returns whether the error, or one of its causes, is a number that is NaN or infinite.
fn is_caused_by_numbers(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(ModelError::NotFinite { .. }))
        || matches!(error.downcast_ref(), Some(LearnerError::NotFinite { .. }))
        || error.source().is_some_and(is_caused_by_numbers)
}

/// Returns whether the disk is full or fails, which the user can do something about.
fn is_of_the_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    const EIO: i32 = 5;
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem)
        || error.raw_os_error() == Some(EIO)
}

/// Formats an error and its causes on one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    // An error of the system alone says neither what was attempted nor on which file.
    let is_bare = error.is::<std::io::Error>() || error.is::<serde_json::Error>();
    let mut text = if is_bare { format!("failed: {error}") } else { error.to_string() };
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<RunDirectoryError> for Failure {
    fn from(error: RunDirectoryError) -> Self {
        match &error {
            RunDirectoryError::Exists { path, has_checkpoints: true } => {
                let path = path.display();
                Self::refused(format!("{path} holds a run already"))
                    .help(format!("continue it          turnwise resume {path}\nor choose another    --run-dir DIR"))
            }
            RunDirectoryError::Exists { path, has_checkpoints: false } => {
                let path = path.display();
                Self::refused(format!("{path} holds the metrics of a run without a checkpoint"))
                    .help("choose another directory with --run-dir DIR, or delete this one")
            }
            RunDirectoryError::NotEmpty { path, name } => {
                let path = path.display();
                Self::refused(format!("{path} is no run directory: it holds `{name}`"))
                    .help("choose a new or an empty directory with --run-dir DIR")
            }
            RunDirectoryError::NotText { path } => {
                let path = path.display();
                Self::refused(format!("the name of the run directory {path} is not UTF-8"))
                    .help("choose another with --run-dir DIR: logs and settings repeat it")
            }
            RunDirectoryError::Locked { path, holder } => {
                let what =
                    format!("run directory {} is in use by process {holder}", path.display());
                Self::new(ExitCode::Locked, what)
                    .help("wait for it, or choose another with --run-dir DIR")
            }
            RunDirectoryError::Missing { path } => {
                Self::refused(format!("{} does not exist", path.display()))
                    .help("name the directory of a run, as  ls runs  has it")
            }
            RunDirectoryError::NotADirectory { path } => Self::refused(format!(
                "{} is a file, and not the directory of a run",
                path.display()
            ))
            .help("name the directory that has run.toml and metrics.jsonl"),
            RunDirectoryError::NotARun { path } => {
                Self::refused(format!("{} holds no run", path.display()))
                    .help("start one with  turnwise train CONFIG.toml")
            }
            RunDirectoryError::Io { source, .. } if is_of_the_disk(source) => {
                Self::runtime(&error).help(DISK)
            }
            RunDirectoryError::Io { .. } => Self::runtime(&error),
        }
    }
}

/// The command that resumes a run, with a placeholder for its directory; [`Failure::in_run`] replaces it.
const RESUME: &str = "turnwise resume RUN";
/// The help for a disk that is full or fails.
const DISK: &str = "the checkpoints that were there are still good; make room, or see to the disk, and go on with\nturnwise resume RUN";

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        match &error {
            CheckpointError::NoneWhole { .. } | CheckpointError::Content { .. } => {
                Self::refused_by(&error)
            }
            CheckpointError::NoSpace { .. } => Self::runtime(&error).help(DISK),
            CheckpointError::Io { .. } | CheckpointError::Learner(_) if error.is_of_the_disk() => {
                Self::runtime(&error).help(DISK)
            }
            CheckpointError::Learner(error) => Self::runtime(error),
            CheckpointError::Io { .. } => Self::runtime(&error),
        }
    }
}

impl From<RolloutError> for Failure {
    fn from(error: RolloutError) -> Self {
        let what = match &error {
            RolloutError::NotFinite { .. } => return Self::not_finite(chain(&error)),
            RolloutError::TooManyFaults { n, last } => {
                format!("{n} episodes in a row broke, the last with {last}")
            }
            RolloutError::AllBroke { n: 1, first } => format!("the episode broke with {first}"),
            RolloutError::AllBroke { n, first } => {
                format!("each of {n} episodes broke, the first with {first}")
            }
            RolloutError::StuckThreads { n, environment } => {
                format!("`{environment}` has blocked {n} threads beyond their deadline")
            }
            RolloutError::BadRewards { n, of, last } => {
                format!("{n} of the last {of} episodes had a bad reward, the last {last}")
            }
        };
        let help = match &error {
            RolloutError::TooManyFaults { last: fault, .. }
            | RolloutError::AllBroke { first: fault, .. } => help_for(fault.reason),
            _ => CHECK_ENVIRONMENT,
        };
        Self::new(ExitCode::Infrastructure, what).help(help)
    }
}

/// Replaces the placeholder in a help by the name of the environment; where an agent program or a server plays, the help is
/// about that.
pub(crate) fn naming(help: &str, environment: &str, program: Option<&str>) -> String {
    match program {
        Some(command) if help.contains(PLACEHOLDER) => format!(
            "the agent program failed, or its environment: the message has its last lines; the program is  {command}"
        ),
        None if environment == VerifiersOptions::ENVIRONMENT && help.contains(PLACEHOLDER) => {
            "the server of verifiers failed, or was slower than limits.environment_timeout_s: the message has what it said, and its log has more".to_owned()
        }
        _ => help.replace(PLACEHOLDER, &format!("env check {environment}")),
    }
}

/// What a help says of the environment before its name is known.
const PLACEHOLDER: &str = "env check NAME";

const CHECK_ENVIRONMENT: &str =
    "see whether the environment holds its contract:  turnwise env check NAME";

/// Returns the help for episodes that repeatedly break for this reason: most reasons are not the environment's.
pub(crate) fn help_for(reason: InfraReason) -> &'static str {
    match reason {
        InfraReason::EnvError
        | InfraReason::EnvPanic
        | InfraReason::BadReward
        | InfraReason::Protocol
        | InfraReason::Snapshot => CHECK_ENVIRONMENT,
        InfraReason::EnvTimeout => {
            "the environment is slow or stuck:  turnwise env check NAME, or raise limits.environment_timeout_s"
        }
        InfraReason::EngineError | InfraReason::BadEngine => {
            "the engine failed, and not the environment: the message above says on what; see [engine] and [model] in the settings"
        }
        InfraReason::EngineTimeout => {
            "the engine is too slow for its deadline: raise limits.engine_timeout_s, or lower rollout.max_concurrent or limits.max_turn_tokens"
        }
        InfraReason::NotFinite => {
            "the model's numbers are no numbers any more: go back to an earlier checkpoint with a smaller train.learning_rate"
        }
        InfraReason::RubricError => {
            "the rubric failed, and not the environment: the message above says on what"
        }
        InfraReason::Render => {
            "the model's form cannot write a conversation: see model.template and [agent], or look at it with  turnwise render; where it does not fit, raise limits.max_context_tokens"
        }
        InfraReason::AgentPanic => {
            "this is a mistake in the program: please report it with the message above"
        }
        InfraReason::ToolInDoubt => {
            "a tool may have been called before a crash, and cannot be called again: declare it idempotent, or start the task anew"
        }
        InfraReason::EpisodeTimeout => {
            "episodes take longer than they may: raise limits.episode_timeout_s, or lower limits.max_turns"
        }
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Rollout(error) => error.into(),
            TrainError::Learner(error) | TrainError::Canary(CanaryError::Learner(error)) => {
                Self::runtime(&error)
            }
            TrainError::Canary(CanaryError::NotFinite { .. }) => Self::not_finite(chain(&error)),
            TrainError::Canary(_) => Self::new(ExitCode::Infrastructure, chain(&error)).help(
                "engine and trainer must be the same model; an engine of other precision needs a larger train.canary.tolerance",
            ),
            TrainError::NotFinite { .. } => Self::new(ExitCode::Numeric, chain(&error))
                .help("go on from the last checkpoint with a smaller step: train.learning_rate / 3, or train.max_grad_norm = 0.5"),
            _ => Self::runtime(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_is_about_whoever_plays_the_episodes() {
        let help = naming(CHECK_ENVIRONMENT, "guess", None);
        assert!(help.ends_with("turnwise env check guess"), "{help}");
        let program = Some("python agent.py");
        let help = naming(CHECK_ENVIRONMENT, "guess", program);
        assert!(help.contains("python agent.py") && !help.contains("env check"), "{help}");
        let help = naming(CHECK_ENVIRONMENT, "verifiers", None);
        assert!(help.contains("its log has more") && !help.contains("env check"), "{help}");
        // A slow engine is no program's fault.
        let engine = help_for(InfraReason::EngineTimeout);
        assert_eq!(naming(engine, "guess", program), engine);
    }
}
