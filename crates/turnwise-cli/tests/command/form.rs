//! The format of conversations: templates, ends of turns, and what a saved model says about both.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use turnwise_chat::template_hash;

use turnwise_testkit::SMALL_MODEL;

use crate::support::{Ended, fixtures, turnwise};

const PLAIN: &str = "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endfor -%}\
    {%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}";

/// Creates a directory with the fixture's tokenizer, changed, and these files.
fn model(change: impl Fn(&mut Value), files: &[(&str, Value)]) -> TempDir {
    let home = TempDir::new().expect("a folder");
    let text =
        fs::read_to_string(fixtures().join("tokenizer/tokenizer.json")).expect("the fixture");
    let mut tokenizer: Value = serde_json::from_str(&text).expect("JSON");
    change(&mut tokenizer);
    fs::write(home.path().join("tokenizer.json"), tokenizer.to_string()).expect("written");
    for (name, content) in files {
        fs::write(home.path().join(name), content.to_string()).expect("written");
    }
    home
}

fn config(template: &Value) -> (&'static str, Value) {
    let config =
        json!({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template});
    ("tokenizer_config.json", config)
}

fn render(home: &TempDir, template: &str, conversation: &Value, more: &[&str]) -> Ended {
    let (model, hash) = (home.path().display().to_string(), template_hash(template));
    let usual = ["render", "--model", &model, "--template", "hf", "--trust", &hash, "--json", "-"];
    turnwise(&[&usual[..], more].concat(), &conversation.to_string())
}

fn tokens(ended: &Ended) -> Vec<Value> {
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn text(ended: &Ended) -> String {
    tokens(ended).iter().map(|token| token["text"].as_str().expect("a text").to_owned()).collect()
}

fn talk() -> Value {
    json!([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "3 + 3?"}])
}

fn stock() -> Value {
    let parameters = json!({"type": "object", "properties": {"part": {"type": "integer"}}});
    json!([{"type": "function", "function": {"name": "stock", "description": "Counts.", "parameters": parameters}}])
}

const TALK: &str = "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n3 + 3?<|im_end|>\n\
    <|im_start|>assistant\n";

/// Llama 3, and base models with a template: the tokenizer's end token is not the one that ends turns.
#[test]
fn a_turn_ends_where_the_template_ends_it() {
    let mut other = config(&PLAIN.into());
    other.1["eos_token"] = "<|endoftext|>".into();
    let ends = ("generation_config.json", json!({"eos_token_id": [377, 379]}));
    for files in [vec![other.clone()], vec![other, ends]] {
        let home = model(|_| {}, &files);
        let played = render(&home, PLAIN, &talk(), &["--branches"]);
        assert!(tokens(&played).iter().all(|token| token["branch"] == 0));
        assert_eq!(text(&played), TALK);
    }
}

#[test]
fn of_templates_by_name_the_one_for_tools_is_used_with_tools() {
    let with_tools = format!("{{%- if tools -%}}{{{{- tools | tojson -}}}}{{%- endif -%}}{PLAIN}");
    let named = json!([{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": with_tools}]);
    let home = model(|_| {}, &[config(&named)]);
    let conversation = json!({"messages": talk(), "tools": stock()});
    for trusted in [PLAIN, &with_tools] {
        let rendered = render(&home, trusted, &conversation, &[]);
        assert!(text(&rendered).starts_with("[{\"type\": \"function\""), "{}", text(&rendered));
        assert_eq!(text(&render(&home, trusted, &talk(), &[])), TALK);
    }
    assert_eq!(render(&home, "another", &talk(), &[]).code, 2);
}

#[test]
fn the_time_is_a_setting_that_the_refusal_names() {
    let template = format!("{{{{- strftime_now('%A, %d %B %Y') + '\n' -}}}}{PLAIN}");
    let home = model(|_| {}, &[config(&template.as_str().into())]);
    let refused = render(&home, &template, &talk(), &[]);
    assert_eq!(refused.code, 2);
    assert!(
        refused.stderr.contains("model.time") && refused.stderr.contains("--time"),
        "{}",
        refused.stderr
    );
    let expected = format!("Saturday, 31 January 2026\n{TALK}");
    assert_eq!(text(&render(&home, &template, &talk(), &["--time", "2026-01-31"])), expected);
    let conversation = json!({"messages": talk(), "time": "2026-01-31T10:00"});
    assert_eq!(text(&render(&home, &template, &conversation, &[])), expected);
    assert_eq!(render(&home, &template, &talk(), &["--time", "tomorrow"]).code, 2);
}

#[test]
fn a_long_question_is_whole() {
    let parts: Vec<String> =
        (0..1500).map(|n| format!("Part {n} costs {}.\n", 37 * n % 1009)).collect();
    let parts = parts.concat();
    let question = format!("Read the list and answer.\n{parts}What does part 600 cost?");
    let home = model(|_| {}, &[config(&PLAIN.into())]);
    let conversation = json!([{"role": "user", "content": question}]);
    let rendered = text(&render(&home, PLAIN, &conversation, &[]));
    assert_eq!(
        rendered,
        format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    );
}

/// `developer` is the newer word for `system`, and templates that do not know it would refuse it or write a role that the
/// model never saw.
#[test]
fn a_developer_is_the_system_of_a_template_that_does_not_know_one() {
    let strict = format!(
        "{{%- for m in messages if m.role not in ['system', 'user', 'assistant'] -%}}\
         {{{{- raise_exception('unknown role ' + m.role) -}}}}{{%- endfor -%}}{PLAIN}"
    );
    let home = model(|_| {}, &[config(&strict.as_str().into())]);
    let of = |role: &str| {
        let first = json!({"role": role, "content": "Be brief."});
        json!([first, {"role": "user", "content": "2 + 2?"}])
    };
    let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n";
    for role in ["developer", "system"] {
        assert_eq!(text(&render(&home, &strict, &of(role), &[])), expected);
    }
    let unknown = render(&home, &strict, &of("narrator"), &[]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.stderr.contains("developer (which is system)"), "{}", unknown.stderr);
    // Our own forms treat it alike.
    let path = home.path().display().to_string();
    let own = ["render", "--model", &path, "--template", "chatml", "--json", "-"];
    assert_eq!(text(&turnwise(&own, &of("developer").to_string())), expected);
}

/// Phi 3: a control token absorbs the blanks after it, rendered at once and turn by turn.
#[test]
fn control_tokens_take_the_blanks_that_they_take_in_the_tokenizer() {
    let strip = |tokenizer: &mut Value| {
        for token in tokenizer["added_tokens"].as_array_mut().expect("a list") {
            token["rstrip"] = true.into();
        }
    };
    let home = model(strip, &[config(&PLAIN.into())]);
    let expected = [
        378, 353, 198, 17, 220, 10, 220, 17, 30, 379, 378, 294, 287, 283, 198, 19, 379, 378, 353,
        198, 18, 220, 10, 220, 18, 30, 379, 378, 294, 287, 283, 198,
    ];
    for more in [&[][..], &["--branches"], &["--branches", "--thinking", "follow"]] {
        let rendered = tokens(&render(&home, PLAIN, &talk(), more));
        let ids: Vec<u64> =
            rendered.iter().map(|token| token["id"].as_u64().expect("an id")).collect();
        assert_eq!(ids, expected, "{more:?}");
    }
}

#[test]
fn tools_that_no_prompt_mentions_are_told() {
    let home = model(|_| {}, &[config(&PLAIN.into())]);
    let conversation = json!({"messages": talk(), "tools": stock()});
    let rendered = render(&home, PLAIN, &conversation, &[]);
    assert_eq!(text(&rendered), TALK);
    assert!(rendered.stderr.contains("stock"), "{}", rendered.stderr);
}

/// The tables of a run of one step beside the model's.
const ONE_STEP: &str = r#"
[run]
steps = 1

[environment]
name = "guess"
options = { span = 4 }

[rollout]
groups_per_step = 2
group_size = 2

[limits]
max_turns = 2
max_turn_tokens = 4
max_context_tokens = 512

[eval]
episodes = 2
"#;

fn train(home: &TempDir, name: &str, overrides: &[&str]) -> Ended {
    let (config, run) = (home.path().join("tiny.toml"), home.path().join(name));
    fs::write(&config, [SMALL_MODEL, ONE_STEP].concat()).expect("written");
    let (config, run) = (config.display().to_string(), run.display().to_string());
    turnwise(&[&["train", &config, "--run-dir", &run], overrides].concat(), "")
}

fn object(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("it is there")).expect("JSON")
}

/// Creates a model directory as by a run, but without the run's settings.
fn base(home: &TempDir) -> String {
    let made = train(home, "base", &[]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let (from, to) = (home.path().join("base/checkpoints/step-000001"), home.path().join("model"));
    fs::create_dir(&to).expect("made");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(from.join(name), to.join(name)).expect("copied");
    }
    to.display().to_string()
}

/// Other programs render a checkpoint's prompts and end its turns as in training.
///
/// Field 8
#[test]
fn a_checkpoint_says_how_its_model_was_spoken_to() {
    let home = TempDir::new().expect("a folder");
    let model = base(&home);
    let checkpoint = home.path().join("base/checkpoints/step-000001");
    let tokenizer = object(&checkpoint.join("tokenizer_config.json"));
    let end = turnwise_chat::Tokenizer::from_directory(&checkpoint).expect("a tokenizer");
    let end = end.token_id("<|im_end|>").expect("a token");
    let template = fs::read_to_string(checkpoint.join("chat_template.jinja")).expect("a template");
    assert_eq!(tokenizer["chat_template"], template);
    assert_eq!(tokenizer["eos_token"], "<|im_end|>");
    for file in ["config.json", "generation_config.json"] {
        assert_eq!(object(&checkpoint.join(file))["eos_token_id"][0], end, "{file}");
    }

    // A model with a default system prompt, trained in another format: the checkpoint has that format, and a person is
    // told.
    let own = json!({"eos_token": "<|endoftext|>", "chat_template": format!("{{{{- 'You are Quill.' -}}}}{PLAIN}")});
    fs::write(Path::new(&model).join("tokenizer_config.json"), own.to_string()).expect("written");
    let directory = format!("model.directory={model}");
    let trained = train(&home, "other", &[&directory, "model.template=chatml"]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    assert!(trained.stderr.contains("template of its own"), "{}", trained.stderr);
    let other = home.path().join("other/checkpoints/step-000001");
    let saved = object(&other.join("tokenizer_config.json"));
    assert_eq!(
        (&saved["chat_template"], &saved["eos_token"]),
        (&template.into(), &"<|im_end|>".into())
    );

    // A model trained in its own template keeps it, and stops at the token that ended turns there.
    let own_template = own["chat_template"].as_str().expect("a text");
    let trust = format!("model.trust={}", template_hash(own_template));
    let trained = train(&home, "own", &[&directory, "model.template=hf", &trust]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let kept = home.path().join("own/checkpoints/step-000001");
    assert_eq!(object(&kept.join("tokenizer_config.json")), own);
    assert!(!kept.join("chat_template.jinja").exists());
    assert_eq!(object(&kept.join("generation_config.json"))["eos_token_id"][0], end);
    let again =
        turnwise(&["resume", home.path().join("own").to_str().expect("UTF-8"), "--steps", "2"], "");
    assert_eq!(again.code, 0, "{}", again.stderr);
}

/// A tokenizer may have control tokens of a form that its model was not trained in.
#[test]
fn the_models_own_template_is_chosen_before_the_form_of_its_control_tokens() {
    const BRACKETS: &str = "{%- for m in messages -%}{{- '[' + m.role + '] ' + m.content + '<|endoftext|>' -}}{%- endfor -%}\
        {%- if add_generation_prompt -%}{{- '[assistant] ' -}}{%- endif -%}";
    let home = TempDir::new().expect("a folder");
    let model = base(&home);
    let tokenizer = turnwise_chat::Tokenizer::from_directory(Path::new(&model)).expect("one");
    assert!(
        tokenizer.token_id("<|im_start|>").is_some() && tokenizer.token_id("<|im_end|>").is_some()
    );
    let conversation = talk().to_string();
    let page = ["render", "--model", &model, "-"];

    // Without a template, the control tokens decide.
    let rendered = turnwise(&page, &conversation);
    assert!(rendered.stdout.contains("3 messages, 0 tools, as chatml"), "{}", rendered.stdout);

    let own = json!({"eos_token": "<|endoftext|>", "chat_template": BRACKETS});
    fs::write(Path::new(&model).join("tokenizer_config.json"), own.to_string()).expect("written");
    let refused = turnwise(&page, &conversation);
    assert_eq!(refused.code, 2, "{}", refused.stdout);
    let hash = template_hash(BRACKETS);
    assert!(refused.stderr.contains(&format!("--trust {hash}")), "{}", refused.stderr);
    let trusting = [&page[..], &["--trust", &hash]].concat();
    let rendered = turnwise(&trusting, &conversation);
    let heading = "3 messages, 0 tools, as the model's own template, thinking kept";
    assert!(rendered.stdout.contains(heading), "{}{}", rendered.stdout, rendered.stderr);
    let rendered = turnwise(&[&trusting[..], &["--json"]].concat(), &conversation);
    let expected = "[user] 2 + 2?<|endoftext|>[assistant] 4<|endoftext|>[user] 3 + 3?<|endoftext|>[assistant] ";
    assert_eq!(text(&rendered), expected);

    // A run prints what it chose, keeps it in its settings, and speaks so.
    let overrides = [format!("model.directory={model}"), format!("model.trust={hash}")];
    let trained = train(&home, "own", &overrides.each_ref().map(String::as_str));
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let printed = trained.stdout.lines().find(|line| line.contains("the model's own template"));
    assert!(printed.is_some(), "{}", trained.stdout);
    let run = home.path().join("own");
    let settings = fs::read_to_string(run.join("run.toml")).expect("the run wrote it");
    assert!(settings.contains("template = \"hf\""), "{settings}");
    let episodes = run.join("eval-after.jsonl").display().to_string();
    let seen = turnwise(&["render", "--rollout", &episodes, "--json"], "");
    assert!(text(&seen).contains("<|endoftext|>[user] Guess "), "{}", text(&seen));
}

/// The `eos_token_id` of a Llama is 2 by default, whatever token has this id.
#[test]
fn a_checkpoint_stops_at_no_token_that_training_went_on_with() {
    let home = TempDir::new().expect("a folder");
    let model = base(&home);
    let tokenizer = turnwise_chat::Tokenizer::from_directory(Path::new(&model)).expect("one");
    let text = (0..300).find(|id| !tokenizer.is_control(*id)).expect("a token of text");
    for file in ["config.json", "generation_config.json"] {
        let path = Path::new(&model).join(file);
        let mut config = if path.is_file() { object(&path) } else { json!({}) };
        config["eos_token_id"] = text.into();
        fs::write(&path, config.to_string()).expect("written");
    }
    let trained = train(&home, "stops", &[&format!("model.directory={model}")]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let saved = home.path().join("stops/checkpoints/step-000001");
    for file in ["config.json", "generation_config.json"] {
        let ends = object(&saved.join(file))["eos_token_id"].clone();
        let ends = ends.as_array().cloned().unwrap_or_else(|| vec![ends]);
        assert!(!ends.is_empty() && !ends.contains(&text.into()), "{file}: {ends:?}");
    }
}

/// transformers 5 saves named templates in a folder next to `chat_template.jinja`.
#[test]
fn a_checkpoint_keeps_the_template_for_tools() {
    let home = TempDir::new().expect("a folder");
    let model = base(&home);
    let with_tools = format!("{{%- if tools -%}}{{{{- tools | tojson -}}}}{{%- endif -%}}{PLAIN}");
    let folder = Path::new(&model).join("additional_chat_templates");
    fs::create_dir(&folder).expect("made");
    fs::write(Path::new(&model).join("chat_template.jinja"), PLAIN).expect("written");
    fs::write(folder.join("tool_use.jinja"), &with_tools).expect("written");
    let trust = format!("model.trust={}", template_hash(&with_tools));
    let directory = format!("model.directory={model}");
    let trained = train(&home, "tools", &[&directory, "model.template=hf", &trust]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let saved = home.path().join("tools/checkpoints/step-000001");
    let named = json!([{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": with_tools}]);
    assert_eq!(object(&saved.join("tokenizer_config.json"))["chat_template"], named);
    assert!(!saved.join("chat_template.jinja").exists());
    let run = home.path().join("tools").display().to_string();
    let again = turnwise(&["resume", &run, "--steps", "2"], "");
    assert_eq!(again.code, 0, "{}", again.stderr);
}

/// Llama 3.2 writes the date into its prompts.
#[test]
fn a_checkpoint_writes_the_moment_of_training() {
    let home = TempDir::new().expect("a folder");
    let model = base(&home);
    let template = format!("{{{{- strftime_now('%d %b %Y') + '\n' -}}}}{PLAIN}");
    let config = Path::new(&model).join("tokenizer_config.json");
    let own = json!({"eos_token": "<|im_end|>", "chat_template": template});
    fs::write(&config, own.to_string()).expect("written");
    let trust = format!("model.trust={}", template_hash(&template));
    let directory = format!("model.directory={model}");
    let settings = [&*directory, "model.template=hf", &trust, "model.time=2026-01-31"];
    let trained = train(&home, "dated", &settings);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let saved = home.path().join("dated/checkpoints/step-000001");
    let written = object(&saved.join("tokenizer_config.json"))["chat_template"].clone();
    let written = written.as_str().expect("a text");
    assert!(written.contains("31 Jan 2026") && written.ends_with(&template), "{written}");
    // The same program, once its template is trusted.
    let run = home.path().join("dated").display().to_string();
    let again = turnwise(&["resume", &run, "--steps", "2"], "");
    assert_eq!(again.code, 0, "{}", again.stderr);
    let evaluated = turnwise(&["eval", "--model", &run, "--episodes", "2"], "");
    assert_eq!(evaluated.code, 0, "{}", evaluated.stderr);
}
