//! `turnwise env list`.

use std::io::{self, Write};

use serde_json::Value;
use turnwise::environment::check::{Player, measure};
use turnwise::environment::{Split, Suite};

use super::suites;

/// How many held-out episodes each player is measured on: few, because a list should appear at once.
const N_EPISODES: usize = 100;

/// Writes a table of all environments with their default options.
///
/// # Errors
/// When `out` fails.
pub(super) async fn list(mut out: impl Write) -> io::Result<()> {
    let mut rows = vec![
        ["name", "tasks", "held-out", "turns", "expert", "random", "about"].map(str::to_owned),
    ];
    for entry in suites() {
        if let Ok(suite) = entry.suite(&Value::Null) {
            rows.push(row(suite.as_ref()).await);
        }
    }
    for row in &rows {
        writeln!(out, "{}", aligned(row, &rows))?;
    }
    writeln!(out, "\nexpert, random: held-out tasks solved, of {N_EPISODES} episodes")
}

async fn row(suite: &dyn Suite) -> [String; 7] {
    let n_tasks = |split| suite.tasks(split).len().to_string();
    [
        suite.name().to_owned(),
        n_tasks(Split::Train),
        n_tasks(Split::HeldOut),
        suite.max_turns().to_string(),
        solved(suite, Player::Expert).await,
        solved(suite, Player::Random).await,
        suite.description().to_owned(),
    ]
}

async fn solved(suite: &dyn Suite, player: Player) -> String {
    match measure(suite, Split::HeldOut, player, N_EPISODES).await {
        Ok(measured) => format!("{:.0}%", 100.0 * measured.solved_rate),
        // What is wrong is for `env check` to tell.
        Err(_) => "broken".to_owned(),
    }
}

/// A row in columns as wide as the widest cell: texts to the left, numbers to the right.
fn aligned<const N: usize>(row: &[String; N], rows: &[[String; N]]) -> String {
    let cells = row.iter().enumerate().map(|(i, cell)| {
        let width = rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
        if i == 0 || i == N - 1 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
    });
    cells.collect::<Vec<String>>().join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_environment_has_its_row() {
        let mut out = Vec::new();
        list(&mut out).await.expect("a vector takes what is written");
        let text = String::from_utf8_lossy(&out);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "name        tasks  held-out  turns  expert  random  about");
        let names: Vec<&str> =
            lines[1..].iter().map_while(|line| line.split_whitespace().next()).collect();
        assert_eq!(names, ["calculator", "guess"]);
        assert!(lines[1].ends_with("  compute an expression step by step with a tool"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{text}");
    }
}
