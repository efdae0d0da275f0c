//! `turnwise show`: the conversations of a run as chat.

use std::cmp::Ordering;
use std::fmt::Write as _;

use turnwise_run::text::one_line;
use turnwise_run::{Failure, chat};
use turnwise_training::{EpisodeFile, RunFiles};
use turnwise_trajectory::{Outcome, Trajectory};

use crate::arguments::ShowArguments;
use crate::say;
use crate::screen::Style;

/// A choice of episodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pick {
    Best,
    Worst,
    Failed,
}

impl Pick {
    fn word(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::Worst => "worst",
            Self::Failed => "failed",
        }
    }

    /// Returns the episodes of this kind, those to show first in front; equals keep their order.
    fn of(self, episodes: &[Trajectory]) -> Vec<&Trajectory> {
        let by_reward = |a: &&Trajectory, b: &&Trajectory| {
            a.reward().partial_cmp(&b.reward()).unwrap_or(Ordering::Equal)
        };
        let mut of_kind: Vec<&Trajectory> = match self {
            Self::Best | Self::Worst => {
                episodes.iter().filter(|episode| episode.reward().is_some()).collect()
            }
            Self::Failed => episodes.iter().filter(|episode| has_failed(episode)).collect(),
        };
        match self {
            Self::Best => of_kind.sort_by(|a, b| by_reward(b, a)),
            Self::Worst => of_kind.sort_by(by_reward),
            Self::Failed => {
                of_kind.sort_by_key(|episode| std::cmp::Reverse(n_faults(episode)));
            }
        }
        of_kind
    }
}

fn n_faults(episode: &Trajectory) -> u32 {
    episode.turns.iter().map(|turn| turn.faults).sum()
}

/// Returns whether the environment did not end an episode, or could not read one of its turns.
fn has_failed(episode: &Trajectory) -> bool {
    episode.outcome != Outcome::Done || n_faults(episode) > 0
}

/// Prints the chosen conversations of a run.
pub(crate) fn show(arguments: &ShowArguments) -> Result<(), Failure> {
    let files = RunFiles::open(&arguments.run_dir)?;
    let file = file_of(arguments, &files)?;
    let (mut episodes, n_damaged) = files.episodes(&file)?;
    let path = files.path_of(&file).display().to_string();
    if let Some(task) = &arguments.task {
        episodes.retain(|episode| is_of_task(episode, task));
        if episodes.is_empty() {
            return Err(Failure::refused(format!("{path} has no episode of task {task}")).help(
                "name the key or the number of a task, as the headings of  turnwise show  have them",
            ));
        }
    }
    let width = Style::width(&Style::detect(false, false));
    let mut text = String::new();
    if n_damaged > 0 {
        let _ = writeln!(text, "! {n_damaged} damaged lines of {path} were left out");
    }
    for pick in picks(arguments) {
        let chosen = pick.of(&episodes);
        if chosen.is_empty() {
            let _ = writeln!(
                text,
                "{}: there is none among the {} episodes of {path}\n",
                pick.word(),
                episodes.len()
            );
        }
        for episode in chosen.into_iter().take(arguments.n) {
            let _ = writeln!(text, "── {} · {}", pick.word(), chat::heading(episode));
            for line in chat::conversation(episode, width) {
                let _ = writeln!(text, "{line}");
            }
            text.push('\n');
        }
    }
    let _ = writeln!(text, "from {path}, {} episodes", episodes.len());
    say(&text)
}

/// Returns the requested kinds, or else one of each.
fn picks(arguments: &ShowArguments) -> Vec<Pick> {
    let all = [
        (arguments.best, Pick::Best),
        (arguments.worst, Pick::Worst),
        (arguments.failed, Pick::Failed),
    ];
    let wanted: Vec<Pick> = all.iter().filter(|(is, _)| *is).map(|(_, pick)| *pick).collect();
    if wanted.is_empty() { all.map(|(_, pick)| pick).to_vec() } else { wanted }
}

fn is_of_task(episode: &Trajectory, task: &str) -> bool {
    let identity = &episode.identity;
    identity.task.as_str() == task || identity.task_index.to_string() == task
}

/// Returns the requested file, or else the newest evaluation, or the newest step of a run without one.
fn file_of(arguments: &ShowArguments, files: &RunFiles) -> Result<EpisodeFile, Failure> {
    let found = files.episode_files()?;
    let wanted = match (arguments.step, &arguments.eval) {
        (Some(step), _) => Some(EpisodeFile::Step(step.saturating_sub(1))),
        (None, Some(name)) => Some(EpisodeFile::Evaluation(name.clone())),
        (None, None) => None,
    };
    let evaluations = ["after", "before"].map(|name| EpisodeFile::Evaluation(name.to_owned()));
    let on_the_way = found.iter().rfind(|file| is_on_the_way(file));
    let newest_step = found.iter().rfind(|file| matches!(file, EpisodeFile::Step(_)));
    let by_default = [Some(&evaluations[0]), on_the_way, Some(&evaluations[1]), newest_step];
    let chosen = match &wanted {
        Some(wanted) => Some(wanted).filter(|wanted| found.contains(wanted)),
        None => by_default.into_iter().flatten().find(|file| found.contains(file)),
    };
    chosen.cloned().ok_or_else(|| missing(arguments, &found))
}

fn is_on_the_way(file: &EpisodeFile) -> bool {
    matches!(file, EpisodeFile::Evaluation(name) if name.starts_with("step-"))
}

/// Creates the failure for episodes that the run does not have.
fn missing(arguments: &ShowArguments, found: &[EpisodeFile]) -> Failure {
    let run = arguments.run_dir.display();
    if found.is_empty() {
        return Failure::refused(format!("{run} has no episodes")).help(
            "a run keeps log.rollouts_per_step episodes of each training step and of each evaluation",
        );
    }
    let steps: Vec<u64> = found
        .iter()
        .filter_map(|file| match file {
            EpisodeFile::Step(step) => Some(step + 1),
            EpisodeFile::Evaluation(_) => None,
        })
        .collect();
    let evaluations: Vec<String> = found
        .iter()
        .filter_map(|file| match file {
            EpisodeFile::Evaluation(name) => Some(one_line(name)),
            EpisodeFile::Step(_) => None,
        })
        .collect();
    let steps = match (steps.first(), steps.last()) {
        (Some(first), Some(last)) => {
            format!("--step {first} to --step {last}\n")
        }
        _ => String::new(),
    };
    Failure::refused(format!("{run} has no such episodes"))
        .help(format!("{steps}--eval {}", evaluations.join(", --eval ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::fixture::episode;

    fn with_reward(reward: f64, faults: u32) -> Trajectory {
        let mut one = episode();
        for turn in &mut one.turns {
            turn.reward = Some(0.0);
        }
        one.turns[2].reward = Some(reward);
        one.turns[0].faults = faults;
        one
    }

    #[test]
    fn the_best_the_worst_and_the_failed_stand_in_front() {
        let episodes = [with_reward(0.5, 0), with_reward(1.0, 1), with_reward(0.0, 2)];
        let rewards = |pick: Pick| -> Vec<f64> {
            pick.of(&episodes).iter().filter_map(|one| one.reward()).collect()
        };
        assert_eq!(rewards(Pick::Best), [1.0, 0.5, 0.0]);
        assert_eq!(rewards(Pick::Worst), [0.0, 0.5, 1.0]);
        assert_eq!(rewards(Pick::Failed), [0.0, 1.0]);
    }
}
