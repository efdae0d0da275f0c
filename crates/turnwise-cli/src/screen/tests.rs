use std::io;

use super::fixture::{report, reward_at};
use super::*;

fn plan() -> Plan {
    Plan { header: vec![" model   tiny".to_owned(), " env     guess".to_owned()], steps: 60 }
}

fn shown(style: Style, act: impl FnOnce(&mut Screen<&mut Vec<u8>>)) -> String {
    let mut out = Vec::new();
    let mut screen = Screen::new(&mut out, style);
    screen.begin(&plan());
    act(&mut screen);
    drop(screen);
    String::from_utf8(out).expect("a screen writes UTF-8")
}

/// Simulates a short run that uses everything.
fn act(screen: &mut Screen<&mut Vec<u8>>) {
    screen.phase("warm start 1/2  loss 1.23");
    screen.phase("warm start 2/2  loss 0.98");
    screen.step(&report(0, 0.25));
    screen.note("ckpt step 1 (0.03 s)");
    screen.step(&report(1, 0.5));
    screen.finish(&["✓ 2 steps".to_owned()]);
}

/// Returns what a terminal shows after these bytes, for the sequences that a screen writes.
fn on_terminal(bytes: &str) -> Vec<String> {
    let (mut rows, mut row) = (vec![String::new()], 0);
    let mut rest = bytes;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\n' => {
                row += 1;
                rows.resize(rows.len().max(row + 1), String::new());
            }
            // Each line is rewritten from its start and cleared to its end.
            '\r' => rows[row].clear(),
            '\x1b' => {
                let end = rest.find(|c: char| c.is_ascii_alphabetic()).expect("a sequence ends");
                match (&rest[1..end], &rest[end..=end]) {
                    (n, "A") => row -= n.parse::<usize>().expect("a number of rows"),
                    ("", "J") => {
                        rows[row].clear();
                        rows.truncate(row + 1);
                    }
                    ("", "K") | ("?7", "l" | "h") | (_, "m") => {}
                    other => panic!("{other:?} is not expected"),
                }
                rest = &rest[end + 1..];
            }
            c => rows[row].push(c),
        }
    }
    rows
}

#[test]
fn a_terminal_shows_one_block() {
    let expected = [
        " model   tiny",
        " env     guess",
        "groups  mixed: rewards differ; none: no member solved the task; a group can be both",
        "ckpt step 1 (0.03 s)",
        " step  2/60 █······························  reward 0.50 ▲  32 roll/s",
        " reward 1.0┤                        groups  mixed 71%  all solved 12%  none 17%",
        "           │                        ratio   1.0001 ± 0.0005  clip lo 14% hi 11%",
        "        0.5┤⡸                       length  22 tok  turns 3.4  truncated 0%",
        "           │                        stale   0.8 max 2  partial 6 (4 resumed)",
        "        0.0┼──────────────────────  faults  1  agent 3  entropy 1.31  KL 6.0e-4",
        "            0                   60  time    rollout 0.3 s  train 0.2 s",
        " ── sample (step 2, task 118, reward 1.00, 3 turns) ────────────────────────────",
        "  env   Guess 1-40 in 6.",
        "  agent 20 -> lower   agent 10 -> higher   agent 15",
        "✓ 2 steps",
        "",
    ];
    let rows = on_terminal(&shown(Style::Live { width: 80, color: false }, act));
    assert_eq!(rows, expected);
}

#[test]
fn without_a_terminal_each_step_is_a_line() {
    let figures = "mixed 71%  none 17%  ratio 1.0001 ± 0.0005  clip 25%  22 tok  3.4 turns  stale 2  faults 1  0.5 s";
    let expected = [
        " model   tiny",
        " env     guess",
        "groups  mixed: rewards differ; none: no member solved the task; a group can be both",
        "warm start 1/2  loss 1.23",
        "warm start 2/2  loss 0.98",
        &format!("step  1/60  reward 0.25 ·  {figures}"),
        "ckpt step 1 (0.03 s)",
        &format!("step  2/60  reward 0.50 ▲  {figures}"),
        "✓ 2 steps",
    ];
    assert_eq!(shown(Style::Lines, act).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn json_is_one_object_for_each_step() {
    let text = shown(Style::Json, act);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[1]["step"], &lines[1]["reward/mean"]), (&1.into(), &0.5.into()));
}

#[test]
fn an_episode_before_and_after_stands_above_the_last_lines() {
    let both =
        || BeforeAfter { before: super::fixture::episode(), after: super::fixture::episode() };
    let end = |screen: &mut Screen<&mut Vec<u8>>| {
        screen.step(&report(0, 0.25));
        screen.compared(&both());
        screen.finish(&["it learned".to_owned()]);
    };
    let wide = on_terminal(&shown(Style::Live { width: 120, color: false }, end));
    let beside = wide.iter().position(|row| row.contains("── before") && row.contains("── after"));
    let last = wide.iter().position(|row| row == "it learned");
    assert!(beside.is_some() && beside < last, "{wide:?}");
    let lines = shown(Style::Lines, end);
    assert!(lines.contains("\n── before: ") && lines.contains("\n── after: "), "{lines}");
    assert!(!shown(Style::Json, end).contains("before"));
}

#[test]
fn quiet_says_only_how_it_ended() {
    assert_eq!(shown(Style::Quiet, act), "✓ 2 steps\n");
}

#[test]
fn colors_are_only_added() {
    let plain = on_terminal(&shown(Style::Live { width: 80, color: false }, act));
    let colored = shown(Style::Live { width: 80, color: true }, act);
    assert!(colored.contains("\x1b[0;32m▲"));
    assert_eq!(on_terminal(&colored), plain);
}

#[test]
fn fast_steps_are_not_all_drawn_but_the_last_is() {
    let mut drawn = Vec::new();
    let mut screen = Screen::new(&mut drawn, Style::Live { width: 80, color: false });
    screen.begin(&plan());
    for step in 0..60 {
        let mut report = report(step, reward_at(step));
        report.metrics.set(turnwise_training::metric::STEP_S, 0.01);
        screen.step(&report);
    }
    let text = String::from_utf8(drawn).expect("a screen writes UTF-8");
    assert!((6..=8).contains(&text.matches(" roll/s").count()));
    assert!(text.contains(" step 60/60 "));
}

#[test]
fn a_phase_follows_the_block_until_the_next_step() {
    let style = Style::Live { width: 80, color: false };
    let during = |screen: &mut Screen<&mut Vec<u8>>| {
        screen.step(&report(0, 0.25));
        screen.phase("evaluating 10/128");
        screen.phase("evaluating 20/128");
    };
    let rows = on_terminal(&shown(style, during));
    assert_eq!(rows.iter().filter(|row| row.contains("evaluating")).count(), 1);
    assert_eq!(rows[rows.len() - 2], " evaluating 20/128");
    let after = |screen: &mut Screen<&mut Vec<u8>>| {
        during(screen);
        screen.step(&report(1, 0.25));
    };
    assert!(!on_terminal(&shown(style, after)).concat().contains("evaluating"));
}

/// An output whose reader has closed.
struct Closed {
    n_writes: usize,
}

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        self.n_writes += 1;
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_output_is_written_to_once() {
    let mut out = Closed { n_writes: 0 };
    let mut screen = Screen::new(&mut out, Style::Lines);
    screen.begin(&plan());
    screen.step(&report(0, 0.25));
    screen.note("ckpt");
    screen.finish(&[]);
    assert_eq!(out.n_writes, 1);
}
