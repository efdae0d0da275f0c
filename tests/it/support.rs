//! What the tests share: an engine that records, builders of trajectories, ways to play an episode.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use turnwise_environment::{TaskSet, derive_seed};
use turnwise_objective::{Clip, GroupAdvantage, GspoToken, LengthWeight, Std};
use turnwise_rollout::{
    AgentFactory, Allowance, ChatAgents, Episode, Limits, Policy, PolicyError, PoolSettings,
    Progress, Sample, SampleRequest, Sampler, uniform_at,
};
use turnwise_testkit::{AlphabetRenderer, Echo};
pub(crate) use turnwise_testkit::{Built, scored_token as token};
use turnwise_training::OutcomeCredit;
use turnwise_trajectory::{
    GroupId, Identity, Outcome, PolicyVersion, SampledToken, Sampling, StopReason, TokenId,
    Trajectory,
};

/// Compares whole episodes.
pub(crate) const OUTCOME: OutcomeCredit =
    OutcomeCredit { advantage: GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 1e-6 } };

/// What the policies of these tests can say.
pub(crate) const LETTERS: &str = "abc";

/// The clip range is wide, so that no test depends on what is clipped unless it says so.
pub(crate) const OBJECTIVE: GspoToken =
    GspoToken { clip: Clip::PAPER_GRPO, length_weight: LengthWeight::Mean };

/// Runs a future to its end on one thread, with a clock that stands still while anything can go on.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(future)
}

pub(crate) fn agents() -> ChatAgents {
    agents_with(LETTERS, Sampling::default())
}

pub(crate) fn agents_with(letters: &str, sampling: Sampling) -> ChatAgents {
    ChatAgents { sampling, ..ChatAgents::new(Arc::new(AlphabetRenderer::new(letters))) }
}

pub(crate) fn limits() -> Limits {
    Limits { max_turn_tokens: 6, ..Limits::default() }
}

pub(crate) fn pool_settings() -> PoolSettings {
    PoolSettings {
        group_size: 4,
        max_bad_rewards: 1.0,
        limits: limits(),
        ..PoolSettings::default()
    }
}

/// Echoes of 1 to `n` turns.
pub(crate) fn echoes(n: usize, has_snapshots: bool) -> Vec<Echo> {
    (1..=n).map(|turns| Echo::new(turns, has_snapshots)).collect()
}

pub(crate) fn identity(tasks: &dyn TaskSet, task_index: usize, seed: u64) -> Identity {
    Identity {
        environment: tasks.name().to_owned(),
        environment_version: tasks.version(),
        task: tasks.key(task_index),
        task_index,
        group: GroupId(0),
        member: 0,
        attempt: 0,
        environment_seed: derive_seed(seed, 0),
        sampling_seed: derive_seed(seed, 1),
    }
}

/// One exchange with an engine.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) request: SampleRequest,
    pub(crate) sample: Sample,
}

/// An engine whose logits are a hash of context and version, so that every context has a distribution of its own and other
/// weights mean other distributions. It writes down every exchange, and changes its weights after given numbers of tokens,
/// in the middle of a request where they fall there.
#[derive(Debug)]
pub(crate) struct Engine {
    n_ids: usize,
    /// The version rises when this many tokens have been drawn.
    swaps: Vec<u64>,
    drawn: AtomicU64,
    log: Mutex<Vec<Exchange>>,
}

impl Engine {
    pub(crate) fn new(n_ids: usize) -> Self {
        Self::swapping(n_ids, Vec::new())
    }

    pub(crate) fn swapping(n_ids: usize, swaps: Vec<u64>) -> Self {
        Self { n_ids, swaps, drawn: AtomicU64::new(0), log: Mutex::default() }
    }

    /// Of the token with this number, counted over all requests.
    pub(crate) fn version_at(&self, number: u64) -> PolicyVersion {
        PolicyVersion(self.swaps.iter().filter(|swap| **swap <= number).count() as u32)
    }

    pub(crate) fn exchanges(&self) -> Vec<Exchange> {
        self.log.lock().expect("nobody panics with it").clone()
    }

    fn draw(
        &self,
        sampler: &mut Sampler,
        request: &SampleRequest,
        place: usize,
        context: &[TokenId],
    ) -> SampledToken {
        let version = self.version_at(self.drawn.fetch_add(1, Ordering::Relaxed));
        let logits = hashed_logits(self.n_ids, context, version);
        let uniform = uniform_at(request.seed, request.first_index + place as u64);
        let (id, logprob) = sampler.draw(&logits, &request.sampling, uniform);
        SampledToken::new(id, logprob, version)
    }
}

pub(crate) fn hashed_logits(n_ids: usize, context: &[TokenId], version: PolicyVersion) -> Vec<f32> {
    let hash =
        context.iter().fold(u64::from(version.0), |hash, id| derive_seed(hash, u64::from(*id)));
    (0..n_ids as u64).map(|id| 3.0 * uniform_at(hash, id) as f32).collect()
}

#[async_trait]
impl Policy for Engine {
    fn version(&self) -> PolicyVersion {
        self.version_at(self.drawn.load(Ordering::Relaxed))
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let mut sampler = Sampler::default();
        let mut context = request.prompt.clone();
        let mut sample = Sample::new("hashed");
        while sample.tokens.len() < request.max_tokens && sample.stop == StopReason::MaxTokens {
            let token = self.draw(&mut sampler, &request, sample.tokens.len(), &context);
            sample.push(token, sampler.support());
            context.push(token.id);
            if request.stop.contains(&token.id) {
                sample.stop = StopReason::EndOfTurn;
            }
        }
        let exchange = Exchange { request, sample: sample.clone() };
        self.log.lock().expect("nobody panics with it").push(exchange);
        Ok(sample)
    }
}

/// How an episode is cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cuts {
    /// The allowances of the advances, over and over; none is one without end.
    pub(crate) allowances: Vec<u64>,
    /// Whether everything is dropped at each suspension and read back from JSON.
    pub(crate) through_json: bool,
}

/// Plays one episode to its end and says how often it was suspended.
pub(crate) async fn play(
    tasks: &dyn TaskSet,
    identity: Identity,
    agents: &dyn AgentFactory,
    policy: &dyn Policy,
    limits: &Limits,
    cuts: &Cuts,
) -> (Trajectory, u32) {
    let environment = tasks.environment(identity.task_index);
    let mut episode = Episode::new(identity, environment, agents, limits.clone());
    for number in 0.. {
        let suspensions = episode.suspensions();
        let allowance = match cuts.allowances.as_slice() {
            [] => Allowance::unlimited(),
            tokens => Allowance::tokens(tokens[number % tokens.len()]),
        };
        episode = match episode.advance(policy, &allowance).await {
            Progress::Finished(trajectory) => return (trajectory, suspensions),
            Progress::Suspended(episode) if cuts.through_json => reborn(episode, tasks, agents),
            Progress::Suspended(episode) => episode,
        };
    }
    unreachable!("an episode ends")
}

/// The same episode from its snapshot's text, with nothing of the old one left.
fn reborn(episode: Episode, tasks: &dyn TaskSet, agents: &dyn AgentFactory) -> Episode {
    let snapshot = episode.snapshot().expect("the environment takes snapshots");
    let json = serde_json::to_string(&snapshot).expect("a snapshot is plain data");
    drop((episode, snapshot));
    let snapshot = serde_json::from_str(&json).expect("what was written can be read");
    Episode::restore(snapshot, tasks, agents).expect("what was suspended goes on")
}

/// A trajectory of one turn with this reward and outcome.
pub(crate) fn ended(member: u32, reward: f64, outcome: Outcome) -> Trajectory {
    let built = Built::new(member).turn(vec![token(1, -0.5, 0.0)], reward);
    Trajectory { outcome, ..built.trajectory }
}
