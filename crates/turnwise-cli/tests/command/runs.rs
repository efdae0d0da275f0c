//! Whole runs of the command, small enough for a test: their files and their resumption.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{tiny, turnwise};

/// What makes [`tiny`] a run of two steps.
const SHORT: &str = r"
[run]
steps = 2

[train]
n_minibatches = 2
keep_zero_variance = true

[eval]
episodes = 8
";

/// Writes the settings of a run of two steps to a file, and returns its path.
fn short(home: &TempDir) -> String {
    let path = home.path().join("tiny.toml");
    fs::write(&path, tiny(SHORT)).expect("a directory of its own");
    path.to_str().expect("UTF-8").to_owned()
}

/// Trains with [`short`] settings and these overrides, and returns the run's directory.
fn train(home: &TempDir, name: &str, overrides: &[&str]) -> String {
    let (config, run) = (short(home), home.path().join(name).to_str().expect("UTF-8").to_owned());
    let ended = turnwise(&[&["train", &config, "--run-dir", &run], overrides].concat(), "");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    run
}

fn lines(run: &str, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(Path::new(run).join(file)).expect("the run wrote it");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The weights of a model directory.
fn weights(run: &str, model: &str) -> Vec<u8> {
    fs::read(Path::new(run).join(model).join("model.safetensors")).expect("weights")
}

#[test]
fn each_trained_episode_has_its_credit_beside_it_turn_by_turn() {
    let home = TempDir::new().unwrap();
    let run = train(&home, "run", &["credit.name=turn", "log.rollouts_per_step=100"]);
    let rollouts = lines(&run, "rollouts/step-000000.jsonl");
    let credit = lines(&run, "credit/step-000000.jsonl");
    assert!(!rollouts.is_empty());
    assert_eq!(rollouts.len(), credit.len());
    for (rollout, credit) in rollouts.iter().zip(&credit) {
        assert_eq!(rollout["identity"]["member"], credit["member"]);
        assert_eq!(rollout["identity"]["group"], credit["group"]);
        let n_turns = rollout["turns"].as_array().unwrap().len();
        for (name, stream) in credit["streams"].as_object().unwrap() {
            assert_eq!(stream.as_array().unwrap().len(), n_turns, "{name}");
            assert!(credit["imbalance"][name].as_f64().unwrap() < 1e-9, "{name}");
        }
        assert!(credit["streams"]["advantage"].is_array());
    }
}

#[test]
fn a_penalty_holds_on_to_the_weights_of_the_start_in_a_process_that_goes_on_too() {
    let home = TempDir::new().unwrap();
    let held = ["objective.kl.beta=0.5", "train.learning_rate=1e-2"];
    let whole = train(&home, "whole", &[&held[..], &["run.steps=3"]].concat());
    let cut = train(&home, "cut", &[&held[..], &["run.steps=1"]].concat());
    let resumed = turnwise(&["resume", &cut, "--steps", "3"], "");
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    let last = "checkpoints/step-000003";
    assert!(weights(&whole, last) == weights(&cut, last), "the reference is another one");
    // The penalty has an effect: without it, the same run ends elsewhere.
    let free = train(&home, "free", &["train.learning_rate=1e-2", "run.steps=3"]);
    assert!(weights(&whole, last) != weights(&free, last));
}

#[test]
fn adapters_train_on_a_model_and_a_run_with_them_goes_on_and_can_be_evaluated() {
    let home = TempDir::new().unwrap();
    let base = train(&home, "base", &["run.steps=1"]);
    let base = format!("model.directory=\"{base}/checkpoints/step-000001\"");
    let adapted = [
        base.as_str(),
        "model.lora={rank=3,alpha=6.0,targets=[\"q_proj\",\"v_proj\",\"down_proj\"]}",
        "objective.kl.beta=0.1",
        "train.learning_rate=1e-2",
        "train.recompute_layers=true",
    ];
    let whole = train(&home, "whole", &[&adapted[..], &["run.steps=3"]].concat());
    let cut = train(&home, "cut", &[&adapted[..], &["run.steps=1"]].concat());
    let resumed = turnwise(&["resume", &cut, "--steps", "3"], "");
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    let last = "checkpoints/step-000003";
    assert!(weights(&whole, last) == weights(&cut, last), "it went on from something else");
    assert!(weights(&whole, last) != weights(&whole, "checkpoints/step-000000"));

    let model = format!("{whole}/{last}");
    let text = fs::read_to_string(format!("{model}/adapter/adapter_config.json")).unwrap();
    let said: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&said["r"], &said["lora_alpha"]), (&3.into(), &6.into()));
    let evaluated = turnwise(&["eval", "--model", &model, "--json"], "");
    assert_eq!(evaluated.code, 0, "{}", evaluated.stderr);
    // The adapter alone is a model: its files name the base, and it goes on training.
    let own = format!("model.directory=\"{model}/adapter\"");
    let alone = [&*own, "train.learning_rate=1e-2", "run.steps=1", "warm_start.steps=0"];
    let more = train(&home, "more", &alone);
    assert!(weights(&more, "checkpoints/step-000000") == weights(&whole, last));
    assert!(weights(&more, "checkpoints/step-000001") != weights(&whole, last));
    let text =
        fs::read_to_string(format!("{more}/checkpoints/step-000001/adapter/adapter_config.json"))
            .unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["r"], 3);
    // The order of targets means nothing.
    let same = "model.lora={rank=3,alpha=6.0,targets=[\"down_proj\",\"v_proj\",\"q_proj\"]}";
    let again = train(&home, "again", &[&alone[..], &[same]].concat());
    assert!(
        weights(&again, "checkpoints/step-000001") == weights(&more, "checkpoints/step-000001")
    );
    let other = turnwise(&["train", &short(&home), alone[0], "model.lora={rank=4}"], "");
    assert!(
        other.stderr.contains("the adapter that is loaded has rank = 3, alpha = 6.0, targets = [")
    );
    assert!(other.code == 2 && other.stderr.contains("leave model.lora out"), "{}", other.stderr);
    // A changed adapter makes the checkpoint damaged.
    fs::write(format!("{model}/adapter/adapter_model.safetensors"), "changed").unwrap();
    let resumed = turnwise(&["resume", &whole, "--steps", "4"], "");
    assert!(resumed.stdout.contains("adapter/adapter_model.safetensors"), "{}", resumed.stdout);
}

#[test]
fn a_warm_start_leaves_out_what_is_longer_than_the_context() {
    let home = TempDir::new().unwrap();
    let config = short(&home);
    let with = |name: &str, limit: &str| {
        let run = home.path().join(name);
        let limit = format!("limits.max_context_tokens={limit}");
        let run = ["--run-dir", run.to_str().unwrap(), "run.steps=1", "warm_start.steps=4"];
        turnwise(&[&["train", &config], &run[..], &[&limit]].concat(), "")
    };
    let short = with("short", "8");
    assert_eq!(short.code, 2, "{}", short.stderr);
    let said = "demonstrations fits into limits.max_context_tokens = 8";
    assert!(short.stderr.contains(said), "{}", short.stderr);
    let needed = short.stderr.split("the shortest takes ").nth(1).expect("what is needed");
    let needed = needed.split(' ').next().unwrap();
    let ended = with("longer", needed);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("! the warm start leaves out "), "{}", ended.stdout);
}

#[test]
fn a_gguf_file_trains_and_its_checkpoint_can_be_evaluated() {
    let home = TempDir::new().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gguf/llama.gguf");
    let opened = turnwise_candle::GgufFile::open(&file).unwrap();
    let template = opened.get("tokenizer.chat_template").unwrap();
    let trust = turnwise_chat::template_hash(template.as_str().unwrap());
    let directory = format!("model.directory=\"{}\"", file.display());
    let loaded = [
        directory.as_str(),
        // Its 128 positions have no room for instructions.
        "agent.instructions=false",
        "limits.max_context_tokens=128",
        "limits.max_turn_tokens=4",
        "run.steps=1",
        "train.learning_rate=1e-3",
    ];
    let refused = turnwise(&[&["train", &short(&home)][..], &loaded].concat(), "");
    assert!(
        refused.code == 2 && refused.stderr.contains(&format!("model.trust = \"{trust}\"")),
        "{}",
        refused.stderr
    );
    let trust = format!("model.trust={trust}");
    let run = train(&home, "run", &[&loaded[..], &[trust.as_str()]].concat());
    let model = format!("{run}/checkpoints/step-000001");
    let evaluated = turnwise(&["eval", "--model", &model, "--json"], "");
    assert_eq!(evaluated.code, 0, "{}", evaluated.stderr);
}

/// Without imitation of an expert, the model writes anything; under a grammar, only what the grammar says.
#[test]
fn a_run_under_a_grammar_samples_only_what_the_grammar_allows_and_trains_on_that() {
    let home = TempDir::new().unwrap();
    let free = ["warm_start.steps=0", "log.rollouts_per_step=100", "limits.max_turn_tokens=8"];
    let grammar = [&free[..], &["rollout.constraint.regex=\"-?[0-9]{1,3}\""]].concat();
    let run = train(&home, "run", &grammar);
    let unconstrained = turns(&train(&home, "free", &free));
    assert!(unconstrained.iter().any(|text| !is_number(text)), "{unconstrained:?}");
    let turns = turns(&run);
    assert!(turns.len() > 20);
    assert!(turns.iter().all(|text| is_number(text)), "{turns:?}");
    // Each token has the ids that the grammar left, without which the learner would compare another distribution.
    let rollouts = lines(&run, "rollouts/step-000001.jsonl");
    for span in rollouts.iter().flat_map(sampled_spans) {
        let (ids, kept) = (span["ids"].as_array().unwrap(), span["kept"].as_array().unwrap());
        assert_eq!(ids.len(), kept.len());
        for (id, kept) in ids.iter().zip(kept) {
            assert!(kept.as_array().unwrap().contains(id));
            assert!((1..60).contains(&kept.as_array().unwrap().len()), "{kept}");
        }
    }
    let metrics = lines(&run, "metrics.jsonl");
    let mismatch = metrics.last().unwrap()["engine/mismatch_max"].as_f64().unwrap();
    assert!(mismatch < 1e-3, "{mismatch}");
    assert!(weights(&run, "checkpoints/step-000002") != weights(&run, "checkpoints/step-000000"));
    // The checkpoint has the grammar, so that its evaluation has it too.
    let evaluated =
        turnwise(&["eval", "--model", &format!("{run}/checkpoints/step-000002"), "--json"], "");
    assert_eq!(evaluated.code, 0, "{}", evaluated.stderr);
    let settings = fs::read_to_string(format!("{run}/checkpoints/step-000002/turnwise.toml"));
    assert!(settings.unwrap().contains("[rollout.constraint]"));
}

/// The schema's file may be gone when the run goes on.
#[test]
fn a_run_under_a_schema_goes_on_without_the_schemas_file() {
    let home = TempDir::new().unwrap();
    let schema = home.path().join("schema.json");
    fs::write(&schema, "{\"type\": \"integer\", \"minimum\": 1, \"maximum\": 4}").unwrap();
    let grammar = format!("rollout.constraint.json_schema={:?}", schema.display());
    let settings = [
        grammar.as_str(),
        "warm_start.steps=0",
        "log.rollouts_per_step=100",
        "rollout.tokens_per_step=60",
    ];
    let whole = train(&home, "whole", &[&settings[..], &["run.steps=3"]].concat());
    let cut = train(&home, "cut", &[&settings[..], &["run.steps=1"]].concat());
    fs::remove_file(&schema).unwrap();
    let resumed = turnwise(&["resume", &cut, "--steps", "3"], "");
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    let last = "checkpoints/step-000003";
    assert!(weights(&whole, last) == weights(&cut, last), "the grammar is another one");
    let turns = turns(&cut);
    assert!(turns.iter().all(|text| ["1", "2", "3", "4"].contains(&text.as_str())), "{turns:?}");
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the sampled spans of a recorded episode.
fn sampled_spans(rollout: &Value) -> Vec<Value> {
    let nodes = rollout["graph"]["nodes"].as_array().expect("a list");
    let spans = nodes.iter().flat_map(|node| node["spans"].as_array().expect("a list"));
    spans.filter_map(|span| span.get("sampled").cloned()).collect()
}

/// Returns the texts of all turns that ended by themselves, in a run's recorded episodes.
fn turns(run: &str) -> Vec<String> {
    let steps = ["rollouts/step-000000.jsonl", "rollouts/step-000001.jsonl"];
    let rollouts = steps.iter().flat_map(|step| lines(run, step)).collect::<Vec<_>>();
    let turns = rollouts.iter().flat_map(|rollout| {
        let nodes = &rollout["graph"]["nodes"];
        let ended = rollout["turns"].as_array().expect("a list").iter();
        ended.filter(|turn| turn["stop"] == "end_of_turn").map(move |turn| {
            let node = &nodes[turn["node"].as_u64().expect("a number") as usize];
            node["message"]["content"].as_str().unwrap_or_default().to_owned()
        })
    });
    turns.collect()
}

#[test]
fn every_objective_and_every_credit_trains() {
    let home = TempDir::new().unwrap();
    let chosen = [
        "objective.name=gspo",
        "objective.name=gspo_turn credit.name=return",
        "credit.name=turn_baseline credit.gamma=0.5",
        "objective.name=grpo credit.name=gigpo",
        "objective.name=dapo train.overlong={max_tokens=12,buffer=6}",
        "objective.name=dr_grpo credit.name=turn",
        "objective.name=cispo train.behavior={recomputed={over=\"token\",bound={truncate=2.0}}}",
        "objective.name=gmpo",
        "objective.name=sapo credit.name=turn_index_biased",
        "objective.name=reinforce credit.name=reinforce_plus_plus",
        "objective.off_policy_mask=0.5 train.mask_agent_faults=true",
    ];
    for (number, overrides) in chosen.iter().enumerate() {
        let overrides: Vec<&str> = overrides.split(' ').chain(["run.steps=1"]).collect();
        let run = train(&home, &number.to_string(), &overrides);
        let metrics = lines(&run, "metrics.jsonl");
        assert_eq!(metrics.len(), 1, "{overrides:?}");
        assert!(metrics[0]["train/grad_norm"].as_f64() > Some(0.0), "{overrides:?} {}", metrics[0]);
    }
}

/// Returns a run's model without its settings, and with a template of its own.
fn strangers_model(home: &TempDir, run: &str) -> String {
    let model = home.path().join("model");
    fs::create_dir(&model).expect("a directory of its own");
    let checkpoint = Path::new(run).join("checkpoints/step-000001");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(checkpoint.join(file), model.join(file)).expect("a checkpoint has it");
    }
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    fs::write(model.join("chat_template.jinja"), template).expect("it is written");
    let config = r#"{"eos_token": "<|im_end|>"}"#;
    fs::write(model.join("tokenizer_config.json"), config).expect("it is written");
    model.to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_run_speaks_the_form_that_its_settings_name_and_goes_on_with_it() {
    let home = TempDir::new().unwrap();
    let run = train(&home, "run", &["model.template=qwen3", "run.steps=1"]);
    let settings = fs::read_to_string(Path::new(&run).join("run.toml")).unwrap();
    assert!(settings.contains("template = \"qwen3\""), "{settings}");
    let resumed = turnwise(&["resume", &run, "--steps", "2"], "");
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    let rollouts = format!("{run}/rollouts/step-000001.jsonl");
    let shown = turnwise(&["render", "--rollout", &rollouts], "");
    assert!(shown.stdout.contains("as the run's settings have it"), "{}", shown.stdout);
    // A format whose control tokens the tokenizer does not have.
    let config = home.path().join("tiny.toml");
    let elsewhere = home.path().join("llama");
    let arguments = ["train", config.to_str().unwrap(), "--run-dir", elsewhere.to_str().unwrap()];
    let ended = turnwise(&[&arguments[..], &["model.template=llama3"]].concat(), "");
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("<|"), "{}", ended.stderr);
}

#[test]
fn a_models_own_template_trains_once_it_is_trusted_and_goes_with_its_checkpoints() {
    let home = TempDir::new().unwrap();
    let first = train(&home, "first", &["run.steps=1"]);
    let model = strangers_model(&home, &first);
    let config = home.path().join("tiny.toml");
    let directory = format!("model.directory=\"{model}\"");
    let refused =
        turnwise(&["train", config.to_str().unwrap(), &directory, "model.template=hf"], "");
    assert_ne!(refused.code, 0);
    let hash = refused
        .stderr
        .split("model.trust = ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    // As a user pastes it, quotes and all.
    let trust = format!("model.trust = {}", hash.expect("the refusal says what to do"));
    let run = train(&home, "second", &[&directory, "model.template=hf", &trust, "run.steps=1"]);
    assert!(Path::new(&run).join("checkpoints/step-000001/chat_template.jinja").is_file());
    let resumed = turnwise(&["resume", &run, "--steps", "2"], "");
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
}

/// Returns the largest value of a metric. A step that trains nothing has none.
#[cfg(feature = "gguf")]
fn largest(run: &str, name: &str) -> f64 {
    let values: Vec<f64> =
        lines(run, "metrics.jsonl").iter().filter_map(|line| line[name].as_f64()).collect();
    values.into_iter().reduce(f64::max).unwrap_or_else(|| panic!("no {name} in {run}"))
}

#[cfg(feature = "gguf")]
#[test]
fn a_run_with_a_rounded_engine_says_how_far_it_is_from_the_trainer() {
    let home = TempDir::new().unwrap();
    let run = |name: &str, more: &[&str]| {
        train(&home, name, &[&["rollout.engine=gguf", "train.canary.tolerance=1"], more].concat())
    };
    let own = train(&home, "own", &[]);
    let exact = run("exact", &["rollout.quantization=f32"]);
    let rounded = run("rounded", &[]);
    let recomputed = run("recomputed", &["train.behavior={recomputed={bound={truncate=2.0}}}"]);
    for name in ["engine/mismatch_kl", "engine/mismatch_max"] {
        let rounding = largest(&own, name).max(largest(&exact, name));
        let further = largest(&rounded, name).min(largest(&recomputed, name));
        assert!(rounding * 10.0 < further, "{name}: {rounding} {further}");
    }
    // The same result, whichever was faster.
    let again = run("again", &[]);
    assert_eq!(
        weights(&rounded, "checkpoints/step-000002"),
        weights(&again, "checkpoints/step-000002")
    );
}

#[cfg(feature = "gguf")]
#[test]
fn a_canary_stops_a_run_whose_engine_is_further_from_the_trainer_than_it_may_be() {
    let home = TempDir::new().unwrap();
    let (config, run) = (short(&home), home.path().join("run"));
    let run = run.to_str().unwrap();
    let overrides =
        ["rollout.engine=gguf", "rollout.quantization=q4_0", "train.canary.tolerance=1e-6"];
    let arguments = [&["train", &config, "--run-dir", run][..], &overrides].concat();
    let ended = turnwise(&arguments, "");
    assert_eq!(ended.code, 5, "{}", ended.stderr);
    assert!(ended.stderr.contains("train.canary.tolerance"), "{}", ended.stderr);
}

#[cfg(not(feature = "gguf"))]
#[test]
fn an_engine_that_was_not_built_is_refused_with_how_to_build_it() {
    let home = TempDir::new().unwrap();
    let ended = turnwise(&["train", &short(&home), "rollout.engine=gguf"], "");
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("--features gguf"), "{}", ended.stderr);
}

/// No run at this address would help, nor one without the token's file.
#[test]
fn a_worker_whose_settings_are_wrong_is_not_told_to_start_the_run() {
    for (arguments, why) in [
        (&["--trainer", "nonsense"][..], "http://127.0.0.1:8000"),
        (&["--trainer", "http://127.0.0.1:9", "--token-file", "/missing"], "/missing"),
    ] {
        let ended = turnwise(&[&["worker"], arguments].concat(), "");
        assert_ne!(ended.code, 0);
        assert!(ended.stderr.contains(why), "{}", ended.stderr);
        assert!(!ended.stderr.contains("start the run"), "{}", ended.stderr);
    }
}
