//! `turnwise eval`: a model's success on held-out tasks.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use turnwise_run::{Evaluating, ExitCode, Failure, Registry};
use turnwise_trajectory::{Trajectory, write_line};

use crate::arguments::EvalArguments;
use crate::screen::{Screen, Style};
use crate::{interrupt, say};

pub(crate) async fn evaluate(
    arguments: &EvalArguments,
    registry: &Registry,
) -> Result<(), Failure> {
    // Opened before the episodes are played, which takes long: an error later would lose them.
    let out = match &arguments.out {
        Some(path) => Some((path, create(path)?)),
        None => None,
    };
    // To standard error: standard output has the result.
    let mut screen = Screen::new(io::stderr(), Style::of_errors());
    let stop = interrupt::listen();
    let overrides = arguments.all_overrides();
    let evaluating =
        Evaluating::new(&arguments.model, &overrides, registry, &mut screen, &stop).await?;
    let (name, temperature) =
        (evaluating.config.environment.name.clone(), evaluating.config.eval.temperature);
    let evaluation = turnwise_run::evaluate(evaluating, registry, &mut screen, &stop).await?;
    let success = evaluation.success;
    let n_tasks = n_tasks(&evaluation.trajectories);
    if let Some((path, file)) = out {
        write(path, file, &evaluation.trajectories)?;
    }
    if arguments.json {
        let mut json = serde_json::to_value(success).map_err(|error| Failure::runtime(&error))?;
        json["tasks"] = n_tasks.into();
        return say(&format!("{json}\n"));
    }
    let of_tasks = if n_tasks < success.episodes {
        format!(" of {n_tasks} tasks (the interval is clustered by task)")
    } else {
        String::new()
    };
    say(&format!(
        "{}   held-out success {:.3}  95% CI [{:.3}, {:.3}]  reward {:.3}  {} episodes{of_tasks}, {} broken, temperature {}\n",
        name,
        success.success_rate,
        success.ci_low,
        success.ci_high,
        evaluation.reward_mean,
        success.episodes,
        evaluation.n_broken,
        temperature
    ))
}

/// Returns the number of different tasks that were played.
fn n_tasks(trajectories: &[Trajectory]) -> usize {
    let tasks: BTreeSet<usize> = trajectories.iter().map(|one| one.identity.task_index).collect();
    tasks.len()
}

/// Creates the file for conversations, and refuses to replace a file with other content.
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
            "{} exists and does not contain conversations",
            path.display()
        ))
        .help("name a new file with --out FILE"));
    }
    Ok(file)
}

/// Returns whether a file is empty, or starts like a file of trajectories.
fn is_of_rollouts(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return true };
    let mut begin = [0; 9];
    let n = io::Read::read(&mut &file, &mut begin).unwrap_or(0);
    n == 0 || begin == *b"{\"format\""
}

/// Writes the conversations, one trajectory per line, replacing earlier ones.
fn write(path: &Path, mut file: File, trajectories: &[Trajectory]) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for trajectory in trajectories {
        write_line(&mut lines, trajectory).map_err(|error| Failure::runtime(&error))?;
    }
    // A pipe or a terminal cannot be truncated, and need not be.
    let is_plain = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let cleared = if is_plain { file.set_len(0) } else { Ok(()) };
    cleared.and_then(|()| file.write_all(&lines)).map_err(|error| {
        Failure::new(ExitCode::Runtime, format!("cannot write {}: {error}", path.display()))
    })
}
