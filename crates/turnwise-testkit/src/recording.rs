//! A policy that records its exchanges, and a way to play an episode in pieces.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use turnwise_environment::{TaskSet, derive_seed};
use turnwise_rollout::{
    AgentFactory, Allowance, Episode, Limits, Policy, PolicyError, Progress, Sample, SampleRequest,
    Sampler, uniform_at,
};
use turnwise_trajectory::{Identity, PolicyVersion, SampledToken, StopReason, TokenId, Trajectory};

/// One request, and its answer.
#[derive(Clone, Debug)]
pub struct RecordedExchange {
    /// The request.
    pub request: SampleRequest,
    /// The answer.
    pub sample: Sample,
}

/// A policy whose logits are a hash of context and version, so that every context and every version has its own
/// distribution. It records every exchange, and changes its weights after given numbers of tokens, also within a request.
#[derive(Debug)]
pub struct RecordingPolicy {
    n_ids: usize,
    /// The version rises when this many tokens have been sampled.
    swaps: Vec<u64>,
    drawn: AtomicU64,
    log: Mutex<Vec<RecordedExchange>>,
}

impl RecordingPolicy {
    /// Creates a policy whose weights never change.
    #[must_use]
    pub fn new(n_ids: usize) -> Self {
        Self::swapping(n_ids, Vec::new())
    }

    /// Creates a policy whose version rises after these numbers of tokens.
    #[must_use]
    pub fn swapping(n_ids: usize, swaps: Vec<u64>) -> Self {
        Self { n_ids, swaps, drawn: AtomicU64::new(0), log: Mutex::default() }
    }

    /// Returns the version of the token with this number, counted over all requests.
    #[must_use]
    pub fn version_at(&self, number: u64) -> PolicyVersion {
        PolicyVersion(self.swaps.iter().filter(|swap| **swap <= number).count() as u32)
    }

    /// Returns all exchanges, oldest first.
    ///
    /// # Panics
    /// Panics if a holder of the lock panicked.
    #[must_use]
    pub fn exchanges(&self) -> Vec<RecordedExchange> {
        self.log.lock().expect("no holder panics").clone()
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

/// Returns logits that are a hash of context and version.
#[must_use]
pub fn hashed_logits(n_ids: usize, context: &[TokenId], version: PolicyVersion) -> Vec<f32> {
    let hash =
        context.iter().fold(u64::from(version.0), |hash, id| derive_seed(hash, u64::from(*id)));
    (0..n_ids as u64).map(|id| 3.0 * uniform_at(hash, id) as f32).collect()
}

#[async_trait]
impl Policy for RecordingPolicy {
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
        let exchange = RecordedExchange { request, sample: sample.clone() };
        self.log.lock().expect("no holder panics").push(exchange);
        Ok(sample)
    }
}

/// The places at which an episode is suspended.
#[derive(Clone, Debug, Default)]
pub struct Cuts {
    /// The allowances of the advances, again and again; without any, an advance has no limit.
    pub allowances: Vec<u64>,
    /// Whether the episode is dropped at each suspension, and restored from JSON.
    pub through_json: bool,
}

/// Plays one episode to its end, and returns how often it was suspended.
///
/// # Panics
/// Panics if a snapshot cannot be made or restored.
pub async fn play(
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

/// Restores an episode from the text of its snapshot, with nothing of the old one left.
fn reborn(episode: Episode, tasks: &dyn TaskSet, agents: &dyn AgentFactory) -> Episode {
    let snapshot = episode.snapshot().expect("the environment takes snapshots");
    let json = serde_json::to_string(&snapshot).expect("a snapshot is plain data");
    drop((episode, snapshot));
    let snapshot = serde_json::from_str(&json).expect("what was written can be read");
    Episode::restore(snapshot, tasks, agents).expect("what was suspended goes on")
}
