//! The constraint on what a model may write in a turn.

use std::fs;
use std::io::Read;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use turnwise_chat::{ChatError, Grammar, MIN_IDS, Tokenizer, train_tokenizer};
use turnwise_trajectory::TokenId;

/// The settings of a constraint on every turn, in training and in evaluation; exactly one of them is given. The whole
/// turn has to match, so that the form's own tool calls and thinking are possible only if a Lark grammar names their
/// control tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConstraintChoice {
    /// A JSON schema that every turn satisfies: a table, the schema as JSON text, or the path of a JSON file.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub json_schema: Value,
    /// A regular expression that every turn matches, from its first character to its last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// A Lark grammar of every turn, in which `<name>` is a control token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lark: Option<String>,
}

/// A constraint that cannot be: the setting within the table, and what is wrong with it.
#[derive(Debug, PartialEq)]
pub(crate) struct Unusable {
    pub key: &'static str,
    pub wrong: String,
}

/// What a constraint is made from.
enum GrammarSource {
    JsonSchema(Value),
    Regex(String),
    Lark(String),
}

/// The largest JSON schema that is read, in bytes.
const MAX_SCHEMA_BYTES: u64 = 1 << 24;

impl ConstraintChoice {
    /// Checks everything that does not depend on the model. A Lark grammar may name control tokens of a model, so it is
    /// checked only if the run makes its own.
    pub(crate) fn check(&self, makes_model: bool) -> Result<(), Unusable> {
        let source = self.source()?;
        if matches!(source, GrammarSource::Lark(_)) && !makes_model {
            return Ok(());
        }
        let bytes = train_tokenizer(Vec::new(), MIN_IDS).map_err(|error| self.unusable(&error))?;
        let stop = bytes.token_id("<|im_end|>").unwrap_or_default();
        self.compile(source, &bytes, &[stop]).map(drop)
    }

    /// Compiles the constraint for a tokenizer and the tokens that end a turn.
    pub(crate) fn grammar(
        &self,
        tokenizer: &Tokenizer,
        stop: &[TokenId],
    ) -> Result<Grammar, Unusable> {
        self.compile(self.source()?, tokenizer, stop)
    }

    /// Replaces the path of a schema by the schema, so that the settings of a run are whole.
    pub(crate) fn embed(&mut self) -> Result<(), Unusable> {
        if let Value::String(text) = &mut self.json_schema {
            *text = read_schema(text)?.to_string();
        }
        Ok(())
    }

    fn compile(
        &self,
        source: GrammarSource,
        tokenizer: &Tokenizer,
        stop: &[TokenId],
    ) -> Result<Grammar, Unusable> {
        let grammar = match source {
            GrammarSource::JsonSchema(schema) => Grammar::json_schema(tokenizer, &schema, stop),
            GrammarSource::Regex(regex) => Grammar::regex(tokenizer, &regex, stop),
            GrammarSource::Lark(lark) => Grammar::lark(tokenizer, &lark, stop),
        };
        grammar.map_err(|error| self.unusable(&error))
    }

    fn source(&self) -> Result<GrammarSource, Unusable> {
        match (&self.json_schema, &self.regex, &self.lark) {
            (Value::Null, Some(regex), None) => Ok(GrammarSource::Regex(regex.clone())),
            (Value::Null, None, Some(lark)) => Ok(GrammarSource::Lark(lark.clone())),
            (Value::String(text), None, None) => Ok(GrammarSource::JsonSchema(read_schema(text)?)),
            (schema @ Value::Object(_), None, None) => {
                Ok(GrammarSource::JsonSchema(schema.clone()))
            }
            (Value::Null, None, None) => {
                Err(Unusable { key: TABLE, wrong: "has no json_schema, regex or lark".to_owned() })
            }
            (_, None, None) => {
                let wrong = "is neither a table nor a text".to_owned();
                Err(Unusable { key: JSON_SCHEMA, wrong })
            }
            _ => Err(Unusable {
                key: TABLE,
                wrong: format!("has {}, and a turn has one grammar", self.given().join(" and ")),
            }),
        }
    }

    /// Returns the names of the given settings.
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("json_schema", !self.json_schema.is_null()),
            ("regex", self.regex.is_some()),
            ("lark", self.lark.is_some()),
        ];
        all.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect()
    }

    fn unusable(&self, error: &ChatError) -> Unusable {
        let key = match (&self.regex, &self.lark) {
            (Some(_), _) => REGEX,
            (_, Some(_)) => LARK,
            _ => JSON_SCHEMA,
        };
        Unusable { key, wrong: format!("cannot be used: {error}") }
    }
}

// The dotted keys of the settings.
const TABLE: &str = "rollout.constraint";
const JSON_SCHEMA: &str = "rollout.constraint.json_schema";
const REGEX: &str = "rollout.constraint.regex";
const LARK: &str = "rollout.constraint.lark";

/// Reads a schema from JSON text, or from the file at a path.
fn read_schema(text: &str) -> Result<Value, Unusable> {
    let unusable = |wrong: String| Unusable { key: JSON_SCHEMA, wrong };
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text)
            .map_err(|error| unusable(format!("is not JSON: {error}")));
    }
    let mut json = String::new();
    let read =
        fs::File::open(text).and_then(|file| file.take(MAX_SCHEMA_BYTES).read_to_string(&mut json));
    read.map_err(|error| unusable(format!("= {text:?} cannot be read: {error}")))?;
    serde_json::from_str(&json)
        .map_err(|error| unusable(format!("= {text:?} is not a JSON file: {error}")))
}

#[cfg(test)]
mod tests {
    use crate::config::{listing, parse};

    fn refusal(text: &str) -> String {
        let text = format!("[rollout]\n\n[rollout.constraint]\n{text}\n");
        parse("config.toml", &text, &[]).expect_err("it is refused").to_string()
    }

    #[test]
    fn exactly_one_grammar_is_given() {
        for text in ["regex = \"a\"", "lark = 'start: \"a\"'", "json_schema = {type = \"null\"}"] {
            let text = format!("[rollout.constraint]\n{text}\n");
            parse("config.toml", &text, &[]).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        let said = refusal("");
        assert!(said.contains("`rollout.constraint` has no json_schema, regex or lark"), "{said}");
        let said = refusal("regex = \"a\"\nlark = 'start: \"a\"'");
        assert!(said.contains("has regex and lark, and a turn has one grammar"), "{said}");
        assert!(said.contains("config.toml:3:"), "{said}");
        let said = refusal("json_schema = 7");
        assert!(said.contains("`rollout.constraint.json_schema` is neither a table"), "{said}");
    }

    #[test]
    fn what_is_no_grammar_is_refused_at_its_line() {
        for (text, key) in [
            ("regex = \"(a\"", "regex"),
            ("lark = \"start: missing\"", "lark"),
            ("json_schema = {type = \"list\"}", "json_schema"),
            ("json_schema = '{\"type\": '", "json_schema"),
            ("json_schema = \"no/such/file.json\"", "json_schema"),
        ] {
            let said = refusal(text);
            assert!(said.contains(&format!("`rollout.constraint.{key}` ")), "{said}");
            assert!(said.contains("config.toml:4:"), "{said}");
        }
        let said = refusal("regexp = \"a\"");
        assert!(said.contains("did you mean `regex`?"), "{said}");
        let argument = "rollout.constraint.regex=(a".to_owned();
        let said = parse("config.toml", "", &[argument]).expect_err("refused").to_string();
        assert!(said.contains("in rollout.constraint.regex=(a"), "{said}");
    }

    #[test]
    fn an_engine_that_cannot_constrain_is_refused() {
        let text = "[rollout]\nengine = \"gguf\"\nconstraint = {regex = \"a\"}\n";
        let said = parse("config.toml", text, &[]).expect_err("it is refused").to_string();
        let expected = "`rollout.constraint` is not supported by the engine `gguf`";
        assert!(said.contains(expected), "{said}");
    }

    #[test]
    fn a_schema_in_a_file_becomes_part_of_the_settings() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("schema.json");
        std::fs::write(&path, "{\n  \"enum\": [1, null]\n}\n").expect("written");
        let text = format!("[rollout.constraint]\njson_schema = {:?}\n", path.display());
        let mut config = parse("config.toml", &text, &[]).expect("settings").config;
        let constraint = config.rollout.constraint.as_mut().expect("given");
        constraint.embed().expect("it is read");
        assert_eq!(constraint.json_schema, "{\"enum\":[1,null]}");
        std::fs::remove_file(&path).expect("removed");
        let written = toml_edit::ser::to_string_pretty(&config).expect("TOML");
        assert_eq!(parse("run.toml", &written, &[]).expect("settings").config, config);
    }

    #[test]
    fn a_constraint_is_printed_and_read_back() {
        for text in [
            "regex = '[0-9]+|\"'",
            "lark = \"start: A\\nA: /a/\"",
            "json_schema = {type = \"object\", properties = {a = {maximum = 3}}, required = [\"a\"]}",
        ] {
            let text = format!("[rollout.constraint]\n{text}\n");
            let config = parse("config.toml", &text, &[]).expect("settings").config;
            let printed = listing(&config).expect("TOML");
            let read = parse("printed", &printed, &[]);
            let read = read.unwrap_or_else(|error| panic!("{error}\n{printed}"));
            assert_eq!(read.config, config, "{printed}");
        }
    }
}
