//! The environments that a program knows, by name.

mod options;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use turnwise_environment::{EnvironmentError, Rubric, Suite};

use crate::Failure;
use crate::config::nearest;

pub use options::from_arguments;

/// The environments that a program knows, by name.
///
/// ```
/// use serde::Deserialize;
/// use turnwise_run::Registry;
/// # use turnwise_environment::{
/// #     Action, Environment, EnvironmentError, Observation, Step, Suite, async_trait,
/// # };
/// # #[derive(Clone, Debug)]
/// # struct Sum(u32, u32);
/// # #[async_trait]
/// # impl Environment for Sum {
/// #     async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
/// #         Ok(format!("What is {} + {}?", self.0, self.1).into())
/// #     }
/// #     async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
/// #         let right = action.text.trim() == (self.0 + self.1).to_string();
/// #         Ok(Step::terminated(f64::from(u8::from(right))))
/// #     }
/// # }
///
/// /// `[environment.options]` of `sums`.
/// #[derive(Deserialize)]
/// #[serde(default, deny_unknown_fields)]
/// struct SumSettings {
///     largest: u32,
/// }
///
/// impl Default for SumSettings {
///     fn default() -> Self {
///         Self { largest: 20 }
///     }
/// }
///
/// fn sums(settings: SumSettings) -> Result<Suite, EnvironmentError> {
///     let n = settings.largest;
///     let tasks = (0..n).flat_map(|a| (0..n).map(move |b| Sum(a, b)));
///     Ok(Suite::divided("sums", tasks.collect::<Vec<_>>(), 0.25))
/// }
///
/// let registry = Registry::builtin().with_options("sums", sums);
/// let suite = registry.suite("sums", &serde_json::json!({"largest": 3})).unwrap();
/// assert_eq!(suite.name(), "sums");
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    entries: BTreeMap<String, Arc<Make>>,
}

type Make = dyn Fn(&Value) -> Result<Suite, SuiteError> + Send + Sync;

impl Registry {
    /// Creates a registry without environments.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Creates a registry with the environments of turnwise: `calculator`, `guess`, `program` for the tasks of an agent
    /// program, and `openenv`, `ors` and `verifiers` for the environments of a server.
    #[must_use]
    pub fn builtin() -> Self {
        Self::empty()
            .with_options("calculator", turnwise_calculator::suite)
            .with_options("guess", turnwise_guess::suite)
            .with_options("openenv", |options| turnwise_serve::openenv_tasks(&options))
            .with_options("ors", |options| turnwise_serve::ors_tasks(&options))
            .with_options("program", turnwise_serve::own_tasks)
            .with_options("verifiers", |options| turnwise_serve::verifiers_tasks(&options))
    }

    /// Adds an environment that has no options.
    ///
    /// # Panics
    /// When another environment has its name.
    #[must_use]
    pub fn with(self, suite: Suite) -> Self {
        let name = suite.name().to_owned();
        let of_name = name.clone();
        self.insert(
            name,
            Arc::new(move |options| options::none(&of_name, options).map(|()| suite.clone())),
        )
    }

    /// Adds an environment made from `[environment.options]`: a struct whose fields all have defaults.
    ///
    /// # Panics
    /// When another environment has this name.
    #[must_use]
    pub fn with_options<O: DeserializeOwned + 'static>(
        self,
        name: impl Into<String>,
        make: impl Fn(O) -> Result<Suite, EnvironmentError> + Send + Sync + 'static,
    ) -> Self {
        let name = name.into();
        let of_name = name.clone();
        let suite = move |options: &Value| {
            make(options::read(&of_name, options)?).map_err(SuiteError::Refused)
        };
        self.insert(name, Arc::new(suite))
    }

    fn insert(mut self, name: String, make: Arc<Make>) -> Self {
        assert!(!self.entries.contains_key(&name), "two environments are called {name}");
        self.entries.insert(name, make);
        self
    }

    /// Returns the names of all environments, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Makes the environment with this name. `options` is an object, or null for the defaults.
    ///
    /// # Errors
    /// When no environment has the name, or it cannot be made from these options.
    pub fn suite(&self, name: &str, options: &Value) -> Result<Suite, SuiteError> {
        let Some(make) = self.entries.get(name) else {
            let known = self.names().map(str::to_owned).collect();
            return Err(SuiteError::UnknownEnvironment { name: name.to_owned(), known });
        };
        make(options)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.entries.keys()).finish()
    }
}

/// The reason why an environment cannot be made.
#[derive(Debug)]
pub enum SuiteError {
    /// No environment has the name.
    UnknownEnvironment {
        /// The requested name.
        name: String,
        /// The known names.
        known: Vec<String>,
    },
    /// The environment has no such option.
    UnknownOption {
        /// The environment.
        environment: String,
        /// The unknown option.
        option: String,
        /// The known options.
        known: Vec<String>,
    },
    /// The options are not a table.
    NotOptions {
        /// The environment.
        environment: String,
    },
    /// The value of an option is of the wrong kind.
    WrongValue {
        /// The environment.
        environment: String,
        /// The option.
        option: String,
        /// What is wrong, and what is expected instead.
        why: String,
    },
    /// The environment has no rubric with the name.
    UnknownRubric {
        /// The environment.
        environment: String,
        /// The requested name.
        rubric: String,
        /// The known names.
        known: Vec<String>,
    },
    /// The environment cannot have the opponent.
    Opponent {
        /// The environment.
        environment: String,
        /// The opponent, as the settings name it.
        opponent: String,
        /// The setting.
        key: &'static str,
        /// The reason.
        why: String,
    },
    /// The options do not fit together, or a value is out of range.
    Refused(EnvironmentError),
}

/// The name that disables rubrics.
const NO_RUBRIC: &str = "none";

/// Returns the rubric that `environment.rubric` names: the environment's first one if nothing is named.
///
/// # Errors
/// If the environment has no rubric of that name.
pub(crate) fn rubric(
    suite: &Suite,
    name: Option<&str>,
) -> Result<Option<Arc<dyn Rubric>>, SuiteError> {
    let rubrics = suite.rubrics();
    match name {
        None => Ok(rubrics.first().cloned()),
        Some(NO_RUBRIC) => Ok(None),
        Some(name) => match rubrics.iter().find(|rubric| rubric.name() == name) {
            Some(rubric) => Ok(Some(rubric.clone())),
            None => Err(SuiteError::UnknownRubric {
                environment: suite.name().to_owned(),
                rubric: name.to_owned(),
                known: rubrics.iter().map(|rubric| rubric.name().to_owned()).collect(),
            }),
        },
    }
}

/// The help on how a program offers its own environment.
const OWN: &str = "an environment of your own is offered by a program of your own:  turnwise env new NAME  writes one, whose main is\n\
                   turnwise::main(Registry::builtin().with(suite))";

impl SuiteError {
    /// Returns what to try instead, for the line after the error.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::UnknownEnvironment { name, known } => {
                Some(format!("{}\n{OWN}", suggestion(name, known, "environments")))
            }
            Self::UnknownOption { environment, known, .. } if known.is_empty() => {
                Some(format!("`{environment}` has no options"))
            }
            Self::UnknownOption { option, known, .. } => Some(suggestion(option, known, "options")),
            Self::UnknownRubric { environment, known, .. } if known.is_empty() => {
                Some(format!("`{environment}` has no rubrics; Suite::rubric adds one"))
            }
            Self::UnknownRubric { rubric, known, .. } => {
                let known: Vec<String> =
                    known.iter().cloned().chain([NO_RUBRIC.to_owned()]).collect();
                Some(suggestion(rubric, &known, "rubrics"))
            }
            Self::Opponent { .. } => Some(
                "the opponents are self, expert, random, and the directory of a model".to_owned(),
            ),
            Self::NotOptions { .. } | Self::WrongValue { .. } | Self::Refused(_) => None,
        }
    }

    /// Returns the key of the wrong setting.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::UnknownEnvironment { .. } => "environment.name".to_owned(),
            Self::UnknownOption { option, .. } | Self::WrongValue { option, .. } => {
                format!("environment.options.{option}")
            }
            Self::UnknownRubric { .. } => "environment.rubric".to_owned(),
            Self::Opponent { key, .. } => (*key).to_owned(),
            Self::NotOptions { .. } | Self::Refused(_) => "environment.options".to_owned(),
        }
    }
}

/// Returns the most similar known word as a suggestion, and all known words.
fn suggestion(found: &str, known: &[String], what: &str) -> String {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let all = format!("the {what} are {}", known.join(", "));
    match nearest(found, &known) {
        Some(meant) => format!("did you mean `{meant}`? {all}"),
        None => all,
    }
}

impl fmt::Display for SuiteError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownEnvironment { name, .. } => {
                write!(formatter, "no environment is called `{name}`")
            }
            Self::UnknownOption { environment, option, .. } => {
                write!(formatter, "unknown option `{option}` of environment `{environment}`")
            }
            Self::NotOptions { environment } => {
                write!(formatter, "the options of environment `{environment}` are not a table")
            }
            Self::WrongValue { environment, option, why } => {
                write!(formatter, "option `{option}` of environment `{environment}`: {why}")
            }
            Self::UnknownRubric { environment, rubric, .. } => {
                write!(formatter, "environment `{environment}` has no rubric `{rubric}`")
            }
            Self::Opponent { environment, opponent, why, .. } => write!(
                formatter,
                "environment `{environment}` cannot have the opponent `{opponent}`: {why}"
            ),
            Self::Refused(error) => write!(formatter, "{error}"),
        }
    }
}

impl std::error::Error for SuiteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // The message is the refusal's own, so its source comes next.
            Self::Refused(error) => error.source(),
            _ => None,
        }
    }
}

impl From<SuiteError> for Failure {
    fn from(error: SuiteError) -> Self {
        if let SuiteError::Refused(error) = &error {
            return Self::refused_by(error);
        }
        let failure = Self::refused(error.to_string());
        match error.help() {
            Some(help) => failure.help(help),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnwise_environment::Split;

    use super::*;

    fn refused(name: &str, value: &Value) -> (String, Option<String>) {
        let error = Registry::builtin().suite(name, value).expect_err("it is refused");
        (error.to_string(), error.help())
    }

    #[test]
    fn every_environment_is_made_under_its_name() {
        let registry = Registry::builtin();
        for name in registry.names() {
            match registry.suite(name, &Value::Null) {
                Ok(suite) => assert_eq!(suite.name(), name),
                // A server has no default address.
                Err(error) => {
                    assert!(["openenv", "ors", "verifiers"].contains(&name), "{error}");
                    let option = if name == "verifiers" { "address" } else { "url" };
                    assert!(error.to_string().contains(&format!("set `{option}`")), "{error}");
                }
            }
        }
    }

    struct Always(&'static str);

    #[turnwise_environment::async_trait]
    impl Rubric for Always {
        fn name(&self) -> &str {
            self.0
        }

        async fn score(
            &self,
            group: &[turnwise_environment::Transcript],
        ) -> Result<Vec<Option<f64>>, EnvironmentError> {
            Ok(vec![Some(1.0); group.len()])
        }
    }

    #[test]
    fn a_rubric_is_found_by_its_name() {
        let plain = Registry::builtin().suite("guess", &Value::Null).expect("the defaults are fit");
        let found = |suite: &Suite, name: Option<&str>| {
            rubric(suite, name).map(|rubric| rubric.map(|rubric| rubric.name().to_owned()))
        };
        assert_eq!(found(&plain, None).expect("none is needed"), None);
        let none = found(&plain, Some("brevity")).expect_err("it has none");
        assert!(none.help().is_some_and(|help| help.contains("has no rubrics")));
        let suite = plain.rubric(Always("brevity")).rubric(Always("manners"));
        assert_eq!(found(&suite, None).expect("the first"), Some("brevity".to_owned()));
        assert_eq!(found(&suite, Some("manners")).expect("named"), Some("manners".to_owned()));
        assert_eq!(found(&suite, Some("none")).expect("none"), None);
        let unknown = found(&suite, Some("manner")).expect_err("there is none");
        assert_eq!(unknown.to_string(), "environment `guess` has no rubric `manner`");
        assert_eq!(unknown.key(), "environment.rubric");
        assert!(unknown.help().is_some_and(|help| help.contains("did you mean `manners`?")));
    }

    #[test]
    fn options_reach_the_environment() {
        let suite =
            Registry::builtin().suite("guess", &json!({"numbers": 8, "span": 8, "turns": 3}));
        let suite = suite.expect("the options are fit");
        assert_eq!(suite.turn_limit(), Some(3));
        assert_eq!(suite.tasks(Split::Train).len() + suite.tasks(Split::HeldOut).len(), 8);
    }

    #[test]
    fn an_unknown_environment_is_named_with_those_there_are_and_the_way_to_offer_one() {
        let (error, help) = refused("gues", &json!({}));
        assert_eq!(error, "no environment is called `gues`");
        let help = help.expect("there is help");
        assert!(help.starts_with(
            "did you mean `guess`? the environments are calculator, guess, openenv, ors, program, verifiers\n"
        ));
        assert!(
            help.contains("turnwise env new NAME") && help.contains("turnwise::main("),
            "{help}"
        );
    }

    #[test]
    fn an_unknown_option_is_named_with_those_there_are() {
        let (error, help) = refused("calculator", &json!({"turn": 4}));
        assert_eq!(error, "unknown option `turn` of environment `calculator`");
        let expected = "did you mean `turns`? the options are operations, max_operand, max_value, tasks, turns";
        assert_eq!(help.as_deref(), Some(expected));
        assert_eq!(
            refused("guess", &json!({"x": 4})).1.as_deref(),
            Some("the options are numbers, span, turns")
        );
    }

    #[test]
    fn an_environment_without_options_refuses_every_option() {
        let guess = Registry::builtin().suite("guess", &Value::Null).expect("the defaults are fit");
        let registry = Registry::empty().with(guess);
        assert!(registry.suite("guess", &json!({})).is_ok());
        let error = registry.suite("guess", &json!({"turns": 4})).expect_err("it has none");
        assert_eq!(error.to_string(), "unknown option `turns` of environment `guess`");
        assert_eq!(error.help().as_deref(), Some("`guess` has no options"));
    }

    #[test]
    fn a_wrong_value_is_named() {
        let (error, help) = refused("guess", &json!({"turns": 4, "span": "wide"}));
        let expected =
            "option `span` of environment `guess`: invalid type: string \"wide\", expected u32";
        assert_eq!((error.as_str(), help), (expected, None));
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_the_environment() {
        let (error, _) = refused("guess", &json!({"span": 1}));
        assert_eq!(error, "cannot set up guess: span is 1, and must lie from 2 to numbers, 20");
    }

    #[test]
    fn options_are_a_table() {
        let (error, _) = refused("guess", &json!([1]));
        assert_eq!(error, "the options of environment `guess` are not a table");
    }
}
