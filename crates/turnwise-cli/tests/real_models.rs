//! Published models, compared with transformers. `.ci/real` downloads them and names their directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn model(name: &str) -> PathBuf {
    let directory = std::env::var("TURNWISE_MODELS").expect("`.ci/real` sets TURNWISE_MODELS");
    Path::new(&directory).join(name)
}

fn expected() -> Value {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/real/expected.json");
    serde_json::from_slice(&std::fs::read(path).expect("the fixture")).expect("it is JSON")
}

fn turnwise(arguments: &[&str], input: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("input.json");
    std::fs::write(&file, input).expect("it is written");
    let output = Command::new(env!("CARGO_BIN_EXE_turnwise"))
        .args(arguments)
        .arg(&file)
        .env("XDG_STATE_HOME", directory.path())
        .output()
        .expect("the command starts");
    let shown = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {shown}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Compares the log-probabilities of a GGUF file with those that transformers computes with it.
fn compare(file: &str, name: &str) {
    let rows = expected()[name].as_array().expect("rows").clone();
    let input = rows.iter().map(|row| format!("{{\"ids\": {}}}\n", row["ids"])).collect::<String>();
    let path = model(file);
    let path = path.to_str().expect("UTF-8");
    let output = turnwise(&["score", "--model", path, "--input"], &input);
    for (line, row) in output.lines().zip(&rows) {
        let ours: Value = serde_json::from_str(line).expect("a line of JSON");
        let pairs = ours["logprobs"].as_array().expect("numbers").iter();
        let pairs = pairs.zip(row["logprobs"].as_array().expect("numbers"));
        let difference =
            |(a, b): (&Value, &Value)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs();
        let largest = pairs.map(difference).fold(0.0, f64::max);
        assert!(largest < 1e-3, "{name}, {}: {largest}", row["text"]);
    }
    assert_eq!(output.lines().count(), rows.len());
}

/// Compares the ids of a text in a user's message with those of transformers.
fn compare_ids(file: &str, name: &str) {
    let path = model(file);
    for row in expected()[name].as_array().expect("rows") {
        let conversation = serde_json::json!([{"role": "user", "content": row["text"]}]);
        let path = path.to_str().expect("UTF-8");
        let output = turnwise(&["render", "--json", "--model", path], &conversation.to_string());
        let ids: Vec<u64> = serde_json::from_value(row["ids"].clone()).expect("ids");
        let id = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["id"].as_u64();
        let shown: Vec<u64> = output.lines().filter_map(id).collect();
        let is_inside = shown.windows(ids.len()).any(|window| window == ids);
        assert!(is_inside, "{name}: {ids:?} are not in {shown:?}");
    }
}

#[test]
fn smollm2_scores_as_in_transformers() {
    compare("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2");
}

#[test]
fn smollm2_has_the_tokens_of_transformers() {
    compare_ids("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2");
}

#[test]
fn gemma_3_scores_as_in_transformers() {
    compare("gemma-3-270m-q4_k_m.gguf", "gemma3");
}
