//! `eval`: a model's success on held-out tasks.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use turnwise::rollout::Meter;
use turnwise::training::{self, Checkpoints};
use turnwise::trajectory::{Trajectory, write_line};

use crate::arguments::EvalArguments;
use crate::config::{self, Loaded};
use crate::failure::{ExitCode, Failure};
use crate::resume::verified;
use crate::screen::{Plan, Screen, Style};
use crate::session::{SETTINGS, Session};
use crate::watch::{Watched, watch};
use crate::{interrupt, say};

pub(crate) async fn evaluate(arguments: &EvalArguments) -> Result<(), Failure> {
    // Before the episodes are played: they take long, and would be lost with it.
    let out = match &arguments.out {
        Some(path) => Some((path, create(path)?)),
        None => None,
    };
    let model = newest(&arguments.model).await?;
    let Loaded { config, .. } = load(arguments, &model)?;
    let session = Session::drawing(config, &model).await?;
    let stop = interrupt::listen();
    let settings = session.evaluation_settings();
    let (evaluated, meter) = (session.evaluated(), Meter::default());
    let playing = training::evaluate(&evaluated, &settings, &stop, &meter);
    let what = format!("evaluating on {}", session.suite.name());
    let watched = Watched { what: &what, meters: std::slice::from_ref(&meter) };
    // To standard error: standard output is the result's.
    let mut screen = Screen::new(io::stderr(), Style::of_errors(), Plan::default());
    let Some(evaluation) = watch(&mut screen, watched, &stop, playing)
        .await
        .map_err(|error| Failure::from(error).in_environment(session.suite.name()))?
    else {
        return Err(Failure::new(interrupt::exit_code(), "interrupted"));
    };
    let success = evaluation.success;
    if let Some((path, file)) = out {
        write(path, file, &evaluation.trajectories)?;
    }
    if arguments.json {
        let json = serde_json::to_string(&success).map_err(|error| Failure::runtime(&error))?;
        return say(&(json + "\n"));
    }
    say(&format!(
        "{}   held-out success {:.3}  95% CI [{:.3}, {:.3}]  reward {:.3}  {} episodes, {} broken, temperature {}\n",
        session.suite.name(),
        success.success_rate,
        success.ci_low,
        success.ci_high,
        evaluation.reward_mean,
        success.episodes,
        evaluation.n_broken,
        session.config.eval.temperature
    ))
}

/// The settings the model was trained with, where it says, and then the arguments.
fn load(arguments: &EvalArguments, model: &Path) -> Result<Loaded, Failure> {
    let mut overrides = vec![format!("run.seed={}", arguments.seed)];
    overrides.extend(arguments.env.as_ref().map(|name| format!("environment.name={name}")));
    overrides.extend(arguments.episodes.map(|episodes| format!("eval.episodes={episodes}")));
    overrides.extend(arguments.overrides.iter().cloned());
    let beside = model.join(SETTINGS);
    if beside.exists() {
        config::load(&beside, &overrides)
    } else {
        let name = toml_edit::Value::from(model.to_string_lossy().into_owned());
        overrides.insert(0, format!("model.directory={name}"));
        config::parse("the arguments", "", &overrides)
    }
}

/// The newest checkpoint, where the model is a run.
pub(crate) async fn newest(model: &Path) -> Result<PathBuf, Failure> {
    let checkpoints = model.join("checkpoints");
    if !checkpoints.is_dir() || model.join("config.json").exists() {
        return Ok(model.to_owned());
    }
    let newest = verified(&Checkpoints::new(checkpoints, 2)).await?;
    newest.map(|newest| newest.directory).ok_or_else(|| {
        Failure::refused(format!("the run {} has no checkpoint yet", model.display()))
            .help("name a model directory, or a run that has saved a step")
    })
}

/// Makes the file for conversations. One that holds something else is left as it is.
fn create(path: &Path) -> Result<File, Failure> {
    let unwritable = |error: &io::Error| {
        let what = format!("cannot write {}: {error}", path.display());
        Failure::new(ExitCode::Runtime, what)
            .help("name a file in a directory that exists with --out FILE")
    };
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).open(path).map_err(|error| unwritable(&error))?;
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) && !is_of_rollouts(path) {
        return Err(Failure::refused(format!(
            "{} holds something else than conversations",
            path.display()
        ))
        .help("name a new file with --out FILE"));
    }
    Ok(file)
}

/// Whether a file is empty, or begins as one of trajectories does.
fn is_of_rollouts(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return true };
    let mut begin = [0; 9];
    let n = io::Read::read(&mut &file, &mut begin).unwrap_or(0);
    n == 0 || begin == *b"{\"format\""
}

/// Writes the conversations, a trajectory a line, in the place of those that were there.
fn write(path: &Path, mut file: File, trajectories: &[Trajectory]) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for trajectory in trajectories {
        write_line(&mut lines, trajectory).map_err(|error| Failure::runtime(&error))?;
    }
    // Neither a pipe nor a terminal can be shortened, and neither needs it.
    let is_plain = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let cleared = if is_plain { file.set_len(0) } else { Ok(()) };
    cleared.and_then(|()| file.write_all(&lines)).map_err(|error| {
        Failure::new(ExitCode::Runtime, format!("cannot write {}: {error}", path.display()))
    })
}
