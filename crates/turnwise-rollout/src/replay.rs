use turnwise_environment::{TaskKey, TaskSet};
use turnwise_trajectory::{CancelReason, InfraFault, Outcome, SampledToken, Trajectory};

use crate::{AgentFactory, Allowance, Episode, Limits, Progress, RecordedPolicy};

/// Plays a recorded episode again in a fresh environment of its task, without an engine, and returns the result.
///
/// The result has the record's tokens, with their log-probabilities and versions, its messages, its rewards before any
/// rubric, and its outcome. If the recorded episode broke or was cancelled, the result is the part before that, with a
/// cancelled outcome. `agents` and `limits` must be those of the recorded episode.
///
/// # Errors
/// If the task or the renderer differs, a fault occurs, or the result differs from the record.
pub async fn replay(
    recorded: &Trajectory,
    tasks: &dyn TaskSet,
    agents: &dyn AgentFactory,
    limits: Limits,
) -> Result<Trajectory, ReplayError> {
    let identity = recorded.identity.clone();
    let index = identity.task_index;
    let found = (index < tasks.len()).then(|| tasks.key(index));
    if found.as_ref() != Some(&identity.task) {
        return Err(ReplayError::Task { recorded: identity.task, found });
    }
    if agents.renderer() != recorded.renderer {
        return Err(ReplayError::Renderer {
            recorded: recorded.renderer.clone(),
            found: agents.renderer().to_owned(),
        });
    }
    let environment = tasks.environment(index);
    if environment.n_seats() > 1 {
        return Err(ReplayError::Seats { n: environment.n_seats() });
    }
    let policy = RecordedPolicy::new(recorded.clone());
    let episode = Episode::new(identity, environment, agents, limits);
    let allowance = Allowance::tokens(recorded.n_sampled() as u64);
    let played = match episode.advance(&policy, &allowance).await {
        Progress::Finished(played) => played,
        Progress::Suspended(episode) => episode.cancel(CancelReason::User, &policy),
    };
    match difference(recorded, &played) {
        None => Ok(played),
        Some(what) => Err(ReplayError::of(what, played.outcome)),
    }
}

/// Returns the first part of the result that differs from the record.
fn difference(recorded: &Trajectory, played: &Trajectory) -> Option<&'static str> {
    // A fault or a cancellation has a cause outside the episode, so the replay need not repeat it.
    let ended = recorded.outcome.is_scored();
    let is_outcome = !ended || recorded.outcome == played.outcome;
    let is_solved = !ended || recorded.solved == played.solved;
    let (before, now) = (recorded.transcript(), played.transcript());
    // In the last turn of a broken episode, the environment may have answered in one of the two and not in the other.
    let n_turns = if ended {
        before.rewards.len()
    } else {
        now.rewards.len().min(before.rewards.len().saturating_sub(1))
    };
    let is_rewards = (!ended || now.rewards.len() == n_turns)
        && before.rewards[..n_turns] == now.rewards[..n_turns];
    let checks = [
        (recorded.sampled().map(drawn).eq(played.sampled().map(drawn)), "tokens"),
        (!ended || before.messages == now.messages, "messages"),
        (is_rewards, "rewards"),
        (is_outcome && is_solved, "outcome"),
    ];
    checks.into_iter().find(|(is_same, _)| !is_same).map(|(_, what)| what)
}

/// Returns the policy's fields of a token.
fn drawn(token: SampledToken) -> (u32, u32, u32, u32) {
    (token.id, token.logprob.to_bits(), token.version.0, token.kv_version.0)
}

/// The reason why an episode cannot be replayed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReplayError {
    /// The task set has no task, or another one, at the record's index.
    #[error(
        "cannot replay the episode of task {recorded:?}: the task set has {found:?} in its place"
    )]
    Task {
        /// The record's task.
        recorded: TaskKey,
        /// The task set's task.
        found: Option<TaskKey>,
    },
    /// The agents have another tokenizer or template.
    #[error(
        "cannot replay the episode: it was rendered by {recorded}, and the agents render by {found}"
    )]
    Renderer {
        /// The record's hash.
        recorded: String,
        /// The agents' hash.
        found: String,
    },
    /// The environment has several seats, and a record has one of them.
    #[error(
        "cannot replay the episode: its environment has {n} seats, and the record has one of them"
    )]
    Seats {
        /// The number of seats.
        n: usize,
    },
    /// A fault occurred; if a prompt differs, the message says so.
    #[error("cannot replay the episode: {0}")]
    Broke(InfraFault),
    /// The result differs from the record.
    #[error("cannot replay the episode: its {what} differs from the record, and it ended as {}", outcome.label())]
    Different {
        /// The first difference: tokens, messages, rewards or outcome.
        what: &'static str,
        /// The outcome of the replay.
        outcome: Outcome,
    },
}

impl ReplayError {
    fn of(what: &'static str, outcome: Outcome) -> Self {
        match outcome {
            Outcome::InfraFault(fault) => Self::Broke(fault),
            outcome => Self::Different { what, outcome },
        }
    }
}
