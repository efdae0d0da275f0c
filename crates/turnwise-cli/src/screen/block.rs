//! The block of lines that is redrawn on a terminal.

use super::history::History;
use super::sample::sample;
use crate::curve::{Frame, chart};
use turnwise_run::text::{columns, fit};

/// Columns to the left of the curve: a space, `reward 1.0` and the axis.
const CHART_MARGIN: usize = 12;

/// Columns to the right of the bar, reserved so that the bar seldom changes its length.
const GLANCE_WIDTH: usize = 36;

/// Columns of the metrics beside the curve, the gap before them included.
const FIGURES_WIDTH: usize = 46;

/// The narrowest useful curve.
const CURVE_MIN: usize = 16;

/// The widest useful curve.
const CURVE_MAX: usize = 60;

/// Rows of the curve.
const CURVE_HEIGHT: usize = 4;

/// Formats the whole block; no line is longer than `width`.
pub(super) fn block(history: &History, width: usize) -> Vec<String> {
    let mut lines = vec![progress(history, width)];
    lines.extend(curve_and_figures(history, width));
    if let Some((step, episode)) = &history.sample {
        lines.extend(sample(*step, episode, width));
    }
    lines.iter().map(|line| fit(line.trim_end(), width)).collect()
}

/// Formats the progress line: the step, a bar and a summary; the bar shrinks first.
fn progress(history: &History, width: usize) -> String {
    let left = format!(" {} ", history.progress());
    let right = format!("  {}  {}", history.reward(), history.pace());
    let right = format!("{:GLANCE_WIDTH$}", right.trim_end());
    let taken = columns(&left) + columns(&right) + 1;
    let share = history.n_done as f64 / history.n_steps.max(1) as f64;
    format!("{left}{}{right}", bar(share, width.saturating_sub(taken)))
}

/// Formats a bar of `width` cells, filled in eighths of a cell.
fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    #[expect(clippy::cast_sign_loss, reason = "a share is not negative")]
    let filled = (share.clamp(0.0, 1.0) * (8 * width) as f64).round() as usize;
    let bar = "█".repeat(filled / 8) + EIGHTHS[filled % 8];
    let rest = width - bar.chars().count();
    bar + &"·".repeat(rest)
}

/// Formats curve and metrics side by side, or one below the other on a narrow terminal.
fn curve_and_figures(history: &History, width: usize) -> Vec<String> {
    let beside = width.saturating_sub(CHART_MARGIN + FIGURES_WIDTH);
    let figures = history.figures();
    if beside < CURVE_MIN {
        let below = reward_curve(history, width.saturating_sub(CHART_MARGIN));
        return below.into_iter().chain(figures.map(|line| format!(" {line}"))).collect();
    }
    let curve = reward_curve(history, beside);
    let padded = curve.iter().map(String::as_str).chain(std::iter::repeat(""));
    let n_lines = curve.len().max(figures.len());
    let figures = figures.into_iter().chain(std::iter::repeat(String::new()));
    let pad = CHART_MARGIN + beside.min(CURVE_MAX);
    padded.zip(figures).take(n_lines).map(|(left, right)| format!("{left:pad$}  {right}")).collect()
}

fn reward_curve(history: &History, width: usize) -> Vec<String> {
    let (low, high) = history.reward_range();
    let n = usize::try_from(history.n_steps).unwrap_or(usize::MAX);
    let frame = Frame { width: width.min(CURVE_MAX), height: CURVE_HEIGHT, low, high, n };
    chart(&frame, "reward", &history.rewards).iter().map(|line| format!(" {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::run;
    use super::*;

    #[test]
    fn eighty_columns_hold_everything() {
        let expected = [
            " step 23/60 ███████████▉···················  reward 0.56 ▲  32 roll/s  eta 0:19",
            " reward 1.0┤                        groups  mixed 71%  all solved 12%  none 17%",
            "           │      ⣀⣀⡀               ratio   1.0001 ± 0.0005  clip lo 14% hi 11%",
            "        0.5┤ ⢀⠤⠔⠊⠉                  length  22 tok  turns 3.4  truncated 0%",
            "           │⠜⠁                      stale   0.8 max 2  partial 6 (4 resumed)",
            "        0.0┼──────────────────────  faults  1  agent 3  entropy 1.31  KL 6.0e-4",
            "            0                   60  time    rollout 0.3 s  train 0.2 s",
            " ── sample (step 23, task 118, reward 1.00, 3 turns) ───────────────────────────",
            "  env   Guess 1-40 in 6.",
            "  agent 20 -> lower   agent 10 -> higher   agent 15",
        ];
        assert_eq!(block(&run(23), 80), expected);
    }

    #[test]
    fn narrow_terminals_have_the_figures_below() {
        let expected = [
            " step 23/60   reward 0.56 ▲  32 roll/s  eta 0:19",
            " reward 1.0┤",
            "           │          ⣀⣀⣀⡀",
            "        0.5┤  ⢀⡠⠤⠔⠒⠉⠉⠉",
            "           │⠔⠉⠁",
            "        0.0┼────────────────────────────────────",
            "            0                                 60",
            " groups  mixed 71%  all solved 12%  none 17%",
            " ratio   1.0001 ± 0.0005  clip lo 14% hi 11%",
            " length  22 tok  turns 3.4  truncated 0%",
            " stale   0.8 max 2  partial 6 (4 resumed)",
            " faults  1  agent 3  entropy 1.31  KL 6.0e-4",
            " time    rollout 0.3 s  train 0.2 s",
            " ── sample (step 23, task 118, reward 1.00, 3 t…",
            "  env   Guess 1-40 in 6.",
            "  agent 20 -> lower   agent 10 -> higher",
            "  agent 15",
        ];
        assert_eq!(block(&run(23), 48), expected);
    }

    #[test]
    fn no_width_is_exceeded() {
        for n in [1, 2, 23, 60] {
            for width in 0..200 {
                for line in block(&run(n), width) {
                    assert!(line.chars().count() <= width, "{width}: {line}");
                }
            }
        }
    }

    #[test]
    fn a_bar_is_empty_at_first_and_full_at_last() {
        assert_eq!(bar(0.0, 3), "···");
        assert_eq!(bar(0.5, 3), "█▌·");
        assert_eq!(bar(1.0, 3), "███");
        assert_eq!(bar(0.5, 0), "");
    }
}
