//! Tests that each check of objectives and credits passes what is right and finds what is wrong.

mod credits;
mod objectives;

use std::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};

/// Runs a check on generated values, and returns why it fails; `None` if it passes them all.
fn failure<S: Strategy>(values: S, check: impl Fn(S::Value) -> TestCaseResult) -> Option<String>
where
    S::Value: Debug,
{
    let config = Config { failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRunner::deterministic().new_rng());
    runner.run(&values, check).err().map(|error| error.to_string())
}

/// Checks that a check passes what is right, and that it finds what is wrong for the reason that it names.
fn tells_apart<T: Copy, S: Strategy>(
    right: T,
    wrong: T,
    reason: &str,
    values: impl Fn() -> S,
    check: impl Fn(T, S::Value) -> TestCaseResult,
) where
    S::Value: Debug,
{
    assert_eq!(failure(values(), |value| check(right, value)), None, "{reason}");
    let found = failure(values(), |value| check(wrong, value));
    let found = found.unwrap_or_else(|| panic!("{reason}: the check finds nothing"));
    assert!(found.contains(&format!("{reason}: ")), "{reason}: {found}");
}
