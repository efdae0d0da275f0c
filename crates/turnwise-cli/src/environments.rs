//! The environments that are built in: found by name, listed, checked.

mod check;
mod list;
mod options;

use std::fmt;
use std::io::{self, Write};

use serde_json::Value;
use turnwise::environment::{EnvironmentError, Suite};
use turnwise_calculator::Calculator;
use turnwise_guess::Guess;

use crate::config::nearest;
use crate::failure::{ExitCode, Failure};
use options::read;

pub(crate) use options::from_arguments;

/// An environment that can be made from options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    make: fn(&Value) -> Result<Box<dyn Suite>, SuiteError>,
}

/// In alphabetical order. A new environment is one more entry.
const ENTRIES: [Entry; 2] = [
    Entry {
        name: "calculator",
        make: |options| made(Calculator::new(read("calculator", options)?)),
    },
    Entry { name: "guess", make: |options| made(Guess::new(read("guess", options)?)) },
];

/// Every environment, in alphabetical order.
pub(crate) fn suites() -> &'static [Entry] {
    &ENTRIES
}

/// Makes the environment of a name. `options` is an object, or null for the defaults.
///
/// # Errors
/// When there is none of that name, or it cannot be made from these options.
pub(crate) fn suite(name: &str, options: &Value) -> Result<Box<dyn Suite>, SuiteError> {
    match ENTRIES.iter().find(|entry| entry.name == name) {
        Some(entry) => entry.suite(options),
        None => Err(SuiteError::UnknownEnvironment { name: name.to_owned() }),
    }
}

/// `turnwise env list`.
///
/// # Errors
/// When `out` fails.
pub(crate) async fn list(out: impl Write) -> Result<(), Failure> {
    unless_closed(list::list(out).await)
}

/// `turnwise env check`: options as in `span=20`.
///
/// # Errors
/// When there is no such environment, it breaks its contract, or `out` fails.
pub(crate) async fn check(name: &str, options: &[String], out: impl Write) -> Result<(), Failure> {
    let suite = suite(name, &from_arguments(options)?)?;
    let mut n_failed = 0;
    unless_closed(check::check(suite.as_ref(), out).await.map(|n| n_failed = n))?;
    match n_failed {
        0 => Ok(()),
        1 => Err(Failure::new(ExitCode::Runtime, format!("`{name}` fails a check"))),
        n => Err(Failure::new(ExitCode::Runtime, format!("`{name}` fails {n} checks"))),
    }
}

/// A reader that went away is no failure.
fn unless_closed(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(ExitCode::Runtime, format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

impl Entry {
    /// Makes it; options that are left out have their defaults.
    ///
    /// # Errors
    /// When an option is unknown or its value unfit.
    pub(crate) fn suite(&self, options: &Value) -> Result<Box<dyn Suite>, SuiteError> {
        (self.make)(options)
    }
}

fn made<S: Suite + 'static>(
    suite: Result<S, EnvironmentError>,
) -> Result<Box<dyn Suite>, SuiteError> {
    suite.map(|suite| Box::new(suite) as Box<dyn Suite>).map_err(SuiteError::Refused)
}

/// Why there is no such environment.
#[derive(Debug)]
pub(crate) enum SuiteError {
    /// None has that name.
    UnknownEnvironment {
        /// The name.
        name: String,
    },
    /// It has no such option.
    UnknownOption {
        /// The environment.
        environment: &'static str,
        /// The option.
        option: String,
        /// The options it has.
        known: &'static [&'static str],
    },
    /// The options are no table of options.
    NotOptions {
        /// The environment.
        environment: &'static str,
    },
    /// The value of an option is of the wrong kind.
    WrongValue {
        /// The environment.
        environment: &'static str,
        /// The option.
        option: String,
        /// What is wrong, and what is expected.
        why: String,
    },
    /// The options do not fit together, or a value is out of range.
    Refused(EnvironmentError),
}

impl SuiteError {
    /// What to try instead, for the line after the error.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::UnknownEnvironment { name } => {
                let names: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
                Some(suggestion(name, &names, "environments"))
            }
            Self::UnknownOption { option, known, .. } => Some(suggestion(option, known, "options")),
            Self::NotOptions { .. } | Self::WrongValue { .. } | Self::Refused(_) => None,
        }
    }
}

/// The word that was probably meant, and all there are.
fn suggestion(found: &str, known: &[&str], what: &str) -> String {
    let all = format!("the {what} are {}", known.join(", "));
    match nearest(found, known) {
        Some(meant) => format!("did you mean `{meant}`? {all}"),
        None => all,
    }
}

impl fmt::Display for SuiteError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownEnvironment { name } => {
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
            Self::Refused(error) => write!(formatter, "{error}"),
        }
    }
}

impl std::error::Error for SuiteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // The message is the refusal's own, so the cause is its cause.
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
    use super::*;
    use serde_json::json;
    use turnwise::environment::Split;

    fn refused(name: &str, value: &Value) -> (String, Option<String>) {
        let error = suite(name, value).err().expect("it is refused");
        (error.to_string(), error.help())
    }

    #[test]
    fn every_entry_is_made_under_its_name() {
        let names: Vec<&str> = suites().iter().map(|entry| entry.name).collect();
        assert!(names.is_sorted());
        for entry in suites() {
            let suite = entry.suite(&Value::Null).expect("the defaults are fit");
            assert_eq!(suite.name(), entry.name);
        }
    }

    #[test]
    fn options_reach_the_environment() {
        let suite = suite("guess", &json!({"numbers": 8, "span": 8, "turns": 3}));
        let suite = suite.expect("the options are fit");
        assert_eq!(suite.max_turns(), 3);
        assert_eq!(suite.tasks(Split::Train).len() + suite.tasks(Split::HeldOut).len(), 8);
    }

    #[test]
    fn an_unknown_environment_is_named_with_those_there_are() {
        let (error, help) = refused("gues", &json!({}));
        assert_eq!(error, "no environment is called `gues`");
        let expected = "did you mean `guess`? the environments are calculator, guess";
        assert_eq!(help.as_deref(), Some(expected));
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
    fn a_wrong_value_is_named() {
        let (error, help) = refused("guess", &json!({"turns": 4, "span": "wide"}));
        let expected =
            "option `span` of environment `guess`: invalid type: string \"wide\", expected u32";
        assert_eq!((error.as_str(), help), (expected, None));
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_the_environment() {
        let (error, _) = refused("guess", &json!({"span": 1}));
        assert_eq!(error, "set up guess: span is 1, and must lie from 2 to numbers, 20");
    }

    #[test]
    fn options_are_a_table() {
        let (error, _) = refused("guess", &json!([1]));
        assert_eq!(error, "the options of environment `guess` are not a table");
    }

    #[tokio::test]
    async fn a_check_takes_options_as_arguments() {
        let mut out = Vec::new();
        // So many turns that guessing at random finds most secrets.
        let options = ["numbers=8".to_owned(), "span=8".to_owned(), "turns=7".to_owned()];
        let failure = check("guess", &options, &mut out).await.expect_err("a check fails");
        assert_eq!(failure.to_string(), "error: `guess` fails a check\n");
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains("\n✗ the random player earns little\n    solves "), "{text}");
        assert!(text.ends_with("\nguess: 15 of 16 checks passed\n"), "{text}");
    }

    #[tokio::test]
    async fn a_mistake_in_an_option_comes_with_help() {
        let failure = check("guess", &["sapn=8".to_owned()], io::sink()).await;
        let expected = "\
error: unknown option `sapn` of environment `guess`
  help: did you mean `span`? the options are numbers, span, turns
";
        assert_eq!(failure.expect_err("it is refused").to_string(), expected);
    }
}
