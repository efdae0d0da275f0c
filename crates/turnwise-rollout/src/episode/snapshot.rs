use serde::{Deserialize, Serialize};
use serde_json::Value;
use turnwise_environment::{CallRecord, EnvironmentError, Recovery, TaskSet};
use turnwise_trajectory::{Author, Identity, MessageGraph};

use super::digest::sha256;
use super::guard::caught;
use super::seats::{self, Occupant, SeatState};
use super::state::{Factory, State};
use super::{Episode, World};
use crate::{AgentError, AgentFactory, Limits, Opponent};

/// A suspended episode as data, for disk or another process.
///
/// The agent's part has the tokens, the graph, the interrupted request and the index of its next random number; the
/// episode's part has budgets, rewards and the attempt; the environment and the ledger of tool calls follow. The stop
/// tokens are the renderer's, whose hash is part of the snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeSnapshot {
    pub(super) state: State,
    factory: Factory,
    limits: Limits,
    agents: Vec<AgentSnapshot>,
    environment: Vec<u8>,
    ledger: Vec<CallRecord>,
}

/// Who plays a seat, as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AgentSnapshot {
    Policy(Value),
    Frozen(Value),
    /// The observations of the player are in its seat's state.
    Scripted,
}

impl AgentSnapshot {
    /// Returns who plays the seat, for an error.
    fn player(&self) -> &'static str {
        match self {
            Self::Policy(_) => "the trained policy",
            Self::Frozen(_) => "a frozen policy",
            Self::Scripted => "a scripted player",
        }
    }
}

/// The beginning of the byte form: name and version of the format.
const MAGIC: &str = "turnwise-episode 2 ";

impl EpisodeSnapshot {
    /// Returns the identity of the episode.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.state.identity
    }

    /// Returns the byte form: one line with format, version and the SHA-256 of the rest, then JSON.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).expect("a snapshot is plain data");
        let mut bytes = format!("{MAGIC}{}\n", sha256(&body)).into_bytes();
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads the byte form.
    ///
    /// # Errors
    /// If the bytes have another format or version, do not match their hash, or are not a snapshot.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let rest = bytes.strip_prefix(MAGIC.as_bytes()).ok_or_else(|| format_of(bytes))?;
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let expected = String::from_utf8_lossy(&rest[..end]).into_owned();
        let body = rest.get(end + 1..).unwrap_or_default();
        let actual = sha256(body);
        if expected != actual {
            return Err(SnapshotError::Digest { expected, actual });
        }
        serde_json::from_slice(body).map_err(|error| SnapshotError::Content(error.to_string()))
    }
}

fn format_of(bytes: &[u8]) -> SnapshotError {
    let found = &bytes[..bytes.len().min(MAGIC.len())];
    SnapshotError::Format { found: String::from_utf8_lossy(found).into_owned() }
}

impl Episode {
    /// Returns the episode as data, or `None` if its environment restarts instead of continuing.
    #[must_use]
    pub fn snapshot(&self) -> Option<EpisodeSnapshot> {
        let environment = match self.state.recovery {
            // An environment that was never reset has no state, and needs no snapshot to start.
            None | Some(Recovery::Replay) => Vec::new(),
            Some(Recovery::Snapshot) => self.world.snapshot().ok()??,
            Some(Recovery::Restart) => return None,
        };
        if self.seats.is_empty() {
            return None;
        }
        let of_seat = |occupant: &Occupant| match occupant {
            Occupant::Policy(agent) => caught(|| agent.snapshot()).map(AgentSnapshot::Policy),
            Occupant::Frozen(agent, _) => caught(|| agent.snapshot()).map(AgentSnapshot::Frozen),
            Occupant::Scripted(_) => Ok(AgentSnapshot::Scripted),
        };
        let agents: Result<Vec<_>, String> = self.seats.iter().map(of_seat).collect();
        Some(EpisodeSnapshot {
            state: self.state.clone(),
            factory: self.factory.clone(),
            limits: self.limits.clone(),
            agents: agents.ok()?,
            environment,
            ledger: self.world.ledger().records(),
        })
    }

    /// Restores an episode from a snapshot in which the trained policy plays every seat.
    ///
    /// A replayed environment catches up in the next advance.
    ///
    /// # Errors
    /// If the task, the renderer or the sampling settings differ from those of the snapshot, the agent or the
    /// environment refuses its part, or the snapshot violates an invariant.
    pub fn restore(
        snapshot: EpisodeSnapshot,
        tasks: &dyn TaskSet,
        factory: &dyn AgentFactory,
    ) -> Result<Self, RestoreError> {
        Self::restore_against(snapshot, tasks, factory, &Opponent::Itself)
    }

    /// Restores an episode from a snapshot in which `opponent` plays the other seats.
    ///
    /// # Errors
    /// As [`restore`](Self::restore), and if the opponent is of another kind than the snapshot's.
    pub fn restore_against(
        snapshot: EpisodeSnapshot,
        tasks: &dyn TaskSet,
        factory: &dyn AgentFactory,
        opponent: &Opponent,
    ) -> Result<Self, RestoreError> {
        let EpisodeSnapshot { state, factory: before, limits, agents, environment: bytes, ledger } =
            snapshot;
        is_of(&state.identity, tasks)?;
        let now = Factory::of(factory);
        if now.renderer != before.renderer {
            let (was, is) = (&before.renderer, &now.renderer);
            return Err(refused(format!("its prompts were rendered by `{was}`, not by `{is}`")));
        }
        if now != before {
            let (was, is) = (&before.sampling, &now.sampling);
            return Err(refused(format!("its tokens were sampled with {was:?}, not with {is:?}")));
        }
        state.validate().and_then(|()| limits.validate()).map_err(RestoreError::State)?;
        let environment = caught(|| tasks.environment(state.identity.task_index))
            .map_err(|panic| RestoreError::Environment(EnvironmentError::new(panic)))?;
        let mut world = World::new(environment, &state.identity);
        world.ledger().restore(ledger);
        if state.recovery == Some(Recovery::Snapshot) {
            world.restore(&bytes).map_err(RestoreError::Environment)?;
        }
        let seats = restored(agents, &state, factory, opponent)?;
        let is_behind = state.recovery == Some(Recovery::Replay);
        let opponent = opponent.clone();
        Ok(Self { world, seats, opponent, factory: now, limits, state, broken: None, is_behind })
    }
}

/// Restores the occupants of all seats.
fn restored(
    agents: Vec<AgentSnapshot>,
    state: &State,
    factory: &dyn AgentFactory,
    opponent: &Opponent,
) -> Result<Vec<Occupant>, RestoreError> {
    let n_seats = agents.len();
    if n_seats != state.seats.len() {
        let n_states = state.seats.len();
        return Err(RestoreError::State(format!("it has {n_seats} agents for {n_states} seats")));
    }
    let agent = |seat: &SeatState, value: Value| {
        let agent = caught(|| factory.restore(value))
            .map_err(|panic| refused(format!("it panicked: {panic}")))?
            .map_err(RestoreError::Agent)?;
        caught(|| points_into(seat, agent.graph()))
            .map_err(refused)?
            .map_err(RestoreError::State)?;
        Ok(agent)
    };
    let mut occupants = Vec::new();
    for (index, (before, seat)) in agents.into_iter().zip(&state.seats).enumerate() {
        let is_policys = opponent.policy_plays(index, state.identity.group, n_seats);
        occupants.push(match (before, opponent) {
            (AgentSnapshot::Policy(value), _) if is_policys => {
                Occupant::Policy(agent(seat, value)?)
            }
            (AgentSnapshot::Frozen(value), Opponent::Frozen(policy)) if !is_policys => {
                Occupant::Frozen(agent(seat, value)?, policy.clone())
            }
            (AgentSnapshot::Scripted, Opponent::Scripted(make)) if !is_policys => {
                seats::scripted_again(&**make, &state.identity, index, seat)
                    .map(Occupant::Scripted)
                    .map_err(refused)?
            }
            (before, opponent) => {
                let was = before.player();
                let is = if is_policys { "the trained policy" } else { opponent.player() };
                return Err(RestoreError::State(format!(
                    "seat {index} was played by {was}, and is played by {is} now"
                )));
            }
        });
    }
    Ok(occupants)
}

fn is_of(identity: &Identity, tasks: &dyn TaskSet) -> Result<(), RestoreError> {
    let index = identity.task_index;
    if index >= tasks.len() || tasks.key(index) != identity.task {
        return Err(RestoreError::Task { index });
    }
    let (before, now) = (
        (identity.environment.as_str(), identity.environment_version),
        (tasks.name(), tasks.version()),
    );
    if before != now {
        return Err(RestoreError::State(format!(
            "it is of environment {} version {}, not of {} version {}",
            before.0, before.1, now.0, now.1
        )));
    }
    Ok(())
}

/// Checks that every turn refers to a node of the policy.
fn points_into(seat: &SeatState, graph: &MessageGraph) -> Result<(), String> {
    for turn in &seat.turns {
        match graph.nodes().get(turn.node.0 as usize) {
            Some(node) if node.author == Author::Policy => {}
            _ => return Err(format!("node {} is not a turn of the policy", turn.node.0)),
        }
    }
    Ok(())
}

fn refused(why: String) -> RestoreError {
    RestoreError::Agent(AgentError::Snapshot(why))
}

/// The reason why bytes cannot be read as a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The bytes have another format, or another version of it.
    #[error(
        "cannot read the snapshot of an episode: it begins with {found:?}, not with {:?}; read it with the version that wrote it",
        MAGIC
    )]
    Format {
        /// The beginning of the bytes.
        found: String,
    },
    /// The content differs from the content that was written.
    #[error(
        "cannot read the snapshot of an episode: its SHA-256 is {actual} instead of {expected}; take an older copy"
    )]
    Digest {
        /// The hash in the first line.
        expected: String,
        /// The hash of the content.
        actual: String,
    },
    /// The content matches its hash, but is not a snapshot.
    #[error("cannot read the snapshot of an episode: {0}")]
    Content(String),
}

/// The reason why a snapshot cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The task set has no task, or another one, at the snapshot's index.
    #[error("cannot restore the episode: task {index} is not the task that it was suspended in")]
    Task {
        /// The snapshot's task.
        index: usize,
    },
    /// The snapshot violates an invariant.
    #[error("cannot restore the episode: {0}")]
    State(String),
    /// The open groups have another size.
    #[error(
        "cannot restore the suspended episodes: their groups have {was} members, and the group size is {is} now; finish them with a group size of {was}"
    )]
    GroupSize {
        /// The number of members of an open group.
        was: usize,
        /// The number of members of a new group.
        is: usize,
    },
    /// The environment refused its snapshot.
    #[error("cannot restore the episode's environment")]
    Environment(#[source] EnvironmentError),
    /// The agent refused its snapshot.
    #[error("cannot restore the episode's agent")]
    Agent(#[source] AgentError),
}
