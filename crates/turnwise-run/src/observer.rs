use std::time::Duration;

use turnwise_training::StepReport;

use crate::BeforeAfter;

/// Follows a run in progress: a screen, a log, a notebook.
///
/// Every method does nothing by default. A run calls the methods in the order of the events, and waits for each.
///
/// ```
/// use turnwise_run::Observer;
/// use turnwise_training::{StepReport, metric};
///
/// /// Keeps the mean reward of each step.
/// #[derive(Default)]
/// struct Curve(Vec<f64>);
///
/// impl Observer for Curve {
///     fn step(&mut self, report: &StepReport) {
///         self.0.extend(report.metrics.get(metric::REWARD_MEAN));
///     }
/// }
/// ```
pub trait Observer: Send {
    /// Called once, when everything is loaded and the run begins or is resumed.
    fn begin(&mut self, plan: &Plan) {
        let _ = plan;
    }

    /// Called with a line about work outside of steps, such as `warm start 20/60   loss 1.23`; it replaces the line
    /// before.
    fn phase(&mut self, line: &str) {
        let _ = line;
    }

    /// Called during long work, with its progress and the time since it began: `step 12: 3/8 micro-batches, 0:40 left`.
    fn progress(&mut self, line: &str, elapsed: Duration) {
        let _ = (line, elapsed);
    }

    /// Called when the long work is over.
    fn idle(&mut self) {}

    /// Called with the report of each finished step.
    fn step(&mut self, report: &StepReport) {
        let _ = report;
    }

    /// Called with a text to keep: an evaluation, or a warning (which begins with `!`).
    fn note(&mut self, text: &str) {
        let _ = text;
    }

    /// Called once before the end of a finished run, with a held-out episode as the starting policy and as the trained
    /// one played it, if the run kept one.
    fn compared(&mut self, before_after: &BeforeAfter) {
        let _ = before_after;
    }

    /// Called once, when the run ends or stops, with its final lines.
    fn finish(&mut self, lines: &[String]) {
        let _ = lines;
    }
}

/// The facts about a run that are known when it begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Lines about the model, the environment, and the resources that the run needs.
    pub header: Vec<String>,
    /// The number of steps of the whole run, including those before a resumption.
    pub steps: u64,
}

/// An observer that shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}
