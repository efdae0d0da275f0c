//! Checks of the contracts of this crate, for tests that assert them and for commands that report them.
//!
//! [`check_environment`] plays one environment, [`check_suite`] the sampled tasks of both splits of a suite. Neither
//! panics, even if the environment does: every finding is a [`Check`]. (The panic hook still runs, and by default
//! prints the panic.)
//!
//! Not supported: an environment that never answers. The checks have no clock, so wrap the call in a timeout if that
//! can happen.

mod contract;
mod episode;
mod guard;
mod hostile;
mod isolation;
mod measure;
mod recovery;
mod snapshot;
mod suite;

use crate::{Demonstrator, Environment, Seat};
use contract::Contract;
use episode::Subject;

pub use measure::{Measured, Player, measure};
pub use suite::check_suite;

/// How many episodes the seeded checks play.
const N_SEEDS: u64 = 64;

/// The finding of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What must hold, in a few words; the text is constant from run to run.
    pub name: &'static str,
    /// What was observed if the check passed, or what is wrong.
    pub result: Result<String, String>,
}

impl Check {
    /// Returns whether the check passed.
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

/// Checks the contract of [`Environment`] on environments from `make`, which must all have the same task.
///
/// `player` makes a demonstrator from a seed; the checks repeat and snapshot its episodes, and disturb them with
/// hostile actions. `max_turns` is the number of turns after which every episode must be over, and `None` for an
/// environment without a limit of its own.
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
    let player = move |seed, seat: Seat| player(seed ^ u64::from(seat.0));
    let subject =
        Subject { label: String::new(), make: Box::new(make), player: Box::new(player), max_turns };
    let mut contract = Contract::default();
    contract.examine(&subject, 0..N_SEEDS).await;
    contract.into_checks()
}
