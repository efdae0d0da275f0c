use serde::{Deserialize, Serialize};
use turnwise_environment::{Action, Recovery};
use turnwise_trajectory::{Identity, Sampling};

use super::seats::SeatState;
use crate::{AgentFactory, SessionId};

/// The agent factory's part of every trajectory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Factory {
    pub(super) renderer: String,
    pub(super) sampling: Vec<Sampling>,
}

impl Factory {
    pub(super) fn of(factory: &dyn AgentFactory) -> Self {
        Self { renderer: factory.renderer().to_owned(), sampling: factory.sampling() }
    }
}

/// The part of an episode that is plain data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) identity: Identity,
    /// At least one.
    pub(super) seats: Vec<SeatState>,
    /// The index of the seat that acts.
    pub(super) acting: usize,
    /// How the environment is recovered; `None` until it has been reset and the first observation is delivered.
    pub(super) recovery: Option<Recovery>,
    /// The actions and answers so far, if the environment is recovered by replay.
    pub(super) script: ReplayScript,
    /// The number of suspensions.
    pub(super) suspensions: u32,
    /// The run time in seconds, over all advances.
    pub(super) seconds: f64,
}

/// An episode's exchanges with its environment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplayScript {
    /// SHA-256 of the first observation.
    pub(super) opening: String,
    pub(super) exchanges: Vec<Exchange>,
    /// The number of turns that no environment answered.
    pub(super) n_asides: usize,
}

/// One action and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exchange {
    /// The index of the turn among those of all seats, including turns that no environment answered.
    pub(super) turn: usize,
    pub(super) action: Action,
    /// SHA-256 of the step: observation, reward and faults.
    pub(super) step: String,
}

impl State {
    /// Creates the state of an episode with one seat that has not begun.
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            seats: vec![SeatState::new(identity.sampling_seed)],
            identity,
            acting: 0,
            recovery: None,
            script: ReplayScript::default(),
            suspensions: 0,
            seconds: 0.0,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.recovery.is_some()
    }

    /// Returns the seat that acts.
    pub(super) fn acting(&self) -> &SeatState {
        &self.seats[self.acting]
    }

    /// Returns the seat that acts, mutably.
    pub(super) fn acting_mut(&mut self) -> &mut SeatState {
        &mut self.seats[self.acting]
    }

    /// Returns the session of a seat.
    pub(super) fn session(&self, seat: &SeatState) -> SessionId {
        SessionId::of(seat.sampling_seed, self.identity.attempt)
    }

    /// Returns the number of turns of all seats.
    pub(super) fn n_turns(&self) -> usize {
        self.seats.iter().map(SeatState::n_turns).sum()
    }

    /// Checks the numbers of an untrusted snapshot that arithmetic relies on.
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.acting >= self.seats.len() {
            return Err(format!("seat {} of {} acts", self.acting, self.seats.len()));
        }
        let is_time = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        let turns = || self.seats.iter().flat_map(|seat| &seat.turns);
        let of_turns = self.seats.iter().map(|seat| seat.turn_seconds);
        let times = turns().map(|turn| turn.seconds).chain(of_turns).chain([self.seconds]);
        if let Some(wrong) = times.into_iter().find(|seconds| !is_time(*seconds)) {
            return Err(format!("it has run for {wrong} s"));
        }
        let mut rewards = turns().filter_map(|turn| turn.reward);
        if let Some(wrong) = rewards.find(|reward| !reward.is_finite()) {
            return Err(format!("a turn has the reward {wrong}"));
        }
        if self.seats.iter().any(|seat| seat.n_acted > seat.heard.len()) {
            return Err("a scripted player has acted more often than it has observed".to_owned());
        }
        let of_turns = || self.script.exchanges.iter().map(|exchange| exchange.turn);
        let n_turns = self.n_turns();
        let is_in_order =
            of_turns().is_sorted_by(|a, b| a < b) && of_turns().all(|turn| turn < n_turns);
        let n_answered = n_turns.checked_sub(self.script.n_asides);
        let n_known = (self.recovery == Some(Recovery::Replay)).then_some(of_turns().len());
        let is_complete = n_answered.is_some() && n_known.is_none_or(|n| n_answered == Some(n));
        if !(is_in_order && is_complete) {
            return Err(format!(
                "it has {n_turns} turns and actions of {:?}",
                of_turns().collect::<Vec<_>>()
            ));
        }
        if !self.has_begun() && n_turns > 0 {
            return Err("it has turns and has not begun".to_owned());
        }
        Ok(())
    }
}
