//! The range of every numeric setting.

use toml_edit::{DocumentMut, Item, Value};

use super::schema::Config;
use super::validate::Impossible;

/// The range of a setting.
struct Range {
    /// The dotted key. The numbers of a list have the key of the list.
    key: &'static str,
    least: Least,
    most: f64,
}

/// The lower bound.
#[derive(Clone, Copy)]
enum Least {
    /// Included.
    From(f64),
    /// Excluded.
    Above(f64),
}

use Least::{Above, From};

/// The bound of numbers without a natural limit, against typing mistakes.
const MANY: f64 = 1e9;
/// The bound of durations in seconds: four months.
const LONG: f64 = 1e7;
/// The bound of the threads of an engine or a learner.
const THREADS: f64 = 1024.0;
/// The largest integer of TOML.
const WHOLE: f64 = 9_223_372_036_854_775_807.0;

const fn range(key: &'static str, least: Least, most: f64) -> Range {
    Range { key, least, most }
}

/// One line for each setting, in the order of the schema.
const RANGES: &[Range] = &[
    range("run.seed", From(0.0), WHOLE),
    range("run.steps", From(1.0), MANY),
    range("model.vocab_size", From(1.0), 1e7),
    range("model.hidden_size", From(1.0), 65_536.0),
    range("model.intermediate_size", From(1.0), 1_048_576.0),
    range("model.n_layers", From(1.0), 1024.0),
    range("model.n_heads", From(1.0), 1024.0),
    range("model.n_kv_heads", From(1.0), 1024.0),
    range("model.head_dim", From(1.0), 1024.0),
    range("model.max_observation_tokens", From(1.0), LONG),
    range("model.lora.rank", From(0.0), 65_536.0),
    range("model.lora.alpha", Above(0.0), 1e6),
    range("engine.max_batch", From(1.0), 65_536.0),
    range("engine.max_step_tokens", From(1.0), 16_777_216.0),
    range("engine.max_kv_bytes", From(1.0), 1e15),
    range("engine.max_drafts", From(0.0), 64.0),
    range("engine.threads", From(0.0), THREADS),
    range("warm_start.steps", From(0.0), MANY),
    range("warm_start.batch_size", From(1.0), 65_536.0),
    range("warm_start.learning_rate", Above(0.0), 10.0),
    range("rollout.groups_per_step", From(1.0), 65_536.0),
    range("rollout.group_size", From(0.0), 4096.0),
    range("rollout.min_group_size", From(1.0), 4096.0),
    range("rollout.max_concurrent", From(1.0), 65_536.0),
    range("rollout.tokens_per_step", From(0.0), 1e12),
    range("rollout.seconds_per_step", From(0.0), LONG),
    range("rollout.curriculum.success_rate.low", From(0.0), 1.0),
    range("rollout.curriculum.success_rate.high", From(0.0), 1.0),
    range("rollout.curriculum.success_rate.keep", Above(0.0), 1.0),
    range("rollout.dynamic_sampling.max_groups", From(0.0), 1e6),
    range("rollout.dynamic_sampling.max_seconds", Above(0.0), LONG),
    range("rollout.compaction.at_tokens", From(1.0), 16_777_216.0),
    range("rollout.vllm.max_requests", From(1.0), 65_536.0),
    range("rollout.vllm.timeout_s", Above(0.0), LONG),
    range("rollout.vllm.load_timeout_s", Above(0.0), LONG),
    range("rollout.vllm.max_wait_s", From(0.0), LONG),
    range("rollout.vllm.tolerance", Above(0.0), 1e6),
    range("rollout.sglang.max_requests", From(1.0), 65_536.0),
    range("rollout.sglang.timeout_s", Above(0.0), LONG),
    range("rollout.sglang.load_timeout_s", Above(0.0), LONG),
    range("rollout.sglang.max_wait_s", From(0.0), LONG),
    range("rollout.sglang.tolerance", Above(0.0), 1e6),
    range("rollout.workers.lease_s", From(1.0), 86_400.0),
    range("rollout.temperature", Above(0.0), 100.0),
    range("rollout.top_p", Above(0.0), 1.0),
    range("rollout.top_k", From(0.0), MANY),
    range("rollout.min_p", From(0.0), 0.999_999),
    range("rollout.max_retries", From(0.0), 1000.0),
    range("rollout.retry_delay_s", From(0.0), 86_400.0),
    range("rollout.max_faults_in_row", From(1.0), MANY),
    range("rollout.max_bad_rewards", From(0.0), 1.0),
    range("limits.max_turns", From(1.0), 1e6),
    range("limits.max_turn_tokens", From(1.0), 16_777_216.0),
    range("limits.max_sampled_tokens", From(1.0), MANY),
    range("limits.max_context_tokens", From(2.0), 16_777_216.0),
    range("limits.max_tool_calls", From(0.0), MANY),
    range("limits.max_observation_bytes", From(64.0), 1_073_741_824.0),
    range("limits.max_repeats", From(0.0), MANY),
    range("limits.max_faults", From(0.0), MANY),
    range("limits.fault_reward", From(-1e9), 1e9),
    range("limits.environment_timeout_s", Above(0.0), LONG),
    range("limits.engine_timeout_s", Above(0.0), LONG),
    range("limits.episode_timeout_s", Above(0.0), LONG),
    range("objective.clip_low", From(0.0), BELOW_1),
    range("objective.clip_high", From(0.0), 1e6),
    range("objective.dual_clip", Above(1.0), 1e6),
    range("objective.max_tokens", From(1.0), MANY),
    range("objective.log_clip_low", From(0.0), 20.0),
    range("objective.log_clip_high", From(0.0), 20.0),
    range("objective.tau_positive", Above(0.0), 1e6),
    range("objective.tau_negative", Above(0.0), 1e6),
    range("objective.off_policy_mask", From(0.0), 1e6),
    range("objective.kl.beta", From(0.0), 1e6),
    range("credit.gamma", From(0.0), 1.0),
    range("credit.outcome_weight", From(0.0), 1e6),
    range("credit.turn_weight", From(0.0), 1e6),
    range("credit.step_weight", From(0.0), 1e6),
    range("train.learning_rate", Above(0.0), 10.0),
    range("train.warmup_steps", From(0.0), MANY),
    range("train.max_grad_norm", Above(0.0), 1e30),
    range("train.n_minibatches", From(1.0), 65_536.0),
    range("train.micro_batch_tokens", From(1.0), MANY),
    range("train.max_staleness", From(0.0), 1e6),
    range("train.truncated.penalise", From(-1e9), 0.0),
    range("train.overlong.max_tokens", From(1.0), MANY),
    range("train.overlong.buffer", From(0.0), MANY),
    range("train.behavior.recomputed.bound.truncate", Above(0.0), 1e6),
    range("train.behavior.recomputed.bound.mask", From(0.0), 1e6),
    range("train.canary.tokens", From(0.0), 4096.0),
    range("train.canary.tolerance", From(0.0), 1e6),
    range("train.balance", From(0.0), 1e6),
    range("train.threads", From(0.0), THREADS),
    range("train.tinker.rank", From(1.0), 65_536.0),
    range("train.tinker.max_request_tokens", From(1.0), MANY),
    range("train.tinker.max_requests", From(1.0), 65_536.0),
    range("train.tinker.timeout_s", Above(0.0), LONG),
    range("train.tinker.max_wait_s", From(0.0), LONG),
    range("train.tinker.result_timeout_s", Above(0.0), LONG),
    range("optimizer.beta1", From(0.0), BELOW_1),
    range("optimizer.beta2", From(0.0), BELOW_1),
    range("optimizer.epsilon", From(0.0), 1.0),
    range("optimizer.weight_decay", From(0.0), 100.0),
    range("eval.episodes", From(1.0), 131_072.0),
    range("eval.temperature", From(0.0), 100.0),
    range("eval.every", From(0.0), MANY),
    range("log.rollouts_per_step", From(0.0), MANY),
    range("log.checkpoint_every", From(0.0), MANY),
    range("log.keep_checkpoints", From(2.0), 1e6),
];

/// The largest number below 1: a mean that keeps its whole past never moves.
const BELOW_1: f64 = 1.0 - f64::EPSILON;

/// Tables whose keys are not settings: those of an environment, which knows their ranges, and those of a JSON schema.
const OF_OTHERS: [&str; 2] = ["environment.options", "rollout.constraint.json_schema"];

/// Refuses the first number that is out of its range.
pub(super) fn check(config: &Config) -> Result<(), Impossible> {
    numbers(config).into_iter().try_for_each(|(key, value)| {
        let Some(range) = RANGES.iter().find(|range| range.key == key) else { return Ok(()) };
        if range.holds(value) {
            return Ok(());
        }
        Err(Impossible { key, wrong: format!("is {}", shown(value)), help: range.help() })
    })
}

/// Returns every number of the settings, with its dotted key.
fn numbers(config: &Config) -> Vec<(String, f64)> {
    let document = toml_edit::ser::to_document(config).unwrap_or_else(|_| DocumentMut::new());
    let mut found = Vec::new();
    for (key, item) in document.iter() {
        walk(key, item, &mut found);
    }
    found
}

fn walk(key: &str, item: &Item, found: &mut Vec<(String, f64)>) {
    if OF_OTHERS.contains(&key) {
        return;
    }
    if let Some(table) = item.as_table_like() {
        for (part, item) in table.iter() {
            walk(&format!("{key}.{part}"), item, found);
        }
    } else if let Some(value) = item.as_value() {
        walk_value(key, value, found);
    }
}

fn walk_value(key: &str, value: &Value, found: &mut Vec<(String, f64)>) {
    match value {
        Value::Integer(number) => found.push((key.to_owned(), *number.value() as f64)),
        Value::Float(number) => found.push((key.to_owned(), *number.value())),
        Value::Array(values) => values.iter().for_each(|value| walk_value(key, value, found)),
        Value::InlineTable(table) => {
            for (part, value) in table {
                walk_value(&format!("{key}.{part}"), value, found);
            }
        }
        Value::String(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

impl Range {
    fn holds(&self, value: f64) -> bool {
        let is_enough = match self.least {
            From(least) => value >= least,
            Above(least) => value > least,
        };
        is_enough && value <= self.most
    }

    fn help(&self) -> String {
        let most = if self.most == BELOW_1 { "below 1".to_owned() } else { shown(self.most) };
        match self.least {
            From(least) => format!("use a number from {} to {most}", shown(least)),
            Above(least) => format!("use a number above {}, up to {most}", shown(least)),
        }
    }
}

/// Formats a number as a person would write it.
fn shown(value: f64) -> String {
    let size = value.abs();
    if size >= 1e7 || (size > 0.0 && size < 1e-4) {
        format!("{value:e}")
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    /// Settings in which each optional number is given and read by something.
    const FULL: [&str; 7] = [
        r#"
[model]
directory = "base"
lora = {}
[objective]
clip_low = 0.1
clip_high = 0.2
dual_clip = 3.0
off_policy_mask = 0.5
[credit]
name = "turn"
gamma = 0.9
outcome_weight = 1.0
turn_weight = 1.0
[rollout]
dynamic_sampling = {}
curriculum = {success_rate = {low = 0.1, high = 0.9, keep = 0.1}}
compaction = {at_tokens = 100, prompt = "Sum up."}
[train]
overlong = {max_tokens = 100, buffer = 10}
truncated = {penalise = -0.5}
"#,
        "[objective]\nname = \"gmpo\"\nlog_clip_low = 0.4\nlog_clip_high = 0.4\n",
        "[objective]\nname = \"sapo\"\ntau_positive = 1.0\ntau_negative = 1.05\n",
        "[objective]\nname = \"dr_grpo\"\nmax_tokens = 100\n[train]\nbehavior = {recomputed = {bound = {mask = [0.5, 5.0]}}}\n",
        "[credit]\nname = \"gigpo\"\nstep_weight = 1.0\n[train]\nbehavior = {recomputed = {bound = {truncate = 2.0}}}\n",
        r#"
[model]
directory = "base"
[rollout]
engine = "vllm"
vllm = {urls = ["http://127.0.0.1:8000"]}
workers = {address = "127.0.0.1:7700"}
[train]
learner = "tinker"
tinker = {url = "http://127.0.0.1:8001"}
"#,
        r#"
[model]
directory = "base"
[rollout]
engine = "sglang"
sglang = {urls = ["http://127.0.0.1:30000"]}
"#,
    ];

    fn config(text: &str) -> Config {
        parse("config.toml", text, &[]).unwrap_or_else(|error| panic!("{error}\n{text}")).config
    }

    // Field 13
    #[test]
    fn every_number_has_a_range_and_every_range_a_number() {
        let mut keys: Vec<String> =
            FULL.iter().flat_map(|text| numbers(&config(text))).map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        let mut known: Vec<&str> = RANGES.iter().map(|range| range.key).collect();
        known.sort_unstable();
        assert_eq!(keys, known);
    }

    /// Impossible numbers are refused with the name of their setting, and possible ones are never refused for their
    /// range.
    #[test]
    fn every_setting_refuses_what_is_outside_of_its_range() {
        let values = ["nan", "inf", "-inf", "-1", "-0.5", "0", "1e300", "9223372036854775807"];
        for text in FULL {
            for (key, _) in numbers(&config(text)) {
                let range = RANGES.iter().find(|range| range.key == key).expect("it has one");
                for value in values {
                    if key.ends_with("bound.mask") {
                        continue; // a pair, which the next test has
                    }
                    let argument = format!("{key}={value}");
                    let is_held = value.parse().is_ok_and(|value: f64| range.holds(value));
                    match parse("config.toml", text, std::slice::from_ref(&argument)) {
                        Ok(_) => assert!(is_held, "{argument} is accepted"),
                        Err(failure) => {
                            let said = failure.to_string();
                            assert!(said.contains(&argument), "{argument}: {said}");
                            let is_out_of_range = said.contains("use a number");
                            assert!(!(is_held && is_out_of_range), "{argument}: {said}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_bounds_of_a_pair_are_numbers_too() {
        let text = "[train]\nbehavior = {recomputed = {bound = {mask = [0.5, nan]}}}\n";
        let said = parse("config.toml", text, &[]).unwrap_err().to_string();
        assert!(said.contains("`train.behavior.recomputed.bound.mask` is NaN"), "{said}");
        assert!(said.contains("config.toml:2:"), "{said}");
    }
}
