//! The metrics of a step as text.

use turnwise_run::text::clock;
use turnwise_training::metric::{self, Metric};

use super::history::{Direction, History};

impl History {
    /// Formats a line of metrics, for output that is not a terminal.
    pub(super) fn line(&self) -> String {
        [
            self.progress(),
            self.reward(),
            format!("mixed {}", self.percent(metric::MIXED_FRAC)),
            format!("none {}", self.percent(metric::NONE_SOLVED_FRAC)),
            format!("ratio {}", self.ratio()),
            format!("clip {}", self.percent(metric::CLIP_FRAC)),
            format!("{} tok", self.fixed(metric::TOKENS_MEAN, 0)),
            format!("{} turns", self.fixed(metric::TURNS_MEAN, 1)),
            format!("stale {}", self.fixed(metric::STALENESS_MAX, 0)),
            format!("faults {}", self.fixed(metric::FAULTS, 0)),
            format!("{:.1} s", self.step_s()),
        ]
        .join("  ")
    }

    fn kl(&self) -> Metric {
        let has_reference = self.get(metric::KL_REFERENCE).is_some();
        if has_reference { metric::KL_REFERENCE } else { metric::K3 }
    }

    /// `step 23/60`.
    pub(super) fn progress(&self) -> String {
        let all = self.n_steps.to_string();
        format!("step {:>1$}/{all}", self.n_done, all.len())
    }

    /// `reward 0.47 ▲`.
    pub(super) fn reward(&self) -> String {
        let arrow = match self.direction() {
            Direction::Up => '▲',
            Direction::Down => '▼',
            Direction::Level => '·',
        };
        format!("reward {} {arrow}", self.fixed(metric::REWARD_MEAN, 2))
    }

    /// `38 roll/s  eta 0:29`, as far as known.
    pub(super) fn pace(&self) -> String {
        let speed = self.speed().map(|speed| match speed {
            slow if slow < 10.0 => format!("{slow:.1} roll/s"),
            fast => format!("{fast:.0} roll/s"),
        });
        let eta = self.remaining_s().map(|seconds| format!("eta {}", clock(seconds)));
        speed.into_iter().chain(eta).collect::<Vec<String>>().join("  ")
    }

    /// Formats the metrics beside the curve; each line has at most 44 characters for values of the usual size.
    pub(super) fn figures(&self) -> [String; 6] {
        let percent = |metric| self.percent(metric);
        let fixed = |metric, decimals| self.fixed(metric, decimals);
        [
            format!(
                "groups  mixed {}  all solved {}  none {}",
                percent(metric::MIXED_FRAC),
                percent(metric::SOLVED_FRAC),
                percent(metric::NONE_SOLVED_FRAC)
            ),
            format!(
                "ratio   {}  clip lo {} hi {}",
                self.ratio(),
                percent(metric::CLIP_LOW_FRAC),
                percent(metric::CLIP_HIGH_FRAC)
            ),
            format!(
                "length  {} tok  turns {}  truncated {}",
                fixed(metric::TOKENS_MEAN, 0),
                fixed(metric::TURNS_MEAN, 1),
                percent(metric::TRUNCATED_FRAC)
            ),
            format!(
                "stale   {} max {}  partial {} ({} resumed)",
                fixed(metric::STALENESS_MEAN, 1),
                fixed(metric::STALENESS_MAX, 0),
                fixed(metric::SUSPENDED, 0),
                fixed(metric::RESUMED, 0)
            ),
            format!(
                "faults  {}  agent {}  entropy {}  KL {}",
                fixed(metric::FAULTS, 0),
                fixed(metric::AGENT_FAULTS, 0),
                fixed(metric::ENTROPY, 2),
                // The KL to the reference policy if there is one, else the KL of the step.
                self.shown(self.kl(), |kl| format!("{kl:.1e}"))
            ),
            format!(
                "time    rollout {} s  train {} s",
                fixed(metric::ROLLOUT_S, 1),
                fixed(metric::TRAIN_S, 1)
            ),
        ]
    }

    /// Formats the sequence ratio `s`. For small `log s`, `s` is `1 + log s`.
    fn ratio(&self) -> String {
        let mean = self.shown(metric::LOG_RATIO_MEAN, |log| format!("{:.4}", 1.0 + log));
        format!("{mean} ± {}", self.fixed(metric::LOG_RATIO_STD, 4))
    }

    fn percent(&self, metric: Metric) -> String {
        self.shown(metric, |share| format!("{:.0}%", 100.0 * share))
    }

    fn fixed(&self, metric: Metric, decimals: usize) -> String {
        self.shown(metric, |value| format!("{value:.decimals$}"))
    }

    /// Formats a metric, or a dash if the step has none.
    fn shown(&self, metric: Metric, format: impl Fn(f64) -> String) -> String {
        self.get(metric).map_or("–".to_owned(), format)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::report;
    use super::*;
    use turnwise_training::StepReport;

    #[test]
    fn a_step_is_one_line() {
        let mut history = History::new(60);
        history.record(&report(21, 0.25));
        history.record(&report(22, 0.47));
        let expected = "step 23/60  reward 0.47 ▲  mixed 71%  none 17%  ratio 1.0001 ± 0.0005  clip 25%  \
                        22 tok  3.4 turns  stale 2  faults 1  0.5 s";
        assert_eq!(history.line(), expected);
    }

    #[test]
    fn a_report_without_numbers_has_dashes() {
        let mut history = History::new(1);
        history.record(&StepReport::default());
        assert!(history.line().starts_with("step 1/1  reward – ·  mixed –"), "{}", history.line());
        assert_eq!(history.pace(), "");
    }

    #[test]
    fn the_figures_fit_beside_the_curve() {
        let mut history = History::new(60);
        history.record(&report(22, 0.47));
        let widths = history.figures().map(|line| line.chars().count());
        assert!(widths.iter().all(|width| *width <= 44), "{widths:?}");
    }
}
