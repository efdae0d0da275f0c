use serde::{Deserialize, Serialize};
use turnwise_environment::{Action, Recovery};
use turnwise_trajectory::{Identity, Sampling, Turn};

use super::repetition::Repetition;
use crate::AgentFactory;

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
    pub(super) turns: Vec<Turn>,
    pub(super) faults: u32,
    pub(super) n_tool_calls: usize,
    pub(super) repetition: Repetition,
    pub(super) solved: bool,
    /// How the environment is recovered; `None` until it has been reset and the agent has its first observation.
    pub(super) recovery: Option<Recovery>,
    /// The actions and answers so far, if the environment is recovered by replay.
    pub(super) script: ReplayScript,
    /// The number of suspensions.
    pub(super) suspensions: u32,
    /// The run time in seconds, over all advances.
    pub(super) seconds: f64,
    /// The seconds of the unfinished turn.
    pub(super) turn_seconds: f64,
    /// The sampling seed of the forked episode, which its agent still sends.
    pub(super) forked_from: Option<u64>,
    /// The number of sampled tokens, from the first on, that another episode trains.
    pub(super) n_shared: usize,
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
    /// The index of the turn, including turns that no environment answered.
    pub(super) turn: usize,
    pub(super) action: Action,
    /// SHA-256 of the step: observation, reward and faults.
    pub(super) step: String,
}

impl State {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            turns: Vec::new(),
            faults: 0,
            n_tool_calls: 0,
            repetition: Repetition::default(),
            solved: false,
            recovery: None,
            script: ReplayScript::default(),
            suspensions: 0,
            seconds: 0.0,
            turn_seconds: 0.0,
            forked_from: None,
            n_shared: 0,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.recovery.is_some()
    }

    /// Returns the sampling seed that the agent was created with.
    pub(super) fn seed_of_agent(&self) -> u64 {
        self.forked_from.unwrap_or(self.identity.sampling_seed)
    }

    /// Checks the numbers of an untrusted snapshot that arithmetic relies on.
    pub(super) fn validate(&self) -> Result<(), String> {
        let is_time = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        let times = self.turns.iter().map(|turn| turn.seconds);
        if let Some(wrong) =
            times.chain([self.seconds, self.turn_seconds]).find(|seconds| !is_time(*seconds))
        {
            return Err(format!("it has run for {wrong} s"));
        }
        let mut rewards = self.turns.iter().filter_map(|turn| turn.reward);
        if let Some(wrong) = rewards.find(|reward| !reward.is_finite()) {
            return Err(format!("a turn has the reward {wrong}"));
        }
        let of_turns = || self.script.exchanges.iter().map(|exchange| exchange.turn);
        let is_in_order =
            of_turns().is_sorted_by(|a, b| a < b) && of_turns().all(|turn| turn < self.turns.len());
        let n_answered = self.turns.len().checked_sub(self.script.n_asides);
        let n_known = (self.recovery == Some(Recovery::Replay)).then_some(of_turns().len());
        let is_complete = n_answered.is_some() && n_known.is_none_or(|n| n_answered == Some(n));
        if !(is_in_order && is_complete) {
            return Err(format!(
                "it has {} turns and actions of {:?}",
                self.turns.len(),
                of_turns().collect::<Vec<_>>()
            ));
        }
        if !self.has_begun() && !self.turns.is_empty() {
            return Err("it has turns and has not begun".to_owned());
        }
        Ok(())
    }
}
