//! The seats of an episode: who plays each, and what has happened on it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use turnwise_environment::{Action, Demonstrator, Observation, ToolSpec, derive_seed};
use turnwise_trajectory::{Identity, InfraReason, Outcome, Turn};

use super::guard::{caught, infra};
use super::repetition::Repetition;
use crate::{Agent, AgentFactory, Opponent, PlayerFactory, Policy};

/// Who plays a seat.
pub(super) enum Occupant {
    /// An agent of the trained policy.
    Policy(Box<dyn Agent>),
    /// An agent of a policy that does not train.
    Frozen(Box<dyn Agent>, Arc<dyn Policy>),
    /// A scripted player.
    Scripted(Box<dyn Demonstrator>),
}

impl Occupant {
    /// Returns the agent, if an agent plays the seat.
    pub(super) fn agent(&self) -> Option<&dyn Agent> {
        match self {
            Self::Policy(agent) | Self::Frozen(agent, _) => Some(&**agent),
            Self::Scripted(_) => None,
        }
    }

    /// Returns the agent of the trained policy, if one plays the seat.
    pub(super) fn trained(&self) -> Option<&dyn Agent> {
        match self {
            Self::Policy(agent) => Some(&**agent),
            Self::Frozen(..) | Self::Scripted(_) => None,
        }
    }

    /// Returns the policy of an agent that does not train.
    pub(super) fn frozen(&self) -> Option<Arc<dyn Policy>> {
        match self {
            Self::Frozen(_, policy) => Some(policy.clone()),
            Self::Policy(_) | Self::Scripted(_) => None,
        }
    }
}

/// What has happened on a seat, as plain data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeatState {
    /// The sampling seed of the seat's tokens.
    pub(super) sampling_seed: u64,
    /// The sampling seed of the seat in the forked episode, which its agent still sends.
    pub(super) forked_from: Option<u64>,
    pub(super) turns: Vec<Turn>,
    pub(super) faults: u32,
    pub(super) n_tool_calls: usize,
    pub(super) repetition: Repetition,
    pub(super) solved: bool,
    /// The sum of the rewards before the seat's first turn.
    pub(super) early_reward: Option<f64>,
    /// The seconds of the unfinished turn.
    pub(super) turn_seconds: f64,
    /// The number of tokens, from the first on, that another episode trains.
    pub(super) n_shared: usize,
    /// The observations of a scripted player.
    pub(super) heard: Vec<Observation>,
    /// The number of actions of a scripted player.
    pub(super) n_acted: usize,
}

impl SeatState {
    pub(super) fn new(sampling_seed: u64) -> Self {
        Self {
            sampling_seed,
            forked_from: None,
            turns: Vec::new(),
            faults: 0,
            n_tool_calls: 0,
            repetition: Repetition::default(),
            solved: false,
            early_reward: None,
            turn_seconds: 0.0,
            n_shared: 0,
            heard: Vec::new(),
            n_acted: 0,
        }
    }

    /// Returns the sampling seed that the agent was made with.
    pub(super) fn seed_of_agent(&self) -> u64 {
        self.forked_from.unwrap_or(self.sampling_seed)
    }

    /// Returns the number of turns, with those of a scripted player.
    pub(super) fn n_turns(&self) -> usize {
        self.turns.len() + self.n_acted
    }

    /// Returns the sum of the rewards so far.
    pub(super) fn total_reward(&self) -> f64 {
        self.turns.iter().filter_map(|turn| turn.reward).sum()
    }
}

/// Returns the sampling seed of a seat; the first has that of the episode.
pub(super) fn sampling_seed(of_episode: u64, seat: usize) -> u64 {
    if seat == 0 { of_episode } else { derive_seed(of_episode, seat as u64) }
}

/// Makes agents for all seats, and the states of the seats.
pub(super) fn with_agents(
    factory: &dyn AgentFactory,
    identity: &Identity,
    tools: &[ToolSpec],
    n_seats: usize,
) -> Result<(Vec<Occupant>, Vec<SeatState>), Outcome> {
    if n_seats == 0 {
        return Err(infra(InfraReason::Protocol, "the environment has no seat"));
    }
    let mut seats = (Vec::new(), Vec::new());
    for seat in 0..n_seats {
        let sampling_seed = sampling_seed(identity.sampling_seed, seat);
        let identity = Identity { sampling_seed, ..identity.clone() };
        let agent = caught(|| factory.agent(&identity, tools.to_vec())).map_err(|panic| {
            infra(InfraReason::AgentPanic, format!("cannot make an agent: {panic}"))
        })?;
        seats.0.push(Occupant::Policy(agent));
        seats.1.push(SeatState::new(sampling_seed));
    }
    Ok(seats)
}

/// Gives the seats that the trained policy leaves to its opponent.
pub(super) fn give_to(
    opponent: &Opponent,
    occupants: Vec<Occupant>,
    identity: &Identity,
) -> Result<Vec<Occupant>, Outcome> {
    let n_seats = occupants.len();
    let given = occupants.into_iter().enumerate().map(|(seat, occupant)| {
        if opponent.policy_plays(seat, identity.group, n_seats) {
            return Ok(occupant);
        }
        match (opponent, occupant) {
            (Opponent::Frozen(policy), Occupant::Policy(agent)) => {
                Ok(Occupant::Frozen(agent, policy.clone()))
            }
            (Opponent::Scripted(make), _) => {
                let player = caught(|| make(seed_of_player(identity, seat)));
                player.map(Occupant::Scripted).map_err(|panic| player_panic(&panic))
            }
            (_, occupant) => Ok(occupant),
        }
    });
    given.collect()
}

/// Returns the action of a scripted player for the newest observation.
pub(super) fn play_script(
    player: &mut dyn Demonstrator,
    heard: &[Observation],
) -> Result<Action, Outcome> {
    let Some(observation) = heard.last() else {
        return Err(infra(InfraReason::Protocol, "a scripted player acts before it has observed"));
    };
    caught(|| player.act(observation)).map_err(|panic| player_panic(&panic))
}

/// Makes a scripted player again, which acts once for each observation that it has answered.
pub(super) fn scripted_again(
    make: &PlayerFactory,
    identity: &Identity,
    index: usize,
    seat: &SeatState,
) -> Result<Box<dyn Demonstrator>, String> {
    caught(|| {
        let mut player = make(seed_of_player(identity, index));
        for observation in &seat.heard[..seat.n_acted] {
            player.act(observation);
        }
        player
    })
}

fn seed_of_player(identity: &Identity, seat: usize) -> u64 {
    derive_seed(identity.environment_seed, seat as u64)
}

fn player_panic(panic: &str) -> Outcome {
    infra(InfraReason::AgentPanic, format!("a scripted player panicked: {panic}"))
}
