use std::sync::Arc;

use turnwise_environment::{Environment, TaskKey, TaskSet, derive_seed};
use turnwise_rollout::{Allowance, ChatAgents, Episode, EpisodeSnapshot, Limits, Policy, Progress};
use turnwise_testkit::{AlphabetRenderer, Hashed};
use turnwise_trajectory::{GroupId, Identity, InfraReason, Outcome, Trajectory};

pub(crate) const ENGINE: Hashed = Hashed { n_ids: 4 };

/// Runs a future to its end on one thread, with a clock that only advances when no task can run.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(future)
}

pub(crate) fn agents() -> ChatAgents {
    let renderer = Arc::new(AlphabetRenderer::new("abc"));
    ChatAgents::new(renderer)
}

pub(crate) fn limits() -> Limits {
    Limits { max_turn_tokens: 4, ..Limits::default() }
}

pub(crate) fn identity(tasks: &dyn TaskSet, seed: u64) -> Identity {
    Identity {
        environment: tasks.name().to_owned(),
        environment_version: tasks.version(),
        task: tasks.key(0),
        task_index: 0,
        group: GroupId(5),
        member: 0,
        attempt: 0,
        environment_seed: derive_seed(seed, 0),
        sampling_seed: derive_seed(seed, 1),
    }
}

pub(crate) fn episode(tasks: &dyn TaskSet, seed: u64) -> Episode {
    Episode::new(identity(tasks, seed), tasks.environment(0), &agents(), limits())
}

/// Advances an episode once and expects its end.
pub(crate) async fn finished(episode: Episode, policy: &dyn Policy) -> Trajectory {
    match episode.advance(policy, &Allowance::unlimited()).await {
        Progress::Finished(trajectory) => timeless(trajectory),
        Progress::Suspended(episode) => panic!("nothing stops {episode:?}"),
    }
}

/// Advances an episode by `tokens` tokens; returns `Err` with the trajectory if it ends.
pub(crate) async fn suspended(episode: Episode, tokens: u64) -> Result<Episode, Trajectory> {
    match episode.advance(&ENGINE, &Allowance::tokens(tokens)).await {
        Progress::Suspended(episode) => Ok(episode),
        Progress::Finished(trajectory) => Err(timeless(trajectory)),
    }
}

/// Restores an episode from its bytes, with nothing of the old one left.
pub(crate) fn reborn(episode: Episode, tasks: &dyn TaskSet) -> Episode {
    let bytes = episode.snapshot().expect("it goes on elsewhere").to_bytes();
    drop(episode);
    let snapshot = EpisodeSnapshot::from_bytes(&bytes).expect("the bytes are as they were written");
    Episode::restore(snapshot, tasks, &agents()).expect("what was suspended goes on")
}

/// Plays an episode to its end, through bytes at every suspension.
pub(crate) async fn played_in_pieces(
    tasks: &dyn TaskSet,
    seed: u64,
    allowances: &[u64],
) -> Trajectory {
    let mut episode = episode(tasks, seed);
    for tokens in allowances.iter().cycle() {
        episode = match suspended(episode, *tokens).await {
            Ok(episode) => reborn(episode, tasks),
            Err(trajectory) => return trajectory,
        };
    }
    unreachable!("an episode ends")
}

/// Removes wall times, which may differ between equal episodes.
pub(crate) fn timeless(mut trajectory: Trajectory) -> Trajectory {
    let turns = trajectory.others.iter_mut().flat_map(|other| &mut other.turns);
    trajectory.turns.iter_mut().chain(turns).for_each(|turn| turn.seconds = 0.0);
    trajectory
}

pub(crate) fn reason(trajectory: &Trajectory) -> Option<InfraReason> {
    match &trajectory.outcome {
        Outcome::InfraFault(fault) => Some(fault.reason),
        _ => None,
    }
}

pub(crate) fn message(trajectory: &Trajectory) -> &str {
    match &trajectory.outcome {
        Outcome::InfraFault(fault) => &fault.message,
        other => panic!("{other:?} is no fault"),
    }
}

/// Tasks made by a function, for environments with shared outside state.
pub(crate) struct Made<F>(pub(crate) F);

impl<F: Fn() -> Box<dyn Environment> + Send + Sync> TaskSet for Made<F> {
    fn name(&self) -> &'static str {
        "made"
    }

    fn len(&self) -> usize {
        1
    }

    fn key(&self, _index: usize) -> TaskKey {
        TaskKey::of("made")
    }

    fn environment(&self, _index: usize) -> Box<dyn Environment> {
        (self.0)()
    }
}
