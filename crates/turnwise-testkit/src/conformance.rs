//! Conformance suites: the contracts of `turnwise-environment` and of `turnwise_rollout::Policy` as assertions, for the
//! tests of an environment or an engine.
//!
//! [`check`] tests an environment in one line, [`suite`] a suite; both panic with the list of failed checks.
//! [`policy()`] tests an engine. [`playthroughs`] keeps readable episodes beside the code. The checks of environments
//! themselves, without the panic, are in [`turnwise_environment::check`].

mod playthrough;
mod policy;
mod script;

use turnwise_environment::check::{Check, Player, check_environment, check_suite, measure};
use turnwise_environment::{Demonstrator, Environment, Split, Suite};

pub use playthrough::playthroughs;
pub use policy::{policy, policy_refusals};
pub use script::Script;

/// The number of episodes of each split that [`expert_solves`] plays.
const N_EXPERT: usize = 500;

/// Plays a script of texts and checks the environment's contract with it.
///
/// The script may leave the episode unfinished (its last text is then repeated), but no text may follow the end.
///
/// # Panics
/// Panics if the contract is broken, with every check that failed, or if the script continues after the end.
///
/// # Example
///
/// ```
/// use turnwise_environment::{
///     Action, Environment, EnvironmentError, Observation, Step, async_trait,
/// };
/// use turnwise_testkit::conformance;
///
/// struct Thermostat(i32);
///
/// #[async_trait]
/// impl Environment for Thermostat {
///     async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
///         Ok("Choose a setting from 0 to 9.".into())
///     }
///
///     async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
///         Ok(match action.text.trim().parse::<i32>() {
///             Ok(setting) if setting == self.0 => Step::terminated(1.0),
///             Ok(setting) if setting < self.0 => Step::next("Too cold."),
///             Ok(_) => Step::next("Too warm."),
///             Err(_) => Step::next("Answer with one digit.").faults(1),
///         })
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// conformance::check(|| Thermostat(6), &["2", "warm", "6"]).await;
/// # }
/// ```
pub async fn check<E: Environment + 'static>(make: impl Fn() -> E + Send + Sync, script: &[&str]) {
    script::plays(&make, script).await;
    let player = |_seed| Box::new(Script::new(script)) as Box<dyn Demonstrator>;
    environment(|| Box::new(make()), player, None).await;
}

/// Checks the contract of the environments that `make` returns, with a player for each seed.
///
/// Every episode must be over after `max_turns`; `None` for an environment without a limit.
///
/// # Panics
/// Panics if the contract is broken, with every check that failed.
pub async fn environment(
    make: impl Fn() -> Box<dyn Environment> + Send + Sync,
    player: impl Fn(u64) -> Box<dyn Demonstrator> + Send + Sync,
    max_turns: Option<usize>,
) {
    assert_passed("environment", &check_environment(make, player, max_turns).await);
}

/// Checks the contract of a suite, and of its environments over tasks of both splits.
///
/// # Panics
/// Panics if a contract is broken, with every check that failed.
pub async fn suite(suite: &Suite) {
    assert_passed(suite.name(), &check_suite(suite).await);
}

/// Checks that the expert solves at least this share, from 0 to 1, of 500 episodes of each split.
///
/// # Panics
/// Panics if the expert solves less, the suite offers none, or an environment breaks.
pub async fn expert_solves(suite: &Suite, at_least: f64) {
    for split in [Split::Train, Split::HeldOut] {
        let measured = measure(suite, split, Player::Expert, N_EXPERT)
            .await
            .unwrap_or_else(|why| panic!("the expert of {} cannot play: {why}", suite.name()))
            .unwrap_or_else(|| panic!("{} offers no expert", suite.name()));
        assert!(
            measured.solved_rate >= at_least,
            "the expert of {} solves {} of {split:?}, less than {at_least}",
            suite.name(),
            measured.solved_rate,
        );
    }
}

fn assert_passed(name: &str, checks: &[Check]) {
    let wrong: Vec<String> = checks
        .iter()
        .filter_map(|check| Some(format!("  {}: {}", check.name, check.result.as_ref().err()?)))
        .collect();
    assert!(
        wrong.is_empty(),
        "{name}: {} of {} checks failed\n{}",
        wrong.len(),
        checks.len(),
        wrong.join("\n"),
    );
}
