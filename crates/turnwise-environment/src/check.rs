//! Checks of the contracts of this crate: what a test asserts and a command reports about an environment.
//!
//! [`check_environment`] plays one environment, [`check_suite`] the sampled tasks of both splits of a suite. Neither panics
//! whatever the environment does, panics included: every finding is a [`Check`]. (The panic hook still runs, and by default
//! prints what it caught.)
//!
//! Not supported: an environment that never answers. There is no clock in here, so whoever may meet one wraps the call in
//! a timeout.

mod contract;
mod episode;
mod guard;
mod hostile;
mod isolation;
mod measure;
mod recovery;
mod snapshot;
mod suite;

use crate::{Demonstrator, Environment};
use contract::Contract;
use episode::Subject;

pub use measure::{Measured, Player, measure};
pub use suite::check_suite;

/// How many episodes the seeded checks play.
const N_SEEDS: u64 = 64;

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What must hold, in a few words; the same text in every run.
    pub name: &'static str,
    /// What was seen, or what is wrong.
    pub result: Result<String, String>,
}

impl Check {
    /// Whether it holds.
    ///
    /// ```
    /// use turnwise_environment::check::Check;
    ///
    /// let check = Check { name: "tools stay the same", result: Ok("1 tool".to_owned()) };
    /// assert!(check.passed());
    /// ```
    #[must_use]
    pub fn passed(&self) -> bool {
        self.result.is_ok()
    }
}

/// Checks the contract of [`Environment`] on the environments `make` returns, which are all of one task.
///
/// `player` makes a demonstrator from a seed; its episodes are what is repeated, snapshotted and disturbed with hostile
/// actions. `max_turns` is the number of turns after which every episode must be over, and `None` for an environment that
/// sets itself no limit.
///
/// ```
/// use turnwise_environment::check::check_environment;
/// use turnwise_environment::{
///     Action, Demonstrator, Environment, EnvironmentError, Observation, Step, async_trait,
/// };
///
/// struct Coin;
///
/// #[async_trait]
/// impl Environment for Coin {
///     async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
///         Ok("Heads or tails?".into())
///     }
///
///     async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
///         Ok(Step::terminated(f64::from(u8::from(action.text == "heads"))))
///     }
/// }
///
/// struct Heads;
///
/// impl Demonstrator for Heads {
///     fn act(&mut self, _observation: &Observation) -> Action {
///         Action::text("heads")
///     }
/// }
///
/// async fn passes() -> bool {
///     let checks = check_environment(|| Box::new(Coin), |_seed| Box::new(Heads), Some(1)).await;
///     checks.iter().all(|check| check.passed())
/// }
/// ```
pub async fn check_environment(
    make: impl Fn() -> Box<dyn Environment> + Send + Sync,
    player: impl Fn(u64) -> Box<dyn Demonstrator> + Send + Sync,
    max_turns: Option<usize>,
) -> Vec<Check> {
    let subject =
        Subject { label: String::new(), make: Box::new(make), player: Box::new(player), max_turns };
    let mut contract = Contract::default();
    contract.examine(&subject, 0..N_SEEDS).await;
    contract.into_checks()
}
