use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Ended, turnwise};

fn model(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

fn score(name: &str, input: &str, more: &[&str]) -> Ended {
    let directory = model(name);
    let directory = directory.to_str().expect("a path in UTF-8");
    turnwise(&[&["score", "--model", directory, "--input", "-"], more].concat(), input)
}

/// The expected values were computed by transformers, in double precision.
#[test]
fn scores_are_those_of_the_reference_implementation() {
    let names = [
        "llama",
        "llama_rope_llama3",
        "qwen2",
        "qwen3_moe_nonorm",
        "qwen3_moe_norm",
        "qwen3_tied",
        "qwen3_untied",
    ];
    for name in names {
        let expected = fs::read(model(name).join("expected.json")).expect("a fixture");
        let expected: Value = serde_json::from_slice(&expected).expect("JSON");
        let sequences = expected["sequences"].as_object().expect("sequences");
        let lines: String = sequences
            .values()
            .map(|sequence| json!({ "ids": sequence["input_ids"] }).to_string() + "\n")
            .collect();
        let ended = score(name, &lines, &["--device", "cpu"]);
        assert_eq!((ended.code, &*ended.stderr), (0, ""));
        assert_eq!(ended.stdout.lines().count(), sequences.len());
        for (line, (key, sequence)) in ended.stdout.lines().zip(sequences) {
            let scored: Value = serde_json::from_str(line).expect("JSON");
            let numbers = |value: &Value| -> Vec<f64> {
                let numbers = value.as_array().expect("numbers").iter();
                numbers.map(|number| number.as_f64().expect("a number")).collect()
            };
            let (ours, theirs) =
                (numbers(&scored["logprobs"]), numbers(&sequence["next_token_logprobs_f64"]));
            assert_eq!(ours.len(), theirs.len());
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let error = (ours - theirs).abs() / (1.0 + theirs.abs());
                assert!(error < 1e-5, "{name}, {key}: {ours} instead of {theirs}");
            }
        }
    }
}

#[test]
fn what_cannot_be_scored_is_refused_with_its_line() {
    let ended = score("llama", "{\"ids\": [1, 2]}\n{\"ids\": [1, 999999]}\n", &[]);
    assert_eq!(ended.code, 2);
    assert_eq!(ended.stdout.lines().count(), 1, "what came before stays right");
    assert!(ended.stderr.contains("line 2"), "{}", ended.stderr);
    let line = json!({"ids": vec![1; 5000]}).to_string();
    let ended = score("llama", &line, &[]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("help: split the line into ones of at most"), "{}", ended.stderr);
    let ended = score("llama", "[1, 2]\n", &[]);
    assert!(ended.code == 2 && ended.stderr.contains("line 1 is not"), "{}", ended.stderr);
    let ended = score("llama", "", &["--device", "gpu"]);
    assert!(ended.code == 2 && ended.stderr.contains("is not a device"), "{}", ended.stderr);
    if !cfg!(feature = "cuda") {
        let ended = score("llama", "", &["--device", "cuda"]);
        assert!(ended.code == 2 && ended.stderr.contains("--features cuda"), "{}", ended.stderr);
    }
}

fn field(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/field").join(name)
}

/// One of its weights is NaN, which `f32::min` turned into 0: every token was certain.
#[test]
fn a_model_with_nan_is_refused_and_the_environment_is_not_blamed() {
    let (case, input) = (field("not_a_number"), field("not_a_number").join("input.jsonl"));
    let (model, input) = (case.join("model"), input.to_str().expect("UTF-8").to_owned());
    let arguments = ["score", "--model", model.to_str().expect("UTF-8"), "--input", &input];
    let ended = turnwise(&arguments, "");
    assert_eq!((ended.code, &*ended.stdout), (4, ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("is NaN at ["), "{}", ended.stderr);
    assert!(ended.stderr.contains("the weights are broken: download"), "{}", ended.stderr);
    // Nothing trains here, and there is no environment.
    for other in ["env check", "learning_rate"] {
        assert!(!ended.stderr.contains(other), "{}", ended.stderr);
    }
}

#[test]
fn a_file_that_is_no_gguf_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("model.gguf");
    fs::write(&path, [0; 64]).expect("a file");
    for model in [directory.path(), path.as_path()] {
        let model = model.to_str().expect("UTF-8");
        let ended = turnwise(&["score", "--model", model, "--input", "-"], "{\"ids\": [1]}");
        assert_eq!(ended.code, 2, "{}", ended.stderr);
        assert!(ended.stderr.contains("model.gguf: it is no GGUF file"), "{}", ended.stderr);
    }
}

#[test]
fn the_help_of_every_model_option_says_what_a_model_can_be() {
    for command in ["score", "eval", "render", "config"] {
        let help = turnwise(&[command, "--help"], "");
        let words: Vec<&str> = help.stdout.split_whitespace().collect();
        let expected = "The model: a Hugging Face directory, a checkpoint of a run, a .gguf file, the directory of a PEFT adapter, \
                        or the name of a model in the Hugging Face cache";
        assert!(words.join(" ").contains(expected), "{command}: {}", help.stdout);
    }
}
