use std::ops::RangeInclusive;

use async_trait::async_trait;

use crate::{Action, EnvironmentError, Observation, Recovery, Services, Step, ToolSpec};

/// One episode of an environment that an agent acts in: a game, a task with tools, a sandbox, a database.
///
/// # Contract
///
/// - The caller calls [`reset`](Self::reset) (or [`restore`](Self::restore)) once, then [`step`](Self::step) until it
///   returns [`Step::End`], and nothing after that. An environment is used for one episode and then dropped.
/// - All randomness comes from the seed of `reset`: the same seed and the same actions give the same observations and
///   rewards. The attempts of a group share the seed.
/// - Any action may come: empty text, 100 KB of noise, calls of tools that do not exist. The answer to an agent's
///   mistake is an observation. `Err`, [`Step::failed`] and a panic are for failures that are *not* the agent's doing;
///   the episode is then excluded from training and may be tried again with a fresh environment.
/// - Rewards are finite, and their sum lies in [`reward_range`](Self::reward_range).
/// - `step` may be slow; it should be `async` where it waits. If it computes or blocks for more than a few
///   milliseconds, [`is_blocking`](Self::is_blocking) must return true. A call that exceeds its deadline is dropped at
///   an await point together with the environment; a call that never awaits loses its thread.
///
/// A wrong use is to return an error for an answer that cannot be parsed: it hides the agent's mistake from training.
/// The repair is `Ok(Step::next("Answer with one digit.").faults(1))`.
///
/// # Example
///
/// ```
/// use turnwise_environment::{Action, Environment, EnvironmentError, Observation, Step, async_trait};
///
/// struct Coin(bool);
///
/// #[async_trait]
/// impl Environment for Coin {
///     async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
///         self.0 = seed % 2 == 0;
///         Ok("Heads or tails?".into())
///     }
///
///     async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
///         let said = action.text.trim() == "heads";
///         Ok(Step::terminated(f64::from(u8::from(said == self.0))))
///     }
/// }
/// ```
#[async_trait]
pub trait Environment: Send {
    /// Begins the episode and returns the first observation.
    ///
    /// # Errors
    /// When the episode cannot start.
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError>;

    /// Answers one action.
    ///
    /// # Errors
    /// When the episode cannot go on for a reason that is not the agent's doing.
    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError>;

    /// Returns the tools that the agent is told about; constant over the episode.
    fn tools(&self) -> Vec<ToolSpec> {
        Vec::new()
    }

    /// Returns the number of seats, which is constant over the episode. The first seat is 0.
    ///
    /// Each seat has its own agent, conversation and trajectory. It sees the observations addressed to it, and all seats
    /// have the same tools. A seat that acts needs a reward, 0 for instance, unless a rubric scores the episode: an episode
    /// with a seat that nobody scored is an infrastructure fault. The number is read before [`reset`](Self::reset).
    fn n_seats(&self) -> usize {
        1
    }

    /// Returns the range of the sum of an episode's rewards; a sum outside it is an infrastructure fault, not a reward.
    fn reward_range(&self) -> RangeInclusive<f64> {
        f64::MIN..=f64::MAX
    }

    /// Returns the reward that is added to an episode's rewards when the agent exhausts its fault budget. `None` leaves
    /// it to the run's settings.
    fn fault_reward(&self) -> Option<f64> {
        None
    }

    /// Returns the state as bytes, from which [`restore`](Self::restore) continues identically; `None` if the
    /// environment does not support snapshots.
    ///
    /// A snapshot is taken between two steps. An environment without snapshots is kept alive in memory while its
    /// episode is suspended; after a crash that episode starts anew.
    fn snapshot(&self) -> Option<Vec<u8>> {
        None
    }

    /// Continues from a snapshot; called instead of `reset`, on a fresh environment of the same task.
    ///
    /// # Errors
    /// When the bytes are not a snapshot of this environment, or the environment does not support snapshots.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        let _ = snapshot;
        Err(EnvironmentError::new("cannot restore an environment that takes no snapshots"))
    }

    /// Returns how an episode goes on in another process; constant over the episode, and read after
    /// [`reset`](Self::reset).
    ///
    /// The default follows from `snapshot`: an environment that takes snapshots goes on from them, and any other starts
    /// anew. An environment whose steps are cheap and depend on nothing but the seed and the actions can return
    /// [`Recovery::Replay`], and needs no snapshot.
    fn recovery(&self) -> Recovery {
        if self.snapshot().is_some() { Recovery::Snapshot } else { Recovery::Restart }
    }

    /// Passes the episode's services to the environment, before `reset` or `restore`. An environment with a
    /// [`Toolbox`](crate::Toolbox) passes them on with [`Toolbox::connect`](crate::Toolbox::connect), so that its calls
    /// are in the ledger; any other ignores them.
    fn connect(&mut self, services: &Services) {
        let _ = services;
    }

    /// Returns whether `reset` and `step` compute or block for long without an await. They then run on a thread of a
    /// bounded pool, where they do not delay other episodes.
    fn is_blocking(&self) -> bool {
        false
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<E: Environment + ?Sized> Environment for Box<E> {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        (**self).reset(seed).await
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        (**self).step(action).await
    }

    fn tools(&self) -> Vec<ToolSpec> {
        (**self).tools()
    }

    fn n_seats(&self) -> usize {
        (**self).n_seats()
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        (**self).reward_range()
    }

    fn fault_reward(&self) -> Option<f64> {
        (**self).fault_reward()
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        (**self).snapshot()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        (**self).restore(snapshot)
    }

    fn recovery(&self) -> Recovery {
        (**self).recovery()
    }

    fn connect(&mut self, services: &Services) {
        (**self).connect(services);
    }

    fn is_blocking(&self) -> bool {
        (**self).is_blocking()
    }
}
