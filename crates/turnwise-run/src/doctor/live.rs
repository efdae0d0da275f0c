//! Findings while a run goes on.

use super::evidence::{Evidence, StepMetrics, WINDOW};
use super::finding::Finding;
use super::rules;
use crate::config::Config;

/// The number of the last steps that are followed while a run goes on, beside the first ones.
const FOLLOWED: usize = 200;

/// Follows a run, and reports each finding once, when the metrics of a step first show it.
#[derive(Debug)]
pub(crate) struct Attendance {
    pub(super) evidence: Evidence,
    said: Vec<&'static str>,
}

impl Attendance {
    pub(crate) fn new(config: Config) -> Self {
        Self { evidence: Evidence::new(config), said: Vec::new() }
    }

    /// Adds the metrics of a step, and returns the new findings, most important first.
    pub(crate) fn read(&mut self, step: StepMetrics) -> Vec<Finding> {
        let steps = &mut self.evidence.steps;
        steps.push(step);
        if steps.len() > WINDOW + FOLLOWED {
            steps.remove(WINDOW);
        }
        let mut new = rules::findings(&self.evidence);
        new.retain(|finding| !self.said.contains(&finding.rule));
        self.said.extend(new.iter().map(|finding| finding.rule));
        new
    }
}
