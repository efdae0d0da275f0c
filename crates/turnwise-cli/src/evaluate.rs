//! `eval`: a model's success on held-out tasks.

use std::io;
use std::path::{Path, PathBuf};

use turnwise::rollout::Meter;
use turnwise::training::{self, Checkpoints};
use turnwise::trajectory::{Trajectory, write_line};

use crate::arguments::EvalArguments;
use crate::config::{self, Loaded};
use crate::failure::{ExitCode, Failure};
use crate::screen::{Plan, Screen, Style};
use crate::session::{SETTINGS, Session};
use crate::watch::{Watched, watch};
use crate::{interrupt, say};

pub(crate) async fn evaluate(arguments: &EvalArguments) -> Result<(), Failure> {
    let model = newest(&arguments.model)?;
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
    if let Some(path) = &arguments.out {
        write(path, &evaluation.trajectories)?;
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
fn newest(model: &Path) -> Result<PathBuf, Failure> {
    let checkpoints = model.join("checkpoints");
    if !checkpoints.is_dir() || model.join("config.json").exists() {
        return Ok(model.to_owned());
    }
    let newest = Checkpoints::new(checkpoints, 2).newest()?;
    newest.map(|newest| newest.directory).ok_or_else(|| {
        Failure::refused(format!("the run {} has no checkpoint yet", model.display()))
            .help("name a model directory, or a run that has saved a step")
    })
}

/// Writes the conversations, a trajectory a line.
fn write(path: &Path, trajectories: &[Trajectory]) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for trajectory in trajectories {
        write_line(&mut lines, trajectory).map_err(|error| Failure::runtime(&error))?;
    }
    std::fs::write(path, lines).map_err(|error| {
        Failure::new(ExitCode::Runtime, format!("cannot write {}: {error}", path.display()))
    })
}
