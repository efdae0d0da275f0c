use serde::Serialize;

/// One thing that is wrong with a run: the evidence, and the setting to change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The name of the rule.
    pub rule: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The problem with its numbers, as a clause without a full stop.
    pub problem: String,
    /// What to do about it: a setting and a value for it, where there is one.
    pub change: String,
    /// Excerpts from the run's episodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Little or nothing is learnt while it lasts, or what was learnt is lost.
    Stops,
    /// Learning is slower, riskier or harder to see than it could be.
    Slows,
}

impl Severity {
    /// Returns `Stops` if something is that bad, and `Slows` otherwise.
    pub(super) fn stops_if(is_bad: bool) -> Self {
        if is_bad { Self::Stops } else { Self::Slows }
    }
}

impl Finding {
    /// Returns the finding as one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        format!("{}; {}", self.problem, self.change)
    }

    /// Returns the finding as lines of a screen: the problem, the change, and the examples.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("! {}", self.problem), format!("    change: {}", self.change)];
        lines.extend(self.examples.iter().map(|example| format!("    example: {example}")));
        lines
    }
}
