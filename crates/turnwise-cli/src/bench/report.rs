//! Results: a table for people, one line of JSON for programs.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::machine::Machine;
use crate::say;
use turnwise_run::Failure;

/// The results of a benchmark.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// The subcommand.
    pub(super) name: &'static str,
    /// What was measured, one sentence per line.
    pub(super) what: Vec<String>,
    pub(super) machine: Machine,
    /// The settings, in JSON.
    pub(super) sizes: Value,
    pub(super) figures: Vec<Figure>,
    /// Time by kind of work, in seconds for each repetition.
    pub(super) parts: Vec<TimedPart>,
    /// Additional results, in JSON only.
    pub(super) more: Map<String, Value>,
}

/// A measured quantity.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    /// Its key in JSON, with the unit last.
    pub(super) key: &'static str,
    /// Its label in the table.
    pub(super) label: &'static str,
    pub(super) unit: &'static str,
    /// The divisor of its value in the table.
    pub(super) scale: f64,
    pub(super) values: Values,
}

/// One number, or one for each repetition.
#[derive(Clone, Debug)]
pub(super) enum Values {
    Once(f64),
    Each(Vec<f64>),
}

/// A kind of work and its time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TimedPart {
    pub(super) name: String,
    pub(super) seconds: Vec<f64>,
}

impl Figure {
    /// Creates a figure with one value for each repetition.
    pub(super) fn each(
        key: &'static str,
        label: &'static str,
        unit: &'static str,
        scale: f64,
        values: Vec<f64>,
    ) -> Self {
        Self { key, label, unit, scale, values: Values::Each(values) }
    }

    /// Creates a figure with one value for the whole benchmark.
    pub(super) fn once(
        key: &'static str,
        label: &'static str,
        unit: &'static str,
        scale: f64,
        value: f64,
    ) -> Self {
        Self { key, label, unit, scale, values: Values::Once(value) }
    }

    fn line(&self) -> String {
        let Self { label, unit, scale, .. } = self;
        let shown = |value: f64| shown(value / scale);
        match &self.values {
            Values::Once(value) => format!("  {label:<40}{:>10} {unit}\n", shown(*value)),
            Values::Each(values) => {
                let [least, median, most] = spread(values).map(shown);
                format!("  {label:<40}{median:>10} {unit:<10} ({least} to {most})\n")
            }
        }
    }
}

/// Returns the memory figures that every benchmark has.
pub(super) fn memory_figures(start: u64, peak: u64) -> [Figure; 2] {
    let megabytes = |key, label, bytes: u64| Figure::once(key, label, "MB", 1e6, bytes as f64);
    [
        megabytes("peak_bytes", "peak of resident memory", peak),
        megabytes("start_bytes", "resident memory before the model", start),
    ]
}

impl Report {
    /// Prints the results.
    pub(super) fn print(&self, as_json: bool) -> Result<(), Failure> {
        say(&if as_json { format!("{}\n", self.json()?) } else { self.table() })
    }

    fn json(&self) -> Result<Value, Failure> {
        let machine = serde_json::to_value(&self.machine).map_err(|e| Failure::runtime(&e))?;
        let mut all = Map::new();
        all.insert("bench".to_owned(), json!(self.name));
        all.insert("machine".to_owned(), machine);
        all.insert("sizes".to_owned(), self.sizes.clone());
        for figure in &self.figures {
            let values = match &figure.values {
                Values::Once(value) => json!(value),
                Values::Each(values) => json!(values),
            };
            all.insert(figure.key.to_owned(), values);
        }
        let parts = self.parts.iter().map(|part| (part.name.clone(), json!(part.seconds)));
        all.insert("parts".to_owned(), Value::Object(parts.collect()));
        all.extend(self.more.clone());
        Ok(Value::Object(all))
    }

    fn table(&self) -> String {
        let Machine { processor, cores, threads } = &self.machine;
        let mut text = self.what.join("\n");
        let _ = writeln!(text, "\n{processor}, {cores} cores, {threads} threads");
        text.extend(self.figures.iter().map(Figure::line));
        text + &shares(&self.parts)
    }
}

/// Returns the median of each kind of work and its share of the total.
fn shares(parts: &[TimedPart]) -> String {
    let medians: Vec<f64> = parts.iter().map(|part| median(&part.seconds)).collect();
    let all: f64 = medians.iter().sum();
    let line = |(part, median): (&TimedPart, &f64)| {
        let share = if all > 0.0 { 100.0 * median / all } else { 0.0 };
        format!("    {:<38}{:>10} s {share:>10.1} %\n", part.name, shown(*median))
    };
    parts.iter().zip(&medians).map(line).collect()
}

/// Returns minimum, median and maximum.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match (values.first(), values.last()) {
        (Some(least), Some(most)) => {
            let middle = f64::midpoint(values[values.len() / 2], values[(values.len() - 1) / 2]);
            [*least, middle, *most]
        }
        _ => [f64::NAN; 3],
    }
}

/// Returns the median.
pub(super) fn median(values: &[f64]) -> f64 {
    spread(values)[1]
}

/// Formats a value with three significant digits.
fn shown(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let parts = [("forward", 0.25), ("backward", 0.75)];
        Report {
            name: "train",
            what: vec!["1 row".to_owned()],
            machine: Machine { processor: "P".to_owned(), cores: 2, threads: 1 },
            sizes: json!({"batch": 1}),
            figures: vec![
                Figure::each("tokens_per_s", "tokens", "tokens/s", 1.0, vec![4.0, 1.0, 2.0]),
                Figure::once("peak_bytes", "memory", "MB", 1e6, 2.5e8),
            ],
            parts: parts
                .map(|(name, s)| TimedPart { name: name.to_owned(), seconds: vec![s] })
                .to_vec(),
            more: Map::new(),
        }
    }

    #[test]
    fn json_has_a_key_for_each_figure_and_part() {
        let expected = json!({
            "bench": "train",
            "machine": {"processor": "P", "cores": 2, "threads": 1},
            "sizes": {"batch": 1},
            "tokens_per_s": [4.0, 1.0, 2.0],
            "peak_bytes": 2.5e8,
            "parts": {"forward": [0.25], "backward": [0.75]},
        });
        assert_eq!(report().json().unwrap(), expected);
    }

    #[test]
    fn people_see_medians_spreads_and_shares() {
        let table = report().table();
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[2], ["tokens", "2.00", "tokens/s", "(1.00", "to", "4.00)"]);
        assert_eq!(lines[3], ["memory", "250", "MB"]);
        assert_eq!(lines[5], ["backward", "0.7500", "s", "75.0", "%"]);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
