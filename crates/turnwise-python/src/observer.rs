//! Following a run from Python.

use std::time::Duration;

use pyo3::prelude::*;
use serde_json::{Map, Value, json};
use turnwise_run::{BeforeAfter, Observer, Plan};
use turnwise_training::StepReport;

use crate::player::Raised;

/// The width of the two conversations that are compared at the end of a run.
const WIDTH: usize = 100;

/// Calls a Python function with the name of each event and its content as JSON. An exception of the function ends the run.
pub(crate) struct PythonObserver {
    callback: Option<Py<PyAny>>,
    raised: Raised,
}

impl PythonObserver {
    pub(crate) fn new(callback: Option<Py<PyAny>>, raised: Raised) -> Self {
        Self { callback, raised }
    }

    fn tell(&mut self, event: &str, content: &Value) {
        let Some(callback) = &self.callback else { return };
        let told = Python::attach(|py| callback.call1(py, (event, content.to_string())).map(drop));
        if let Err(error) = told {
            self.callback = None;
            self.raised.record(error);
        }
    }
}

impl Observer for PythonObserver {
    fn begin(&mut self, plan: &Plan) {
        self.tell("begin", &json!({"header": plan.header, "steps": plan.steps}));
    }

    fn phase(&mut self, line: &str) {
        self.tell("progress", &json!({"text": line}));
    }

    fn progress(&mut self, line: &str, elapsed: Duration) {
        self.tell("progress", &json!({"text": line, "seconds": elapsed.as_secs_f64()}));
    }

    fn idle(&mut self) {
        self.tell("idle", &json!({}));
    }

    fn step(&mut self, report: &StepReport) {
        let metrics: Map<String, Value> =
            report.metrics.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let faults = serde_json::to_value(&report.faults).unwrap_or_default();
        self.tell("step", &json!({"step": report.step, "metrics": metrics, "faults": faults}));
    }

    fn note(&mut self, text: &str) {
        self.tell("note", &json!({"text": text}));
    }

    fn compared(&mut self, before_after: &BeforeAfter) {
        self.tell("compared", &json!({"lines": before_after.lines(WIDTH)}));
    }

    fn finish(&mut self, lines: &[String]) {
        self.tell("finish", &json!({"lines": lines}));
    }
}
