//! The progress of a training run: a block that is redrawn on a terminal, and lines everywhere else.
//!
//! Not supported: terminals with fewer rows than the block, about 12, where older copies of it scroll away.

mod block;
mod figures;
#[cfg(test)]
pub(crate) mod fixture;
mod history;
mod paint;
mod sample;
mod sparse;
mod style;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use turnwise_run::{BeforeAfter, Observer, Plan, text};
use turnwise_training::StepReport;

use block::block;
use history::History;
use paint::painted;
use sparse::Sparse;

pub(crate) use style::Style;

/// Seconds of the run between two drawings of the block.
const DRAW_EVERY_S: f64 = 0.1;

/// The shortest time between two lines about one activity, when output is not a terminal.
const PRINT_EVERY: Duration = Duration::from_secs(10);

/// Explains two of the shares of groups, which are not parts of one whole.
const GROUPS: &str =
    "groups  mixed: rewards differ; none: no member solved the task; a group can be both";

/// The screen of a run.
///
/// Its methods do not fail: after the output is closed, nothing more is written and the run continues. Control
/// characters are removed from texts, so that colours come only from [`Style`].
#[derive(Debug)]
pub(crate) struct Screen<W: Write> {
    out: W,
    style: Style,
    history: History,
    /// The current activity outside steps.
    phase: Option<String>,
    /// The elapsed time at the last line about a long activity, when output is not a terminal.
    shown: Option<Duration>,
    sparse: Sparse,
    /// The lines of the block on the terminal.
    n_drawn: usize,
    /// Seconds of the run since the block was drawn.
    since_drawn_s: f64,
    is_closed: bool,
    /// The lines of an episode before and after training, for the end of the screen.
    compared: Vec<String>,
}

impl<W: Write> Screen<W> {
    /// Creates an empty screen.
    pub(crate) fn new(out: W, style: Style) -> Self {
        Self {
            out,
            style,
            history: History::new(0),
            phase: None,
            shown: None,
            sparse: Sparse::default(),
            n_drawn: 0,
            since_drawn_s: f64::INFINITY,
            is_closed: false,
            compared: Vec::new(),
        }
    }
}

impl<W: Write + Send> Observer for Screen<W> {
    /// Prints the header, unless lines are for programs.
    fn begin(&mut self, plan: &Plan) {
        self.history = History::new(plan.steps);
        let header = plan.header.iter().cloned().chain([GROUPS.to_owned()]);
        match self.style {
            Style::Live { .. } => self.draw(&header.collect::<Vec<_>>()),
            Style::Lines => {
                let mut lines = self.sparse.flush();
                lines.extend(header);
                self.print(&lines);
            }
            Style::Json | Style::Quiet => {}
        }
    }

    /// Shows the current activity outside steps (`warm start 20/60  loss 1.23`). On a terminal the line is rewritten;
    /// elsewhere the first, every tenth and the last of similar texts are printed.
    fn phase(&mut self, text: &str) {
        let text = text::one_line(text);
        match self.style {
            Style::Live { .. } => {
                self.phase = Some(text);
                self.draw(&[]);
            }
            Style::Lines => {
                let due = self.sparse.offer(&text);
                self.print(&due);
            }
            Style::Json | Style::Quiet => {}
        }
    }

    /// Shows the progress of an activity that has taken `elapsed`. On a terminal the line is rewritten; elsewhere it is
    /// printed again, less often the longer it takes.
    fn progress(&mut self, text: &str, elapsed: Duration) {
        let text = text::one_line(text);
        match self.style {
            Style::Live { .. } => {
                if self.phase.as_deref() != Some(&text) {
                    self.phase = Some(text);
                    self.draw(&[]);
                }
            }
            Style::Lines => {
                // Short steps have lines of their own.
                let is_quick = self.history.n_done > 0 && elapsed < PRINT_EVERY;
                let pause = PRINT_EVERY.max(elapsed / 4);
                if !is_quick && self.shown.is_none_or(|shown| elapsed >= shown + pause) {
                    self.shown = Some(elapsed);
                    let mut lines = self.sparse.flush();
                    lines.push(text);
                    self.print(&lines);
                }
            }
            Style::Json | Style::Quiet => {}
        }
    }

    /// Removes the line of an activity that has ended.
    fn idle(&mut self) {
        self.shown = None;
        if self.phase.take().is_some() {
            self.draw(&[]);
        }
    }

    /// Shows a finished step.
    fn step(&mut self, report: &StepReport) {
        self.history.record(report);
        match self.style {
            Style::Live { .. } => self.draw_if_due(),
            Style::Lines => {
                let mut lines = self.sparse.flush();
                lines.push(self.history.line());
                self.print(&lines);
            }
            Style::Json => {
                let line = json(report);
                self.emit(&format!("{line}\n"));
            }
            Style::Quiet => {}
        }
    }

    /// Prints a line that stays: a checkpoint, a warning. On a terminal it is above the block.
    fn note(&mut self, line: &str) {
        match self.style {
            Style::Live { .. } => self.draw(&text::lines(line)),
            Style::Lines => {
                let mut lines = self.sparse.flush();
                lines.extend(text::lines(line));
                self.print(&lines);
            }
            Style::Json | Style::Quiet => {}
        }
    }

    /// Keeps the comparison for the end of the screen, where it stands above the last lines.
    fn compared(&mut self, before_after: &BeforeAfter) {
        self.compared = before_after.lines(self.style.width());
    }

    /// Ends the screen. The block stays; `Json` prints nothing more, because its lines are for programs.
    fn finish(&mut self, lines: &[String]) {
        let lines = lines.iter().flat_map(|line| text::lines(line));
        let lines: Vec<String> =
            std::mem::take(&mut self.compared).into_iter().chain(lines).collect();
        match self.style {
            Style::Live { .. } => {
                self.phase = None;
                self.draw(&[]);
                // Later lines are below the block.
                self.n_drawn = 0;
                self.print(&lines);
            }
            Style::Lines => {
                let last = self.sparse.flush();
                self.print(&last);
                self.print(&lines);
            }
            Style::Quiet => self.print(&lines),
            Style::Json => {}
        }
    }
}

impl<W: Write> Screen<W> {
    fn draw_if_due(&mut self) {
        self.phase = None;
        self.since_drawn_s += self.history.step_s();
        let is_last = self.history.n_done >= self.history.n_steps;
        if self.since_drawn_s >= DRAW_EVERY_S || is_last {
            self.draw(&[]);
        }
    }

    /// Redraws the block, below lines that stay.
    fn draw(&mut self, above: &[String]) {
        let Style::Live { width, color } = self.style else { return };
        let mut lines =
            if self.history.n_done > 0 { block(&self.history, width) } else { Vec::new() };
        lines.extend(self.phase.iter().map(|phase| text::fit(&format!(" {phase}"), width)));
        let mut frame = String::new();
        if self.n_drawn > 0 {
            let _ = write!(frame, "\x1b[{}A", self.n_drawn);
        }
        if !above.is_empty() {
            // A long line that stays may wrap onto rows of the block.
            frame.push_str("\r\x1b[J");
        }
        for line in above {
            let _ = writeln!(frame, "{}", painted(line, color));
        }
        // Each line is cleared before it is written: after a full line, clearing would remove its last character.
        // Without wrapping, a line takes one row, however wide its characters or narrow the terminal.
        frame.push_str("\x1b[?7l");
        for line in &lines {
            let _ = writeln!(frame, "\r\x1b[K{}", painted(line, color));
        }
        frame.push_str("\x1b[?7h\x1b[J");
        self.emit(&frame);
        self.n_drawn = lines.len();
        self.since_drawn_s = 0.0;
    }

    /// Prints lines that stay.
    fn print(&mut self, lines: &[String]) {
        let color = matches!(self.style, Style::Live { color: true, .. });
        let mut text = String::new();
        for line in lines {
            let _ = writeln!(text, "{}", painted(line, color));
        }
        self.emit(&text);
    }

    /// Writes a text: the only place that writes. A closed output must not end a run.
    fn emit(&mut self, text: &str) {
        if self.is_closed || text.is_empty() {
            return;
        }
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        self.is_closed = written.is_err();
    }
}

/// Formats the metrics of a step as one object, by their flat names.
fn json(report: &StepReport) -> String {
    let mut object: BTreeMap<&str, serde_json::Value> =
        report.metrics.iter().map(|(name, value)| (name, value.into())).collect();
    object.insert("step", report.step.into());
    serde_json::to_string(&object).expect("names and numbers are JSON")
}

#[cfg(test)]
mod tests;
