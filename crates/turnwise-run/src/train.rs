//! The start of a run.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Map;
use turnwise_rollout::StopSignal;
use turnwise_training::{Learner, RunDirectory, Schedule, Summary};

use crate::config::{self, Config, Loaded};
use crate::estimate;
use crate::failure::Failure;
use crate::learner::RunLearner;
use crate::observer::Observer;
use crate::registry::Registry;
use crate::run::RunLoop;
use crate::session::Session;
use crate::watch::{Watched, watch};

/// The settings of `turnwise try`.
const TRY: &str = include_str!("try.toml");

/// The file of a run's settings, with every default.
pub(crate) const SETTINGS: &str = "run.toml";

/// Reads the settings of `turnwise try`: a small model that learns to guess numbers in about a minute. Overrides have
/// the form `train.learning_rate=5e-4`.
///
/// # Errors
/// When an override is invalid.
pub fn try_settings(registry: &Registry, overrides: &[String]) -> Result<Loaded, Failure> {
    config::from_text("the built-in settings of `turnwise try`", TRY, overrides, registry)
}

/// Trains as the settings say, and returns the summary. The run's files go to the run directory: `directory`, or the
/// one in the settings, or `runs/NAME-0001` counted up.
///
/// A stop ends the run after its current work, with a checkpoint; [`resume`](crate::resume()) continues it.
///
/// ```no_run
/// use turnwise_rollout::StopSignal;
/// use turnwise_run::{Registry, Unobserved, load, train};
///
/// # async fn run() -> Result<(), turnwise_run::Failure> {
/// let registry = Registry::builtin();
/// let settings = load("train.toml".as_ref(), &["run.steps=20".to_owned()], &registry)?;
/// let stop = StopSignal::never();
/// let summary = train(settings, "mine", None, &registry, &mut Unobserved, &stop).await?;
/// assert!(summary.eval_after.success_rate > 0.5);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When the settings do not fit the model or the environment, something breaks, or a stop is requested.
pub async fn train(
    settings: Loaded,
    name: &str,
    directory: Option<PathBuf>,
    registry: &Registry,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<Summary, Failure> {
    let started = Instant::now();
    let wanted = directory.or_else(|| settings.config.run.directory.clone());
    let path = wanted.unwrap_or_else(|| next_directory(name));
    let run = Box::pin(begin(settings, &path, registry, observer, stop, started));
    run.await.map_err(|failure| failure.in_run(&path))
}

async fn begin(
    settings: Loaded,
    path: &Path,
    registry: &Registry,
    observer: &mut dyn Observer,
    stop: &StopSignal,
    started: Instant,
) -> Result<Summary, Failure> {
    RunDirectory::check(path)?;
    let (session, mut learner) =
        Box::pin(Session::new(settings.config, path, None, registry, observer, stop)).await?;
    check_gradients(&mut learner, observer, stop).await?;
    estimate::check_disk(&session, path)?;
    let directory = RunDirectory::create(path)?;
    directory.write("config.toml", &settings.text)?;
    directory.write(SETTINGS, &session.resolved().map_err(|error| Failure::runtime(&error))?)?;
    let mut run = RunLoop::new(session, directory, observer, stop.clone(), started);
    run.directory.write_event("start", Map::new())?;
    let ended = Box::pin(train_whole(&mut run, learner, path)).await;
    run.ended(ended)
}

async fn train_whole(
    run: &mut RunLoop<'_>,
    mut learner: RunLearner,
    path: &Path,
) -> Result<Summary, Failure> {
    run.warm_start(&mut learner).await?;
    run.keep_reference(&mut learner).await?;
    let before = run.evaluate_before(&mut learner).await?;
    let mut trainer = run.session.trainer(learner, path)?;
    run.checkpoint(&mut trainer).await?;
    Box::pin(run.finish(trainer, Some(before))).await
}

async fn check_gradients(
    learner: &mut RunLearner,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<(), Failure> {
    let meters = [learner.meter()];
    let watched = Watched { what: "checking that every weight gets a gradient", meters: &meters };
    let checked = watch(observer, watched, stop, learner.check_gradients()).await;
    checked.map_err(|error| Failure::refused_by(&error))
}

/// Returns the schedule of the learning rate.
pub(crate) fn schedule(config: &Config) -> Schedule {
    Schedule {
        learning_rate: config.train.learning_rate,
        warmup_steps: config.train.warmup_steps,
        decay: config.train.decay,
        steps: config.run.steps,
    }
}

/// Returns `runs/NAME-0001`, or the next number that is free.
fn next_directory(name: &str) -> PathBuf {
    let candidate = |number: u16| Path::new("runs").join(format!("{name}-{number:04}"));
    (1..=u16::MAX).map(candidate).find(|path| !path.exists()).unwrap_or_else(|| candidate(u16::MAX))
}
