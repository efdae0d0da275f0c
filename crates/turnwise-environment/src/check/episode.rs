use std::ops::RangeInclusive;

use super::guard::{caught, guarded};
use crate::{Action, Demonstrator, Ending, Environment, Observation, Seat, Step, ToolSpec};

/// The number of turns that are played of an environment without a limit of its own.
const UNLIMITED_TURNS: usize = 16;

/// The subject of the checks: one task and its players.
pub(super) struct Subject<'a> {
    /// The name of the task, put before every finding; empty if there is only one task.
    pub(super) label: String,
    /// Makes a fresh environment of the task.
    pub(super) make: Box<dyn Fn() -> Box<dyn Environment> + Send + Sync + 'a>,
    /// Makes the player of a seat from a seed.
    pub(super) player: Box<dyn Fn(u64, Seat) -> Box<dyn Demonstrator> + Send + Sync + 'a>,
    /// The number of turns after which every episode must be over.
    pub(super) max_turns: Option<usize>,
}

/// The record of one episode.
pub(super) struct ObservedEpisode {
    pub(super) first: Observation,
    pub(super) turns: Vec<ObservedTurn>,
    pub(super) n_seats: usize,
    pub(super) reward_range: RangeInclusive<f64>,
    /// The tools before the reset.
    pub(super) tools: Vec<ToolSpec>,
    /// The tools after the last turn.
    pub(super) tools_at_end: Vec<ToolSpec>,
}

/// An action and its step.
#[derive(Clone, PartialEq)]
pub(super) struct ObservedTurn {
    pub(super) action: Action,
    pub(super) step: Step,
}

impl Subject<'_> {
    /// Makes a fresh environment.
    pub(super) fn environment(&self) -> Result<Box<dyn Environment>, String> {
        caught(&self.make)
    }

    /// Plays an episode with the player of a seed.
    pub(super) async fn played(&self, seed: u64) -> Result<ObservedEpisode, String> {
        let n_seats = caught(|| (self.make)().n_seats())?;
        let seats = (0..n_seats.max(1) as u32).map(Seat);
        let mut players: Vec<_> = caught(|| seats.map(|seat| (self.player)(seed, seat)).collect())?;
        // A seat that does not exist is reported by the contract.
        let last = players.len() - 1;
        let mut act =
            |_: usize, shown: &Observation| players[last.min(shown.seat.0 as usize)].act(shown);
        self.play(seed, &mut act).await
    }

    /// Plays an episode with the actions of `act`, which takes the number of turns so far and the observation.
    pub(super) async fn play(
        &self,
        seed: u64,
        act: &mut (dyn FnMut(usize, &Observation) -> Action + Send),
    ) -> Result<ObservedEpisode, String> {
        let mut environment = self.environment()?;
        let tools = caught(|| environment.tools())?;
        let first = guarded(environment.reset(seed)).await.map_err(|why| format!("reset {why}"))?;
        let mut turns: Vec<ObservedTurn> = Vec::new();
        while turns.len() < self.max_turns.unwrap_or(UNLIMITED_TURNS) {
            let Some(shown) = last_shown(&first, &turns) else { break };
            let action =
                caught(|| act(turns.len(), shown)).map_err(|why| format!("player {why}"))?;
            let step = step(environment.as_mut(), action.clone())
                .await
                .map_err(|why| format!("turn {}: {why}", turns.len() + 1))?;
            turns.push(ObservedTurn { action, step });
        }
        let tools_at_end = caught(|| environment.tools())?;
        let reward_range = caught(|| environment.reward_range())?;
        let n_seats = caught(|| environment.n_seats())?;
        Ok(ObservedEpisode { first, turns, n_seats, reward_range, tools, tools_at_end })
    }
}

/// Takes one step. A failed step is a finding, because the checks do nothing that may break an environment.
pub(super) async fn step(
    environment: &mut dyn Environment,
    action: Action,
) -> Result<Step, String> {
    match guarded(environment.step(action)).await? {
        Step::End { ending: Ending::Failed, .. } => Err("ended as failed".to_owned()),
        step => Ok(step),
    }
}

/// Returns the observation that the agent acts on next; `None` after the end.
fn last_shown<'a>(first: &'a Observation, turns: &'a [ObservedTurn]) -> Option<&'a Observation> {
    match turns.last().map(|turn| &turn.step) {
        None => Some(first),
        Some(Step::Next { observation, .. }) => Some(observation),
        Some(Step::End { .. }) => None,
    }
}

impl ObservedEpisode {
    /// Returns whether the environment ended the episode.
    pub(super) fn ended(&self) -> bool {
        matches!(self.turns.last(), Some(ObservedTurn { step: Step::End { .. }, .. }))
    }

    /// Returns whether the episode ended with the task solved for the first seat.
    pub(super) fn solved(&self) -> bool {
        let Some(Step::End { solved, others, .. }) = self.turns.last().map(|turn| &turn.step)
        else {
            return false;
        };
        let acted = self.acting().last().is_some_and(|seat| seat.is_first());
        if acted { *solved } else { others.iter().any(|it| it.seat.is_first() && it.solved) }
    }

    /// Iterates over the seat that acted in each turn.
    pub(super) fn acting(&self) -> impl Iterator<Item = Seat> {
        self.observations().map(|observation| observation.seat).take(self.turns.len())
    }

    /// Returns the rewards of a seat's turns that were scored.
    pub(super) fn rewards(&self, seat: Seat) -> Vec<f64> {
        let mut rewards = Vec::new();
        for (acting, turn) in self.acting().zip(&self.turns) {
            let (Step::Next { reward, others, late, .. } | Step::End { reward, others, late, .. }) =
                &turn.step;
            rewards.extend(reward.filter(|_| acting == seat));
            rewards.extend(late.iter().filter(|_| acting == seat).map(|it| it.reward));
            rewards.extend(others.iter().filter(|it| it.seat == seat).map(|it| it.reward));
        }
        rewards
    }

    /// Returns the observations, oldest first.
    pub(super) fn observations(&self) -> impl Iterator<Item = &Observation> {
        let later = self.turns.iter().filter_map(|turn| match &turn.step {
            Step::Next { observation, .. } => Some(observation),
            Step::End { .. } => None,
        });
        std::iter::once(&self.first).chain(later)
    }

    /// Returns the player's actions, in order.
    pub(super) fn actions(&self) -> impl Iterator<Item = &Action> {
        self.turns.iter().map(|turn| &turn.action)
    }
}
