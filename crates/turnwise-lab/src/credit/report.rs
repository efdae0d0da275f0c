use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{Arm, RunResult, Settings};

/// The ratio of one arm's episodes to another's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The compared arm.
    pub arm: Arm,
    /// The arm that it is compared with.
    pub baseline: Arm,
    /// The number of seeds on which both were run.
    pub seeds: usize,
    /// The geometric mean over the seeds of episodes over the baseline's episodes.
    pub ratio: f64,
    /// The lower end of the ratio's 95 % confidence interval.
    pub ci_low: f64,
    /// The upper end of the interval.
    pub ci_high: f64,
    /// The number of runs that were given up; each counts with the episodes it had.
    pub unsolved: usize,
}

/// Compares two arms seed by seed.
///
/// The interval is Student's t interval (1908) for the mean of the paired log ratios, exponentiated. Returns `None`
/// with fewer than two seeds that both arms have.
#[must_use]
pub fn compare(runs: &[RunResult], arm: Arm, baseline: Arm) -> Option<Comparison> {
    let pairs: Vec<(&RunResult, &RunResult)> = runs
        .iter()
        .filter(|run| run.arm == arm)
        .filter_map(|run| {
            let other = |other: &&RunResult| other.arm == baseline && other.seed == run.seed;
            runs.iter().find(other).map(|other| (run, other))
        })
        .collect();
    let n = pairs.len();
    let t = t_975(n.checked_sub(1)?)?;
    let log_ratios: Vec<f64> = pairs
        .iter()
        .map(|(one, other)| (one.episodes as f64 / other.episodes as f64).ln())
        .collect();
    let mean = log_ratios.iter().sum::<f64>() / n as f64;
    let squares: f64 = log_ratios.iter().map(|log_ratio| (log_ratio - mean).powi(2)).sum();
    let half = t * (squares / ((n - 1) * n) as f64).sqrt();
    let unsolved = pairs
        .iter()
        .map(|(one, other)| usize::from(!one.solved) + usize::from(!other.solved))
        .sum();
    Some(Comparison {
        arm,
        baseline,
        seeds: n,
        ratio: mean.exp(),
        ci_low: (mean - half).exp(),
        ci_high: (mean + half).exp(),
        unsolved,
    })
}

/// Returns the 97.5 % quantile of Student's t distribution with this many degrees of freedom; `None` for 0.
fn t_975(degrees: usize) -> Option<f64> {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    // Between 30 and infinity the quantile falls from 2.042 to 1.960; the larger value is the safe one.
    Some(TABLE[degrees.checked_sub(1)?.min(TABLE.len() - 1)])
}

/// Formats the runs and comparisons in a few lines.
#[must_use]
pub fn lines(settings: &Settings, runs: &[RunResult], comparisons: &[Comparison]) -> String {
    let mut text = String::new();
    let mut seeds: Vec<u64> = runs.iter().map(|run| run.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let mut arms: Vec<Arm> = Vec::new();
    for run in runs {
        if !arms.contains(&run.arm) {
            arms.push(run.arm);
        }
    }
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "training episodes until success ≥ {} over {} episodes",
        settings.threshold, settings.window
    );
    let heads: Vec<String> =
        seeds.iter().map(|seed| format!("{:>9}", format!("seed {seed}"))).collect();
    let _ = writeln!(text, "{:30}{}", "", heads.concat());
    for arm in arms {
        let cell = |seed: &u64| {
            let run = runs.iter().find(|run| run.arm == arm && run.seed == *seed);
            let shown = run.map_or_else(String::new, |run| {
                format!("{}{}", if run.solved { "" } else { ">" }, run.episodes)
            });
            format!("{shown:>9}")
        };
        let _ = writeln!(
            text,
            "{:30}{}",
            arm.name(),
            seeds.iter().map(cell).collect::<Vec<_>>().concat()
        );
    }
    for one in comparisons {
        let _ = writeln!(
            text,
            "{} / {}: {:.2} of the episodes, 95% CI [{:.2}, {:.2}], {} seeds",
            one.arm.name(),
            one.baseline.name(),
            one.ratio,
            one.ci_low,
            one.ci_high,
            one.seeds
        );
    }
    text
}
