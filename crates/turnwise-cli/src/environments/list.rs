//! `turnwise env list`.

use std::io::{self, Write};

use serde_json::Value;
use turnwise_environment::check::{Player, measure};
use turnwise_environment::{Split, Suite};
use turnwise_run::Registry;

/// The number of held-out episodes for each player: few, because a list should appear at once.
const N_EPISODES: usize = 100;

/// The placeholder for a missing value.
const NONE: &str = "-";

/// Writes a table of all environments with their default options.
///
/// # Errors
/// When `out` fails.
pub(super) async fn list(registry: &Registry, mut out: impl Write) -> io::Result<()> {
    let mut rows = vec![
        ["name", "tasks", "held-out", "turns", "expert", "random", "about"].map(str::to_owned),
    ];
    for name in registry.names() {
        rows.push(match registry.suite(name, &Value::Null) {
            Ok(suite) => row(&suite).await,
            Err(error) => without_defaults(name, &error.to_string()),
        });
    }
    for row in &rows {
        writeln!(out, "{}", aligned(row, &rows))?;
    }
    writeln!(out, "\nexpert, random: held-out tasks solved, of {N_EPISODES} episodes")
}

async fn row(suite: &Suite) -> [String; 7] {
    let n_tasks = |split| suite.tasks(split).len().to_string();
    [
        suite.name().to_owned(),
        n_tasks(Split::Train),
        n_tasks(Split::HeldOut),
        suite.turn_limit().map_or_else(|| NONE.to_owned(), |turns| turns.to_string()),
        solved(suite, Player::Expert).await,
        solved(suite, Player::Random).await,
        suite.about().to_owned(),
    ]
}

/// Returns the row of an environment that needs options; the reason says which.
fn without_defaults(name: &str, why: &str) -> [String; 7] {
    let why = why.strip_prefix(&format!("cannot set up {name}: ")).unwrap_or(why);
    [name, NONE, NONE, NONE, NONE, NONE, why].map(str::to_owned)
}

async fn solved(suite: &Suite, player: Player) -> String {
    match measure(suite, Split::HeldOut, player, N_EPISODES).await {
        Ok(Some(measured)) => format!("{:.0}%", 100.0 * measured.solved_rate),
        Ok(None) => NONE.to_owned(),
        // `env check` reports the problem.
        Err(_) => "broken".to_owned(),
    }
}

/// Aligns a row to the widest cells: texts to the left, numbers to the right.
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
        list(&Registry::builtin(), &mut out).await.expect("a vector takes what is written");
        let text = String::from_utf8_lossy(&out);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "name        tasks  held-out  turns  expert  random  about");
        let names: Vec<&str> =
            lines[1..].iter().map_while(|line| line.split_whitespace().next()).collect();
        assert_eq!(names, ["calculator", "guess", "openenv", "ors", "program", "verifiers"]);
        assert!(lines[1].ends_with("  compute an expression step by step with a tool"), "{text}");
        assert!(lines[3].ends_with("  set `url` to the address of an OpenEnv server"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{text}");
    }
}
