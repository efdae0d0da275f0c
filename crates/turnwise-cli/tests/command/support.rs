use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use turnwise_testkit::SMALL_MODEL;

/// Everything of a small run but its length, objective and evaluation.
const TINY: &str = r#"
[environment]
name = "guess"
options = { span = 4 }

[warm_start]
steps = 60
batch_size = 16
learning_rate = 1e-2

[rollout]
groups_per_step = 6
group_size = 6

[limits]
max_turns = 3
max_turn_tokens = 6
max_context_tokens = 512
"#;

/// Returns the settings of a run of a few thousand weights and a few episodes: the shared ones, and these tables.
pub(crate) fn tiny(tables: &str) -> String {
    [SMALL_MODEL, TINY, tables].concat()
}

/// The result of a command.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the command with arguments and standard input.
pub(crate) fn turnwise(arguments: &[&str], input: &str) -> Ended {
    // Where the command remembers trusted templates: each run begins without any.
    let state = tempfile::tempdir().expect("a directory");
    let mut child = Command::new(env!("CARGO_BIN_EXE_turnwise"))
        .args(arguments)
        .env("XDG_STATE_HOME", state.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    // A command that refuses its arguments does not read its input.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("the command ends");
    let text = |bytes| String::from_utf8(bytes).expect("the command writes UTF-8");
    Ended {
        code: output.status.code().expect("it was not killed"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat")
}
