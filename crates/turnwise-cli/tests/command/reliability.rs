//! Failures that a run survives: stops, hang-ups and resumptions at any moment, a full disk, directories of others.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use turnwise_testkit::SMALL_MODEL;

use crate::support::{Ended, turnwise};

/// The tables beside the model of a run, whose episodes are suspended at a token budget.
const SMALL: &str = r#"
[run]
steps = 12

[environment]
name = "guess"
options = { span = 6 }

[warm_start]
steps = 20
batch_size = 16
learning_rate = 1e-2

[rollout]
groups_per_step = 6
group_size = 4
tokens_per_step = 120

[limits]
max_turns = 4
max_turn_tokens = 6
max_context_tokens = 256

[objective]
clip_low = 0.2
clip_high = 0.27

[train]
n_minibatches = 2
learning_rate = 1e-2

[log]
checkpoint_every = 4
rollouts_per_step = 2

[eval]
episodes = 8
"#;

struct Home {
    folder: TempDir,
}

impl Home {
    fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let settings = [SMALL_MODEL, SMALL].concat();
        fs::write(folder.path().join("small.toml"), settings).expect("it is written");
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn train(&self, name: &str, more: &[&str]) -> Ended {
        let (config, run) = (self.path("small.toml"), self.path(name));
        turnwise(&[&["train", &config, "--run-dir", &run], more].concat(), "")
    }

    /// Trains to the end and returns the run's directory.
    fn run(&self, name: &str, more: &[&str]) -> String {
        let ended = self.train(name, more);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        self.path(name)
    }
}

fn resume(run: &str, more: &[&str]) -> Ended {
    turnwise(&[&["resume", run], more].concat(), "")
}

fn weights(run: &str, step: u64) -> Vec<u8> {
    let model = format!("{run}/checkpoints/step-{step:06}/model.safetensors");
    fs::read(&model).unwrap_or_else(|error| panic!("{model}: {error}"))
}

fn lines(run: &str, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(Path::new(run).join(file)).expect("the run wrote it");
    let read = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(read).collect()
}

/// Returns the metrics of each step without times, from the last process that did it.
fn metrics(run: &str) -> Vec<(u64, Vec<(String, Value)>)> {
    let mut steps = std::collections::BTreeMap::new();
    for line in lines(run, "metrics.jsonl") {
        let object = line.as_object().expect("an object").clone();
        let kept = |name: &str| name != "resume" && !name.starts_with("time/");
        let facts: Vec<_> = object.into_iter().filter(|(name, _)| kept(name)).collect();
        steps.insert(line["step"].as_u64().expect("a step"), facts);
    }
    steps.into_iter().collect()
}

fn checkpoints(run: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("{run}/checkpoints")).expect("checkpoints");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Starts the command, sends a signal some milliseconds after the run has started its first step, and returns how it
/// ended.
fn signalled(arguments: &[&str], run: &str, signal: &str, after: Duration) -> i32 {
    // A test run started under `nohup` ignores SIGHUP, and so would the command.
    let mut child = Command::new("env")
        .args(["--default-signal=HUP", env!("CARGO_BIN_EXE_turnwise")])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let begun = PathBuf::from(run).join("checkpoints/step-000000");
    let started = Instant::now();
    while !begun.exists() {
        assert!(started.elapsed() < Duration::from_mins(2), "the run does not begin");
        assert!(child.try_wait().expect("it runs").is_none(), "the run ended at once");
        sleep(Duration::from_millis(2));
    }
    sleep(after);
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(sent.is_ok(), "a signal is sent");
    child.wait().expect("it ends").code().expect("it ended by itself")
}

/// In the reproducible modes, a requested stop changes nothing, at any moment.
#[test]
fn a_run_that_is_stopped_and_resumed_has_the_weights_of_one_that_is_not() {
    let home = Home::new();
    for mode in ["rollout.mode=synchronous", "rollout.mode=pipelined"] {
        let name = mode.split('=').next_back().expect("a mode");
        let whole = home.run(&format!("{name}-whole"), &[mode]);
        for (number, ms) in [5, 40, 110, 230].into_iter().enumerate() {
            let run = home.path(&format!("{name}-{number}"));
            let config = home.path("small.toml");
            let arguments = ["train", &config, "--run-dir", &run, mode];
            let code = signalled(&arguments, &run, "-INT", Duration::from_millis(ms));
            assert!(matches!(code, 0 | 130), "{mode} after {ms} ms: {code}");
            let ended = resume(&run, &[]);
            assert_eq!(ended.code, 0, "{mode} after {ms} ms: {}", ended.stderr);
            assert!(weights(&run, 12) == weights(&whole, 12), "{mode} after {ms} ms");
            assert_eq!(metrics(&run), metrics(&whole), "{mode} after {ms} ms");
        }
    }
}

#[test]
fn a_closed_terminal_stops_a_run_with_a_checkpoint_and_nohup_does_not_stop_it() {
    let home = Home::new();
    let (run, config) = (home.path("run"), home.path("small.toml"));
    let more = ["run.steps=100000", "log.checkpoint_every=100000"];
    let arguments = [&["train", &config, "--run-dir", &run][..], &more].concat();
    let code = signalled(&arguments, &run, "-HUP", Duration::from_millis(300));
    assert_eq!(code, 129);
    assert!(checkpoints(&run).len() > 1, "{:?}", checkpoints(&run));
    // `nohup` starts a process like this: SIGHUP stays ignored.
    let run = home.path("nohup");
    let script = format!(
        "trap '' HUP; exec {} train {config} --run-dir {run} run.steps=3",
        env!("CARGO_BIN_EXE_turnwise")
    );
    let mut child = Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).spawn().unwrap();
    while !Path::new(&run).join("checkpoints/step-000000").exists() {
        sleep(Duration::from_millis(2));
        assert!(child.try_wait().unwrap().is_none(), "the run ended at once");
    }
    Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(metrics(&run).len(), 3);
}

#[test]
fn a_run_that_is_over_is_left_as_it_is() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=4"]);
    let before: Vec<Vec<u8>> = ["summary.json", "events.jsonl", "metrics.jsonl"]
        .iter()
        .map(|file| fs::read(Path::new(&run).join(file)).unwrap())
        .collect();
    for more in [&[][..], &["--steps", "4"]] {
        let ended = resume(&run, more);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(ended.stdout.contains("nothing is left to do"), "{}", ended.stdout);
    }
    let ended = resume(&run, &["--json"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""));
    let after: Vec<Vec<u8>> = ["summary.json", "events.jsonl", "metrics.jsonl"]
        .iter()
        .map(|file| fs::read(Path::new(&run).join(file)).unwrap())
        .collect();
    assert_eq!(before, after);
    let ended = resume(&run, &["--steps", "3"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("the run is at step 4 already"), "{}", ended.stderr);
}

// Field 6
#[test]
fn more_steps_are_remembered_and_a_jump_of_the_learning_rate_is_said() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=4", "train.decay=cosine"]);
    let config = ["resume", run.as_str(), "--steps", "100000"];
    let begun = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_turnwise"))
        .args(config)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while metrics(&run).len() < 6 {
        assert!(begun.elapsed() < Duration::from_mins(2), "it does not go on");
        sleep(Duration::from_millis(20));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("the learning rate decays to step 100000 instead of 4"), "{said}");
    let settings = fs::read_to_string(format!("{run}/run.toml")).unwrap();
    assert!(settings.contains("steps = 100000"), "{settings}");
}

#[test]
fn a_torn_line_swallows_nothing() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=4"]);
    for file in ["metrics.jsonl", "events.jsonl"] {
        let path = format!("{run}/{file}");
        let text = fs::read_to_string(&path).unwrap() + "{\"step\": 4, \"rew";
        fs::write(&path, text).unwrap();
    }
    let ended = resume(&run, &["--steps", "6"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(metrics(&run).iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert!(lines(&run, "events.jsonl").iter().all(|event| event["event"].is_string()));
}

#[test]
fn the_content_of_a_checkpoint_counts_and_not_its_name() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=4"]);
    let whole = home.run("whole", &["run.steps=8"]);
    fs::rename(format!("{run}/checkpoints/step-000004"), format!("{run}/checkpoints/step-000099"))
        .unwrap();
    for foreign in ["step-000098", "step-000097"] {
        fs::create_dir(format!("{run}/checkpoints/{foreign}")).unwrap();
    }
    fs::write(format!("{run}/checkpoints/.tmp-x"), "a file, not a directory").unwrap();
    let ended = resume(&run, &["--steps", "6"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("going on at step 4 of 6"), "{}", ended.stdout);
    assert!(ended.stdout.contains("holds step 4; its name says another"), "{}", ended.stdout);
    let ended = resume(&run, &["--steps", "8"]);
    assert!(ended.stdout.contains("going on at step 6 of 8"), "{}", ended.stdout);
    assert!(weights(&run, 8) == weights(&whole, 8));
    let left = checkpoints(&run);
    assert!(left.contains(&"step-000098".to_owned()), "{left:?}");
    assert!(left.contains(&"step-000006".to_owned()), "{left:?}");
    assert!(!left.iter().any(|name| name.starts_with(".tmp")), "{left:?}");
}

/// A pipe or a link instead of a checkpoint would block or never end.
#[test]
fn special_files_are_passed_over_and_said() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=4", "log.checkpoint_every=2"]);
    let newest = format!("{run}/checkpoints/step-000004");
    fs::remove_file(format!("{newest}/state.json")).unwrap();
    let made = Command::new("mkfifo").arg(format!("{newest}/state.json")).status().unwrap();
    assert!(made.success());
    let ended = resume(&run, &["--steps", "6"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("state.json: it is a pipe, a socket or a device"),
        "{}",
        ended.stdout
    );
    assert!(ended.stdout.contains("going on at step 2 of 6"), "{}", ended.stdout);
    let newest = format!("{run}/checkpoints/step-000006");
    fs::remove_file(format!("{newest}/model.safetensors")).unwrap();
    symlink("/dev/zero", format!("{newest}/model.safetensors")).unwrap();
    let ended = resume(&run, &["--steps", "8"]);
    assert!(ended.stdout.contains("a link is not followed"), "{}", ended.stdout);
}

#[test]
fn the_reference_of_a_penalty_is_covered_by_a_manifest() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=2", "objective.kl.beta=0.1"]);
    assert!(metrics(&run)[1].1.iter().any(|(name, value)| {
        name == "policy/kl_reference" && value.as_f64().is_some_and(|kl| kl >= 0.0)
    }));
    let model = format!("{run}/reference/model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 2;
    fs::write(&model, bytes).unwrap();
    let ended = resume(&run, &["--steps", "4"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("reference: model.safetensors: sha256"), "{}", ended.stderr);
}

#[test]
fn a_run_without_a_checkpoint_is_begun_again_where_it_was() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=1"]);
    fs::remove_dir_all(format!("{run}/checkpoints")).unwrap();
    fs::write(format!("{run}/metrics.jsonl"), "").unwrap();
    let ended = resume(&run, &[]);
    assert_eq!(ended.code, 2);
    let advice = format!("turnwise train {run}/run.toml --run-dir {run}");
    assert!(ended.stderr.contains(&advice), "{}", ended.stderr);
    let settings = format!("{run}/run.toml");
    let ended = turnwise(&["train", &settings, "--run-dir", &run], "");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn a_group_size_that_suspended_episodes_do_not_have_is_refused() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=4"]);
    let path = format!("{run}/run.toml");
    let settings = fs::read_to_string(&path).unwrap();
    fs::write(&path, settings.replace("\ngroup_size = 4", "\ngroup_size = 3")).unwrap();
    let ended = resume(&run, &["--steps", "6"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("their groups have 4 members"), "{}", ended.stderr);
}

#[test]
fn directories_that_are_not_a_runs_are_refused_before_anything_is_made() {
    let home = Home::new();
    let other = home.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(format!("{other}/thesis.tex"), "kept").unwrap();
    let ended = home.train("other", &[]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("it holds `thesis.tex`"), "{}", ended.stderr);
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    let config = home.path("small.toml");
    let ended = turnwise(&["train", &config, "--run-dir", "/"], "");
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("is no run directory"), "{}", ended.stderr);
    // A name that logs cannot repeat.
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    let output = Command::new(env!("CARGO_BIN_EXE_turnwise"))
        .args(["train", &config, "--run-dir"])
        .arg(home.folder.path().join(name))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not UTF-8"));
    // A lock that is a link would be followed and overwritten.
    let linked = home.path("linked");
    fs::create_dir(&linked).unwrap();
    fs::write(home.path("precious"), "kept").unwrap();
    symlink(home.path("precious"), format!("{linked}/lock")).unwrap();
    let ended = home.train("linked", &[]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("`lock` is a link"), "{}", ended.stderr);
    assert_eq!(fs::read_to_string(home.path("precious")).unwrap(), "kept");
}

/// A disk that fills up in the middle of a run costs no acknowledged step.
#[test]
fn a_full_disk_is_said_and_the_run_goes_on_when_there_is_room() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=4"]);
    // The limit of a file's size: below the weights, above the logs.
    let size =
        fs::metadata(format!("{run}/checkpoints/step-000004/model.safetensors")).unwrap().len();
    let script = format!(
        "trap '' XFSZ; ulimit -f {}; exec {} resume --steps 6 {run}",
        size / 512 / 2,
        env!("CARGO_BIN_EXE_turnwise")
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("File too large") && said.contains("make room"), "{said}");
    assert_eq!(checkpoints(&run).last().map(String::as_str), Some("step-000004"));
    let ended = resume(&run, &[]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(metrics(&run).len(), 6);
}

#[test]
fn a_run_that_cannot_learn_says_so() {
    let home = Home::new();
    // Letters are no numbers.
    let letters = "rollout.constraint.regex=\"[a-z]{1,3}\"";
    let more = ["run.steps=6", "warm_start.steps=0", "rollout.tokens_per_step=0", letters];
    let ended = home.train("run", &more);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let run = home.path("run");
    let last = &ended.stdout[ended.stdout.find("held-out success 0.000 [").expect("a summary")..];
    assert!(last.contains("nothing can be learnt"), "{last}");
    assert!(
        !last.contains("turnwise eval") && last.contains(&format!("turnwise show {run}")),
        "{last}"
    );
    let summary = fs::read_to_string(format!("{run}/summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let warnings = summary["warnings"].as_array().unwrap();
    let said = |warning: &Value| warning.as_str().unwrap().to_owned();
    // The cause stands first.
    assert!(said(&warnings[0]).contains("could not read"), "{warnings:?}");
    let nothing = |warning: &Value| said(warning).contains("nothing can be learnt");
    assert_eq!(warnings.iter().filter(|warning| nothing(warning)).count(), 1, "{warnings:?}");
    let alarms: Vec<Value> =
        lines(&run, "events.jsonl").into_iter().filter(|event| event["event"] == "alarm").collect();
    let of_signal = |alarm: &&Value| alarm["rule"] == "rewards_do_not_differ";
    assert_eq!(alarms.iter().filter(of_signal).count(), 1, "{alarms:?}");
}

#[test]
fn a_run_is_evaluated_by_its_newest_checkpoint_and_its_conversations_are_kept() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=2"]);
    let out = home.path("played.jsonl");
    let of_run = turnwise(&["eval", "--model", &run, "--json", "--out", &out], "");
    assert_eq!(of_run.code, 0, "{}", of_run.stderr);
    let checkpoint = format!("{run}/checkpoints/step-000002");
    let of_checkpoint = turnwise(&["eval", "--model", &checkpoint, "--json"], "");
    assert_eq!(of_run.stdout, of_checkpoint.stdout);
    let shown = turnwise(&["render", "--rollout", &out, "--model", &checkpoint], "");
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    assert_eq!(fs::read_to_string(&out).unwrap().lines().count(), 8);
}

/// Field 21
#[test]
fn a_run_says_beforehand_what_it_takes() {
    let home = Home::new();
    let ended = home.train("run", &["run.steps=1"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let line = |begin: &str| {
        let found = ended.stdout.lines().find(|line| line.starts_with(begin));
        found.unwrap_or_else(|| panic!("no {begin}: {}", ended.stdout)).to_owned()
    };
    assert!(line("memory  about").contains("activations"));
    assert!(line("disk    ").contains("a checkpoint, up to 3 at a time"));
    assert!(line("a step takes about").contains("1 steps about"));
    let first = ended.stdout.find("a step takes about").expect("it is there");
    assert!(first < ended.stdout.find("step 1/1").expect("a step"), "{}", ended.stdout);
}

/// Replaces a line of a run's settings.
fn edit(run: &str, from: &str, to: &str) {
    let path = format!("{run}/run.toml");
    let settings = fs::read_to_string(&path).expect("the run wrote it");
    assert!(settings.contains(from), "{from}: {settings}");
    fs::write(&path, settings.replace(from, to)).expect("it is written");
}

/// Settings edited before a resumption are either applied and reported, or refused; none is ignored.
#[test]
fn settings_that_were_edited_before_a_resume_are_followed_and_said_or_refused() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=4"]);
    let saved = fs::read_to_string(format!("{run}/run.toml")).unwrap();
    let refused = [
        ("\nhidden_size = 16", "\nhidden_size = 32", "model.hidden_size was 16 and is 32"),
        ("\nn_layers = 1", "\nn_layers = 2", "model.n_layers was 1 and is 2"),
        ("\nvocab_size = 300", "\nvocab_size = 310", "model.vocab_size was 300 and is 310"),
        ("[model]\n", "[model]\ndirectory = \"x\"\n", "model.directory was left out and is"),
        ("\nbeta = 0.0", "\nbeta = 0.1", "kept no reference policy for objective.kl.beta"),
        ("\ntemperature = 1.0", "\ntemperature = 0.5", "rollout.temperature was 1.0 and is 0.5"),
        (
            "\nmax_observation_tokens = 8192",
            "\nmax_observation_tokens = 16",
            "model.max_observation_tokens was 8192 and is 16",
        ),
        ("\nspan = 6", "\nspan = 9", "environment.options.span was 6 and is 9"),
    ];
    for (from, to, wanted) in refused {
        edit(&run, from, to);
        let ended = resume(&run, &["--steps", "6"]);
        assert_eq!(ended.code, 2, "{to}: {}", ended.stderr);
        assert!(ended.stderr.contains(wanted), "{to}: {}", ended.stderr);
        fs::write(format!("{run}/run.toml"), &saved).unwrap();
    }
    edit(&run, "\nseed = 1", "\nseed = 2");
    edit(&run, "\n[warm_start]\nsteps = 20", "\n[warm_start]\nsteps = 30");
    let ended = resume(&run, &["--steps", "6"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("run.seed was 1 and is 2: from here on"), "{}", ended.stdout);
    let said = "warm_start.steps was 20 and is 30: a run reads it at its start alone";
    assert!(ended.stdout.contains(said), "{}", ended.stdout);
    // The checkpoint now has them.
    let ended = resume(&run, &["--steps", "8"]);
    assert!(!ended.stdout.contains(" was "), "{}", ended.stdout);
}

/// A damaged or lost log costs its lines, not the run.
#[test]
fn a_run_goes_on_without_what_was_lost_of_its_logs() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=4"]);
    for file in ["metrics.jsonl", "events.jsonl"] {
        let path = format!("{run}/{file}");
        let mut bytes = fs::read(&path).unwrap();
        let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        bytes[second] = 0xff;
        fs::write(&path, bytes).unwrap();
    }
    let ended = resume(&run, &["--steps", "6"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("metrics.jsonl lacks 1 of the 4 steps"), "{}", ended.stdout);
    for file in ["metrics.jsonl", "events.jsonl", "eval-before.json"] {
        fs::remove_file(format!("{run}/{file}")).unwrap();
    }
    let ended = resume(&run, &["--steps", "8"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("eval-before.json cannot be read"), "{}", ended.stdout);
    let summary = fs::read_to_string(format!("{run}/summary.json")).unwrap();
    assert!(summary.contains("\"eval_before\": null"), "{summary}");
}

/// An unusable file is named, and the command neither waits for a pipe nor reads a device to its end.
#[test]
fn files_of_a_run_that_cannot_be_used_are_named_with_what_helps() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=2"]);
    let settings = format!("{run}/run.toml");
    let copy = format!("cp {run}/checkpoints/step-000002/turnwise.toml {settings}");
    let saved = fs::read(&settings).unwrap();
    let damage: [&dyn Fn(); 5] = [
        &|| (),
        &|| symlink("/dev/zero", &settings).unwrap(),
        &|| assert!(Command::new("mkfifo").arg(&settings).status().unwrap().success()),
        &|| fs::write(&settings, b"seed = \xff").unwrap(),
        &|| fs::write(&settings, "[run\n").unwrap(),
    ];
    for (number, damage) in damage.into_iter().enumerate() {
        fs::remove_file(&settings).unwrap();
        damage();
        let ended = resume(&run, &["--steps", "4"]);
        assert_eq!(ended.code, 2, "{number}: {}", ended.stderr);
        assert!(ended.stderr.contains(&settings), "{number}: {}", ended.stderr);
        assert!(ended.stderr.contains(&copy), "{number}: {}", ended.stderr);
        let _ = fs::remove_file(&settings);
        fs::write(&settings, &saved).unwrap();
    }
    let before = format!("{run}/eval-before.json");
    fs::remove_file(&before).unwrap();
    assert!(Command::new("mkfifo").arg(&before).status().unwrap().success());
    let after = format!("{run}/eval-after.jsonl");
    fs::remove_file(&after).unwrap();
    fs::create_dir(&after).unwrap();
    let ended = resume(&run, &["--steps", "4"]);
    assert!(ended.stdout.contains("eval-before.json cannot be read"), "{}", ended.stdout);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("eval-after.jsonl"), "{}", ended.stderr);
    let ended = turnwise(&["train", "/dev/zero"], "");
    assert!(ended.stderr.contains("/dev/zero: it is longer than"), "{}", ended.stderr);
    let ended = resume(&format!("{run}/checkpoints/step-000002"), &[]);
    assert!(ended.stderr.contains(&format!("turnwise resume {run}")), "{}", ended.stderr);
    let ended = turnwise(&["config", "--model", &run], "");
    assert!(ended.stderr.contains("a checkpoint is a model: "), "{}", ended.stderr);
}

/// Conversations are not played in vain, and do not replace other files.
#[test]
fn a_file_for_conversations_is_made_before_they_are_played() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=1"]);
    let settings = format!("{run}/run.toml");
    let saved = fs::read(&settings).unwrap();
    let ended = turnwise(&["eval", "--model", &run, "--out", &settings], "");
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("exists and does not contain conversations"), "{}", ended.stderr);
    assert_eq!(fs::read(&settings).unwrap(), saved);
    // If the episodes were played first, this would take minutes.
    let nowhere = home.path("nowhere/played.jsonl");
    let much = ["eval", "--model", &run, "--out", &nowhere, "eval.episodes=100000"];
    let ended = turnwise(&much, "");
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains(&nowhere), "{}", ended.stderr);
    let out = home.path("played.jsonl");
    for episodes in ["eval.episodes=6", "eval.episodes=3"] {
        let ended = turnwise(&["eval", "--model", &run, "--out", &out, episodes], "");
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    }
    assert_eq!(fs::read_to_string(&out).unwrap().lines().count(), 3);
}

/// Settings that would fail later are refused, or adapted to the model.
#[test]
fn settings_that_do_not_go_together_are_refused_before_a_run_begins() {
    let home = Home::new();
    let ended = home.train("cache", &["engine.max_kv_bytes=1000"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("`engine.max_kv_bytes` = 1000 is too little"),
        "{}",
        ended.stderr
    );
    assert!(!Path::new(&home.path("cache")).exists());
    // More than the context has room for.
    home.run("canary", &["run.steps=2", "train.canary.tokens=4096"]);
    for seed in ["9223372036854775808", "18446744073709551615"] {
        let ended = home.train("seed", &["--seed", seed]);
        assert_eq!(ended.code, 2);
        assert!(ended.stderr.contains(&format!("`run.seed` is {seed}")), "{}", ended.stderr);
    }
    let ended = home.train("many", &["rollout.groups_per_step=65536", "rollout.group_size=4"]);
    assert!(ended.stderr.contains("262144 episodes at once"), "{}", ended.stderr);
}

/// The help is a command that can be typed.
#[test]
fn a_full_disk_is_answered_with_the_command_of_this_run() {
    let home = Home::new();
    let limited = |blocks: u32, command: &str| {
        let turnwise = env!("CARGO_BIN_EXE_turnwise");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec {turnwise} {command}");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{script}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (run, config) = (home.path("run"), home.path("small.toml"));
    let said = limited(16, &format!("train {config} --run-dir {run}"));
    assert!(said.contains(&format!("turnwise train {run}/run.toml --run-dir {run}")), "{said}");
    assert!(!said.contains("still good"), "{said}");
    let ended = turnwise(&["train", &format!("{run}/run.toml"), "--run-dir", &run], "");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    for blocks in [4, 60] {
        let said = limited(blocks, &format!("resume {run} --steps 14"));
        assert!(said.contains("File too large"), "{said}");
        assert!(said.contains(&format!("turnwise resume {run}\n")), "{said}");
    }
}

#[test]
fn many_directories_that_are_no_checkpoints_take_a_few_lines() {
    let home = Home::new();
    let run = home.run("run", &["run.steps=2"]);
    for step in 100..400 {
        fs::create_dir(format!("{run}/checkpoints/step-{step:06}")).unwrap();
    }
    let ended = resume(&run, &["--steps", "3"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("295 more"), "{}", ended.stdout);
    assert!(ended.stdout.matches("passed over").count() == 5, "{}", ended.stdout);
}
