use turnwise_environment::{TaskKey, TaskSet};
use turnwise_trajectory::{CancelReason, InfraFault, Outcome, SampledToken, Trajectory};

use crate::{AgentFactory, Allowance, Episode, Limits, Progress, RecordedPolicy};

/// Plays a recorded episode again in a fresh environment of its task, without an engine, and answers with what came of it.
///
/// What comes back has the record's tokens, with their log-probabilities and versions, its messages, its rewards before any
/// rubric, and its outcome. Of an episode that broke or was cancelled it is the part before that, and cancelled. `agents` and
/// `limits` are to be those it was played with.
///
/// # Errors
/// When the task or the renderer is another, something breaks on the way, or anything comes out otherwise than it was
/// recorded.
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
    let policy = RecordedPolicy::new(recorded.clone());
    let episode = Episode::new(identity, tasks.environment(index), agents, limits);
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

/// The first thing in which an episode is not what was recorded.
fn difference(recorded: &Trajectory, played: &Trajectory) -> Option<&'static str> {
    // Neither breaking nor being cancelled is the episode's own doing.
    let ended = recorded.outcome.is_scored();
    let is_outcome = !ended || recorded.outcome == played.outcome;
    let is_solved = !ended || recorded.solved == played.solved;
    let (before, now) = (recorded.transcript(), played.transcript());
    // In the last turn of one that broke, the environment may have answered now and not then.
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

/// What the policy said of a token.
fn drawn(token: SampledToken) -> (u32, u32, u32, u32) {
    (token.id, token.logprob.to_bits(), token.version.0, token.kv_version.0)
}

/// An episode that cannot be played again as it was recorded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReplayError {
    /// In the task's place there is another, or none.
    #[error("replay an episode of task {recorded:?}; in its place is {found:?}")]
    Task {
        /// The record's.
        recorded: TaskKey,
        /// The task set's.
        found: Option<TaskKey>,
    },
    /// The agents have another tokenizer or template.
    #[error("replay an episode that was rendered by {recorded}, and not by {found}")]
    Renderer {
        /// The record's hash.
        recorded: String,
        /// The agents'.
        found: String,
    },
    /// Something broke on the way; where a prompt is another, the message says so.
    #[error("replay an episode: {0}")]
    Broke(InfraFault),
    /// It came out otherwise.
    #[error("replay an episode: its {what} came out otherwise, and it ended as {}", outcome.label())]
    Different {
        /// What is different first, of tokens, messages, rewards and outcome.
        what: &'static str,
        /// How it ended now.
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
