use std::time::Duration;

use turnwise_training::StepReport;

/// Follows a run while it goes on: a screen, a log, a notebook.
///
/// Every method does nothing by default. A run calls them in the order of what happens, and waits for each.
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
    /// Called once, when everything is loaded and the run begins or goes on.
    fn begin(&mut self, plan: &Plan) {
        let _ = plan;
    }

    /// Called with a line about what goes on outside of steps, such as `warm start 20/60   loss 1.23`; it replaces the line
    /// before.
    fn phase(&mut self, line: &str) {
        let _ = line;
    }

    /// Called while something takes long, with how far it is and the time since it began: `step 12: 3/8 micro-batches, 0:40 left`.
    fn progress(&mut self, line: &str, elapsed: Duration) {
        let _ = (line, elapsed);
    }

    /// Called when that is over.
    fn idle(&mut self) {}

    /// Called with each step that is done.
    fn step(&mut self, report: &StepReport) {
        let _ = report;
    }

    /// Called with something that is worth keeping: an evaluation, a warning (which begins with `!`).
    fn note(&mut self, text: &str) {
        let _ = text;
    }

    /// Called once, when the run ends or stops, with what there is to say about it.
    fn finish(&mut self, lines: &[String]) {
        let _ = lines;
    }
}

/// What is known of a run when it begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Lines about the model, the environment, and what the run takes.
    pub header: Vec<String>,
    /// Steps of the whole run, those before a resumption included.
    pub steps: u64,
}

/// An observer that shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}
