//! The opponents that the settings choose, in environments with several seats.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use turnwise_candle::{CandlePolicy, Decoder, EngineSettings};
use turnwise_chat::Tokenizer;
use turnwise_environment::{Split, Suite};
use turnwise_rollout::{Opponent, StopSignal};

use crate::config::Config;
use crate::failure::Failure;
use crate::form::Source;
use crate::observer::Observer;
use crate::registry::SuiteError;
use crate::session::{load_model, locate_model};
use crate::threads::Threads;

/// The opponents of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opponents {
    pub(crate) train: Opponent,
    pub(crate) eval: Opponent,
    /// A line about them for the header; `None` in an environment with one seat.
    pub(crate) about: Option<String>,
}

/// An opponent as the settings name it.
#[derive(Clone, Debug, PartialEq)]
enum Named {
    Itself,
    Expert,
    Random,
    /// A model directory.
    Model(PathBuf),
}

impl Named {
    fn read(text: &str) -> Self {
        match text {
            "self" => Self::Itself,
            "expert" => Self::Expert,
            "random" => Self::Random,
            path => Self::Model(path.into()),
        }
    }

    /// Returns the opponent in training.
    fn of_training(config: &Config) -> Self {
        config.environment.opponent.as_deref().map_or(Self::Itself, Self::read)
    }

    /// Returns the opponent in evaluations. A success rate against itself says nothing, so that self-play is evaluated
    /// against the random player, if the suite has one.
    fn of_evaluation(config: &Config, suite: &Suite) -> Self {
        match (&config.eval.opponent, Self::of_training(config)) {
            (Some(named), _) => Self::read(named),
            (None, Self::Itself) if suite.make_random(0).is_some() => Self::Random,
            (None, of_training) => of_training,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Itself => "itself".to_owned(),
            Self::Expert => "the expert".to_owned(),
            Self::Random => "the random player".to_owned(),
            Self::Model(path) => path.display().to_string(),
        }
    }
}

/// The number of tasks of a split that are asked for their seats.
const N_TASKS: usize = 8;

/// Returns the largest number of seats of a suite's first tasks.
fn n_seats(suite: &Suite) -> usize {
    let of_split = |split| {
        let tasks = suite.tasks(split);
        (0..tasks.len().min(N_TASKS)).map(|task| tasks.environment(task).n_seats()).max()
    };
    [Split::Train, Split::HeldOut].into_iter().filter_map(of_split).max().unwrap_or(1)
}

/// Refuses opponents that the environment cannot have.
///
/// # Errors
/// When the environment has one seat, or its suite does not offer the player.
pub(crate) fn check(config: &Config, suite: &Suite) -> Result<(), SuiteError> {
    let settings = [
        ("environment.opponent", &config.environment.opponent),
        ("eval.opponent", &config.eval.opponent),
    ];
    for (key, opponent) in settings {
        let Some(opponent) = opponent else { continue };
        let why = match Named::read(opponent) {
            _ if n_seats(suite) < 2 => "it has one seat".to_owned(),
            Named::Expert if suite.make_expert(0).is_none() => {
                "its suite has no expert (Suite::expert)".to_owned()
            }
            Named::Random if suite.make_random(0).is_none() => {
                "its suite has no random player (Suite::random)".to_owned()
            }
            _ => continue,
        };
        return Err(SuiteError::Opponent {
            environment: suite.name().to_owned(),
            opponent: opponent.clone(),
            key,
            why,
        });
    }
    Ok(())
}

/// Makes the opponents of a run, and completes their paths in the settings, so that a resumed run finds them. The opponent
/// in training is left out unless the run `trains`.
///
/// # Errors
/// When a model cannot be loaded, or has another tokenizer.
pub(crate) async fn opponents(
    config: &mut Config,
    suite: &Suite,
    tokenizer: &Tokenizer,
    trains: bool,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<Opponents, Failure> {
    if n_seats(suite) < 2 {
        return Ok(Opponents::default());
    }
    let (train, eval) = (Named::of_training(config), Named::of_evaluation(config, suite));
    let about =
        format!("plays against {}; evaluated against {}", train.describe(), eval.describe());
    let train = if trains { train } else { Named::Itself };
    for opponent in [&mut config.environment.opponent, &mut config.eval.opponent] {
        if let Some(named) = opponent.as_ref().filter(|_| trains)
            && let Named::Model(path) = Named::read(named)
            && let Ok(absolute) = locate_model(&path)?.canonicalize()
        {
            *opponent = Some(absolute.display().to_string());
        }
    }
    let of_eval = if eval == train { None } else { Some(eval) };
    let train = make(train, config, suite, tokenizer, observer, stop).await?;
    let eval = match of_eval {
        Some(eval) => make(eval, config, suite, tokenizer, observer, stop).await?,
        None => train.clone(),
    };
    Ok(Opponents { train, eval, about: Some(about) })
}

async fn make(
    named: Named,
    config: &Config,
    suite: &Suite,
    tokenizer: &Tokenizer,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<Opponent, Failure> {
    let suite = suite.clone();
    Ok(match named {
        Named::Itself => Opponent::Itself,
        Named::Expert => Opponent::Scripted(Arc::new(move |seed| {
            suite.make_expert(seed).expect("the settings were checked")
        })),
        Named::Random => Opponent::Scripted(Arc::new(move |seed| {
            suite.make_random(seed).expect("the settings were checked")
        })),
        Named::Model(path) => {
            let directory = locate_model(&path)?;
            check_tokenizer(&directory, tokenizer)?;
            let decoder = load_model(&directory, None, observer, stop).await?;
            check_positions(config, &decoder, &directory)?;
            let settings =
                EngineSettings { threads: Threads::divide(config).engine, ..config.engine };
            let decoder = decoder.with_precision(config.model.compute);
            let policy = CandlePolicy::from_model(decoder, settings);
            Opponent::Frozen(Arc::new(policy.map_err(|error| Failure::refused_by(&error))?))
        }
    })
}

/// Refuses an opponent that cannot read the longest conversation.
fn check_positions(config: &Config, decoder: &Decoder, directory: &Path) -> Result<(), Failure> {
    let (wanted, has) = (config.limits.max_context_tokens, decoder.config().max_positions);
    if wanted <= has {
        return Ok(());
    }
    let directory = directory.display();
    let what = format!(
        "`limits.max_context_tokens` = {wanted}, but the opponent {directory} has {has} positions"
    );
    Err(Failure::refused(what).help(format!("set limits.max_context_tokens = {has}")))
}

/// Refuses an opponent that would read other tokens.
fn check_tokenizer(directory: &Path, tokenizer: &Tokenizer) -> Result<(), Failure> {
    if Source::of_model(directory, None)?.tokenizer.fingerprint() == tokenizer.fingerprint() {
        return Ok(());
    }
    let what = format!("the opponent {} has another tokenizer than the model", directory.display());
    Err(Failure::refused(what)
        .help("choose a checkpoint of this run, or of one that started from the same model"))
}
