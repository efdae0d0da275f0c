//! One held-out task, as the starting policy and as the trained one played it.

use turnwise_training::{EpisodeFile, RunFiles};
use turnwise_trajectory::Trajectory;

use crate::chat::{conversation, heading, result};
use crate::text::{columns, fit};

/// The terminal width from which the two conversations stand side by side.
const BESIDE: usize = 100;

/// The space between them.
const GAP: &str = "   ";

/// A held-out episode before and after training.
#[derive(Clone, Debug, PartialEq)]
pub struct BeforeAfter {
    /// The episode of the starting policy.
    pub before: Trajectory,
    /// The same episode, played by the trained policy.
    pub after: Trajectory,
}

impl BeforeAfter {
    /// Chooses the episode whose reward rose most, the first of several with the same rise, among the episodes that the
    /// run kept of both evaluations (`log.rollouts_per_step`). Returns `None` if there are none.
    pub(crate) fn of_run(files: &RunFiles) -> Option<Self> {
        let episodes = |when: &str| {
            let file = EpisodeFile::Evaluation(when.to_owned());
            files.episodes(&file).map(|(episodes, _)| episodes).unwrap_or_default()
        };
        Self::choose(episodes("before"), &episodes("after"))
    }

    fn choose(before: Vec<Trajectory>, after: &[Trajectory]) -> Option<Self> {
        let key = |one: &Trajectory| (one.identity.group, one.seat, one.identity.task.clone());
        let mut best: Option<(f64, Self)> = None;
        for before in before {
            let Some(after) = after.iter().find(|after| key(after) == key(&before)) else {
                continue;
            };
            let (Some(first), Some(last)) = (before.reward(), after.reward()) else { continue };
            let rise = last - first;
            if best.as_ref().is_none_or(|(most, _)| rise > *most) {
                best = Some((rise, Self { before, after: after.clone() }));
            }
        }
        best.map(|(_, chosen)| chosen)
    }

    /// Returns the two conversations side by side, or one above the other on less than 100 columns.
    #[must_use]
    pub fn lines(&self, width: usize) -> Vec<String> {
        let task = heading(&self.after);
        let task = task.split(": ").next().unwrap_or_default();
        let mut page = vec![fit(&format!("{task}, before and after training"), width)];
        if width < BESIDE {
            for (when, episode) in [("before", &self.before), ("after", &self.after)] {
                page.push(fit(&format!("── {when}: {} ", result(episode)), width));
                page.extend(conversation(episode, width));
            }
            return page;
        }
        let half = (width - GAP.len()) / 2;
        let column = |when: &str, episode: &Trajectory| {
            let mut column = vec![fit(&format!("── {when}: {} ", result(episode)), half)];
            column.extend(conversation(episode, half));
            column
        };
        let (left, right) = (column("before", &self.before), column("after", &self.after));
        for row in 0..left.len().max(right.len()) {
            let [left, right] =
                [&left, &right].map(|column| column.get(row).map_or("", String::as_str));
            let pad = " ".repeat(half.saturating_sub(columns(left)));
            page.push(format!("{left}{pad}{GAP}{right}").trim_end().to_owned());
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{episode, said};

    fn played(number: u64, reward: f64) -> Trajectory {
        episode(
            number,
            "Guess 1-40 in 6.",
            &[said("20 数字", 0.0, "lower"), said("15", reward, "")],
        )
    }

    #[test]
    fn the_first_episode_whose_reward_rose_most_is_chosen() {
        let before = [(0, 0.5), (1, 0.2), (2, 0.0), (3, 0.1), (5, 0.0)];
        // The fourth is not among those after training, and is passed over.
        let after = [(0, 0.6), (2, 0.8), (1, 1.0), (5, 0.8)];
        let all = |of: &[(u64, f64)]| -> Vec<Trajectory> {
            of.iter().map(|(number, reward)| played(*number, *reward)).collect()
        };
        let chosen = BeforeAfter::choose(all(&before), &all(&after)).expect("there are pairs");
        assert_eq!(chosen.before.identity.group.0, 1);
        assert_eq!(chosen.after.identity.group.0, 1);
        assert_eq!(BeforeAfter::choose(all(&before), &[]), None);
    }

    #[test]
    fn two_conversations_stand_beside_each_other_where_there_is_room() {
        let both = BeforeAfter { before: played(1, 0.0), after: played(1, 1.0) };
        let wide = both.lines(100);
        assert!(wide[0].ends_with(", before and after training"), "{wide:?}");
        let right = |row: usize| columns(&wide[row][..wide[row].find("── after").expect("two")]);
        assert_eq!(right(1), 51);
        assert!(
            wide[3].starts_with("agent   20 数字  ") && wide[3].ends_with("   agent   20 数字")
        );
        let narrow = both.lines(99);
        assert_eq!(narrow.iter().filter(|line| line.contains("agent   15")).count(), 2);
        for width in 20..140 {
            assert!(both.lines(width).iter().all(|line| columns(line) <= width), "{width}");
        }
    }
}
