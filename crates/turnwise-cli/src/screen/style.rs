//! The style of the screen.

use std::ffi::OsString;
use std::io::{IsTerminal, stderr, stdout};

/// The width of a terminal whose width is unknown.
const DEFAULT_WIDTH: usize = 80;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A block that is redrawn in place, on a terminal.
    Live {
        /// Columns of the terminal.
        width: usize,
        /// Whether colours are enabled. No meaning depends on colour alone.
        color: bool,
    },
    /// One line for each step.
    Lines,
    /// One JSON object per step, and nothing else.
    Json,
    /// Only the lines of [`Screen::finish`](super::Screen::finish).
    Quiet,
}

impl Style {
    /// Chooses the style for standard output and the user's flags; `json` has precedence over `quiet`.
    ///
    /// The width is `COLUMNS` if that is set, otherwise the terminal's. Colours depend on `NO_COLOR` and `TERM`.
    pub(crate) fn detect(json: bool, quiet: bool) -> Self {
        let terminal = stdout().is_terminal().then(|| width_of(stdout()));
        Self::choose(json, quiet, terminal, |name| std::env::var_os(name))
    }

    /// Returns the width of texts that may wrap: that of the terminal, or the usual one where there is none.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Live { width, .. } => *width,
            Self::Lines | Self::Json | Self::Quiet => DEFAULT_WIDTH,
        }
    }

    /// Returns the style for standard error.
    pub(crate) fn of_errors() -> Self {
        let terminal = stderr().is_terminal().then(|| width_of(stderr()));
        Self::choose(false, false, terminal, |name| std::env::var_os(name))
    }

    fn choose(
        json: bool,
        quiet: bool,
        terminal: Option<usize>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let is_dumb = variable("TERM").is_some_and(|term| term == "dumb");
        match (json, quiet, terminal) {
            (true, ..) => Self::Json,
            (false, true, _) => Self::Quiet,
            (false, false, Some(width)) if !is_dumb => {
                let columns = variable("COLUMNS").and_then(|text| text.to_str()?.parse().ok());
                let width = columns.filter(|columns| *columns > 0).unwrap_or(width);
                // <https://no-color.org>: present and not empty.
                let color = variable("NO_COLOR").is_none_or(|value| value.is_empty());
                Self::Live { width, color }
            }
            (false, false, _) => Self::Lines,
        }
    }
}

/// Returns the number of columns of a terminal.
fn width_of(stream: impl std::os::fd::AsFd) -> usize {
    let size = terminal_size::terminal_size_of(stream);
    size.map(|(width, _)| usize::from(width.0)).filter(|n| *n > 0).unwrap_or(DEFAULT_WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(json: bool, quiet: bool, is_terminal: bool, variables: &[(&str, &str)]) -> Style {
        let variable = |name: &str| {
            let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
            Some(OsString::from(value))
        };
        Style::choose(json, quiet, is_terminal.then_some(DEFAULT_WIDTH), variable)
    }

    #[test]
    fn only_a_terminal_is_live() {
        assert_eq!(chosen(false, false, true, &[]), Style::Live { width: 80, color: true });
        assert_eq!(chosen(false, false, false, &[]), Style::Lines);
        assert_eq!(chosen(false, false, true, &[("TERM", "dumb")]), Style::Lines);
    }

    #[test]
    fn wishes_win_over_the_terminal() {
        assert_eq!(chosen(true, false, true, &[]), Style::Json);
        assert_eq!(chosen(false, true, true, &[]), Style::Quiet);
        assert_eq!(chosen(true, true, false, &[]), Style::Json);
    }

    #[test]
    fn the_width_is_that_of_the_terminal() {
        let shown = Style::choose(false, false, Some(132), |_| None);
        assert_eq!(shown, Style::Live { width: 132, color: true });
    }

    #[test]
    fn variables_set_width_and_color() {
        let live = |variables: &[(&str, &str)]| chosen(false, false, true, variables);
        let plain = Style::Live { width: 120, color: false };
        assert_eq!(live(&[("COLUMNS", "120"), ("NO_COLOR", "1")]), plain);
        let default = Style::Live { width: 80, color: true };
        assert_eq!(live(&[("COLUMNS", "wide"), ("NO_COLOR", "")]), default);
        assert_eq!(live(&[("COLUMNS", "0")]), default);
    }
}
