//! `turnwise env`: lists, checks and creates environments.

mod check;
mod list;
mod new;

use std::io::{self, Write};
use std::path::Path;

use turnwise_run::{ExitCode, Failure, Registry, from_arguments};

/// Implements `turnwise env list`.
///
/// # Errors
/// When `out` fails.
pub(crate) async fn list(registry: &Registry, out: impl Write) -> Result<(), Failure> {
    unless_closed(list::list(registry, out).await)
}

/// Implements `turnwise env check`; options are like `span=20`.
///
/// # Errors
/// When the environment does not exist or breaks its contract, or `out` fails.
pub(crate) async fn check(
    registry: &Registry,
    name: &str,
    options: &[String],
    out: impl Write,
) -> Result<(), Failure> {
    let suite = registry.suite(name, &from_arguments(options)?)?;
    let mut n_failed = 0;
    unless_closed(check::check(&suite, out).await.map(|n| n_failed = n))?;
    match n_failed {
        0 => Ok(()),
        1 => Err(Failure::new(ExitCode::Runtime, format!("`{name}` fails a check"))),
        n => Err(Failure::new(ExitCode::Runtime, format!("`{name}` fails {n} checks"))),
    }
}

/// Implements `turnwise env new`: writes a crate into the current directory.
///
/// # Errors
/// When the name is taken or invalid, there is no source to depend on, or a file cannot be written.
pub(crate) fn new(registry: &Registry, name: &str, source: Option<&str>) -> Result<(), Failure> {
    crate::say(&new::create(registry, Path::new(""), name, source)?)
}

/// Treats a closed output as success.
fn unless_closed(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(ExitCode::Runtime, format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_takes_options_as_arguments() {
        let mut out = Vec::new();
        // With this number of turns, random guesses find most secrets.
        let options = ["numbers=8".to_owned(), "span=8".to_owned(), "turns=7".to_owned()];
        let checked = check(&Registry::builtin(), "guess", &options, &mut out).await;
        let failure = checked.expect_err("a check fails");
        assert_eq!(failure.to_string(), "error: `guess` fails a check\n");
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains("\n✗ the random player earns little\n    solves "), "{text}");
        assert!(text.ends_with("\nguess: 15 of 16 checks passed\n"), "{text}");
    }

    #[tokio::test]
    async fn a_mistake_in_an_option_comes_with_help() {
        let registry = Registry::builtin();
        let failure = check(&registry, "guess", &["sapn=8".to_owned()], io::sink()).await;
        let expected = "\
error: unknown option `sapn` of environment `guess`
  help: did you mean `span`? the options are numbers, span, turns
";
        assert_eq!(failure.expect_err("it is refused").to_string(), expected);
    }
}
