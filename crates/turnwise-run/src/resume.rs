//! Resumption of a run.

use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value, json};
use turnwise_rollout::StopSignal;
use turnwise_training::{
    Checkpoint, CheckpointError, Checkpoints, Decay, EvaluationRecord, Learner, RunDirectory,
    SuccessRate, Summary, read_plain, verify_weights,
};

use crate::config::{self, Change, Config, LearnerName, Loaded};
use crate::failure::Failure;
use crate::learner::RunLearner;
use crate::observer::Observer;
use crate::registry::Registry;
use crate::run::{BEFORE, REFERENCE, RunLoop, begin_again};
use crate::session::{SETTINGS as OF_CHECKPOINT, Session};
use crate::train::{SETTINGS, schedule};
use crate::watch::{Watched, watch};

/// Resumes the stopped or killed run in a directory, up to its number of steps or to `steps` instead. Returns `None` if
/// nothing is left to do.
///
/// # Errors
/// When the directory has no run, the run is in use, a changed setting does not fit its weights, something breaks, or a
/// stop is requested.
pub async fn resume(
    directory: &Path,
    steps: Option<u64>,
    registry: &Registry,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<Option<Summary>, Failure> {
    let run = Box::pin(go_on(directory, steps, registry, observer, stop));
    run.await.map_err(|failure| failure.in_run(directory))
}

async fn go_on(
    path: &Path,
    steps: Option<u64>,
    registry: &Registry,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<Option<Summary>, Failure> {
    let started = Instant::now();
    let directory = RunDirectory::resume(path).map_err(|error| in_its_run(path, error.into()))?;
    let checkpoints = directory.checkpoints(0);
    checkpoints.sweep()?;
    let Some(newest) = verified(&checkpoints, observer, stop).await? else {
        let shown = path.display().to_string();
        return Err(Failure::refused(format!("{shown} stopped before its first checkpoint"))
            .help(begin_again(&shown)));
    };
    let ResumedSettings { config, written, of_checkpoint, changes } =
        settings(path, &newest, steps, registry)?;
    if is_over(&directory, &newest, &config, steps)? {
        observer.finish(&[
            format!(
                "going on at step {} of {}: nothing is left to do",
                newest.step, config.run.steps
            ),
            format!("next   turnwise resume {} --steps N, with a larger N", path.display()),
        ]);
        return Ok(None);
    }
    let (session, learner) =
        Box::pin(reopen(config, path, &newest.directory, registry, observer, stop)).await?;
    let mut trainer = session.trainer(learner, path)?;
    let meters = [checkpoints.meter(), trainer.learner().meter()];
    let loading = checkpoints.load(&mut trainer);
    let watched = Watched { what: "loading the checkpoint", meters: &meters };
    let loaded = watch(observer, watched, stop, loading).await;
    loaded.map_err(|error| put_back(error, &changes))?;
    let mut run = RunLoop::new(session, directory, observer, stop.clone(), started);
    run.goes_on_at(newest.step)?;
    say_notes(&mut run, &newest, &changes);
    say_rate(&mut run, &of_checkpoint, newest.step);
    if run.session.config.run.steps != written.run.steps {
        // The next process has to use the new number of steps too.
        let text = run.session.resolved().map_err(|error| Failure::runtime(&error))?;
        run.directory.write(SETTINGS, &text)?;
    }
    let snapshot = trainer.snapshot().await;
    let partial = snapshot.pool();
    run.observer.note(&format!(
        "going on at step {} of {}: {} suspended episodes continue, {} start anew",
        newest.step,
        run.session.config.run.steps,
        partial.n_continuing(),
        partial.n_restarting()
    ));
    run.directory
        .write_event("resume", Map::from_iter([("step".to_owned(), json!(newest.step))]))?;
    let before = recall(path, &mut run);
    let ended = Box::pin(run.finish(trainer, before)).await;
    run.ended(ended).map(Some)
}

/// Returns the newest checkpoint whose files still match its manifest.
pub(crate) async fn verified(
    checkpoints: &Checkpoints,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<Option<Checkpoint>, Failure> {
    let (meters, checkpoints) = ([checkpoints.meter()], checkpoints.clone());
    let verifying = tokio::task::spawn_blocking(move || checkpoints.newest());
    let watched = Watched { what: "verifying the newest checkpoint", meters: &meters };
    match watch(observer, watched, stop, verifying).await {
        Ok(newest) => Ok(newest?),
        Err(error) => Err(Failure::runtime(&error)),
    }
}

/// The number of skipped checkpoints that are named one by one.
const NOTES: usize = 5;

/// The settings of a resumed run.
struct ResumedSettings {
    config: Config,
    /// The settings in `run.toml`, without the arguments of the command line.
    written: Config,
    /// The settings in the checkpoint.
    of_checkpoint: Config,
    /// The settings that changed since the checkpoint, except for the number of steps.
    changes: Vec<Change>,
}

fn settings(
    run: &Path,
    newest: &Checkpoint,
    steps: Option<u64>,
    registry: &Registry,
) -> Result<ResumedSettings, Failure> {
    let path = run.join(SETTINGS);
    let copy = newest.directory.join(OF_CHECKPOINT);
    let of_checkpoint = config::load_own(&copy, &[], registry).map(|loaded| loaded.config);
    let written =
        config::load_own(&path, &[], registry).map_err(|failure| match &of_checkpoint {
            Ok(_) => failure.also(format!(
                "the newest checkpoint has the settings it was made with:  cp {} {}",
                copy.display(),
                path.display()
            )),
            Err(_) => failure,
        })?;
    let written = written.config;
    let overrides: Vec<String> =
        steps.map(|steps| format!("run.steps={steps}")).into_iter().collect();
    let Loaded { config, .. } = config::load_own(&path, &overrides, registry)?;
    let of_checkpoint = of_checkpoint.unwrap_or_else(|_| written.clone());
    let mut changes = config::changes(&of_checkpoint, &written);
    changes.retain(|change| change.key != "run.steps");
    let is_moved_base = |change: &Change| ["model.directory", "model.base"].contains(&&*change.key);
    let of_weights = |change: &&Change| {
        change.is_of_the_weights() && !(is_moved_base(change) && written.model.lora.is_some())
    };
    if let Some(change) = changes.iter().find(of_weights) {
        let weights = newest.directory.display();
        return Err(Failure::refused(format!(
            "{}: {}, and the weights of {weights} cannot follow",
            path.display(),
            change.describe()
        ))
        .help(format!(
            "put it back, or start a new run from these weights with\nturnwise train CONFIG.toml model.directory={weights}"
        )));
    }
    Ok(ResumedSettings { config, written, of_checkpoint, changes })
}

/// Describes the effect of a changed setting.
fn note(change: &Change) -> String {
    let what = change.describe();
    if change.is_of_the_start() {
        format!("! {what}: a run reads it at its start alone, so that it changes nothing")
    } else {
        format!("! {what}: from here on, the run is another than it was begun as")
    }
}

/// Creates the failure for a checkpoint that does not load, with the changed settings, which may be the cause.
fn put_back(error: CheckpointError, changes: &[Change]) -> Failure {
    let is_of_content = matches!(error, CheckpointError::Content { .. });
    let failure = Failure::from(error);
    if !is_of_content || changes.is_empty() {
        return failure;
    }
    let changes: Vec<String> = changes.iter().map(Change::describe).collect();
    failure.also(format!(
        "the settings are not those of the checkpoint; put back what matters:\n{}",
        changes.join("\n")
    ))
}

/// Adds the run's own directory to the help, if the path is a directory inside the run.
fn in_its_run(path: &Path, failure: Failure) -> Failure {
    let is_run = |path: &&Path| path.join(SETTINGS).is_file();
    match path.ancestors().skip(1).take(2).find(is_run) {
        Some(run) if run.as_os_str().is_empty() => {
            failure.help("resume the run  turnwise resume .")
        }
        Some(run) => failure.help(format!("resume the run  turnwise resume {}", run.display())),
        None => failure,
    }
}

/// Returns whether the run has finished, including its last evaluation.
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

/// Notes which checkpoints were skipped as damaged, and which settings have changed.
fn say_notes(run: &mut RunLoop<'_>, newest: &Checkpoint, changes: &[Change]) {
    for note in newest.notes.iter().take(NOTES) {
        run.observer.note(&format!("! {note}"));
    }
    if newest.notes.len() > NOTES {
        let more = newest.notes.len() - NOTES;
        run.observer.note(&format!("! and so were {more} more, all of them no whole checkpoints"));
    }
    for note in changes.iter().map(note) {
        run.observer.note(&note);
    }
}

/// Notes how a changed number of steps changes a learning rate that decays.
fn say_rate(run: &mut RunLoop<'_>, before: &Config, step: u64) {
    let config = &run.session.config;
    let rate = |config: &Config| schedule(config).at(step);
    let (was, is) = (rate(before), rate(config));
    if config.run.steps != before.run.steps && config.train.decay != Decay::Constant {
        run.observer.note(&format!(
            "! the learning rate decays to step {} instead of {}: at step {step} it is {is:.2e} instead of {was:.2e}",
            run.session.config.run.steps, before.run.steps
        ));
    }
}

/// Loads the parts of a resumed run. The checkpoint's weights are loaded later, after the reference policy.
async fn reopen(
    config: Config,
    run: &Path,
    checkpoint: &Path,
    registry: &Registry,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<(Session, RunLearner), Failure> {
    let (reference, needs_reference) = (run.join(REFERENCE), config.objective.kl.beta > 0.0);
    if needs_reference && !reference.exists() {
        let what = format!("{} kept no reference policy for objective.kl.beta", run.display());
        return Err(Failure::refused(what).help(
            "only a run that began with a penalty has one: set objective.kl.beta = 0, or start a new run",
        ));
    }
    if needs_reference {
        verify_weights(&reference)?;
    }
    if config.model.lora.is_some() || config.train.learner == LearnerName::Tinker {
        // Adapters continue on their base model, which the settings name.
        let (session, mut learner) =
            Box::pin(Session::new(config, run, None, registry, observer, stop)).await?;
        if needs_reference {
            let loaded = learner.load(&reference, learner.version()).await;
            loaded.map_err(|error| Failure::runtime(&error))?;
            learner.keep_reference().await.map_err(|error| Failure::runtime(&error))?;
        }
        return Ok((session, learner));
    }
    if !needs_reference {
        return Box::pin(Session::new(config, run, Some(checkpoint), registry, observer, stop))
            .await;
    }
    let (session, mut learner) =
        Box::pin(Session::new(config, run, Some(&reference), registry, observer, stop)).await?;
    learner.keep_reference().await.map_err(|error| Failure::runtime(&error))?;
    Ok((session, learner))
}

/// Reads the success before training; a run is resumed without it if the file was lost.
fn recall(path: &Path, run: &mut RunLoop<'_>) -> Option<SuccessRate> {
    let path = path.join(BEFORE);
    let read = read_plain(&path, 1 << 28)
        .and_then(|json| serde_json::from_slice(&json).map_err(std::io::Error::from));
    match read {
        Ok(EvaluationRecord { success, .. }) => Some(success),
        Err(error) => {
            run.observer.note(&format!(
                "! {} cannot be read, so that the summary has no success before training: {error}",
                path.display()
            ));
            None
        }
    }
}
