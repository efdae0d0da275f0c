//! The clip range beside the measured spread of the log-ratio.

use turnwise_objective::Clip;
use turnwise_training::{AutoClip, metric};

use crate::config::{ClipRule, ObjectiveChoice, ObjectiveName, clip_range};
use crate::doctor::evidence::{Evidence, mean, median_of_updates};
use crate::doctor::finding::{Finding, Severity};

/// The fraction of clipped tokens above which little is left to learn from.
const MUCH_CLIPPED: f64 = 0.8;

/// The fraction of clipped tokens below which a narrow range does no harm.
const SOME_CLIPPED: f64 = 0.1;

/// The spread, in clip ranges, above which most of a step lies outside the range.
const NARROW: f64 = 5.0;

/// The spread, in clip ranges, above which next to nothing lies inside.
const VERY_NARROW: f64 = 100.0;

/// The clip range, in spreads, above which no ratio ever reaches it.
const WIDE: f64 = 20.0;

/// The fraction of clipped tokens below which clipping does nothing.
const NEVER: f64 = 1e-5;

/// The change of the policy in a step from which it drifts, in nats per token: a fifth of what often destroys it.
const DRIFT: f64 = 0.1;

/// The smallest spread that is one, and not rounding.
const ROUNDING: f64 = 1e-6;

/// Returns the range that the run logged, where a rule sets it, or else that of the settings.
fn range_in_use(evidence: &Evidence) -> Option<Clip> {
    let logged = |metric| median_of_updates(&evidence.steps, metric);
    match (logged(metric::CLIP_LOW), logged(metric::CLIP_HIGH)) {
        (Some(low), Some(high)) => Clip::new(low, high).ok(),
        _ => clip_range(&evidence.config.objective),
    }
}

/// Returns whether an objective can set its range by the measured spread.
fn can_follow(name: ObjectiveName) -> bool {
    matches!(name, ObjectiveName::Gspo | ObjectiveName::GspoToken | ObjectiveName::GspoTurn)
}

/// A clip range beside the spread of the log-ratios that it clips.
struct MeasuredClip {
    clip: Clip,
    /// Half the width of the range.
    range: f64,
    spread: f64,
    clipped: f64,
}

impl MeasuredClip {
    fn of(evidence: &Evidence) -> Option<Self> {
        let steps = evidence.recent().filter(|_| evidence.has_ratios())?;
        let clip = range_in_use(evidence)?;
        let spread = match evidence.config.objective.name {
            // These clip the ratio of each token, and k3 is half the mean square of its logarithm.
            ObjectiveName::Grpo | ObjectiveName::Dapo | ObjectiveName::DrGrpo => {
                (2.0 * median_of_updates(&evidence.steps, metric::K3)?).sqrt()
            }
            _ => median_of_updates(&evidence.steps, metric::LOG_RATIO_STD)?,
        };
        let clipped = mean(steps, metric::CLIP_FRAC)?;
        Some(Self { clip, range: f64::midpoint(clip.low(), clip.high()), spread, clipped })
    }

    /// Describes the range and the spread.
    fn describe(&self) -> String {
        let Self { clip, spread, .. } = self;
        format!(
            "the clip range is -{:.1e} to +{:.1e}, and the log-ratio has a spread of {spread:.1e}",
            clip.low(),
            clip.high()
        )
    }

    /// Returns the settings that fit the spread; the upper bound is larger by the ratio of the paper (arXiv 2507.18071,
    /// section 5.1).
    fn fitting(&self, objective: &ObjectiveChoice) -> String {
        if objective.clip == Some(ClipRule::Auto) {
            return format!("objective.clip_multiple = {}", AutoClip::MULTIPLE);
        }
        let low = (2.0 * self.spread).min(0.9);
        let numbers = format!(
            "objective.clip_low = {low:.1e} and objective.clip_high = {:.1e}",
            low * 4.0 / 3.0
        );
        if can_follow(objective.name) {
            numbers + ", or objective.clip = \"auto\" in their place"
        } else {
            numbers
        }
    }
}

pub(super) fn clip_is_narrow(evidence: &Evidence) -> Option<Finding> {
    let measured = MeasuredClip::of(evidence)?;
    let times = measured.spread / measured.range;
    let is_narrow =
        measured.clipped > MUCH_CLIPPED || (times > NARROW && measured.clipped > SOME_CLIPPED);
    (is_narrow && !evidence.has_learnt()).then(|| Finding {
        rule: "clip_is_narrow",
        severity: Severity::stops_if(measured.clipped > MUCH_CLIPPED || times > VERY_NARROW),
        problem: format!(
            "clipping removes the gradient of {:.0} % of the tokens: {}, {times:.1e} times as much",
            100.0 * measured.clipped,
            measured.describe()
        ),
        change: if measured.spread > ROUNDING {
            measured.fitting(&evidence.config.objective)
        } else {
            "leave objective.clip_low and objective.clip_high out, for the values of the paper"
                .to_owned()
        },
        examples: Vec::new(),
    })
}

/// A range that bounds no update, in a run whose policy drifted or became worse: a cause of what else is wrong.
pub(super) fn clip_bounds_no_drift(evidence: &Evidence) -> Option<Finding> {
    let drift = drift(evidence)?;
    never_acts(evidence, Severity::Stops, &format!("clipping never acts, and {drift}"))
}

/// The same in a run that suffers no harm by it yet.
pub(super) fn clip_never_acts(evidence: &Evidence) -> Option<Finding> {
    let harmless = "clipping never acts, so that nothing bounds a bad update";
    drift(evidence).is_none().then(|| never_acts(evidence, Severity::Slows, harmless))?
}

fn never_acts(evidence: &Evidence, severity: Severity, what: &str) -> Option<Finding> {
    let measured = MeasuredClip::of(evidence)?;
    let times = measured.range / measured.spread;
    let is_dead = measured.clipped < NEVER && measured.spread > ROUNDING && times > WIDE;
    is_dead.then(|| Finding {
        rule: "clip_never_acts",
        severity,
        problem: format!("{what}: {}, {times:.1e} times less", measured.describe()),
        change: measured.fitting(&evidence.config.objective),
        examples: Vec::new(),
    })
}

/// Says how a policy that did not become better drifted or became worse; `None` if it did neither.
fn drift(evidence: &Evidence) -> Option<String> {
    if evidence.has_learnt() {
        return None;
    }
    let steps = evidence.steps.iter();
    let moved = steps.filter_map(|step| Some((step.number, step.get(metric::K3)?)));
    let furthest = moved.max_by(|(_, one), (_, other)| one.total_cmp(other));
    match (furthest, evidence.change) {
        (Some((number, kl)), _) if kl > DRIFT => {
            Some(format!("step {number} moved the policy by {kl:.2} nats per token"))
        }
        (_, Some(change)) if change.ci_high < 0.0 => Some("the policy became worse".to_owned()),
        _ => None,
    }
}
