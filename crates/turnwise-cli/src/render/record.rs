//! Recorded trajectories of a run.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use turnwise_trajectory::{Trajectory, read_line};

use super::shown::Turns;
use super::{Page, located};
use crate::arguments::RenderArguments;
use turnwise_run::Failure;
use turnwise_run::form::{self, Texts};
use turnwise_run::text::one_line;

/// Returns the page of trajectory `--index` in a file of records.
pub(super) fn page(arguments: &RenderArguments, path: &Path) -> Result<Page, Failure> {
    let trajectory = nth(path, arguments.index)?;
    let (texts, of_source) = texts(arguments, path)?;
    let mut header = described(&trajectory);
    if texts.0.is_none() {
        header.push(
            "the texts are missing, because no tokenizer was found; name one with --model MODEL"
                .to_owned(),
        );
    }
    let hash = one_line(&trajectory.renderer);
    let renderer = match of_source {
        Some(other) if other == trajectory.renderer => {
            format!("{hash}, as the run's settings have it")
        }
        Some(_) => format!(
            "{hash}, not that of the model's own settings: the texts may differ from those that the model saw"
        ),
        None => hash,
    };
    let turns = Turns::new(&trajectory.turns);
    Ok(Page { header, graph: trajectory.graph, turns, texts, renderer })
}

fn nth(path: &Path, index: usize) -> Result<Trajectory, Failure> {
    let unreadable = |error: &std::io::Error| {
        Failure::refused(format!("cannot read {}: {error}", path.display()))
    };
    let lines = BufReader::new(File::open(path).map_err(|error| unreadable(&error))?).lines();
    let mut n = 0;
    for line in lines {
        let line = line.map_err(|error| unreadable(&error))?;
        if line.trim().is_empty() {
            continue;
        }
        if n == index {
            return read_line(&line).map_err(|error| {
                Failure::refused_by(&error)
                    .at(format!("    in trajectory {n} of {}", path.display()))
            });
        }
        n += 1;
    }
    let help = match n {
        0 => "a run writes its trajectories to rollouts/step-….jsonl and eval-….jsonl".to_owned(),
        _ => format!("--index 0 to --index {}", n - 1),
    };
    Err(Failure::refused(format!("{} has {n} trajectories, and no index {index}", path.display()))
        .help(help))
}

/// Returns the given tokenizer, or else that of the file's run.
fn texts(arguments: &RenderArguments, path: &Path) -> Result<(Texts, Option<String>), Failure> {
    if let Some(file) = &arguments.tokenizer {
        return Ok((form::of_file(file)?, None));
    }
    let named = arguments.model.as_deref().map(located).transpose()?;
    match named.or_else(|| checkpoint_near(path)) {
        Some(model) => form::of_run(&model),
        None => Ok((Texts(None), None)),
    }
}

/// Returns the newest checkpoint of a file's run. All checkpoints of a run have the same tokenizer.
fn checkpoint_near(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let folder =
        path.ancestors().skip(1).take(2).find(|folder| folder.join("run.toml").is_file())?;
    let entries = std::fs::read_dir(folder.join("checkpoints")).ok()?;
    let checkpoints = entries.filter_map(|entry| Some(entry.ok()?.path()));
    checkpoints.filter(|path| path.join("tokenizer.json").is_file()).max()
}

fn described(trajectory: &Trajectory) -> Vec<String> {
    let identity = &trajectory.identity;
    let reward = trajectory
        .reward()
        .map_or_else(|| "not scored".to_owned(), |reward| format!("reward {reward}"));
    let solved = if trajectory.solved { "solved" } else { "not solved" };
    vec![
        format!(
            "{} task {}, group {}, member {}, attempt {}",
            one_line(&identity.environment),
            identity.task_index,
            identity.group.0,
            identity.member,
            identity.attempt
        ),
        format!(
            "{}, {solved}, {reward}, {} turns",
            trajectory.outcome.label(),
            trajectory.turns.len()
        ),
    ]
}
