use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;
use turnwise_environment::{Environment, LedgerStore, Seat};
use turnwise_trajectory::{
    CancelReason, Identity, InfraReason, Limit, MaskReason, MessageGraph, Node, Outcome,
    PolicyVersion, SampledToken, Trajectory,
};

use crate::{
    Agent, AgentFactory, Allowance, BlockingThreads, Deadline, Limits, Opponent, Policy, SessionId,
};

mod digest;
mod excerpt;
mod fork;
mod guard;
mod repetition;
mod replay;
mod seats;
mod snapshot;
mod state;
mod turn;
mod world;

pub(crate) use guard::release;
use guard::{OpenSessions, caught, infra};
use seats::{Occupant, SeatState};
use state::{Factory, State};
use world::World;

pub use fork::{Fork, ForkError};
pub use snapshot::{EpisodeSnapshot, RestoreError, SnapshotError};

/// One environment and the agents on its seats, from the first observation to an outcome. Most environments have one
/// seat, and one agent.
///
/// An episode is a value: [`advance`](Self::advance) consumes it and returns it when it suspends, so a finished episode
/// cannot be used again, and stopping an episode drops no future.
///
/// # Example
///
/// An episode that may sample two tokens at a time:
///
/// ```
/// use std::sync::Arc;
///
/// use turnwise_environment::TaskSet;
/// use turnwise_rollout::{Allowance, ChatAgents, Episode, Limits, Progress};
/// use turnwise_testkit::{AlphabetRenderer, Echo, TabularModel};
/// use turnwise_trajectory::Sampling;
/// # use turnwise_environment::TaskKey;
/// # use turnwise_trajectory::{GroupId, Identity};
/// #
/// # fn identity() -> Identity {
/// #     Identity {
/// #         environment: "letters".to_owned(),
/// #         environment_version: 1,
/// #         task: TaskKey::of("one"),
/// #         task_index: 0,
/// #         group: GroupId(0),
/// #         member: 0,
/// #         attempt: 0,
/// #         environment_seed: 1,
/// #         sampling_seed: 2,
/// #     }
/// # }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let renderer = Arc::new(AlphabetRenderer::new("abc"));
/// let model = TabularModel::new(renderer.n_ids());
/// let agents = ChatAgents::new(renderer);
/// let tasks = vec![Echo::new(3, true)];
/// let limits = Limits { max_turn_tokens: 4, ..Limits::default() };
/// let mut episode = Episode::new(identity(), tasks.environment(0), &agents, limits);
///
/// let mut n_suspensions = 0;
/// let trajectory = loop {
///     match episode.advance(&model, &Allowance::tokens(2)).await {
///         Progress::Finished(trajectory) => break trajectory,
///         Progress::Suspended(suspended) => episode = suspended,
///     }
///     n_suspensions += 1;
/// };
/// assert!(n_suspensions > 0);
/// assert_eq!(trajectory.turns.len(), 3);
/// # }
/// ```
///
/// [`snapshot`](Self::snapshot) and [`restore`](Self::restore) take a suspended episode to another process.
pub struct Episode {
    world: World,
    /// Who plays each seat; empty only in an episode that broke before it began.
    seats: Vec<Occupant>,
    /// Who plays the seats that the trained policy leaves.
    opponent: Opponent,
    factory: Factory,
    limits: Limits,
    state: State,
    /// A fault in the constructor, which becomes the outcome at the first advance.
    broken: Option<Outcome>,
    /// Whether the environment must be replayed to the episode's current turn before it continues.
    is_behind: bool,
}

/// Sees an episode after each of its turns.
pub type TurnWatcher<'a> = dyn FnMut(&Episode) + Send + 'a;

/// The state of an episode after an advance.
#[derive(Debug)]
#[must_use = "a suspended episode is lost when it is dropped"]
pub enum Progress {
    /// The episode has an outcome.
    Finished(Trajectory),
    /// The episode continues at the next advance.
    Suspended(Episode),
}

impl Episode {
    /// Creates an episode from a fresh `environment` and an agent of `factory`.
    ///
    /// Never fails: a fault of the environment or the factory becomes the episode's outcome at the first advance.
    #[must_use]
    pub fn new(
        identity: Identity,
        environment: Box<dyn Environment>,
        factory: &dyn AgentFactory,
        limits: Limits,
    ) -> Self {
        let world = World::new(environment, &identity);
        let made = world
            .tools()
            .and_then(|tools| seats::with_agents(factory, &identity, &tools, world.n_seats()?));
        let factory = Factory::of(factory);
        let mut state = State::new(identity);
        let (seats, broken) = match made {
            Ok((occupants, seats)) => {
                state.seats = seats;
                (occupants, None)
            }
            Err(outcome) => (Vec::new(), Some(outcome)),
        };
        let opponent = Opponent::Itself;
        Self { world, seats, opponent, factory, limits, state, broken, is_behind: false }
    }

    /// Gives the seats that the trained policy does not play to `opponent`. Without it, the trained policy plays all. Call
    /// it at most once, before the first advance.
    #[must_use]
    pub fn against(mut self, opponent: &Opponent) -> Self {
        match seats::give_to(opponent, std::mem::take(&mut self.seats), &self.state.identity) {
            Ok(seats) => self.seats = seats,
            Err(outcome) => self.broken = Some(outcome),
        }
        self.opponent = opponent.clone();
        self
    }

    /// Also records the episode's tool calls in `store`, which outlives the process.
    #[must_use]
    pub fn with_ledger(self, store: Arc<dyn LedgerStore>) -> Self {
        self.world.keep_ledger_in(store);
        self
    }

    /// Runs a [blocking](Environment::is_blocking) environment on these threads instead of those of the process.
    #[must_use]
    pub fn with_threads(mut self, threads: BlockingThreads) -> Self {
        self.world.use_threads(threads);
        self
    }

    /// Returns the identity of the episode.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.state.identity
    }

    /// Returns how often the episode was suspended; 0 if it was never advanced.
    #[must_use]
    pub fn suspensions(&self) -> u32 {
        self.state.suspensions
    }

    /// Returns the number of tokens that the trained policy has sampled so far.
    #[must_use]
    pub fn n_drawn(&self) -> usize {
        let n_drawn = |agent: &dyn Agent| caught(|| agent.n_drawn()).unwrap_or(0);
        self.seats.iter().filter_map(Occupant::trained).map(n_drawn).sum()
    }

    /// Returns the oldest version of the sampled tokens; `None` before the first token.
    #[must_use]
    pub fn oldest_version(&self) -> Option<PolicyVersion> {
        let oldest = |agent: &dyn Agent| {
            let nodes = agent.graph().nodes().iter();
            let trained = nodes.flat_map(Node::sampled).filter(SampledToken::trains);
            trained.map(|token| token.version).min()
        };
        let agents = self.seats.iter().filter_map(Occupant::trained);
        agents.filter_map(|agent| caught(|| oldest(agent)).ok().flatten()).min()
    }

    /// Advances the episode until it has an outcome or the allowance is used up.
    ///
    /// Never fails: every fault becomes the outcome of this episode and affects no other. Dropping the future abandons
    /// the episode, with its request, its engine session and its environment.
    pub async fn advance(self, policy: &dyn Policy, allowance: &Allowance) -> Progress {
        self.advance_within(policy, allowance, Deadline::never()).await
    }

    /// Like [`advance`](Self::advance), with a parent deadline that ends the episode as an infrastructure fault.
    pub async fn advance_within(
        self,
        policy: &dyn Policy,
        allowance: &Allowance,
        parent: Deadline,
    ) -> Progress {
        self.advance_watched(policy, allowance, parent, &mut |_| {}).await
    }

    /// Like [`advance_within`](Self::advance_within), and shows the episode to `watcher` after each turn that the environment
    /// has answered, for instance to keep a [`snapshot`](Self::snapshot) of it elsewhere.
    pub async fn advance_watched(
        mut self,
        policy: &dyn Policy,
        allowance: &Allowance,
        parent: Deadline,
        watcher: &mut TurnWatcher<'_>,
    ) -> Progress {
        let started = Instant::now();
        let before = self.state.seconds;
        let deadline = parent.child(self.time_left());
        let sessions = OpenSessions::new(policy, self.sessions());
        let outcome = match self.broken.take() {
            Some(outcome) => Some(outcome),
            None => self.run(policy, allowance, deadline, watcher).await,
        };
        self.state.seconds = before + started.elapsed().as_secs_f64();
        if let Some(outcome) = outcome {
            drop(sessions);
            Progress::Finished(self.finish(&outcome))
        } else {
            sessions.keep();
            self.state.suspensions += 1;
            Progress::Suspended(self)
        }
    }

    /// Cancels the episode and releases its engine sessions.
    #[must_use]
    pub fn cancel(self, reason: CancelReason, policy: &dyn Policy) -> Trajectory {
        drop(OpenSessions::new(policy, self.sessions()));
        self.give_up(reason)
    }

    /// Like `cancel`, for callers that release sessions themselves.
    pub(crate) fn give_up(self, reason: CancelReason) -> Trajectory {
        self.finish(&Outcome::Cancelled(reason))
    }

    fn finish(mut self, outcome: &Outcome) -> Trajectory {
        // The ledger is closed first, because a tool's late answer belongs to no attempt.
        self.world.ledger().close();
        let acting = self.state.acting;
        let mut trajectories = Vec::new();
        let mut occupants = std::mem::take(&mut self.seats).into_iter();
        for (index, seat) in std::mem::take(&mut self.state.seats).into_iter().enumerate() {
            let agent = match occupants.next() {
                Some(Occupant::Policy(agent)) => Some(agent),
                // An episode that broke before it had agents has one trajectory all the same.
                None if index == 0 => None,
                Some(Occupant::Frozen(..) | Occupant::Scripted(_)) | None => continue,
            };
            let outcome = if index == acting { outcome.clone() } else { of_others(outcome) };
            trajectories.push(self.trajectory(index, seat, agent, outcome));
        }
        // A graph that cannot be taken breaks the episode for every seat.
        let mut outcomes = trajectories.iter().map(|one| &one.outcome);
        let fault = outcomes.rfind(|outcome| matches!(outcome, Outcome::InfraFault(_)));
        if let Some(fault) = fault.cloned() {
            for trajectory in &mut trajectories {
                (trajectory.outcome, trajectory.solved) = (fault.clone(), false);
            }
        }
        let others = trajectories.split_off(1);
        let first = trajectories.pop().expect("the trained policy plays a seat");
        Trajectory { others, ..first }
    }

    /// Returns the trajectory of a seat.
    fn trajectory(
        &self,
        index: usize,
        mut seat: SeatState,
        agent: Option<Box<dyn Agent>>,
        outcome: Outcome,
    ) -> Trajectory {
        let (graph, outcome) = give_graph_up(agent, &mut seat, outcome);
        Trajectory {
            identity: self.state.identity.clone(),
            renderer: self.factory.renderer.clone(),
            sampling: self.factory.sampling.clone(),
            graph,
            turns: seat.turns,
            solved: seat.solved && outcome.is_scored(),
            outcome,
            seat: Seat(index as u32),
            others: Vec::new(),
        }
    }

    /// Returns the engine sessions of the seats, each with its policy if that is not the trained one.
    pub(crate) fn sessions(&self) -> Vec<(Option<Arc<dyn Policy>>, SessionId)> {
        let seats = self.seats.iter().zip(&self.state.seats);
        let agents = seats.filter(|(occupant, _)| occupant.agent().is_some());
        agents.map(|(occupant, seat)| (occupant.frozen(), self.state.session(seat))).collect()
    }
}

/// Returns the outcome of the seats that did not act when the episode ended.
fn of_others(outcome: &Outcome) -> Outcome {
    match outcome {
        Outcome::Truncated(limit) if *limit != Limit::Environment => {
            Outcome::Truncated(Limit::OtherSeat)
        }
        Outcome::AgentFault(_) => Outcome::Truncated(Limit::OtherSeat),
        Outcome::Truncated(_) | Outcome::Done | Outcome::InfraFault(_) | Outcome::Cancelled(_) => {
            outcome.clone()
        }
    }
}

/// Takes the agent's graph and masks its shared prefix. The graph of a panicked agent is only read; if reading fails
/// too, the turns are dropped with the graph that they refer to.
fn give_graph_up(
    agent: Option<Box<dyn Agent>>,
    seat: &mut SeatState,
    outcome: Outcome,
) -> (MessageGraph, Outcome) {
    let is_broken = matches!(&outcome, Outcome::InfraFault(fault)
        if fault.reason == InfraReason::AgentPanic);
    let graph = match agent {
        Some(agent) if is_broken => caught(|| agent.graph().clone()),
        Some(agent) => caught(|| agent.into_graph()),
        None => Ok(MessageGraph::default()),
    };
    match graph {
        Ok(mut graph) => {
            mask_prefix(&mut graph, seat.n_shared);
            (graph, outcome)
        }
        Err(panic) => {
            seat.turns.clear();
            let message = format!("cannot take the graph from the agent: {panic}");
            (MessageGraph::default(), infra(InfraReason::AgentPanic, message))
        }
    }
}

/// Masks the first `n` sampled tokens, which another episode trains.
fn mask_prefix(graph: &mut MessageGraph, n: usize) {
    let mut left = n;
    for id in graph.ids() {
        if left == 0 {
            return;
        }
        for tokens in graph.node_mut(id).sampled_mut() {
            tokens.mask_where(MaskReason::SharedPrefix, |_| {
                let is_shared = left > 0;
                left = left.saturating_sub(1);
                is_shared
            });
        }
    }
}

impl fmt::Debug for Episode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Episode").field("state", &self.state).finish_non_exhaustive()
    }
}
