//! `try`, `train` and `resume`: how a run begins, and how it goes on.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value, json};
use turnwise::candle::CandleLearner;
use turnwise::training::{
    Checkpoint, Decay, Learner, RunDirectory, Schedule, SuccessRate, verify_weights,
};

use crate::arguments::RunArguments;
use crate::config::{self, Config, Loaded};
use crate::estimate;
use crate::failure::Failure;
use crate::run::{BEFORE, REFERENCE, Run, begin_again};
use crate::session::Session;
use crate::watch::watch_apart;

/// The built-in run of `turnwise try`.
const TRY: &str = include_str!("try.toml");

/// The settings of a run with every default, as the run uses them.
const SETTINGS: &str = "run.toml";

pub(crate) async fn try_it(arguments: &RunArguments) -> Result<(), Failure> {
    let loaded =
        config::parse("the built-in settings of `turnwise try`", TRY, &arguments.all_overrides())?;
    Box::pin(start(loaded, arguments, "try")).await
}

pub(crate) async fn train(path: &Path, arguments: &RunArguments) -> Result<(), Failure> {
    let loaded = config::load(path, &arguments.all_overrides())?;
    let name = path
        .file_stem()
        .map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned());
    Box::pin(start(loaded, arguments, &name)).await
}

async fn start(loaded: Loaded, arguments: &RunArguments, name: &str) -> Result<(), Failure> {
    let started = Instant::now();
    let wanted = arguments.run_dir.clone().or_else(|| loaded.config.run.directory.clone());
    let path = wanted.unwrap_or_else(|| next_directory(name));
    RunDirectory::check(&path)?;
    let (session, mut learner) = Session::new(loaded.config, None).await?;
    let checked =
        watch_apart("checking that every weight gets a gradient", learner.check_gradients());
    checked.await.map_err(|error| Failure::refused_by(&error))?;
    estimate::check_disk(&session, &path)?;
    let directory = RunDirectory::create(&path)?;
    directory.write("config.toml", &loaded.text)?;
    directory.write(SETTINGS, &session.resolved().map_err(|error| Failure::runtime(&error))?)?;
    let mut run = Run::new(session, directory, arguments.json, started);
    run.directory.write_event("start", Map::new())?;
    run.warm_start(&mut learner).await?;
    run.keep_reference(&mut learner).await?;
    let before = run.evaluate_before(&mut learner).await?;
    let mut trainer = run.session.trainer(learner)?;
    run.checkpoint(&mut trainer).await?;
    run.finish(trainer, before).await
}

/// Goes on with a stopped run.
pub(crate) async fn resume(path: &Path, json: bool, steps: Option<u64>) -> Result<(), Failure> {
    let started = Instant::now();
    let directory = RunDirectory::resume(path)?;
    let overrides: Vec<String> =
        steps.map(|steps| format!("run.steps={steps}")).into_iter().collect();
    let settings = path.join(SETTINGS);
    let before = config::load(&settings, &[])?.config;
    let Loaded { config, .. } = config::load(&settings, &overrides)?;
    let checkpoints = directory.checkpoints(config.log.keep_checkpoints);
    checkpoints.sweep()?;
    let Some(newest) = checkpoints.newest()? else {
        let shown = path.display().to_string();
        return Err(Failure::refused(format!("{shown} stopped before its first checkpoint"))
            .help(begin_again(&shown)));
    };
    if is_over(&directory, &newest, &config, steps)? {
        return crate::say(&format!(
            "going on at step {} of {}: nothing is left to do\nnext   turnwise resume {} --steps N, with a larger N\n",
            newest.step,
            config.run.steps,
            path.display()
        ));
    }
    let (session, learner) = reopen(config, path, &newest.directory).await?;
    let mut trainer = session.trainer(learner)?;
    checkpoints.load(&mut trainer).await?;
    let mut run = Run::new(session, directory, json, started);
    run.goes_on_at(newest.step)?;
    for note in &newest.notes {
        run.screen.note(&format!("! {note}"));
    }
    remember_steps(&mut run, &before, newest.step)?;
    let snapshot = trainer.snapshot().await;
    let partial = snapshot.pool();
    run.screen.note(&format!(
        "going on at step {} of {}: {} suspended episodes continue, {} start anew",
        newest.step,
        run.session.config.run.steps,
        partial.n_continuing(),
        partial.n_restarting()
    ));
    run.directory
        .write_event("resume", Map::from_iter([("step".to_owned(), json!(newest.step))]))?;
    let before = recall(path)?;
    run.finish(trainer, before).await
}

/// Whether the run has come to its end, its last evaluation included.
fn is_over(
    directory: &RunDirectory,
    newest: &Checkpoint,
    config: &Config,
    steps: Option<u64>,
) -> Result<bool, Failure> {
    if let Some(steps) = steps.filter(|steps| *steps < newest.step) {
        let step = newest.step;
        return Err(Failure::refused(format!(
            "--steps {steps}: the run is at step {step} already"
        ))
        .help("name a later step, or leave --steps out"));
    }
    let is_end = |event: &Value| event["event"] == "end" && event["step"] == newest.step;
    Ok(newest.step >= config.run.steps && directory.events()?.iter().any(is_end))
}

/// Writes a new number of steps into the settings, so that the next process knows it too, and says what it does to the
/// learning rate.
fn remember_steps(run: &mut Run, before: &Config, step: u64) -> Result<(), Failure> {
    let config = &run.session.config;
    if config.run.steps == before.run.steps {
        return Ok(());
    }
    let text = run.session.resolved().map_err(|error| Failure::runtime(&error))?;
    let rate = |config: &Config| schedule(config).at(step);
    let (was, is) = (rate(before), rate(config));
    let note = (config.train.decay != Decay::Constant).then(|| {
        format!(
            "! the learning rate decays to step {} instead of {}: at step {step} it is {is:.2e} instead of {was:.2e}",
            config.run.steps, before.run.steps
        )
    });
    run.directory.write(SETTINGS, &text)?;
    if let Some(note) = note {
        run.screen.note(&note);
    }
    Ok(())
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

/// The parts of a run that goes on. The checkpoint's weights are loaded later; the reference policy has to be there before.
async fn reopen(
    config: Config,
    run: &Path,
    checkpoint: &Path,
) -> Result<(Session, CandleLearner), Failure> {
    let (reference, needs_reference) = (run.join(REFERENCE), config.objective.kl.beta > 0.0);
    if needs_reference {
        verify_weights(&reference)?;
    }
    if config.model.lora.is_some() {
        // Adapters go on from the model that they were begun on, which the settings name.
        let (session, mut learner) = Session::new(config, None).await?;
        if needs_reference {
            let loaded = learner.load(&reference, learner.version()).await;
            loaded.map_err(|error| Failure::runtime(&error))?;
            learner.keep_reference().await.map_err(|error| Failure::runtime(&error))?;
        }
        return Ok((session, learner));
    }
    if !needs_reference {
        return Session::new(config, Some(checkpoint)).await;
    }
    let (session, learner) = Session::new(config, Some(&reference)).await?;
    learner.keep_reference().await.map_err(|error| Failure::runtime(&error))?;
    Ok((session, learner))
}

fn recall(path: &Path) -> Result<SuccessRate, Failure> {
    let path = path.join(BEFORE);
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::refused(format!("cannot read {}: {error}", path.display()))
    };
    let json = std::fs::read_to_string(&path).map_err(|error| unreadable(&error))?;
    serde_json::from_str(&json).map_err(|error| unreadable(&error))
}

/// `runs/NAME-0001`, or the next number that is free.
fn next_directory(name: &str) -> PathBuf {
    let candidate = |number: u16| Path::new("runs").join(format!("{name}-{number:04}"));
    (1..=u16::MAX).map(candidate).find(|path| !path.exists()).unwrap_or_else(|| candidate(u16::MAX))
}
