//! Runs that are broken on purpose, one fault each: the first finding names it. And what a run leaves for people: the
//! verdict, an episode before and after, and conversations.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Ended, tiny, turnwise};

/// What makes [`tiny`] a run without a fault.
const HEALTHY: &str = r"
[run]
steps = 6

[objective]
clip_low = 0.05
clip_high = 0.07

[train]
learning_rate = 3e-3
n_minibatches = 2

[eval]
episodes = 256
";

/// A run in a directory of its own.
struct TestRun {
    _home: TempDir,
    path: String,
    trained: Ended,
}

impl TestRun {
    fn new(overrides: &[&str]) -> Self {
        let run = Self::ended(overrides);
        assert_eq!(run.trained.code, 0, "{}", run.trained.stderr);
        run
    }

    /// Creates a run that may have failed.
    fn ended(overrides: &[&str]) -> Self {
        let home = TempDir::new().expect("a directory of its own");
        let text = |name: &str| home.path().join(name).to_str().expect("UTF-8").to_owned();
        let (config, path) = (text("run.toml"), text("run"));
        fs::write(&config, tiny(HEALTHY)).expect("it is written");
        let trained = turnwise(&[&["train", &config, "--run-dir", &path], overrides].concat(), "");
        Self { _home: home, path, trained }
    }

    /// Returns the diagnosis as JSON, and the exit code.
    fn diagnosis(&self) -> (Value, i32) {
        let ended = turnwise(&["doctor", &self.path, "--json"], "");
        (serde_json::from_str(&ended.stdout).expect("JSON"), ended.code)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(Path::new(&self.path).join(file)).expect("the run wrote it")
    }

    fn show(&self, arguments: &[&str]) -> Ended {
        turnwise(&[&["show", &self.path], arguments].concat(), "")
    }
}

/// A fault, as settings, with the rule of the first finding, and what its change names.
const FAULTS: [(&[&str], &str, &str); 10] = [
    (&["train.learning_rate=1e-10"], "policy_hardly_moves", "train.learning_rate = "),
    (&["train.learning_rate=0.3"], "policy_moves_far", "train.learning_rate = "),
    (&["limits.max_turn_tokens=1"], "answers_are_cut", "limits.max_turn_tokens = 16"),
    (
        &[
            "warm_start.steps=0",
            "rollout.constraint.regex=\"[1-4]\"",
            "limits.max_turns=40",
            "environment.options={numbers=4,span=4,turns=40}",
        ],
        "rewards_do_not_differ",
        "make the tasks harder",
    ),
    // 0 is in no range.
    (
        &["warm_start.steps=0", "rollout.constraint.regex=\"0\""],
        "rewards_do_not_differ",
        "make tasks easier",
    ),
    (
        &["objective.clip_low=1e-9", "objective.clip_high=1e-9"],
        "clip_is_narrow",
        "objective.clip_low = ",
    ),
    (
        &["objective.clip_low=0.99", "objective.clip_high=10.0"],
        "clip_never_acts",
        "objective.clip_high = ",
    ),
    (&["eval.episodes=4"], "evaluation_is_small", "eval.episodes = "),
    // A tool that is called in a form that nobody can read.
    (
        &[
            "environment.name=calculator",
            "environment.options={}",
            "warm_start.steps=0",
            "rollout.constraint.regex=\"<tool_call>[a-z]{1,3}</tool_call>\"",
            "limits.max_turn_tokens=40",
        ],
        "answers_cannot_be_read",
        "rollout.constraint",
    ),
    // Every answer of the environment is longer than what the model may see of it.
    (
        &["model.max_observation_tokens=1"],
        "observations_are_shortened",
        "model.max_observation_tokens = 2",
    ),
];

/// Field 17
#[test]
fn the_first_line_about_a_run_that_is_broken_on_purpose_names_the_fault() {
    for (overrides, rule, change) in FAULTS {
        let run = TestRun::new(overrides);
        let (diagnosis, code) = run.diagnosis();
        let first = &diagnosis["findings"][0];
        assert_eq!(first["rule"], rule, "{overrides:?}: {diagnosis:#}");
        assert!(first["change"].as_str().expect("a text").contains(change), "{first}");
        assert_eq!(code, 1, "{diagnosis:#}");
        // The same line stands at the end of the run, in its summary and in the page.
        let problem = format!("! {}", first["problem"].as_str().expect("a text"));
        assert!(run.trained.stdout.contains(&problem), "{problem}: {}", run.trained.stdout);
        let page = turnwise(&["doctor", &run.path], "").stdout;
        assert_eq!(page.lines().nth(1), Some(problem.as_str()));
        let summary: Value = serde_json::from_str(&run.read("summary.json")).expect("JSON");
        let warning = summary["warnings"][0].as_str().expect("a warning");
        assert!(warning.starts_with(&problem[2..]), "{warning}");
        assert_eq!(page.lines().next(), summary["verdict"].as_str());
    }
}

#[test]
fn a_tool_call_that_cannot_be_read_comes_with_the_reason_and_three_examples() {
    let run = TestRun::new(FAULTS[8].0);
    let (diagnosis, _) = run.diagnosis();
    let first = &diagnosis["findings"][0];
    let problem = first["problem"].as_str().expect("a text");
    assert!(problem.contains("the most frequent reason: \"error: decode: "), "{problem}");
    assert_eq!(first["examples"].as_array().map(Vec::len), Some(3));
    let failed = run.show(&["--failed"]).stdout;
    assert!(failed.contains("malformed") && failed.contains("tool    error: decode: "), "{failed}");
    assert!(failed.contains("agent   (nothing that can be read)"), "{failed}");
}

#[test]
fn a_message_that_the_model_saw_in_part_is_counted_named_and_shown() {
    let run = TestRun::new(FAULTS[9].0);
    for line in run.read("metrics.jsonl").lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        assert!(row["length/shortened_frac"].as_f64() > Some(0.0), "{row}");
    }
    let (diagnosis, _) = run.diagnosis();
    let first = &diagnosis["findings"][0];
    let example = first["examples"][0].as_str().expect("an example");
    assert!(example.contains("bytes: higher: ") || example.contains("bytes: lower: "), "{example}");
    let shown = run.show(&["--worst"]).stdout;
    assert!(shown.contains("without its middle: model.max_observation_tokens)"), "{shown}");
    // The same run with room for them has none.
    let run = TestRun::new(&[]);
    assert!(!run.read("metrics.jsonl").contains("\"length/shortened_frac\":0."));
    assert!(!run.read("rollouts/step-000000.jsonl").contains("shortened"));
}

/// Field 17
#[test]
fn a_healthy_run_has_no_findings_and_a_verdict() {
    let run = TestRun::new(&[]);
    let ended = turnwise(&["doctor", &run.path], "");
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", ended.stdout);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[0].contains("difference "), "{lines:?}");
    assert_eq!(
        lines[1..],
        ["✓ nothing is wrong", &format!("run    {}: 6 of 6 steps, finished", run.path)]
    );
    assert!(!run.trained.stdout.contains('!'), "{}", run.trained.stdout);
    assert!(run.trained.stdout.contains(lines[0]), "{}", run.trained.stdout);
    let summary: Value = serde_json::from_str(&run.read("summary.json")).expect("JSON");
    assert_eq!(summary["difference"]["is_paired"], true);
    assert_eq!(summary["difference"]["episodes"], 256);
    assert_eq!(summary["warnings"], Value::Array(Vec::new()));
}

/// A run of an earlier version: neither the new metrics, nor the scores of evaluations.
#[test]
fn an_old_run_and_a_damaged_one_are_judged_by_what_they_have() {
    let run = TestRun::new(&["limits.max_turn_tokens=1"]);
    let path = |name: &str| Path::new(&run.path).join(name);
    let mut metrics = String::new();
    for line in run.read("metrics.jsonl").lines() {
        let mut row: Value = serde_json::from_str(line).expect("JSON");
        for new in ["length/cut_turns_frac", "length/context_frac", "fault/malformed_turns_frac"] {
            row.as_object_mut().expect("an object").remove(new).expect("the run has it");
        }
        metrics += &(row.to_string() + "\n");
    }
    fs::write(path("metrics.jsonl"), metrics + "{\"step\": 6, \"rewa").expect("it is written");
    let mut before: Value = serde_json::from_str(&run.read("eval-before.json")).expect("JSON");
    before.as_object_mut().expect("an object").remove("scores");
    fs::write(path("eval-before.json"), before.to_string()).expect("it is written");
    fs::remove_file(path("eval-after.json")).expect("it was there");
    let (diagnosis, _) = run.diagnosis();
    assert_eq!(diagnosis["findings"][0]["rule"], "answers_are_cut", "{diagnosis:#}");
    let problem = diagnosis["findings"][0]["problem"].as_str().expect("a text");
    assert!(problem.contains("kept episodes"), "{problem}");
    let change = diagnosis["verdict"].as_object().expect("a verdict").values().next().cloned();
    assert_eq!(change.expect("a change")["is_paired"], false);
    // Even a run with nothing but its settings is one.
    for file in ["metrics.jsonl", "events.jsonl", "eval-before.json", "summary.json"] {
        fs::remove_file(path(file)).expect("it was there");
    }
    fs::remove_dir_all(path("rollouts")).expect("it was there");
    for file in ["eval-before.jsonl", "eval-after.jsonl"] {
        fs::remove_file(path(file)).expect("it was there");
    }
    let ended = turnwise(&["doctor", &run.path], "");
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("has nothing to judge yet"), "{}", ended.stderr);
    assert!(ended.stdout.starts_with("no verdict: "), "{}", ended.stdout);
    let nothing =
        "? there is nothing to judge yet: 0 of 6 steps have ended, and the last event is: unknown";
    assert_eq!(ended.stdout.lines().nth(1), Some(nothing));
    assert!(ended.stdout.contains("metrics.jsonl cannot be read"), "{}", ended.stdout);
    let ended = turnwise(&["show", &run.path], "");
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("has no episodes"), "{}", ended.stderr);
    let ended = turnwise(&["doctor", path("checkpoints").to_str().expect("UTF-8")], "");
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("holds no run"), "{}", ended.stderr);
}

/// A prompt that does not fit breaks every episode: no evaluation of it is one.
#[test]
fn what_breaks_every_episode_ends_a_run_and_an_evaluation_with_its_reason() {
    let healthy = TestRun::new(&["run.steps=1", "eval.episodes=8"]);
    let small = ["limits.max_context_tokens=12", "limits.max_turn_tokens=6", "eval.episodes=4"];
    let reason = "each of 4 episodes broke, the first with render: the first prompt has ";
    let model = healthy.path.as_str();
    let evaluated = turnwise(&[&["eval", "--model", model], &small[..]].concat(), "");
    assert_eq!(evaluated.code, 5, "{}", evaluated.stdout);
    assert!(evaluated.stderr.contains(reason), "{}", evaluated.stderr);
    assert!(
        evaluated.stderr.contains("help: the model's form cannot write"),
        "{}",
        evaluated.stderr
    );
    assert_eq!(evaluated.stderr.matches("an episode broke").count(), 4, "{}", evaluated.stderr);
    let run = TestRun::ended(&[&["warm_start.steps=0"], &small[..]].concat());
    assert_eq!(run.trained.code, 5, "{}", run.trained.stderr);
    assert!(run.trained.stderr.contains(reason), "{}", run.trained.stderr);
    // The files of the run have the reason too.
    let (diagnosis, code) = run.diagnosis();
    let first = &diagnosis["findings"][0];
    assert_eq!((first["rule"].as_str(), code), (Some("run_failed"), 1), "{diagnosis:#}");
    let problem = first["problem"].as_str().expect("a text");
    assert!(problem.contains("after 0 of 6 steps") && problem.contains(reason), "{problem}");
    assert!(first["change"].as_str().expect("a text").contains("limits.max_context_tokens"));
    let page = turnwise(&["doctor", &run.path], "").stdout;
    assert!(page.contains("? there is nothing to judge yet: 0 of 6 steps have ended"), "{page}");
    assert!(page.contains("the last event is: failed after 0 steps"), "{page}");
    assert!(!page.contains("nothing is wrong"), "{page}");
}

#[test]
fn more_episodes_than_tasks_are_counted_by_task() {
    let run = TestRun::new(&["run.steps=1"]);
    let first: Value = serde_json::from_str(&run.read("eval-before.json")).expect("JSON");
    let n_tasks = first["tasks"].as_u64().expect("a number");
    let episodes = format!("eval.episodes={}", n_tasks + 20);
    let evaluated = turnwise(&["eval", "--model", &run.path, &episodes], "");
    let counted = format!("{} episodes of {n_tasks} tasks", n_tasks + 20);
    assert!(evaluated.stdout.contains(&counted), "{}", evaluated.stdout);
    let json = turnwise(&["eval", "--model", &run.path, &episodes, "--json"], "").stdout;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["tasks"].as_u64(), Some(n_tasks));
}

#[test]
fn damaged_files_are_named() {
    let run = TestRun::new(&["run.steps=2"]);
    let path = |name: &str| Path::new(&run.path).join(name);
    for (name, damaged) in [
        ("metrics.jsonl", format!("garbage\n{}", run.read("metrics.jsonl"))),
        ("eval-after.json", "{}".to_owned()),
        ("eval-after.jsonl", format!("{{\n{}[\n", run.read("eval-after.jsonl"))),
    ] {
        fs::write(path(name), damaged).expect("it is written");
    }
    let page = turnwise(&["doctor", &run.path], "").stdout;
    for note in [
        "note   1 line of metrics.jsonl is damaged and left out",
        "note   eval-after.json is damaged and left out",
        "note   2 lines of eval-after.jsonl are damaged and left out",
    ] {
        assert!(page.contains(note), "{page}");
    }
}

#[test]
fn a_step_that_trains_on_nothing_keeps_its_episodes() {
    let run = TestRun::new(FAULTS[4].0);
    let shown = run.show(&["--step", "1"]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    assert!(shown.stdout.contains("rollouts/step-000000.jsonl, 16 episodes"), "{}", shown.stdout);
    assert!(!Path::new(&run.path).join("credit/step-000000.jsonl").exists());
}

#[test]
fn the_episode_whose_reward_rose_most_is_shown_before_and_after() {
    let run = TestRun::new(&[]);
    let text = run.read("before-after.txt");
    let heads: Vec<&str> = text.lines().nth(1).expect("two columns").split("── ").collect();
    assert!(heads[1].starts_with("before: ") && heads[2].starts_with("after: "), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    // Without a terminal the two stand one above the other.
    let screen = &run.trained.stdout;
    let task = text.lines().next().expect("a heading");
    let start = screen.find(task).expect("it is on the screen");
    let below = screen[start..].find("\n── after: ").expect("the trained policy");
    assert!(screen[start..][..below].contains("\n── before: "), "{screen}");
    // The chosen episode is the first with the largest rise among those that the run kept.
    let rewards = |when: &str| -> Vec<(u64, f64)> {
        let lines = run.read(&format!("eval-{when}.json"));
        let record: Value = serde_json::from_str(&lines).expect("JSON");
        let scores = record["scores"].as_array().expect("a list").iter().take(16);
        let score = |score: &Value| {
            (
                score["episode"].as_u64().expect("a number"),
                score["reward"].as_f64().expect("scored"),
            )
        };
        scores.map(score).collect()
    };
    let (before, after) = (rewards("before"), rewards("after"));
    let mut best = (f64::NEG_INFINITY, 0);
    for ((episode, first), (same, last)) in before.iter().zip(&after) {
        assert_eq!(episode, same, "the same episodes are kept");
        if last - first > best.0 {
            best = (last - first, *episode);
        }
    }
    let shown = format!("reward {:.2} in", after[best.1 as usize].1);
    assert!(heads[2].contains(&shown), "{heads:?} {best:?}");
}

#[test]
fn conversations_are_chosen_by_kind_step_task_and_number() {
    let run = TestRun::new(&["log.rollouts_per_step=8"]);
    let shown = run.show(&[]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    for kind in ["── best · guess task ", "── worst · guess task ", "failed"] {
        assert!(shown.stdout.contains(kind), "{}", shown.stdout);
    }
    assert!(shown.stdout.contains("eval-after.jsonl, 8 episodes"), "{}", shown.stdout);
    assert!(shown.stdout.contains("env     Guess ") && shown.stdout.contains("(turn 1"));
    let best = run.show(&["--best", "--n", "3", "--eval", "before"]).stdout;
    assert_eq!(best.matches("── best · ").count(), 3, "{best}");
    assert!(best.contains("eval-before.jsonl") && !best.contains("worst"), "{best}");
    let rewards: Vec<f64> = best
        .lines()
        .filter_map(|line| line.strip_prefix("── best")?.split("reward ").nth(1)?.split(' ').next())
        .map(|reward| reward.parse().expect("a number"))
        .collect();
    assert!(rewards.is_sorted_by(|a, b| a >= b), "{rewards:?}");
    let of_step = run.show(&["--worst", "--step", "1"]).stdout;
    assert!(of_step.contains("rollouts/step-000000.jsonl, 8 episodes"), "{of_step}");
    let key = best.split('(').nth(1).and_then(|rest| rest.split(')').next()).expect("a key");
    let of_task = run.show(&["--best", "--task", key]).stdout;
    assert!(of_task.contains(key), "{of_task}");
    for (arguments, help) in [
        (["--step", "99"], "--step 1 to --step 6"),
        (["--eval", "later"], "--eval after, --eval before"),
        (["--task", "nobody"], "the headings of  turnwise show"),
    ] {
        let refused = run.show(&arguments);
        assert_eq!(refused.code, 2, "{arguments:?}");
        assert!(refused.stderr.contains(help), "{arguments:?}: {}", refused.stderr);
    }
}
