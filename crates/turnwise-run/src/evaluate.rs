//! Evaluation of a model on held-out tasks.

use std::path::{Path, PathBuf};

use turnwise_rollout::{Meter, StopSignal};
use turnwise_training::{self as training, Checkpoints, Evaluation};

use crate::config::{self, Config, Loaded};
use crate::failure::{ExitCode, Failure};
use crate::observer::Observer;
use crate::registry::Registry;
use crate::resume::verified;
use crate::session::{SETTINGS, Session};
use crate::watch::{Watched, watch};

/// A model to evaluate, with its settings.
#[derive(Clone, Debug)]
pub struct Evaluating {
    /// The model directory.
    pub model: PathBuf,
    /// The settings.
    pub config: Config,
}

impl Evaluating {
    /// Finds the model: a model directory, a run (its newest checkpoint), a checkpoint, or the name of a model in the
    /// Hugging Face cache. The settings are those beside the model, if it has any, followed by the overrides.
    ///
    /// # Errors
    /// When a run has no checkpoint, or an override is invalid.
    pub async fn new(
        model: &Path,
        overrides: &[String],
        registry: &Registry,
        observer: &mut dyn Observer,
        stop: &StopSignal,
    ) -> Result<Self, Failure> {
        let model = newest(model, observer, stop).await?;
        let beside = model.join(SETTINGS);
        let Loaded { mut config, .. } = if beside.exists() {
            let mut loaded = config::load(&beside, overrides, registry)?;
            // The model of a run carries its template and its base; those of the settings were for the run's own model.
            let names = |key: &str| overrides.iter().any(|one| one.trim_start().starts_with(key));
            if !names("model.template_file") {
                loaded.config.model.template_file = None;
            }
            if !names("model.base") {
                loaded.config.model.base = None;
            }
            loaded
        } else {
            let name = toml_edit::Value::from(model.to_string_lossy().into_owned());
            let mut all = vec![format!("model.directory={name}")];
            all.extend_from_slice(overrides);
            config::from_text("the arguments", "", &all, registry)?
        };
        config.model.directory = Some(model.clone());
        Ok(Self { model, config })
    }
}

/// Plays held-out tasks with a model and measures its success.
///
/// # Errors
/// When the model cannot be loaded or does not fit the settings, an environment breaks, or a stop is requested.
pub async fn evaluate(
    evaluating: Evaluating,
    registry: &Registry,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<Evaluation, Failure> {
    let session = Session::drawing(evaluating.config, registry, observer, stop);
    let session = Box::pin(session).await?;
    let settings = session.evaluation_settings();
    let (evaluated, meter) = (session.evaluated(), Meter::default());
    let playing = training::evaluate(&evaluated, &settings, stop, &meter);
    let what = format!("evaluating on {}", session.suite.name());
    let watched = Watched { what: &what, meters: std::slice::from_ref(&meter) };
    let evaluation = watch(observer, watched, stop, playing).await;
    let program = session.config.agent.command.as_deref();
    let named = |error| Failure::from(error).in_environment(session.suite.name(), program);
    let evaluation = evaluation.map_err(named)?;
    evaluation.ok_or_else(|| Failure::new(ExitCode::Interrupted, "interrupted"))
}

/// Returns the newest checkpoint if `model` is a run, and `model` itself otherwise.
async fn newest(
    model: &Path,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<PathBuf, Failure> {
    let checkpoints = model.join("checkpoints");
    if !checkpoints.is_dir() || model.join("config.json").exists() {
        return Ok(model.to_owned());
    }
    let newest = verified(&Checkpoints::new(checkpoints, 2), observer, stop).await?;
    newest.map(|newest| newest.directory).ok_or_else(|| {
        Failure::refused(format!("the run {} has no checkpoint yet", model.display()))
            .help("name a model directory, or a run that has saved a step")
    })
}
