//! A sample episode in a few lines.

use turnwise_environment::{Message, Role};
use turnwise_trajectory::Trajectory;

use turnwise_run::chat::spoken;
use turnwise_run::text::{columns, fit, one_line};

/// The most lines of an episode.
const N_LINES: usize = 4;

/// The separator of turns on one line.
const GAP: &str = "   ";

/// Formats the sample below a heading that identifies the episode. `step` is counted from 1.
///
/// ```text
/// ── sample (step 23, task 118, reward 1.00, 2 turns) ──────
///   env   Guess 1-40 in 6.
///   agent 20 -> lower   agent 10
/// ```
pub(super) fn sample(step: u64, episode: &Trajectory, width: usize) -> Vec<String> {
    let mut lines = vec![rule(&caption(step, episode), width)];
    lines.extend(conversation(&episode.messages(), width));
    lines
}

fn caption(step: u64, episode: &Trajectory) -> String {
    let reward = episode.reward().map_or("–".to_owned(), |reward| format!("{reward:.2}"));
    let turns = match episode.turns.len() {
        1 => "1 turn".to_owned(),
        n => format!("{n} turns"),
    };
    format!("sample (step {step}, task {}, reward {reward}, {turns})", episode.identity.task_index)
}

fn rule(caption: &str, width: usize) -> String {
    let text = format!(" ── {caption} ");
    let rest = width.saturating_sub(columns(&text));
    fit(&format!("{text}{}", "─".repeat(rest)), width)
}

fn conversation(messages: &[Message], width: usize) -> Vec<String> {
    // The instructions at the start are the same for all episodes.
    let mut messages = messages.iter().filter(|message| message.role != Role::System).peekable();
    let mut lines = Vec::new();
    while let Some(asked) = messages.next_if(|message| message.role != Role::Assistant) {
        lines.push(fit(&format!("  env   {}", one_line(&asked.content)), width));
    }
    // At least one line is left for the agent's turns.
    lines.truncate(N_LINES - 1);
    let mut turns = Vec::new();
    while let Some(said) = messages.next() {
        let mut turn = format!("agent {}", one_line(&spoken(said)));
        while let Some(answer) = messages.next_if(|message| message.role != Role::Assistant) {
            turn.push_str(" -> ");
            turn.push_str(&one_line(&answer.content));
        }
        turns.push(fit(&turn, width.saturating_sub(2)));
    }
    let n_left = N_LINES - lines.len();
    lines.extend(packed(&turns, width, n_left));
    lines
}

/// Packs turns into lines, on at most `n_lines` lines; the last says how many are missing.
fn packed(turns: &[String], width: usize, n_lines: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (i, turn) in turns.iter().enumerate() {
        let length = columns(turn) + GAP.len();
        let is_full = lines.len() == n_lines;
        match lines.last_mut() {
            Some(line) if columns(line) + length <= width => {
                line.push_str(GAP);
                line.push_str(turn);
            }
            Some(line) if is_full => {
                let more = format!(" … {} more", turns.len() - i);
                *line = fit(line, width.saturating_sub(columns(&more))) + &more;
                break;
            }
            _ => lines.push(format!("  {turn}")),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::fixture::episode;
    use super::*;
    use serde_json::json;
    use turnwise_environment::{Action, Message};

    fn said(text: &str) -> Message {
        Message::assistant(text)
    }

    #[test]
    fn turns_share_lines() {
        let lines = sample(23, &episode(), 60);
        let expected = [
            " ── sample (step 23, task 118, reward 1.00, 3 turns) ───────",
            "  env   Guess 1-40 in 6.",
            "  agent 20 -> lower   agent 10 -> higher   agent 15",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn calls_and_silence_are_shown() {
        let messages = [
            Message::system("You compute."),
            Message::user("Compute 7 + 5."),
            Action::call("calc", json!({"a": 7})).to_message(),
            Message::tool("call_0", "error: invalid_args: op is missing"),
            said(""),
        ];
        let expected = [
            "  env   Compute 7 + 5.",
            r#"  agent calc({"a":7}) -> error: invalid_args: op is missing"#,
            "  agent (nothing)",
        ];
        assert_eq!(conversation(&messages, 64), expected);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut messages = vec![Message::user("Go.")];
        for turn in 0..9 {
            messages.push(said(&format!("turn {turn}")));
            messages.push(Message::user("on"));
        }
        let expected = [
            "  env   Go.",
            "  agent turn 0 -> on",
            "  agent turn 1 -> on",
            "  agent turn 2… … 6 more",
        ];
        assert_eq!(conversation(&messages, 24), expected);
    }

    #[test]
    fn nothing_gets_out_of_its_line() {
        let hostile = "\u{1b}[2J\n".repeat(400);
        let messages = [Message::user(&*hostile), said(&hostile), Message::user(&*hostile)];
        for width in 0..100 {
            let lines = conversation(&messages, width);
            assert!(lines.iter().all(|line| line.chars().count() <= width.max(2)), "{lines:?}");
            assert!(!lines.concat().contains('\u{1b}'));
        }
    }
}
