//! The table of rules.

mod answers;
mod clip;
mod collapse;
mod engine;
mod evaluation;
mod failures;
mod observations;
mod signal;
mod stale;
mod update;

use super::evidence::Evidence;
use super::finding::Finding;

/// A rule: looks at the evidence, and says what is wrong if it is.
type Rule = fn(&Evidence) -> Option<Finding>;

/// Every rule. A fault stands before those that it can cause, so that the first of several findings is the nearest to
/// their common cause: a policy that one update destroyed writes what nobody can read, answers that nobody can read are
/// never solved, and from tasks that are never solved nothing can be learnt.
const RULES: &[Rule] = &[
    failures::run_failed,
    failures::episodes_break,
    failures::updates_are_left_out,
    engine::engine_differs,
    update::policy_moves_far,
    clip::clip_bounds_no_drift,
    observations::observations_are_shortened,
    answers::answers_are_cut,
    answers::answers_cannot_be_read,
    signal::rewards_do_not_differ,
    clip::clip_is_narrow,
    update::policy_hardly_moves,
    clip::clip_never_acts,
    collapse::policy_left_its_reference,
    collapse::answers_became_short,
    collapse::policy_hardly_varies,
    stale::long_episodes_are_dropped,
    evaluation::evaluation_is_small,
];

/// Returns the findings, most important first: those that stop learning before those that slow it, each in the order of
/// the table.
pub(super) fn findings(evidence: &Evidence) -> Vec<Finding> {
    let mut findings: Vec<Finding> = RULES.iter().filter_map(|rule| rule(evidence)).collect();
    findings.sort_by_key(|finding| finding.severity);
    findings
}
