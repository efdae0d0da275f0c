//! Agent programs with the published clients of OpenAI and Anthropic, and with an agent framework. `.ci/real` installs them and
//! names the interpreter that has them.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use turnwise_testkit::SMALL_MODEL;

/// A model that has learnt nothing can only call the tool.
const CALLS: &str = r#"
[rollout]
groups_per_step = 1
group_size = 2
constraint = { regex = '<tool_call>\n\{"name": "calc", "arguments": \{"a": [1-9], "b": [1-9], "op": "\+"\}\}\n</tool_call>' }

[limits]
max_turns = 32
max_turn_tokens = 128
max_context_tokens = 4096
max_sampled_tokens = 8192
environment_timeout_s = 120

[warm_start]
steps = 0

[run]
steps = 1

[train]
keep_zero_variance = true

[eval]
episodes = 1
"#;

/// Trains one step on what a Python program says, and returns its episodes.
fn train(home: &TempDir, program: &Path, tables: &str) -> Vec<Value> {
    let python = std::env::var("TURNWISE_PYTHON").expect("`.ci/real` sets TURNWISE_PYTHON");
    let settings = home.path().join("run.toml");
    let command = format!("[agent]\ncommand = '{python} {}'\n", program.display());
    fs::write(&settings, [SMALL_MODEL, &command, tables].concat()).expect("it is written");
    let run = home.path().join("run");
    let output = Command::new(env!("CARGO_BIN_EXE_turnwise"))
        .args([Path::new("train"), &settings, Path::new("--run-dir"), &run])
        .env("XDG_STATE_HOME", home.path())
        .output()
        .expect("the command starts");
    let shown = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {shown}", program.display());
    let episodes =
        fs::read_to_string(run.join("rollouts/step-000000.jsonl")).expect("the run wrote it");
    episodes.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn example(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name).canonicalize().expect("the program is there")
}

fn play(program: &str, environment: &str) {
    let home = tempfile::tempdir().expect("a directory");
    let episodes = train(&home, &example(program), &[environment, CALLS].concat());
    assert_eq!(episodes.len(), 2);
    for episode in episodes {
        assert_eq!(episode["outcome"], "done", "{episode}");
    }
}

#[test]
fn openais_client_gets_turns_in_every_form() {
    play("tests/clients/openai_client.py", "[environment]\nname = \"program\"\n");
}

#[test]
fn anthropics_client_gets_turns_in_every_form() {
    play("tests/clients/anthropic_client.py", "[environment]\nname = \"program\"\n");
}

#[test]
fn a_program_plays_an_environment_with_tools() {
    play("../../examples/agent_program.py", "[environment]\nname = \"calculator\"\n");
}

#[test]
fn an_agent_of_a_framework_has_a_tool_of_its_own() {
    play("../../examples/agent_framework.py", "[environment]\nname = \"program\"\n");
}
