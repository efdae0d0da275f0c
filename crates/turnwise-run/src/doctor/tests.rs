use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use turnwise_environment::Message;
use turnwise_training::{EvaluationRecord, RunDirectory, SuccessDifference, SuccessRate};
use turnwise_trajectory::{NodeId, Trajectory};

use super::*;
use crate::config::from_text;
use crate::fixture::{Played, episode, said};
use crate::registry::Registry;

/// The metrics of a step of a run that learns.
fn good(step: u64) -> Map<String, Value> {
    let row = json!({
        "step": step, "group/mixed_frac": 0.5, "group/none_solved_frac": 0.4,
        "group/all_solved_frac": 0.1, "group/episode_count": 96, "stale/dropped_count": 32,
        "objective/clip_frac": 0.2, "objective/k3_mean": 1e-3, "objective/log_ratio_std": 0.02,
        "engine/mismatch_kl": 1e-13, "engine/mismatch_max": 1e-5, "length/sampled_mean": 90.0,
        "length/cut_turns_frac": 0.02, "length/context_frac": 0.0, "length/shortened_frac": 0.0, "length/kept_mean": 90.0,
        "length/dropped_mean": 91.0, "fault/malformed_turns_frac": 0.03, "fault/infra_count": 0,
        "policy/entropy_mean": 1.5, "reward/success_rate": 0.4, "train/skipped_count": 0,
        "train/update_count": 4, "train/learning_rate": 1e-3, "tokens/trained_count": 5000,
    });
    row.as_object().cloned().unwrap_or_default()
}

fn config(overrides: &[&str]) -> Config {
    let range = ["objective.clip_low=0.05", "objective.clip_high=0.07"];
    config_of(&[&range, overrides].concat())
}

fn config_of(overrides: &[&str]) -> Config {
    let all: Vec<String> = overrides.iter().copied().map(str::to_owned).collect();
    from_text("the test", "", &all, &Registry::builtin()).expect("the settings are accepted").config
}

/// Returns the evidence of a run of `n` good steps that has these metrics from the step with index `from` on.
fn evidence(n: u64, from: u64, wrong: &Value, overrides: &[&str]) -> Evidence {
    let mut evidence = Evidence::new(config(overrides));
    evidence.is_whole = true;
    for step in 0..n {
        let mut row = good(step);
        if step >= from {
            row.extend(wrong.as_object().cloned().unwrap_or_default());
        }
        let faults = Vec::deserialize(&row.remove("faults").unwrap_or_else(|| json!([])));
        let step = StepMetrics::of_row(&Value::Object(row));
        evidence.steps.push(step.with_faults(faults.expect("faults")));
    }
    evidence
}

fn change(before: usize, after: usize, of: usize) -> SuccessDifference {
    let tasks: Vec<_> = (0..of).map(|task| vec![(task < before, task < after)]).collect();
    SuccessDifference::paired(&tasks)
}

fn rules(evidence: &Evidence) -> Vec<&'static str> {
    rules::findings(evidence).iter().map(|finding| finding.rule).collect()
}

/// Field 17
#[test]
fn a_good_run_has_no_findings() {
    let mut good = evidence(12, 12, &json!({}), &[]);
    assert_eq!(rules(&good), [""; 0]);
    for change in [change(80, 200, 256), change(80, 90, 256)] {
        good.change = Some(change);
        assert_eq!(rules(&good), [""; 0]);
    }
    // A policy that has learnt its tasks need not vary, and has nothing more to learn.
    let solved = json!({
        "policy/entropy_mean": 0.01, "reward/success_rate": 0.98, "length/sampled_mean": 7.0,
        "group/mixed_frac": 0.0, "group/none_solved_frac": 0.0, "group/all_solved_frac": 1.0,
    });
    let mut solved = evidence(12, 3, &solved, &[]);
    solved.change = Some(change(80, 250, 256));
    assert_eq!(rules(&solved), [""; 0]);
    // Nothing is known about a run that has just begun.
    assert_eq!(rules(&Evidence::new(config(&[]))), [""; 0]);
}

/// A fault as metrics, the settings beside it, the rule that names it, and a part of its sentence.
struct Case(&'static str, &'static [&'static str], &'static str, &'static str);

const CASES: [Case; 22] = [
    Case(r#"{"fault/infra_count": 40}"#, &[], "episodes_break", "24 % [21, 27] of the attempts"),
    Case(
        r#"{"fault/infra_count": 40, "faults": [{"reason": "render", "message": "only user and assistant roles are supported", "n": 39}, {"reason": "env_error", "message": "?", "n": 1}]}"#,
        &[],
        "episodes_break",
        "in steps 8-12: 195 of 200 with render: only user and assistant roles are supported; the model's form cannot write a conversation: see model.template and [agent]",
    ),
    Case(
        r#"{"fault/infra_count": 40, "faults": [{"reason": "env_error", "message": "no connection", "n": 40}]}"#,
        &[],
        "episodes_break",
        "200 of 200 with env_error: no connection; see whether the environment holds its contract:  turnwise env check guess",
    ),
    Case(
        r#"{"train/skipped_count": 2}"#,
        &[],
        "updates_are_left_out",
        "18 of 66 updates were left out, the first in step 4",
    ),
    Case(r#"{"engine/mismatch_kl": 2e-3}"#, &[], "engine_differs", "KL 2.0e-3 nats per token"),
    Case(
        r#"{"objective/k3_mean": 1.05}"#,
        &[],
        "policy_moves_far",
        "step 4 moved the policy by 1.05 nats per token, and 8 later steps did so too",
    ),
    Case(
        r#"{"length/cut_turns_frac": 0.9}"#,
        &["limits.max_turn_tokens=30"],
        "answers_are_cut",
        "90 % [87, 92] of the turns in steps 8-12 reached limits.max_turn_tokens = 30; limits.max_turn_tokens = 120",
    ),
    Case(
        r#"{"length/context_frac": 0.4}"#,
        &[],
        "answers_are_cut",
        "the context of 4096 tokens was full; limits.max_context_tokens = 8192",
    ),
    Case(
        r#"{"length/shortened_frac": 0.01}"#,
        &["model.max_observation_tokens=64"],
        "observations_are_shortened",
        "1 % [0, 2] of the episodes in steps 8-12: they are longer than model.max_observation_tokens = 64; model.max_observation_tokens = 128, or",
    ),
    Case(
        r#"{"length/shortened_frac": 0.9}"#,
        &["model.max_observation_tokens=3000"],
        "observations_are_shortened",
        "model.max_observation_tokens = 6000 and limits.max_context_tokens = 12000, or",
    ),
    Case(
        r#"{"fault/malformed_turns_frac": 0.7}"#,
        &[],
        "answers_cannot_be_read",
        "70 % [66, 73] of the turns",
    ),
    Case(
        r#"{"group/mixed_frac": 0.0}"#,
        &[],
        "rewards_do_not_differ",
        "40 % were solved by no member: nothing can be learnt",
    ),
    Case(
        r#"{"group/mixed_frac": 0.0, "group/all_solved_frac": 0.9}"#,
        &[],
        "rewards_do_not_differ",
        "90 % were solved by every member: nothing more can be learnt",
    ),
    Case(r#"{"group/mixed_frac": 0.03}"#, &[], "rewards_do_not_differ", "only 3.0 % of the groups"),
    Case(
        r#"{"objective/clip_frac": 0.95}"#,
        &[],
        "clip_is_narrow",
        "95 % of the tokens: the clip range is -5.0e-2 to +7.0e-2, and the log-ratio has a spread of 2.0e-2",
    ),
    Case(
        r#"{"objective/log_ratio_std": 0.3}"#,
        &["objective.clip_low=3e-4", "objective.clip_high=4e-4"],
        "clip_is_narrow",
        "objective.clip_low = 6.0e-1 and objective.clip_high = 8.0e-1",
    ),
    Case(
        r#"{"objective/k3_mean": 1e-13, "objective/log_ratio_std": 1e-7, "objective/clip_frac": 0.0}"#,
        &["train.learning_rate=1e-9"],
        "policy_hardly_moves",
        "a thousand steps change the log-probability of a token by at most 4.5e-4 nats; train.learning_rate = 1e-5",
    ),
    Case(
        r#"{"objective/clip_frac": 0.0}"#,
        &["objective.clip_low=0.9", "objective.clip_high=10.0"],
        "clip_never_acts",
        "the log-ratio has a spread of 2.0e-2, 2.7e2 times less; objective.clip_low = 4.0e-2",
    ),
    Case(
        r#"{"policy/kl_reference": 2.0}"#,
        &["objective.kl.beta=0.01"],
        "policy_left_its_reference",
        "KL 2.00 nats per token in steps 8-12, and above 0.5 it is another policy, while success went from 0.40 to 0.40; objective.kl.beta = 1e-1",
    ),
    Case(
        r#"{"length/sampled_mean": 7.0}"#,
        &[],
        "answers_became_short",
        "57 tokens an episode at first, 7 now",
    ),
    Case(
        r#"{"policy/entropy_mean": 0.02}"#,
        &[],
        "policy_hardly_varies",
        "entropy 0.91 nats at first, 0.020 now",
    ),
    Case(
        r#"{"drop/stale_count": 30, "length/dropped_mean": 200.0}"#,
        &["rollout.mode=asynchronous"],
        "long_episodes_are_dropped",
        "200 tokens, 90 in those that trained",
    ),
];

/// A range that follows the spread is neither narrow nor wide, and its log is what counts.
#[test]
fn a_clip_range_that_a_rule_sets_is_judged_as_logged() {
    let auto = ["objective.clip=\"auto\""];
    let judged = |range: Value| {
        let mut run = Evidence::new(config_of(&auto));
        run.is_whole = true;
        for step in 0..12 {
            let mut row = good(step);
            row.extend(range.as_object().cloned().unwrap_or_default());
            run.steps.push(StepMetrics::of_row(&Value::Object(row)));
        }
        rules::findings(&run)
    };
    assert_eq!(judged(json!({"objective/clip_low": 0.03, "objective/clip_high": 0.04})), []);
    let narrow = judged(json!({"objective/clip_low": 1e-4, "objective/clip_high": 1e-4}));
    assert_eq!(narrow[0].rule, "clip_is_narrow");
    assert_eq!(narrow[0].change, "objective.clip_multiple = 1");
}

/// Field 17: each fault alone, from the fourth step on: the rule that names it, and no other.
#[test]
fn each_fault_is_named_with_its_evidence_and_the_setting_to_change() {
    for Case(wrong, overrides, rule, expected) in CASES {
        let wrong = serde_json::from_str(wrong).expect("JSON");
        let found = rules::findings(&evidence(12, 3, &wrong, overrides));
        let names: Vec<&str> = found.iter().map(|finding| finding.rule).collect();
        assert_eq!(names, [rule], "{wrong}");
        let sentence = found[0].sentence();
        assert!(sentence.contains(expected), "{wrong}: {sentence}");
    }
}

#[test]
fn an_evaluation_of_a_few_episodes_says_how_many_it_takes() {
    let mut short = evidence(12, 12, &json!({}), &[]);
    short.change = Some(change(1, 2, 4));
    let found = rules::findings(&short);
    assert_eq!(found[0].rule, "evaluation_is_small");
    assert!(found[0].problem.contains("4 episodes show a difference above 0."), "{found:?}");
    let wanted = change(1, 2, 4).episodes_for(0.02);
    assert!(found[0].change.contains(&format!("about {wanted} held-out episodes")), "{found:?}");
}

/// The advice is about what there is: a hundred tasks played once, and not thousands of episodes.
#[test]
fn an_evaluation_is_not_asked_for_more_tasks_than_there_are() {
    let mut short = evidence(12, 12, &json!({}), &[]);
    short.change = Some(change(1, 2, 16));
    let advice = |run: &Evidence| rules::findings(run)[0].change.clone();
    short.n_held_out = Some(1_000_000);
    assert!(advice(&short).starts_with("about "), "{}", advice(&short));
    short.n_held_out = Some(100);
    let every = advice(&short);
    assert!(every.starts_with("eval.episodes = 100 plays every held-out task once"), "{every}");
    short.n_held_out = Some(16);
    let more = advice(&short);
    assert!(more.starts_with("add held-out tasks to the environment: there are 16"), "{more}");
}

/// Both lines have the same number, and none is above what would have been shown.
#[test]
fn the_numbers_of_a_difference_agree_with_each_other() {
    for (before, after, of) in [(0, 4, 16), (1, 5, 16), (4, 0, 16), (3, 4, 8), (0, 1, 8), (1, 0, 8)]
    {
        let mut run = evidence(12, 12, &json!({}), &[]);
        run.change = Some(change(before, after, of));
        let Some(verdict) = run.change.map(Verdict::of) else { continue };
        let number = |text: &str, after: &str| -> f64 {
            let rest = text.split(after).nth(1).expect(after);
            let end = rest.find([' ', ')', ',']).unwrap_or(rest.len());
            rest[..end].parse().expect("a number")
        };
        let text = verdict.to_string();
        let difference = number(&text, "difference ");
        if matches!(verdict, Verdict::Undecided(_)) {
            assert!(difference.abs() <= number(&text, "above "), "{text}");
            let problem = &rules::findings(&run)[0].problem;
            assert_eq!(number(problem, "measured "), difference, "{problem}");
        }
    }
}

/// At 10 a step moved a policy by 384 nats, at 0.5 by 11.
#[test]
fn the_advised_learning_rate_follows_the_measured_change() {
    for (rate, kl, advised) in
        [("10.0", 384.0, "3e-3"), ("0.5", 11.1, "5e-3"), ("1e-3", 0.6, "1e-4")]
    {
        let override_ = format!("train.learning_rate={rate}");
        let run = evidence(12, 3, &json!({"objective/k3_mean": kl}), &[&override_]);
        let change = &rules::findings(&run)[0].change;
        assert!(change.ends_with(&format!("train.learning_rate = {advised}")), "{change}");
        // No other finding advises more.
        let varies = json!({"objective/k3_mean": kl, "policy/entropy_mean": 0.001});
        for finding in rules::findings(&evidence(12, 3, &varies, &[&override_])) {
            let Some((_, rate)) = finding.change.split_once("train.learning_rate = ") else {
                continue;
            };
            let [rate, most]: [f64; 2] =
                [rate, advised].map(|rate| rate.parse().expect("a number"));
            assert!(kl < 1.0 || rate <= most, "{finding:?}");
        }
    }
}

/// A range that bounds nothing is the cause of a drift, and of answers that grow and are cut.
#[test]
fn a_clip_range_that_bounds_nothing_stands_before_what_a_drift_causes() {
    let range = ["objective.clip_low=0.9", "objective.clip_high=100.0"];
    let drifted = json!({
        "objective/k3_mean": 0.48, "objective/clip_frac": 0.0, "length/cut_turns_frac": 0.9,
    });
    let run = evidence(12, 3, &drifted, &range);
    assert_eq!(rules(&run), ["clip_never_acts", "answers_are_cut"]);
    let problem = &rules::findings(&run)[0].problem;
    assert!(problem.contains("step 12 moved the policy by 0.48 nats per token"), "{problem}");
    // The same without drift: the answers are cut for another reason.
    let cut = json!({"objective/clip_frac": 0.0, "length/cut_turns_frac": 0.9});
    let mut run = evidence(12, 3, &cut, &range);
    assert_eq!(rules(&run), ["answers_are_cut", "clip_never_acts"]);
    run.change = Some(change(100, 10, 256));
    assert_eq!(rules(&run), ["clip_never_acts", "answers_are_cut"]);
}

#[test]
fn a_run_that_an_error_ended_says_so_first() {
    let events = [
        json!({"event": "start"}),
        json!({"event": "failed", "step": 3, "text": "each of 4 episodes\nbroke", "help": "raise it"}),
        json!({"event": "alarm", "step": 3}),
    ];
    let mut run = evidence(3, 3, &json!({}), &[]);
    run.failure = events::failure(&events, RunState::Stopped);
    let found = rules::findings(&run);
    assert_eq!(found[0].rule, "run_failed");
    let problem = &found[0].problem;
    assert!(problem.contains("with an error, after 3 of "), "{problem}");
    assert!(problem.ends_with(": each of 4 episodes broke"), "{problem}");
    assert_eq!(found[0].change, "raise it");
    assert_eq!(events::last(&events).as_deref(), Some("failed after 3 steps"));
    assert!(events::failure(&events, RunState::Going).is_none());
    assert!(events::failure(&events[..1], RunState::Stopped).is_none());
}

#[test]
fn a_cause_stands_before_its_consequences() {
    // A policy that an update destroyed, and everything that follows from it.
    let destroyed = json!({
        "objective/k3_mean": 3.0, "length/cut_turns_frac": 1.0, "fault/malformed_turns_frac": 1.0,
        "group/mixed_frac": 0.0, "group/none_solved_frac": 1.0, "policy/entropy_mean": 0.001,
        "reward/success_rate": 0.0,
    });
    let mut run = evidence(12, 3, &destroyed, &[]);
    run.change = Some(change(2, 2, 8));
    let expected = [
        "policy_moves_far",
        "answers_are_cut",
        "answers_cannot_be_read",
        "rewards_do_not_differ",
        "policy_hardly_varies",
        "evaluation_is_small",
    ];
    assert_eq!(rules(&run), expected);
}

proptest! {
    /// Whatever the numbers are: no rule panics, those that stop learning come first, and a live run reports each rule
    /// at most once.
    #[test]
    fn any_metrics_can_be_judged(
        rows in prop::collection::vec(prop::collection::vec(-1.0_f64..10.0, metric_names().len()), 0..9),
        is_whole in any::<bool>(),
    ) {
        let mut evidence = Evidence { is_whole, ..Evidence::new(config(&[])) };
        let mut attendance = Attendance::new(config(&[]));
        let mut reported = Vec::new();
        for (index, values) in rows.iter().enumerate() {
            let mut row: Map<String, Value> =
                metric_names().into_iter().zip(values).map(|(name, value)| (name, json!(value))).collect();
            row.insert("step".to_owned(), json!(index));
            let step = StepMetrics::of_row(&Value::Object(row));
            reported.extend(attendance.read(step.clone()).into_iter().map(|finding| finding.rule));
            evidence.steps.push(step);
        }
        let found = rules::findings(&evidence);
        prop_assert!(found.is_sorted_by_key(|finding| finding.severity));
        let mut once = reported.clone();
        once.sort_unstable();
        once.dedup();
        prop_assert_eq!(once.len(), reported.len());
    }
}

fn metric_names() -> Vec<String> {
    good(0).keys().filter(|name| *name != "step").cloned().collect()
}

/// A run of any length needs the memory of a short one: what lies between its start and its last steps is forgotten.
#[test]
fn a_long_run_is_followed_in_bounded_memory() {
    let mut attendance = Attendance::new(config(&[]));
    for step in 0..1000 {
        assert_eq!(attendance.read(StepMetrics::of_row(&Value::Object(good(step)))), []);
    }
    let kept: Vec<u64> = attendance.evidence.steps.iter().map(|step| step.number).collect();
    assert_eq!((kept.len(), kept[4], kept[5], kept[204]), (205, 5, 801, 1000));
}

#[test]
fn a_live_run_reports_a_finding_when_it_has_lasted() {
    let mut attendance = Attendance::new(config(&[]));
    let mut read = |step: u64, mixed: f64| -> Vec<&'static str> {
        let mut row = good(step);
        row.insert("group/mixed_frac".to_owned(), json!(mixed));
        let new = attendance.read(StepMetrics::of_row(&Value::Object(row)));
        new.iter().map(|finding| finding.rule).collect()
    };
    assert!((0..3).all(|step| read(step, 0.5).is_empty()));
    assert!((3..7).all(|step| read(step, 0.0).is_empty()));
    assert_eq!(read(7, 0.0), ["rewards_do_not_differ"]);
    assert_eq!(read(8, 0.0), [""; 0]);
}

/// Returns an episode of one turn that the environment could not read.
fn unreadable(complaint: &str) -> Trajectory {
    let turn = Played {
        said: Message::assistant("calc\u{1b}[2J 7 5"),
        faults: 1,
        reply: Message::tool("call_0", complaint),
        ..said("", 0.0, "")
    };
    episode(0, "Compute 7 + 5.", &[turn])
}

#[test]
fn unreadable_answers_come_with_the_most_frequent_reason_and_three_examples() {
    let mut run = evidence(12, 0, &json!({"fault/malformed_turns_frac": 0.9}), &[]);
    let complaints = [
        "error: invalid_args: op is missing",
        "error: decode: not JSON",
        "error: invalid_args: a is text",
        "error: not_found: no tool clac",
    ];
    let episodes = complaints.map(|complaint| ("rollouts/a".to_owned(), unreadable(complaint)));
    run.episodes = episodes.to_vec();
    let found = rules::findings(&run);
    let reason = "\"error: invalid_args: op is missing\", 2 of 4 times in the kept episodes";
    assert!(found[0].problem.ends_with(reason), "{}", found[0].problem);
    assert_eq!(found[0].examples.len(), 3);
    let first = "rollouts/a, task 3: calc[2J 7 5 -> error: invalid_args: op is missing";
    assert_eq!(found[0].examples[0], first);
    // A log of an earlier version lacks the metric, and the kept episodes are counted instead.
    for step in &mut run.steps {
        let mut row = good(step.number - 1);
        row.remove("fault/malformed_turns_frac");
        *step = StepMetrics::of_row(&Value::Object(row));
    }
    let found = rules::findings(&run);
    assert!(found[0].problem.contains("[51, 100] of the turns in 4 kept episodes"), "{found:?}");
}

#[test]
fn shortened_messages_come_with_their_length_and_three_examples() {
    let mut run = evidence(12, 0, &json!({"length/shortened_frac": 0.9}), &[]);
    let long = "Part 7 costs 259.\n".repeat(20);
    let told = || {
        let mut episode = episode(0, &long, &[said("7", 0.0, "short"), said("8", 0.0, &long)]);
        episode.graph.mark_shortened(NodeId(4));
        ("rollouts/a".to_owned(), episode)
    };
    run.episodes = vec![told(), ("rollouts/b".to_owned(), unreadable("?")), told(), told(), told()];
    let found = rules::findings(&run);
    assert_eq!(found[0].examples.len(), 3);
    let first = &found[0].examples[0];
    let start = "rollouts/a, task 3, 360 bytes: Part 7 costs 259. Part 7 costs 259.";
    assert!(first.starts_with(start), "{first}");
}

/// The files of a run whose process is still there, or was killed: no error, and a sentence for what is missing.
#[test]
fn a_run_is_judged_while_it_goes_on_and_after_it_was_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run");
    let missing = diagnose(&path).expect_err("there is no run");
    assert!(missing.to_string().contains("run does not exist"), "{missing}");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("it is written");
    let file = diagnose(&file).expect_err("it is a file");
    assert!(file.to_string().contains("file is a file, and not the directory"), "{file}");
    let empty = diagnose(folder.path()).expect_err("it has no run");
    assert!(empty.to_string().contains("holds no run"), "{empty}");
    let mut directory = RunDirectory::create(&path).expect("a new run");
    let settings = diagnose(&path).expect_err("its settings are missing");
    assert!(settings.to_string().contains("run.toml"), "{settings}");
    directory.write("run.toml", "[run]\nsteps = 60\n").expect("it is written");
    directory.write_event("start", Map::new()).expect("it is written");
    let going = diagnose(&path).expect("it is judged");
    assert_eq!((going.state, going.steps, going.of_steps), ("going on", 0, 60));
    assert!(going.findings.is_empty() && going.verdict.is_none());
    assert!(!going.is_judged(), "{going:?}");
    assert_eq!(
        going.lines()[1],
        "? there is nothing to judge yet: 0 of 60 steps have ended, and the last event is: start"
    );
    let record = |n: usize| EvaluationRecord {
        success: SuccessRate::of(&(0..200).map(|task| vec![task < n]).collect::<Vec<_>>()),
        tasks: None,
        scores: Vec::new(),
    };
    directory.write_evaluation("before", &record(20)).expect("it is written");
    let eval = json!({"step": 30, "eval": record(120).success});
    let eval = eval.as_object().cloned().unwrap_or_default();
    directory.write_event("eval", eval).expect("it is written");
    // The run ended at step 20 once, and was resumed: the evaluation at step 30 is newer.
    directory.write_evaluation("after", &record(40)).expect("it is written");
    let end = json!({"step": 20}).as_object().cloned().unwrap_or_default();
    directory.write_event("end", end).expect("it is written");
    drop(directory);
    let finished = diagnose(&path).expect("it is judged");
    assert_eq!(finished.state, "finished");
    let verdict = finished.verdict.expect("two evaluations").to_string();
    assert!(verdict.starts_with("it learned: 0.10 -> 0.20"), "{verdict}");
    let mut directory = RunDirectory::resume(&path).expect("there is a run");
    directory.write_event("resume", Map::new()).expect("it is written");
    drop(directory);
    std::fs::remove_file(path.join("metrics.jsonl")).expect("it was there");
    let killed = diagnose(&path).expect("it is judged");
    assert_eq!(killed.state, "stopped");
    let verdict = killed.verdict.expect("two evaluations").to_string();
    assert!(verdict.starts_with("it learned: 0.10 -> 0.60, difference 0.50 ["), "{verdict}");
    assert!(killed.unknown[0].contains("metrics.jsonl cannot be read"), "{:?}", killed.unknown);
}
