use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use serde_json::Value;
use turnwise_environment::{
    Action, CallAttempt, Demonstrator, LateReward, Message, Observation, Role, SeatReward, Split,
    Step, Suite,
};

/// The number of tasks of a playthrough.
const N_TASKS: usize = 3;

/// The width of the column with the speaker.
const COLUMN: usize = 10;

/// Compares `expert.txt` and `random.txt` in `folder` with the current episodes of the suite's players.
///
/// Each file shows a few episodes for human readers: messages, rewards, ending. With `TURNWISE_BLESS=1` in the process
/// environment the files are written instead of compared.
///
/// # Panics
/// Panics if a file differs (with the first such line), cannot be read or written, or an environment breaks.
pub async fn playthroughs(suite: &Suite, folder: &Path) {
    for (file, player) in [("expert.txt", true), ("random.txt", false)] {
        let mut text = String::new();
        for task in 0..N_TASKS {
            text.push_str(&playthrough(suite, task, player).await);
        }
        compare(&folder.join(file), &text);
    }
}

/// Formats one episode as text.
async fn playthrough(suite: &Suite, number: usize, expert: bool) -> String {
    let tasks = suite.tasks(Split::Train);
    // Skips the beginning, where tasks may be of one kind.
    let index = (11 + 37 * number) % tasks.len();
    let seed = number as u64;
    let player = if expert { suite.make_expert(seed) } else { suite.make_random(seed) };
    let mut player = player.expect("the suite offers the player");
    let mut environment = tasks.environment(index);
    let mut text = format!("# {} task {}\n", tasks.name(), tasks.key(index));
    for tool in environment.tools() {
        line(&mut text, "tools", &format!("{}: {}", tool.name, tool.description));
    }
    let mut shown = environment.reset(seed).await.expect("the environment starts");
    loop {
        show(&mut text, &shown);
        let action = act(player.as_mut(), &mut text, &shown);
        match environment.step(action).await.expect("the environment answers") {
            Step::Next { observation, reward, faults, others, late } => {
                score(&mut text, reward, (faults > 0).then(|| format!("faults {faults}")));
                score_others(&mut text, &others);
                score_earlier(&mut text, &late);
                shown = observation;
            }
            Step::End { reward, ending, solved, others, late } => {
                let verdict = if solved { "solved" } else { "not solved" };
                score(&mut text, reward, Some(format!("{ending:?}, {verdict}").to_lowercase()));
                score_others(&mut text, &others);
                score_earlier(&mut text, &late);
                text.push('\n');
                return text;
            }
        }
    }
}

fn score_others(text: &mut String, others: &[SeatReward]) {
    for SeatReward { seat, reward, .. } in others {
        line(text, &format!("reward of seat {seat}"), &reward.to_string());
    }
}

fn score_earlier(text: &mut String, late: &[LateReward]) {
    for LateReward { turn, reward } in late {
        line(text, &format!("reward of turn {}", turn + 1), &reward.to_string());
    }
}

fn show(text: &mut String, observation: &Observation) {
    for message in &observation.messages {
        let role = role(message);
        if observation.seat.is_first() {
            line(text, role, &message.content);
        } else {
            line(text, &format!("{role} of seat {}", observation.seat), &message.content);
        }
    }
}

fn act(player: &mut dyn Demonstrator, text: &mut String, shown: &Observation) -> Action {
    let action = player.act(shown);
    if !action.text.is_empty() || action.calls.is_empty() {
        line(text, "assistant", &action.text);
    }
    for attempt in &action.calls {
        let call = match attempt {
            CallAttempt::Call(call) => format!("{}({})", call.name, arguments(&call.arguments)),
            CallAttempt::Malformed(call) => format!("malformed: {}", call.raw),
        };
        line(text, "assistant", &call);
    }
    action
}

/// Formats arguments in alphabetical order, independently of the JSON library's order.
fn arguments(arguments: &Value) -> String {
    let Value::Object(object) = arguments else { return arguments.to_string() };
    let sorted: BTreeMap<_, _> = object.iter().collect();
    let shown: Vec<String> =
        sorted.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    shown.join(", ")
}

fn role(message: &Message) -> &'static str {
    match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

/// Writes the reward and the note of a turn, if the turn has any.
fn score(text: &mut String, reward: Option<f64>, note: Option<String>) {
    let reward = reward.map(|reward| format!("reward {reward}"));
    let parts: Vec<String> = reward.into_iter().chain(note).collect();
    if !parts.is_empty() {
        line(text, "", &parts.join(", "));
    }
}

fn line(text: &mut String, who: &str, what: &str) {
    let mark = if who.is_empty() { "= " } else { "" };
    writeln!(text, "{who:COLUMN$} {mark}{what}").expect("a string takes what is written");
}

/// Compares a file with its expected content, or writes it if requested.
fn compare(path: &Path, now: &str) {
    if env::var_os("TURNWISE_BLESS").is_some_and(|value| value == "1") {
        let folder = path.parent().expect("a file is in a folder");
        fs::create_dir_all(folder).expect("the folder of playthroughs can be made");
        fs::write(path, now).expect("the playthrough can be written");
        return;
    }
    let kept = fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}; {BLESS}", path.display()));
    // A checkout may have converted the line ends.
    let (kept, now) = (kept.lines(), now.lines());
    if let Some((number, kept, now)) = difference(kept, now) {
        panic!("{}:{number} differs; {BLESS}\n- {kept}\n+ {now}", path.display());
    }
}

const BLESS: &str = "TURNWISE_BLESS=1 writes it anew";

/// Returns the number of the first line that differs, counted from 1, and the line on both sides.
fn difference<'a>(
    mut kept: impl Iterator<Item = &'a str>,
    mut now: impl Iterator<Item = &'a str>,
) -> Option<(usize, &'a str, &'a str)> {
    const END: &str = "(end of file)";
    (1..).find_map(|number| match (kept.next(), now.next()) {
        (None, None) => Some(None),
        (kept, now) if kept == now => None,
        (kept, now) => Some(Some((number, kept.unwrap_or(END), now.unwrap_or(END)))),
    })?
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn the_first_line_that_differs_is_told() {
        assert_eq!(difference("a\nb".lines(), "a\nb".lines()), None);
        assert_eq!(difference("a\nb".lines(), "a\nc".lines()), Some((2, "b", "c")));
        assert_eq!(difference("a".lines(), "a\nc".lines()), Some((2, "(end of file)", "c")));
    }
}
