//! `try` and `train`: how a run begins.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Map;
use turnwise::training::{Learner, RunDirectory, Schedule};

use crate::arguments::RunArguments;
use crate::config::{self, Config, Loaded};
use crate::estimate;
use crate::failure::Failure;
use crate::run::Run;
use crate::session::Session;
use crate::watch::watch_apart;

/// The built-in run of `turnwise try`.
const TRY: &str = include_str!("try.toml");

/// The settings of a run with every default, as the run uses them.
pub(crate) const SETTINGS: &str = "run.toml";

pub(crate) async fn try_it(arguments: &RunArguments) -> Result<(), Failure> {
    let loaded =
        config::parse("the built-in settings of `turnwise try`", TRY, &arguments.all_overrides())?;
    start(loaded, arguments, "try").await
}

pub(crate) async fn train(path: &Path, arguments: &RunArguments) -> Result<(), Failure> {
    let loaded = config::load(path, &arguments.all_overrides())?;
    let name = path
        .file_stem()
        .map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned());
    start(loaded, arguments, &name).await
}

async fn start(loaded: Loaded, arguments: &RunArguments, name: &str) -> Result<(), Failure> {
    let started = Instant::now();
    let wanted = arguments.run_dir.clone().or_else(|| loaded.config.run.directory.clone());
    let path = wanted.unwrap_or_else(|| next_directory(name));
    let run = Box::pin(begin(loaded, arguments, &path, started));
    run.await.map_err(|failure| failure.in_run(&path))
}

async fn begin(
    loaded: Loaded,
    arguments: &RunArguments,
    path: &Path,
    started: Instant,
) -> Result<(), Failure> {
    RunDirectory::check(path)?;
    let (session, mut learner) = Session::new(loaded.config, None).await?;
    let checked =
        watch_apart("checking that every weight gets a gradient", &[], learner.check_gradients());
    checked.await.map_err(|error| Failure::refused_by(&error))?;
    estimate::check_disk(&session, path)?;
    let directory = RunDirectory::create(path)?;
    directory.write("config.toml", &loaded.text)?;
    directory.write(SETTINGS, &session.resolved().map_err(|error| Failure::runtime(&error))?)?;
    let mut run = Run::new(session, directory, arguments.json, started);
    run.directory.write_event("start", Map::new())?;
    run.warm_start(&mut learner).await?;
    run.keep_reference(&mut learner).await?;
    let before = run.evaluate_before(&mut learner).await?;
    let mut trainer = run.session.trainer(learner)?;
    run.checkpoint(&mut trainer).await?;
    run.finish(trainer, Some(before)).await
}

/// The learning rate of a run, step by step.
pub(crate) fn schedule(config: &Config) -> Schedule {
    Schedule {
        learning_rate: config.train.learning_rate,
        warmup_steps: config.train.warmup_steps,
        decay: config.train.decay,
        steps: config.run.steps,
    }
}

/// `runs/NAME-0001`, or the next number that is free.
fn next_directory(name: &str) -> PathBuf {
    let candidate = |number: u16| Path::new("runs").join(format!("{name}-{number:04}"));
    (1..=u16::MAX).map(candidate).find(|path| !path.exists()).unwrap_or_else(|| candidate(u16::MAX))
}
