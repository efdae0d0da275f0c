//! `turnwise env check`.

use std::io::{self, Write};
use std::panic::{PanicHookInfo, set_hook, take_hook};
use std::time::Duration;

use turnwise_environment::Suite;
use turnwise_environment::check::{Check, check_suite};

use turnwise_run::text::one_line;

/// The time limit for an environment that does not answer; an environment that blocks the thread cannot be stopped.
const PATIENCE: Duration = Duration::from_mins(5);

/// Checks an environment, writes the results, and returns the number of failed checks.
///
/// Needs a runtime with time. Panics are results here, so the panic hook of the whole process is silent meanwhile.
///
/// # Errors
/// When `out` fails.
pub(super) async fn check(suite: &Suite, mut out: impl Write) -> io::Result<usize> {
    let checks = {
        let _silence = Silence::begin();
        tokio::time::timeout(PATIENCE, check_suite(suite)).await
    };
    let checks = checks.unwrap_or_else(|_| vec![unanswered()]);
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    for check in &checks {
        writeln!(out, "{}", told(check, width))?;
    }
    let n_passed = checks.iter().filter(|check| check.passed()).count();
    writeln!(out, "\n{}: {n_passed} of {} checks passed", suite.name(), checks.len())?;
    Ok(checks.len() - n_passed)
}

fn unanswered() -> Check {
    let why = format!("the checks were not over after {} s", PATIENCE.as_secs());
    Check { name: "answers in time", result: Err(why) }
}

/// Formats a check as `✓ name  detail`; a problem has a line of its own.
fn told(check: &Check, width: usize) -> String {
    match &check.result {
        Ok(seen) => format!("✓ {:width$}  {}", check.name, one_line(seen)),
        Err(wrong) => format!("✗ {}\n    {}", check.name, one_line(wrong)),
    }
}

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Sync + Send>;

/// Silences panics until it is dropped.
struct Silence {
    hook: Option<Hook>,
}

impl Silence {
    fn begin() -> Self {
        let hook = Some(take_hook());
        set_hook(Box::new(|_| {}));
        Self { hook }
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // A panicking thread must not set the hook, which would abort the process.
        if let Some(hook) = self.hook.take().filter(|_| !std::thread::panicking()) {
            set_hook(hook);
        }
    }
}

#[cfg(test)]
mod tests {
    use turnwise_run::Registry;

    use super::*;

    #[tokio::test]
    async fn every_environment_holds_its_contract() {
        let registry = Registry::builtin();
        for name in registry.names() {
            // A server is there for none but those who name it.
            let Ok(suite) = registry.suite(name, &serde_json::Value::Null) else {
                assert!(["openenv", "ors", "verifiers"].contains(&name));
                continue;
            };
            let mut out = Vec::new();
            let n_failed = check(&suite, &mut out).await;
            let text = String::from_utf8_lossy(&out);
            assert_eq!(n_failed.expect("a vector takes what is written"), 0, "{text}");
            assert!(text.starts_with("✓ names and versions are usable  "), "{text}");
            assert!(text.ends_with("16 of 16 checks passed\n"), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_has_its_own_line() {
        let wrong = Check { name: "rewards finite", result: Err("NaN\n at turn 3".to_owned()) };
        assert_eq!(told(&wrong, 20), "✗ rewards finite\n    NaN  at turn 3");
        let right = Check { name: "rewards finite", result: Ok("0 to 1".to_owned()) };
        assert_eq!(told(&right, 20), "✓ rewards finite        0 to 1");
    }
}
