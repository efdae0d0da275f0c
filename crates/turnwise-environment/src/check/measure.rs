use super::episode::Subject;
use crate::{Babbler, Demonstrator, Seat, Split, Suite, derive_seed};

/// The choice of a suite's player.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Player {
    /// The player of [`Suite::make_expert`].
    Expert,
    /// The player of [`Suite::make_random`].
    Random,
}

impl Player {
    /// Makes the player, if the suite offers it.
    fn of(self, suite: &Suite, seed: u64) -> Option<Box<dyn Demonstrator>> {
        match self {
            Self::Expert => suite.make_expert(seed),
            Self::Random => suite.make_random(seed),
        }
    }
}

/// A player's results over some episodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The number of episodes played.
    pub n_episodes: usize,
    /// The mean over episodes of the sum of an episode's rewards.
    pub reward_mean: f64,
    /// The fraction of episodes that were solved, from 0 to 1.
    pub solved_rate: f64,
}

/// Plays `n_episodes` episodes of a player, spread evenly over the tasks of a split. Returns `None` if the suite does
/// not offer the player.
///
/// # Errors
/// When an environment or the player breaks its contract (an error, a panic, an episode without end); the text names
/// the task.
///
/// # Example
///
/// ```
/// use turnwise_environment::check::{Player, measure};
/// use turnwise_environment::{Split, Suite};
///
/// async fn expert_solves_all(suite: &Suite) -> Result<bool, String> {
///     let expert = measure(suite, Split::HeldOut, Player::Expert, 100).await?;
///     Ok(expert.is_some_and(|expert| expert.solved_rate == 1.0))
/// }
/// ```
pub async fn measure(
    suite: &Suite,
    split: Split,
    player: Player,
    n_episodes: usize,
) -> Result<Option<Measured>, String> {
    if player.of(suite, 0).is_none() {
        return Ok(None);
    }
    let mut reward = 0.0;
    let mut n_solved = 0;
    for (label, subject) in subjects(suite, split, n_episodes, player) {
        let seed = derive_seed(1, label);
        let episode =
            subject.played(seed).await.map_err(|why| format!("{}: {why}", subject.label))?;
        if let Some(limit) = suite.turn_limit().filter(|_| !episode.ended()) {
            return Err(format!("{}: not over after {limit} turns", subject.label));
        }
        reward += episode.rewards(Seat::default()).iter().sum::<f64>();
        n_solved += usize::from(episode.solved());
    }
    let n = n_episodes.max(1) as f64;
    Ok(Some(Measured { n_episodes, reward_mean: reward / n, solved_rate: n_solved as f64 / n }))
}

/// Returns each episode's number and its subject.
fn subjects(
    suite: &Suite,
    split: Split,
    n_episodes: usize,
    player: Player,
) -> impl Iterator<Item = (u64, Subject<'_>)> {
    let n_tasks = suite.tasks(split).len();
    // A split without tasks has no episodes; another check reports the empty split.
    (0..if n_tasks == 0 { 0 } else { n_episodes }).map(move |episode| {
        // Episodes beyond the number of tasks begin again at the first.
        let index =
            if n_episodes < n_tasks { episode * n_tasks / n_episodes } else { episode % n_tasks };
        (episode as u64, subject(suite, split, index, move |_| player))
    })
}

/// Returns one task of a suite as a subject; `player` chooses the player for a seed.
pub(super) fn subject<'a>(
    suite: &'a Suite,
    split: Split,
    index: usize,
    player: impl Fn(u64) -> Player + Send + Sync + 'a,
) -> Subject<'a> {
    let tasks = suite.tasks(split);
    let tools_of = suite.tasks(split);
    let name = match split {
        Split::Train => "train",
        Split::HeldOut => "held-out",
    };
    Subject {
        label: format!("{name} task {index}"),
        make: Box::new(move || tasks.environment(index)),
        player: Box::new(move |seed, seat| {
            let seed = seed ^ u64::from(seat.0);
            let babbler =
                || Box::new(Babbler::new(seed, tools_of.environment(index).tools())) as Box<_>;
            // The player that is measured has the first seat, and meets random players.
            let player = if seat.is_first() { player(seed) } else { Player::Random };
            player.of(suite, seed).unwrap_or_else(babbler)
        }),
        max_turns: suite.turn_limit(),
    }
}
