use std::time::Duration;

use tokio::time::Instant;
use turnwise_environment::{
    Action, Ending, LateReward, Observation, Recovery, Seat, SeatReward, Step,
};
use turnwise_trajectory::{
    AgentFault, Identity, InfraReason, Limit, NodeId, Outcome, StopReason, Turn,
};

use super::digest::digest;
use super::guard::{Engine, caught, caught_async, infra};
use super::repetition::said;
use super::seats::{Occupant, SeatState, play_script};
use super::state::Exchange;
use super::{Episode, TurnWatcher, excerpt};
use crate::{
    Act, Agent, AgentError, Allowance, Deadline, Decision, Policy, PolicyError, Room, SessionId,
};

impl Episode {
    /// Returns the time left to the episode.
    pub(super) fn time_left(&self) -> Duration {
        // A restored snapshot has a valid duration; the fallback keeps an invalid one from causing a panic.
        let used = Duration::try_from_secs_f64(self.state.seconds).unwrap_or(Duration::MAX);
        self.limits.episode_timeout().saturating_sub(used)
    }

    /// Runs turns until the episode ends; `None` if it suspends.
    pub(super) async fn run(
        &mut self,
        policy: &dyn Policy,
        allowance: &Allowance,
        deadline: Deadline,
        watcher: &mut TurnWatcher<'_>,
    ) -> Option<Outcome> {
        self.play(policy, allowance, deadline, watcher).await.err()
    }

    async fn play(
        &mut self,
        policy: &dyn Policy,
        allowance: &Allowance,
        deadline: Deadline,
        watcher: &mut TurnWatcher<'_>,
    ) -> Result<(), Outcome> {
        if !self.state.has_begun() {
            self.begin(deadline).await?;
        } else if self.is_behind {
            self.replay(deadline).await?;
        }
        let drawn_before = self.n_drawn();
        loop {
            if deadline.is_over() {
                return Err(self.out_of_time());
            }
            if let Some(action) = self.scripted_action(allowance)? {
                self.answer(action, None, deadline).await?;
                continue;
            }
            let Some(room) = self.room(allowance, drawn_before)? else { return Ok(()) };
            match self.act(policy, room, allowance, deadline).await? {
                Act::Decided(Decision { action, node, stop, engine }) => {
                    let sampled = SampledTurn { node, stop, engine };
                    self.answer(action, Some(sampled), deadline).await?;
                    watcher(self);
                }
                Act::Aside(decision) => self.book_aside(decision),
                Act::Interrupted => return Ok(()),
            }
        }
    }

    /// Returns the next action if a scripted player acts and the episode goes on; `None` if an agent acts, or a stop was
    /// requested.
    fn scripted_action(&mut self, allowance: &Allowance) -> Result<Option<Action>, Outcome> {
        let acting = self.state.acting;
        let Some(Occupant::Scripted(player)) = self.seats.get_mut(acting) else { return Ok(None) };
        if allowance.stop.requested() {
            return Ok(None);
        }
        let seat = &self.state.seats[acting];
        if seat.n_acted < self.limits.max_turns {
            return play_script(&mut **player, &seat.heard).map(Some);
        }
        Err(self.truncated(Limit::Turns))
    }

    async fn begin(&mut self, deadline: Deadline) -> Result<(), Outcome> {
        if self.limits.max_turns == 0 {
            let message = "an episode of no turns was started; set max_turns to at least 1";
            return Err(infra(InfraReason::Protocol, message));
        }
        let seed = self.state.identity.environment_seed;
        let limit = self.limits.environment_timeout();
        let mut observation = self.world.reset(seed, deadline, limit).await?;
        excerpt::cut(&mut observation, self.limits.max_observation_bytes);
        let recovery = self.world.recovery()?;
        if recovery == Recovery::Replay {
            self.state.script.opening = digest(&observation);
        }
        self.observe(observation)?;
        self.state.recovery = Some(recovery);
        Ok(())
    }

    /// Returns the number of tokens that the next turn may sample: `None` to suspend, an error if the policy has
    /// reached a limit.
    fn room(&self, allowance: &Allowance, drawn_before: usize) -> Result<Option<Room>, Outcome> {
        if self.seats.get(self.state.acting).is_some_and(|seat| seat.agent().is_none()) {
            return Ok(None);
        }
        let (pending, drawn, context) =
            self.ask_agent(|agent| (agent.n_pending(), agent.n_drawn(), agent.n_context()))?;
        let limits = &self.limits;
        if pending == 0 && self.state.acting().turns.len() >= limits.max_turns {
            return Err(self.truncated(Limit::Turns));
        }
        let of_episode = limits.max_sampled_tokens.saturating_sub(drawn);
        if of_episode == 0 {
            return Err(self.truncated(Limit::SampledTokens));
        }
        let of_context = limits.max_context_tokens.saturating_sub(context);
        if of_context == 0 && drawn == 0 {
            let most = limits.max_context_tokens;
            let message = format!(
                "the first prompt has {context} tokens, and max_context_tokens is {most}; raise it"
            );
            return Err(infra(InfraReason::Render, message));
        }
        if of_context == 0 {
            return Err(self.truncated(Limit::Context));
        }
        let used = self.n_drawn().saturating_sub(drawn_before) as u64;
        let now = allowance.tokens.saturating_sub(used);
        if now == 0 || allowance.stop.requested() {
            return Ok(None);
        }
        // A turn that a smaller limit closed is still a turn: the environment answers it, and the limit applies before
        // the next turn.
        let turn =
            limits.max_turn_tokens.min(pending + of_episode.min(of_context)).max(pending + 1);
        // The tokens of a frozen policy use up no allowance, so that its turn is not cut where a stop would cut it again.
        let is_frozen =
            self.seats.get(self.state.acting).is_some_and(|seat| seat.frozen().is_some());
        let now = if is_frozen { u64::MAX } else { now };
        Ok(Some(Room { turn, now: usize::try_from(now).unwrap_or(usize::MAX) }))
    }

    /// Returns the outcome of an episode that reached a limit. The rewards received so far count, so their sum must be
    /// in the environment's range, as that of a complete episode.
    fn truncated(&self, limit: Limit) -> Outcome {
        self.check_range().err().unwrap_or(Outcome::Truncated(limit))
    }

    async fn act(
        &mut self,
        policy: &dyn Policy,
        room: Room,
        allowance: &Allowance,
        deadline: Deadline,
    ) -> Result<Act, Outcome> {
        let started = Instant::now();
        let limit = self.limits.engine_timeout();
        let seat = self.state.acting();
        let seeds = (seat.seed_of_agent(), seat.sampling_seed);
        let session = self.state.session(seat);
        let (agent, frozen) = match self.seats.get_mut(self.state.acting) {
            Some(Occupant::Policy(agent)) => (agent, None),
            Some(Occupant::Frozen(agent, policy)) => (agent, Some(policy.clone())),
            Some(Occupant::Scripted(_)) | None => return Err(no_agent()),
        };
        let policy = frozen.as_deref().unwrap_or(policy);
        let engine = Engine::new(policy, seeds, session);
        let act = {
            let acting = deadline.child(limit).bound(caught_async(agent.act(&engine, room)));
            tokio::pin!(acting);
            tokio::select! {
                biased;
                act = &mut acting => act,
                // An engine that supports interruption returns the tokens that it has sampled at the next token. The
                // request of another engine is dropped, and sampled again when the episode continues: each token's
                // random number depends only on its place.
                () = allowance.stop.wait() => {
                    if !engine.interrupt(SessionId(seeds.0)) {
                        return Ok(Act::Interrupted);
                    }
                    acting.await
                }
            }
        };
        self.state.acting_mut().turn_seconds += started.elapsed().as_secs_f64();
        match act {
            Some(Ok(Ok(act))) => Ok(act),
            Some(Ok(Err(error))) => Err(infra(reason_of(&error), error.to_string())),
            Some(Err(panic)) => Err(infra(InfraReason::AgentPanic, format!("act: {panic}"))),
            None if deadline.is_over() => Err(self.out_of_time()),
            None => {
                let message = format!("a request took over {} s", limit.as_secs_f64());
                Err(infra(InfraReason::EngineTimeout, message))
            }
        }
    }

    fn out_of_time(&self) -> Outcome {
        let message = format!(
            "the episode took over {} s, or all that what it is part of had left",
            self.limits.episode_timeout_s
        );
        infra(InfraReason::EpisodeTimeout, message)
    }

    /// Records a turn that the environment does not see: it has no reward, and trains like any other.
    fn book_aside(&mut self, decision: Decision) {
        let Decision { node, stop, engine, .. } = decision;
        let seconds = std::mem::take(&mut self.state.acting_mut().turn_seconds);
        self.push_turn(SampledTurn { node, stop, engine }, seconds);
        self.state.script.n_asides += 1;
    }

    fn push_turn(&mut self, sampled: SampledTurn, seconds: f64) {
        let SampledTurn { node, stop, engine } = sampled;
        let turn = Turn {
            node,
            stop,
            reward: None,
            score: None,
            penalty: None,
            faults: 0,
            seconds,
            engine,
            weights: None,
        };
        self.state.acting_mut().turns.push(turn);
    }

    /// Lets the environment answer an action and records the turn; an error is the episode's outcome. `sampled` is `None`
    /// for the action of a scripted player.
    async fn answer(
        &mut self,
        action: Action,
        sampled: Option<SampledTurn>,
        deadline: Deadline,
    ) -> Result<(), Outcome> {
        let is_scripted = sampled.is_none();
        let is_empty = !is_scripted && is_empty(&action);
        let said = (self.limits.max_repeats > 0 && !is_scripted).then(|| said(&action));
        let kept = (self.state.recovery == Some(Recovery::Replay)).then(|| action.clone());
        let started = Instant::now();
        let answer = self.step(action, deadline).await;
        let seat = self.state.acting_mut();
        let seconds = std::mem::take(&mut seat.turn_seconds) + started.elapsed().as_secs_f64();
        match sampled {
            Some(sampled) => self.push_turn(sampled, seconds),
            None => seat.n_acted += 1,
        }
        let step = answer?;
        if let Some(action) = kept {
            let turn = self.state.n_turns() - 1;
            self.state.script.exchanges.push(Exchange { turn, action, step: digest(&step) });
        }
        match step {
            Step::Next { observation, reward, faults, others, late } => {
                self.book(reward, faults.max(u32::from(is_empty)))?;
                self.book_others(&others)?;
                self.book_late(&late)?;
                if !is_scripted && self.state.acting().faults > self.limits.max_faults {
                    return Err(self.agent_fault(is_empty)?);
                }
                // What another seat is told says nothing about a loop.
                if let Some(said) = said
                    && observation.seat.0 as usize == self.state.acting
                    && self.state.acting_mut().repetition.see(&said, &observation)
                        >= self.limits.max_repeats
                {
                    return Err(self.truncated(Limit::Loop));
                }
                self.observe(observation)
            }
            Step::End { reward, ending, solved, others, late } => {
                self.book(reward, 0)?;
                self.book_others(&others)?;
                self.book_late(&late)?;
                self.record_solved(solved, &others);
                self.check_range()?;
                Err(match ending {
                    Ending::Terminated => Outcome::Done,
                    Ending::Truncated => Outcome::Truncated(Limit::Environment),
                    Ending::Failed => {
                        infra(InfraReason::EnvError, "the environment reported a failure")
                    }
                })
            }
        }
    }

    /// Records for which seats the episode ended with the task solved.
    fn record_solved(&mut self, solved: bool, others: &[SeatReward]) {
        for other in others {
            self.state.seats[other.seat.0 as usize].solved = other.solved;
        }
        self.state.acting_mut().solved = solved;
    }

    /// Makes one step of the environment, with its observation cut to the limit on bytes.
    async fn step(&mut self, action: Action, deadline: Deadline) -> Result<Step, Outcome> {
        let seat = self.state.acting_mut();
        seat.n_tool_calls += action.calls.len();
        if seat.n_tool_calls > self.limits.max_tool_calls {
            return Err(self.truncated(Limit::ToolCalls));
        }
        self.world.ledger().begin_turn(self.state.n_turns());
        self.step_world(action, deadline).await
    }

    pub(super) async fn step_world(
        &mut self,
        action: Action,
        deadline: Deadline,
    ) -> Result<Step, Outcome> {
        let limit = self.limits.environment_timeout();
        let mut step = self.world.step(action, deadline, limit).await?;
        if let Step::Next { observation, .. } = &mut step {
            excerpt::cut(observation, self.limits.max_observation_bytes);
        }
        Ok(step)
    }

    /// Delivers an observation to the seat that it is addressed to, which acts next.
    fn observe(&mut self, observation: Observation) -> Result<(), Outcome> {
        let seat = self.seat_index(observation.seat)?;
        self.state.acting = seat;
        let agent = match self.seats.get_mut(seat) {
            Some(Occupant::Policy(agent) | Occupant::Frozen(agent, _)) => agent,
            Some(Occupant::Scripted(_)) => {
                self.state.seats[seat].heard.push(observation);
                return Ok(());
            }
            None => return Err(no_agent()),
        };
        match caught(|| agent.observe(&observation)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(infra(reason_of(&error), error.to_string())),
            Err(panic) => Err(infra(InfraReason::AgentPanic, format!("observe: {panic}"))),
        }
    }

    /// Returns the index of a seat that the environment names.
    fn seat_index(&self, seat: Seat) -> Result<usize, Outcome> {
        let (index, n_seats) = (seat.0 as usize, self.state.seats.len());
        if index < n_seats {
            return Ok(index);
        }
        let environment = &self.state.identity.environment;
        let message = format!(
            "environment `{environment}` addresses seat {seat}, and its n_seats is {n_seats}"
        );
        Err(infra(InfraReason::EnvError, message))
    }

    fn ask_agent<T>(&self, question: impl FnOnce(&dyn Agent) -> T) -> Result<T, Outcome> {
        let agent = self.seats.get(self.state.acting).and_then(Occupant::agent);
        let agent = agent.ok_or_else(no_agent)?;
        caught(|| question(agent)).map_err(|panic| {
            infra(InfraReason::AgentPanic, format!("cannot count the agent's tokens: {panic}"))
        })
    }

    /// Writes reward and faults into the newest turn of the seat that acted. A scripted player has no turns to write to.
    fn book(&mut self, reward: Option<f64>, faults: u32) -> Result<(), Outcome> {
        if let Some(value) = reward
            && !value.is_finite()
        {
            return Err(self.bad_reward(self.state.acting, value));
        }
        let seat = self.state.acting_mut();
        seat.faults = seat.faults.saturating_add(faults);
        if let Some(turn) = seat.turns.last_mut() {
            let early = seat.early_reward.take();
            turn.reward = [reward, early].into_iter().flatten().reduce(|sum, part| sum + part);
            turn.faults = faults;
        }
        Ok(())
    }

    /// Adds rewards to the newest turns of seats that did not act. A reward of a seat that has not acted yet waits for its
    /// first turn.
    fn book_others(&mut self, others: &[SeatReward]) -> Result<(), Outcome> {
        for SeatReward { seat, reward, .. } in others {
            let index = self.seat_index(*seat)?;
            if !reward.is_finite() {
                return Err(self.bad_reward(index, *reward));
            }
            let seat = &mut self.state.seats[index];
            let so_far = match seat.turns.last_mut() {
                Some(turn) => &mut turn.reward,
                None => &mut seat.early_reward,
            };
            *so_far = Some(so_far.unwrap_or(0.0) + reward);
        }
        Ok(())
    }

    /// Books rewards of earlier turns.
    fn book_late(&mut self, late: &[LateReward]) -> Result<(), Outcome> {
        for LateReward { turn, reward } in late {
            if !reward.is_finite() {
                return Err(self.bad_reward(self.state.acting, *reward));
            }
            let turns = &mut self.state.acting_mut().turns;
            let n_turns = turns.len();
            let Some(turn) = turns.get_mut(*turn) else {
                let message = format!(
                    "the environment rewards turn {turn} of an episode with {n_turns} turns"
                );
                return Err(infra(InfraReason::EnvError, message));
            };
            turn.reward = Some(turn.reward.unwrap_or(0.0) + reward);
        }
        Ok(())
    }

    fn agent_fault(&mut self, is_empty: bool) -> Result<Outcome, Outcome> {
        let reward = self.world.fault_reward()?.unwrap_or(self.limits.fault_reward);
        let turns = &mut self.state.acting_mut().turns;
        let turn = turns.last_mut().expect("a fault was made in a turn");
        turn.reward = Some(turn.reward.unwrap_or(0.0) + reward);
        self.check_range()?;
        Ok(Outcome::AgentFault(if is_empty { AgentFault::Empty } else { AgentFault::FaultBudget }))
    }

    /// Checks the sums of rewards of all seats.
    fn check_range(&self) -> Result<(), Outcome> {
        let range = self.world.reward_range()?;
        // A sum of rewards may exceed a bound by rounding.
        let slack = 1e-9 * (1.0 + range.start().abs().min(range.end().abs()));
        let is_bad = |total: f64| {
            !total.is_finite() || total < range.start() - slack || total > range.end() + slack
        };
        let mut totals = self.state.seats.iter().map(SeatState::total_reward).enumerate();
        match totals
            .find(|(index, total)| is_bad(*total) && !self.state.seats[*index].turns.is_empty())
        {
            None => Ok(()),
            Some((index, total)) => Err(self.bad_reward(index, total)),
        }
    }

    fn bad_reward(&self, seat: usize, value: f64) -> Outcome {
        let Identity { environment, task_index, environment_seed, .. } = &self.state.identity;
        let turn = self.state.seats[seat].n_turns();
        let range = match self.world.reward_range() {
            Ok(range) => range,
            Err(outcome) => return outcome,
        };
        let message = format!(
            "environment `{environment}` returned reward {value} (task {task_index}, seed {environment_seed}, turn {turn}); its range is {} to {}",
            range.start(),
            range.end()
        );
        infra(InfraReason::BadReward, message)
    }
}

/// A turn of an agent, without its consequences.
struct SampledTurn {
    node: NodeId,
    stop: StopReason,
    engine: String,
}

fn no_agent() -> Outcome {
    infra(InfraReason::Protocol, "the episode broke before it had an agent")
}

fn is_empty(action: &Action) -> bool {
    action.calls.is_empty() && action.text.trim().is_empty()
}

fn reason_of(error: &AgentError) -> InfraReason {
    match error {
        AgentError::Policy(PolicyError::NotFinite(_)) => InfraReason::NotFinite,
        AgentError::Policy(
            PolicyError::Unavailable(_)
            | PolicyError::Refused(_)
            | PolicyError::Failed(_)
            | PolicyError::Diverged(_),
        ) => InfraReason::EngineError,
        AgentError::BadEngine(_) => InfraReason::BadEngine,
        AgentError::Render(_) => InfraReason::Render,
        AgentError::Snapshot(_) => InfraReason::Snapshot,
    }
}
