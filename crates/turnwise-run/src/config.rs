//! The settings of a run, read from a TOML file and dotted overrides; every mistake is reported with its place.

mod agent;
mod changes;
mod choices;
mod defaults;
mod listing;
mod ranges;
mod schema;
mod trainer;
mod validate;

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

pub(crate) use changes::{Change, changes};
pub(crate) use choices::{auto_clip, clip_range, credit, objective};
pub(crate) use defaults::reasons;
pub use listing::listing;
pub use schema::{
    AgentChoice, Config, ConstraintChoice, CreditChoice, EngineName, EnvironmentChoice, Eval,
    ExampleMessage, ExampleRole, LearnerName, Log, Model, ObjectiveChoice, PromptText, Rollout,
    Run, Train, WarmStart,
};
pub(crate) use schema::{ClipRule, ObjectiveName};
use toml_edit::{Document, Item, TableLike, Value, de};
use turnwise_training::read_plain;
use validate::{Impossible, validate};

use crate::failure::Failure;
use crate::opponent;
use crate::registry::{self, Registry};

/// Settings, with their source text.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The text of the file; empty if there is no file.
    pub text: String,
}

/// Reads the settings in a file and applies overrides such as `train.learning_rate=5e-4` after it.
///
/// # Errors
/// When the file cannot be read, a key is unknown, a value is out of range, or the environment is not in the registry;
/// the failure shows the place.
pub fn load(path: &Path, overrides: &[String], registry: &Registry) -> Result<Loaded, Failure> {
    let text = text_of(path).map_err(|error| {
        Failure::refused(format!("cannot read {}: {error}", path.display()))
            .help("turnwise train CONFIG.toml, where CONFIG.toml may be as short as\n\n[environment]\nname = \"guess\"")
    })?;
    from_text(&path.display().to_string(), &text, overrides, registry)
}

/// Reads settings from a text, which messages call `name`.
///
/// # Errors
/// As [`load`].
pub fn from_text(
    name: &str,
    text: &str,
    overrides: &[String],
    registry: &Registry,
) -> Result<Loaded, Failure> {
    let loaded = parse(name, text, overrides)?;
    let EnvironmentChoice { name: environment, options, rubric, .. } = &loaded.config.environment;
    let suite = registry.suite(environment, options);
    let checked = suite.and_then(|suite| {
        registry::rubric(&suite, rubric.as_deref())?;
        opponent::check(&loaded.config, &suite)
    });
    match checked {
        Ok(()) => Ok(loaded),
        Err(error) => {
            let key = error.key();
            let failure = Failure::from(error);
            Err(failure.at(place_of(&key, &SourceText { name, text }, overrides)))
        }
    }
}

/// Describes where a key has its value: in an override, or in the file with its line if the file has the key.
fn place_of(key: &str, source: &SourceText<'_>, overrides: &[String]) -> String {
    let of_key = |argument: &&String| {
        argument.split('=').next().is_some_and(|name| is_related(key, name.trim()))
    };
    if let Some(argument) = overrides.iter().rfind(of_key) {
        return format!("    in {argument}");
    }
    let document = Document::parse(source.text.to_owned()).ok();
    let span = document.and_then(|document| span_of(&document, key));
    source.place(span)
}

/// Reads settings that a run wrote; the path must be a plain file.
pub(crate) fn load_own(
    path: &Path,
    overrides: &[String],
    registry: &Registry,
) -> Result<Loaded, Failure> {
    let text = read_plain(path, MAX_BYTES)
        .and_then(as_text)
        .map_err(|error| Failure::refused(format!("cannot read {}: {error}", path.display())))?;
    from_text(&path.display().to_string(), &text, overrides, registry)
}

/// Reads the settings beside a model. Their environment may be unknown to this program.
pub(crate) fn load_beside_model(path: &Path) -> Result<Loaded, Failure> {
    let text = text_of(path)
        .map_err(|error| Failure::refused(format!("cannot read {}: {error}", path.display())))?;
    parse(&path.display().to_string(), &text, &[])
}

/// The largest size of a settings file, so that reading an endless device stops.
const MAX_BYTES: u64 = 1 << 24;

/// Reads a file that a user named, which may be a pipe, as in `turnwise train <(...)`.
fn text_of(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it is longer than {MAX_BYTES} bytes")));
    }
    as_text(bytes)
}

fn as_text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))
}

/// Reads settings without looking up their environment.
pub(crate) fn parse(name: &str, text: &str, overrides: &[String]) -> Result<Loaded, Failure> {
    let source = SourceText { name, text };
    let document = Document::parse(text.to_owned()).map_err(|error| {
        Failure::refused(format!("not TOML: {}", error.message())).at(source.place(error.span()))
    })?;
    // Read once without overrides, so that a mistake in the file has its place in the file.
    read(de::Deserializer::from(document.clone())).map_err(|error| unreadable(&error, &source))?;
    let mut merged = document.clone().into_mut();
    for argument in overrides {
        apply(merged.as_table_mut(), argument)?;
    }
    replace_alternatives(merged.as_table_mut(), overrides);
    defaults::of_loaded_model(merged.as_table_mut());
    defaults::of_precision(merged.as_table_mut());
    let config = read_merged(&merged.to_string(), overrides)?;
    validate(&config).map_err(|impossible| explain(&impossible, &document, &source, overrides))?;
    Ok(Loaded { config, text: text.to_owned() })
}

/// A mistake in settings, with the dotted key of the table it is in.
type Misread = serde_path_to_error::Error<de::Error>;

fn read(from: de::Deserializer) -> Result<Config, Misread> {
    serde_path_to_error::deserialize(from)
}

/// Reads the settings with overrides. The file alone is already known to be valid, so an error is in an override.
fn read_merged(text: &str, overrides: &[String]) -> Result<Config, Failure> {
    let document = Document::parse(text.to_owned())
        .map_err(|error| Failure::refused(format!("not TOML: {}", error.message())))?;
    read(de::Deserializer::from(document)).map_err(|error| {
        let at = error.path().to_string();
        let of_it = |argument: &&String| {
            argument.split('=').next().is_some_and(|name| is_related(name.trim(), &at))
        };
        let guilty: Vec<&String> = overrides.iter().filter(of_it).collect();
        let named = if guilty.is_empty() { overrides.iter().collect() } else { guilty };
        let place = named.iter().map(|argument| format!("    in {argument}")).collect::<Vec<_>>();
        let failure = Failure::refused(describe(&error)).at(place.join("\n"));
        with_suggestion(error.inner().message(), failure)
    })
}

fn unreadable(error: &Misread, source: &SourceText<'_>) -> Failure {
    let place = source.place(error.inner().span());
    with_suggestion(error.inner().message(), Failure::refused(describe(error)).at(place))
}

/// Describes a mistake, with "key" in place of serde's `unknown field`.
fn describe(error: &Misread) -> String {
    let message = error.inner().message();
    let first = message.lines().next().unwrap_or(message);
    if first.starts_with("missing field") {
        let what = first.replace("missing field", "missing key");
        return match error.path().to_string() {
            root if root == "." => what,
            table => format!("{what} in `{table}`"),
        };
    }
    if first == "invalid type: unit variant, expected newtype variant" {
        return format!(
            "`{}` needs settings of its own: a table, as in {{name = {{…}}}}",
            error.path()
        );
    }
    match (first.strip_prefix("unknown field "), first.split_once(", expected")) {
        (Some(rest), _) => {
            format!("unknown key {}", rest.split_once(',').map_or(rest, |(key, _)| key))
        }
        (None, Some((what, _))) if first.starts_with("unknown variant") => {
            what.replace("unknown variant", "unknown value")
        }
        _ => first.to_owned(),
    }
}

/// Suggests the nearest of the words that serde expected.
fn with_suggestion(message: &str, failure: Failure) -> Failure {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(found) = quoted.next() else { return failure };
    let expected: Vec<&str> = quoted.collect();
    match nearest(found, &expected) {
        Some(nearest) => failure.help(format!("did you mean `{nearest}`?")),
        None if expected.is_empty() => failure,
        None => failure.help(format!("known are {}", expected.join(", "))),
    }
}

/// Returns the known word that a misspelt word most likely stands for.
#[must_use]
pub fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let score =
        |word: &&&str| (strsim::normalized_damerau_levenshtein(found, word) * 1000.0) as i64;
    known.iter().max_by_key(score).filter(|word| score(word) >= 600).copied()
}

fn explain(
    impossible: &Impossible,
    document: &Document<String>,
    source: &SourceText<'_>,
    overrides: &[String],
) -> Failure {
    let Impossible { key, wrong, help } = impossible;
    let failure = Failure::refused(format!("`{key}` {wrong}")).help(help.clone());
    let of_key = |argument: &&String| {
        argument.split('=').next().is_some_and(|name| is_related(key, name.trim()))
    };
    match overrides.iter().rfind(of_key) {
        Some(argument) => failure.at(format!("    in {argument}")),
        None => match span_of(document, key) {
            Some(span) => failure.at(source.place(Some(span))),
            None => failure,
        },
    }
}

/// Returns whether two dotted keys are equal, or one is inside the other.
fn is_related(one: &str, other: &str) -> bool {
    let is_inside = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    is_inside(one, other) || is_inside(other, one)
}

/// Returns the place of a dotted key's value in the file.
fn span_of(document: &Document<String>, key: &str) -> Option<Range<usize>> {
    let mut item: &Item = document.as_item();
    for part in key.split('.') {
        item = item.get(part)?;
    }
    item.span()
}

/// Writes `a.b=v` into the tables; `v`, without the blanks around it, is parsed as TOML, or is a string if that fails.
fn apply(table: &mut dyn TableLike, argument: &str) -> Result<(), Failure> {
    let usage = || {
        Failure::refused(format!("cannot read the argument `{argument}`"))
            .help("an override is written table.key=value, as in  train.learning_rate=5e-4")
    };
    let (key, value) = argument.split_once('=').ok_or_else(usage)?;
    let value = value.trim();
    if value.parse::<i64>().is_err() && value.parse::<i128>().is_ok() {
        return Err(Failure::refused(format!("`{key}` is {value}"))
            .at(format!("    in {argument}"))
            .help("use a number of at most 9223372036854775807, the largest that TOML has"));
    }
    let value = value.parse::<Value>().unwrap_or_else(|_| Value::from(value));
    let mut parts: Vec<&str> = key.split('.').map(str::trim).collect();
    let last = parts.pop().filter(|last| !last.is_empty()).ok_or_else(usage)?;
    if parts.is_empty() || parts.iter().any(|part| part.is_empty()) {
        return Err(usage());
    }
    let mut table = table;
    for part in parts {
        let entry = table.entry(part).or_insert_with(|| Item::Table(toml_edit::Table::new()));
        table = entry.as_table_like_mut().ok_or_else(usage)?;
    }
    table.insert(last, Item::Value(value));
    Ok(())
}

/// Two ways to say one thing, of which settings have one: a rule for the clip range, and its numbers.
const ALTERNATIVES: [[&[&str]; 2]; 1] = [[
    &["objective.clip", "objective.clip_multiple"],
    &["objective.clip_low", "objective.clip_high"],
]];

/// Removes what the file says in one way where an override says it in the other.
fn replace_alternatives(settings: &mut dyn TableLike, overrides: &[String]) {
    let is_given = |key: &&str| {
        let keys = overrides.iter().filter_map(|argument| argument.split('=').next());
        keys.map(str::trim).any(|given| given == *key)
    };
    for [one, other] in ALTERNATIVES {
        for (given, replaced) in [(one, other), (other, one)] {
            if given.iter().any(&is_given) {
                for key in replaced.iter().filter(|key| !is_given(key)) {
                    remove(settings, key);
                }
            }
        }
    }
}

/// Removes a dotted key, if it is there.
fn remove(settings: &mut dyn TableLike, key: &str) {
    let mut parts: Vec<&str> = key.split('.').collect();
    let Some(last) = parts.pop() else { return };
    let mut table = Some(settings);
    for part in parts {
        table = table.and_then(|table| table.get_mut(part)).and_then(Item::as_table_like_mut);
    }
    table.and_then(|table| table.remove(last));
}

/// A text in which mistakes are shown.
struct SourceText<'a> {
    name: &'a str,
    text: &'a str,
}

impl SourceText<'_> {
    /// Formats file, line and column, the line itself, and a mark under the span.
    fn place(&self, span: Option<Range<usize>>) -> String {
        let Some(span) = span else { return format!("    in {}", self.name) };
        let start = span.start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let whole = self.text[line_start..].lines().next().unwrap_or_default();
        let number = self.text[..start].matches('\n').count() + 1;
        let column = self.text[line_start..start].chars().count();
        let (line, shift) = around(whole, column);
        let room = line.chars().count().saturating_sub(column - shift).max(1);
        let width = self
            .text
            .get(span)
            .map_or(1, |marked| marked.lines().next().unwrap_or_default().chars().count());
        let gutter = number.to_string();
        let blank = " ".repeat(gutter.len());
        let (indent, mark) = (" ".repeat(column - shift), "─".repeat(width.clamp(1, room)));
        format!(
            " {blank}  ╭─[{}:{number}:{}]\n {gutter}  │ {line}\n {blank}  · {indent}{mark}",
            self.name,
            column + 1
        )
    }
}

/// Returns at most 100 characters of a line around a column, and the number of characters left out before them.
fn around(line: &str, column: usize) -> (String, usize) {
    const WIDTH: usize = 100;
    let shift = if line.chars().count() <= WIDTH { 0 } else { column.saturating_sub(WIDTH / 3) };
    (line.chars().skip(shift).take(WIDTH).collect(), shift)
}

#[cfg(test)]
mod tests {
    use super::{ClipRule, parse};

    fn refusal(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> =
            overrides.iter().map(|&argument| argument.to_owned()).collect();
        parse("config.toml", text, &overrides).unwrap_err().to_string()
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_the_nearest_key() {
        let said = refusal("[run]\nseed = 1\n\n[rollout]\ngroup_sise = 8\n", &[]);
        assert_eq!(
            said,
            "error: unknown key `group_sise`\n    ╭─[config.toml:5:1]\n 5  │ group_sise = 8\n    · ──────────\n  help: did you mean `group_size`?\n"
        );
    }

    /// Field 17
    #[test]
    fn a_model_that_is_loaded_has_defaults_that_do_not_destroy_it() {
        let of = |text: &str| parse("config.toml", text, &[]).unwrap().config;
        let made = of("");
        assert_eq!((made.train.learning_rate, made.train.warmup_steps), (1e-3, 0));
        assert_eq!(made.eval.episodes, 256);
        let loaded = of("[model]\ndirectory = \"somewhere\"\n");
        assert_eq!((loaded.train.learning_rate, loaded.warm_start.learning_rate), (1e-5, 2e-5));
        assert_eq!((loaded.eval.episodes, loaded.rollout.groups_per_step), (64, 8));
        assert_eq!(loaded.train.warmup_steps, 4);
        let adapted = of("[model]\ndirectory = \"somewhere\"\nlora = {}\n");
        assert_eq!((adapted.train.learning_rate, adapted.warm_start.learning_rate), (1e-4, 2e-4));
        // A value that the user gave stays.
        let own = "[train]\nlearning_rate = 3e-4\nwarmup_steps = 0\n";
        let given = of(&format!("[model]\ndirectory = \"somewhere\"\n{own}"));
        assert_eq!((given.train.learning_rate, given.train.warmup_steps), (3e-4, 0));
    }

    /// Small models compute in f32, large ones in bf16 where the processor is fast at it, unless the settings say so.
    #[test]
    fn a_large_model_computes_in_bf16_where_that_is_fast() {
        use turnwise_candle::ComputePrecision;

        let directory = tempfile::tempdir().unwrap();
        let of = |layers: usize, more: &str| {
            let json = format!(
                r#"{{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": {layers}, "vocab_size": 49152}}"#
            );
            std::fs::write(directory.path().join("config.json"), json).unwrap();
            let text = format!("[model]\ndirectory = {:?}\n{more}", directory.path());
            let config = parse("config.toml", &text, &[]).unwrap().config;
            (config.model.compute, config.train.canary.tolerance)
        };
        let (f32, bf16) = ((ComputePrecision::F32, 0.05), (ComputePrecision::Bf16, 0.5));
        assert_eq!(of(3, ""), f32);
        assert_eq!(of(30, ""), if turnwise_candle::has_fast_bf16() { bf16 } else { f32 });
        assert_eq!(of(30, "compute = \"f32\"\n"), f32);
        assert_eq!(of(30, "device = \"cuda\"\n"), f32);
    }

    #[test]
    fn an_engine_that_rounds_may_differ_from_the_trainer_by_more() {
        let of = |text: &str, overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            parse("config.toml", text, &overrides).unwrap().config.train.canary.tolerance
        };
        assert_eq!(of("", &[]), 0.05);
        assert_eq!(of("[model]\ncompute = \"bf16\"\n", &[]), 0.5);
        assert_eq!(of("[train]\nn_minibatches = 2\n", &["model.compute=bf16"]), 0.5);
        assert_eq!(of("train = {canary = {tokens = 8}}\n", &["engine.weights=int8"]), 1.0);
        let own = "[train.canary]\ntolerance = 0.1\n";
        assert_eq!(of(own, &["model.compute=bf16", "engine.weights=int8"]), 0.1);
    }

    #[test]
    fn a_clip_range_by_rule_and_by_numbers_replace_each_other() {
        let numbers = "[objective]\nclip_low = 0.05\nclip_high = 0.07\n";
        let rule = "[objective]\nclip = \"auto\"\nclip_multiple = 2.0\n";
        let of = |text: &str, overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            let objective = parse("config.toml", text, &overrides).unwrap().config.objective;
            (objective.clip, objective.clip_low, objective.clip_high)
        };
        let auto = (Some(ClipRule::Auto), None, None);
        assert_eq!(of(numbers, &["objective.clip=auto"]), auto);
        assert_eq!(of(numbers, &["objective.clip_low=0.1"]), (None, Some(0.1), Some(0.07)));
        assert_eq!(of(rule, &["objective.clip_low=0.1"]), (None, Some(0.1), None));
        assert_eq!(of(rule, &["objective.clip_multiple=3"]), auto);
        // Both in the file, or both in overrides, are a mistake.
        for (text, overrides) in [
            (format!("{numbers}clip = \"auto\"\n"), vec![]),
            (String::new(), vec!["objective.clip=auto", "objective.clip_low=0.1"]),
        ] {
            let said = refusal(&text, &overrides);
            assert!(said.contains("`objective.clip` stands beside clip_low"), "{said}");
        }
    }

    /// Field 20
    #[test]
    fn an_estimator_without_a_gradient_is_no_penalty() {
        let said = refusal("[objective.kl]\nbeta = 0.1\nestimator = \"k1\"\n", &[]);
        assert!(said.contains("`objective.kl.estimator` = \"k1\" pulls nowhere"), "{said}");
        assert!(said.contains("config.toml:3:"), "{said}");
    }

    /// Field 18
    #[test]
    fn a_missing_key_names_its_table() {
        let said = refusal("[rollout]\ncompaction = {at_tokens = 100}\n", &[]);
        assert!(said.contains("missing key `prompt` in `rollout.compaction`"), "{said}");
        let wrong = ["train.learning_rate=1e-4", "train.overlong={buffer=3}"];
        let said = refusal("", &wrong);
        assert!(said.contains("missing key `max_tokens` in `train.overlong`"), "{said}");
        assert!(said.contains("in train.overlong={buffer=3}\n"), "{said}");
        assert!(!said.contains("in train.learning_rate"), "{said}");
    }

    #[test]
    fn a_long_line_is_shown_around_the_mistake() {
        let text = format!(
            "[run]\nseed = 1 # {}\n[rollout]\n{}group_sise = 8\n",
            "a".repeat(40_000),
            " ".repeat(9_000)
        );
        let said = refusal(&text, &[]);
        assert!(said.contains("group_sise = 8") && said.len() < 1000, "{}", said.len());
        let said = refusal(&format!("x = \"{}\"\n", "b\u{1b}[31m".repeat(8_000)), &[]);
        assert!(said.len() < 2000 && !said.contains('\u{1b}'), "{said}");
    }

    #[test]
    fn an_impossible_value_is_named_with_its_line_and_what_to_do() {
        let said = refusal("[rollout]\ngroup_size = 1\n", &[]);
        assert_eq!(
            said,
            "error: `rollout.group_size` = 1 gives every rollout advantage 0\n    ╭─[config.toml:2:14]\n 2  │ group_size = 1\n    ·              ─\n  help: GSPO compares rollouts of one task with each other; use at least 2 (8 is usual)\n"
        );
    }

    #[test]
    fn an_override_that_is_impossible_points_at_the_argument() {
        let said = refusal("[rollout]\ngroup_size = 8\n", &["rollout.group_size=1"]);
        assert!(said.contains("    in rollout.group_size=1\n"), "{said}");
    }

    #[test]
    fn an_unknown_override_is_suggested_too() {
        let said = refusal("", &["trian.learning_rate=1"]);
        assert!(
            said.contains("unknown key `trian`") && said.contains("did you mean `train`?"),
            "{said}"
        );
    }

    #[test]
    fn an_unknown_value_is_told_from_an_unknown_key() {
        let said = refusal("[objective]\nname = \"gspo_tokn\"\n", &[]);
        assert!(
            said.contains("unknown value `gspo_tokn`")
                && said.contains("did you mean `gspo_token`?"),
            "{said}"
        );
    }

    #[test]
    fn every_objective_and_credit_can_be_chosen() {
        let objectives = "gspo_token gspo gspo_turn grpo dapo dr_grpo cispo gmpo sapo reinforce";
        for name in objectives.split(' ') {
            let text = format!("[objective]\nname = \"{name}\"\n");
            let config = parse("config.toml", &text, &[]).unwrap().config;
            assert_eq!(super::objective(&config).unwrap().name(), name);
        }
        let credits =
            "outcome turn turn_baseline return gigpo reinforce_plus_plus turn_index_biased";
        for name in credits.split(' ') {
            let text = format!("[credit]\nname = \"{name}\"\n");
            let config = parse("config.toml", &text, &[]).unwrap().config;
            assert_eq!(super::credit(&config).name(), name);
        }
    }

    #[test]
    fn what_the_objective_does_not_read_is_refused() {
        let said = refusal("[objective]\nname = \"sapo\"\nclip_low = 0.2\n", &[]);
        assert!(said.contains("`objective.clip_low` is not used by `sapo`"), "{said}");
        assert!(said.contains("config.toml:3:"), "{said}");
        let said = refusal("[credit]\nname = \"outcome\"\ngamma = 0.9\n", &[]);
        assert!(said.contains("`credit.gamma` is not used by `outcome`"), "{said}");
        assert!(
            said.contains("choose return, turn, turn_baseline, gigpo, turn_index_biased"),
            "{said}"
        );
    }

    #[test]
    fn objectives_and_credits_that_do_not_go_together_are_refused() {
        let said = refusal("[objective]\nname = \"gmpo\"\n[credit]\nname = \"return\"\n", &[]);
        assert!(said.contains("`gmpo` has one advantage per sequence"), "{said}");
        let said = refusal("[objective]\nclip_high = 0.2\ndual_clip = 1.1\n", &[]);
        assert!(said.contains("`objective.dual_clip` cannot be"), "{said}");
        let said =
            refusal("[train]\nbehavior = {recomputed = {bound = {mask = [2.0, 0.5]}}}\n", &[]);
        assert!(said.contains("`train.behavior` cannot be"), "{said}");
        let behavior = "behavior = {recomputed = {bound = {truncate = 2.0}}}";
        let said = refusal(&format!("[objective]\nname = \"gspo\"\n[train]\n{behavior}\n"), &[]);
        assert!(said.contains("`train.behavior` weighs tokens of a sequence apart"), "{said}");
        let said =
            refusal(&format!("[objective]\noff_policy_mask = 0.5\n[train]\n{behavior}\n"), &[]);
        assert!(said.contains("`objective.off_policy_mask` looks at who drew"), "{said}");
        let said = refusal("[objective.kl]\nestimator = \"k1\"\n", &[]);
        assert!(said.contains("`objective.kl.estimator` is not used"), "{said}");
        let said = refusal("[train]\ntruncated = {penalise = 0.5}\n", &[]);
        assert!(said.contains("`train.truncated.penalise` is 0.5"), "{said}");
        let said = refusal("[rollout]\nmode = \"asynchronous\"\ntokens_per_step = 9\n", &[]);
        assert!(said.contains("`rollout.tokens_per_step` is not used"), "{said}");
        let said = refusal("[rollout]\ntop_p = 1.5\n", &[]);
        assert!(said.contains("`rollout.top_p` is 1.5"), "{said}");
        let said =
            refusal("[rollout]\ncompaction = {at_tokens = 4096, prompt = \"Sum up.\"}\n", &[]);
        assert!(said.contains("an episode ends at 4096"), "{said}");
        let said = refusal("[objective.kl]\nbeta = -0.1\n", &[]);
        assert!(said.contains("`objective.kl.beta` is -0.1"), "{said}");
        let said = refusal("[objective.kl]\nestimator = \"k4\"\n", &[]);
        assert!(said.contains("unknown value `k4`"), "{said}");
    }

    #[test]
    fn an_engine_is_named_with_what_it_reads() {
        let said = refusal("[rollout]\nquantization = \"q8_0\"\n", &[]);
        assert!(said.contains("`rollout.quantization` = q8_0 is not used by the engine"), "{said}");
        let gguf = ["rollout.engine=gguf".to_owned(), "rollout.quantization=q4_k".to_owned()];
        let read = parse("config.toml", "[engine]\nmax_kv_bytes = 1\n", &gguf);
        if cfg!(feature = "gguf") {
            assert!(read.is_ok());
            let said = refusal("[rollout]\nengine = \"gguf\"\n[engine]\nmax_batch = 1\n", &[]);
            assert!(said.contains("`engine` has settings that the engine `gguf`"), "{said}");
            let said = refusal("[rollout]\nquantization = \"q4k\"\n", &[]);
            assert!(said.contains("did you mean `q4_k`?"), "{said}");
        } else {
            let said = read.unwrap_err().to_string();
            assert!(said.contains("built without that engine"), "{said}");
            assert!(said.contains("--features gguf"), "{said}");
        }
    }

    #[test]
    fn a_server_is_named_with_its_address_and_refuses_what_it_cannot_do() {
        let begin = "[model]\ndirectory = \"m\"\n[rollout]\nengine = \"vllm\"\n";
        let address = "[rollout.vllm]\nurls = [\"http://127.0.0.1:8000\"]\n";
        let said = refusal(begin, &[]);
        assert!(said.contains("`rollout.engine` = vllm needs the address of a server"), "{said}");
        let said = refusal(&format!("[rollout]\nengine = \"vllm\"\n{address}"), &[]);
        assert!(said.contains("needs a model that the server can load"), "{said}");
        let said = refusal(&format!("{begin}constraint = {{ regex = \"a\" }}\n{address}"), &[]);
        assert!(
            said.contains("`rollout.constraint` is not supported by the engine `vllm`"),
            "{said}"
        );
        let said = refusal(&format!("{begin}{address}[engine]\nmax_batch = 1\n"), &[]);
        assert!(said.contains("`engine` has settings that the engine `vllm`"), "{said}");
        let said = refusal(address, &[]);
        assert!(said.contains("`rollout.vllm` is not used by the engine `candle`"), "{said}");
        let said = refusal(&format!("{begin}{address}max_request = 1\n"), &[]);
        assert!(said.contains("did you mean `max_requests`?"), "{said}");
        assert!(parse("config.toml", &format!("{begin}{address}"), &[]).is_ok());
    }

    #[test]
    fn a_tinker_server_is_named_with_its_address_and_refuses_what_it_cannot_do() {
        let begin = "[model]\ndirectory = \"m\"\n[train]\nlearner = \"tinker\"\n";
        let whole = format!("{begin}[train.tinker]\nurl = \"http://127.0.0.1:8000\"\n");
        assert!(parse("config.toml", &whole, &[]).is_ok());
        let said = refusal(begin, &[]);
        assert!(said.contains("`train.learner` = tinker needs the address of a server"), "{said}");
        assert!(said.contains("config.toml:4:"), "{said}");
        let said = refusal(&whole.replace("learner = \"tinker\"\n", ""), &[]);
        assert!(said.contains("`train.tinker` is not used by the learner `candle`"), "{said}");
        let said = refusal(&whole.replace("directory = \"m\"\n", ""), &[]);
        assert!(said.contains("needs a model that the server has"), "{said}");
        for (more, key) in [
            ("[rollout]\ntemperature = 0.7\n", "rollout.temperature"),
            ("[rollout]\ntop_k = 40\n", "rollout.top_k"),
            ("[rollout]\nconstraint = { regex = \"a\" }\n", "rollout.constraint"),
            ("[eval]\ntemperature = 0.5\n", "eval.temperature"),
            ("[engine]\nmax_batch = 1\n", "engine"),
            ("[optimizer]\nmoments = \"bf16\"\n", "optimizer.moments"),
        ] {
            let said = refusal(&format!("{whole}{more}"), &[]);
            assert!(said.contains(&format!("`{key}` is not ")), "{said}");
            assert!(said.contains("learner `tinker`"), "{said}");
            assert!(
                said.contains(if key == "engine" { "config.toml:7:" } else { "config.toml:8:" }),
                "{said}"
            );
        }
        let said = refusal(&format!("{whole}beta1 = 0.9\n"), &[]);
        assert!(said.contains("beta1"), "{said}");
        let said = refusal(&format!("{whole}rank = 0\n"), &[]);
        assert!(said.contains("`train.tinker.rank` is 0"), "{said}");
        let engine =
            "[rollout]\nengine = \"vllm\"\nvllm = { urls = [\"http://127.0.0.1:8001\"] }\n";
        assert!(parse("config.toml", &format!("{whole}{engine}"), &[]).is_ok());
    }

    #[test]
    fn adapters_that_cannot_be_are_refused() {
        let refusal = |text: &str| refusal(&format!("[model]\n{text}\n"), &[]);
        let said = refusal("directory = \"base\"\nlora = {rank = 0}");
        assert!(said.contains("`model.lora.rank` is 0") && said.contains(":3:"), "{said}");
        let said = refusal("directory = \"base\"\nlora = {alpha = -1.0}");
        assert!(said.contains("`model.lora.alpha` is -1"), "{said}");
        let said = refusal("directory = \"base\"\nlora = {targets = []}");
        assert!(said.contains("`model.lora.targets` is empty"), "{said}");
        let said = refusal("directory = \"base\"\nlora = {targets = [\"q_prj\"]}");
        assert!(said.contains("unknown value `q_prj`") && said.contains("`q_proj`"), "{said}");
        let said = refusal("lora = {}");
        assert!(said.contains("`model.lora` freezes the model"), "{said}");
    }

    #[test]
    fn a_moment_is_a_text_or_a_date_of_toml() {
        for moment in ["2026-01-31", "2026-01-31T14:30:00"] {
            for written in [moment.to_owned(), format!("\"{moment}\"")] {
                let overridden =
                    parse("x", "[model]\ntemplate = \"hf\"\n", &[format!("model.time={written}")])
                        .expect("fine");
                let file =
                    parse("x", &format!("[model]\ntemplate = \"hf\"\ntime = {written}\n"), &[])
                        .expect("fine");
                assert_eq!(overridden.config.model.time.as_deref(), Some(moment));
                assert_eq!(file.config.model.time.as_deref(), Some(moment));
            }
        }
        assert!(refusal("[model]\ntime = 7\n", &[]).contains("a moment must be written as"));
    }

    #[test]
    fn overrides_come_after_the_file() {
        let overrides =
            ["train.learning_rate=5e-4".to_owned(), "environment.name=calculator".to_owned()];
        let config =
            parse("config.toml", "[train]\nlearning_rate = 1.0\n", &overrides).unwrap().config;
        assert_eq!(config.train.learning_rate, 5e-4);
        assert_eq!(config.environment.name, "calculator");
    }

    #[test]
    fn what_is_no_toml_is_shown_in_its_line() {
        assert!(refusal("[rollout\n", &[]).contains("config.toml:1:"));
    }
}
