//! Policies for tests; most wrap another policy and change one thing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use turnwise_environment::derive_seed;
use turnwise_rollout::{
    Continued, Policy, PolicyError, Sample, SampleRequest, Sampler, SessionId, TokenConstraint,
    uniform_at,
};
use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason, TokenId};

/// A policy whose logits are a hash of the context, so that any difference in the context shows in the sampled tokens.
#[derive(Clone, Copy, Debug)]
pub struct Hashed {
    /// The size of the vocabulary.
    pub n_ids: usize,
}

#[async_trait]
impl Policy for Hashed {
    fn version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let mut sampler = Sampler::default();
        let mut hash = request.prompt.iter().fold(0, |hash, id| derive_seed(hash, u64::from(*id)));
        let mut sample = Sample::new("hashed");
        while sample.tokens.len() < request.max_tokens {
            let logit = |id: TokenId| 3.0 * uniform_at(hash, u64::from(id)) as f32;
            let logits: Vec<f32> = (0..self.n_ids as TokenId).map(logit).collect();
            let index = request.first_index + sample.tokens.len() as u64;
            let uniform = uniform_at(request.seed, index);
            let (id, logprob) = sampler.draw(&logits, &request.sampling, uniform);
            sample.push(SampledToken::new(id, logprob, self.version()), sampler.support());
            hash = derive_seed(hash, u64::from(id));
            if request.stop.contains(&id) {
                sample.stop = StopReason::EndOfTurn;
                break;
            }
            // Yields between any two tokens, so that the future can be dropped there.
            tokio::task::yield_now().await;
        }
        Ok(sample)
    }
}

/// A policy that records the open sessions: those that were begun and not released.
#[derive(Debug)]
pub struct Sessions<P> {
    /// The policy that samples.
    pub inner: P,
    open: Mutex<BTreeSet<SessionId>>,
}

impl<P> Sessions<P> {
    /// Creates a policy without open sessions.
    pub fn new(inner: P) -> Self {
        Self { inner, open: Mutex::default() }
    }

    /// Returns the open sessions.
    ///
    /// # Panics
    /// Panics if a holder of the lock panicked.
    #[must_use]
    pub fn open(&self) -> Vec<SessionId> {
        self.open.lock().expect("no holder panics").iter().copied().collect()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: Policy> Policy for Sessions<P> {
    fn version(&self) -> PolicyVersion {
        self.inner.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        self.open.lock().expect("no holder panics").insert(request.session);
        self.inner.sample(request).await
    }

    async fn sample_constrained(
        &self,
        request: SampleRequest,
        constraint: Arc<dyn TokenConstraint>,
    ) -> Result<Sample, PolicyError> {
        self.open.lock().expect("no holder panics").insert(request.session);
        self.inner.sample_constrained(request, constraint).await
    }

    fn interrupt(&self, session: SessionId) -> bool {
        self.inner.interrupt(session)
    }

    fn release(&self, session: SessionId) {
        self.open.lock().expect("no holder panics").remove(&session);
        self.inner.release(session);
    }
}

/// A policy that interrupts every request after a number of tokens.
#[derive(Clone, Debug)]
pub struct Interrupting<P> {
    /// The policy that samples.
    pub inner: P,
    /// The maximal number of tokens of a request; at least 1.
    pub after: usize,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: Policy> Policy for Interrupting<P> {
    fn version(&self) -> PolicyVersion {
        self.inner.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let (wanted, request) = self.cut(request);
        Ok(interrupted(self.inner.sample(request).await?, wanted))
    }

    async fn sample_constrained(
        &self,
        request: SampleRequest,
        constraint: Arc<dyn TokenConstraint>,
    ) -> Result<Sample, PolicyError> {
        let (wanted, request) = self.cut(request);
        Ok(interrupted(self.inner.sample_constrained(request, constraint).await?, wanted))
    }

    fn interrupt(&self, session: SessionId) -> bool {
        self.inner.interrupt(session)
    }

    fn release(&self, session: SessionId) {
        self.inner.release(session);
    }
}

impl<P> Interrupting<P> {
    /// Returns the number of tokens that a request wants, and the request for those before the interruption.
    fn cut(&self, request: SampleRequest) -> (usize, SampleRequest) {
        let wanted = request.max_tokens;
        (wanted, SampleRequest { max_tokens: wanted.min(self.after), ..request })
    }
}

/// Marks a sample with fewer than the `wanted` tokens as interrupted.
fn interrupted(mut sample: Sample, wanted: usize) -> Sample {
    if sample.stop == StopReason::MaxTokens && sample.tokens.len() < wanted {
        sample.stop = StopReason::Interrupted;
    }
    sample
}

/// A policy that returns the tokens sampled so far when it is interrupted, as an engine does. It samples one token at a
/// time, and waits between any two.
#[derive(Debug)]
pub struct Interruptible<P> {
    /// The policy that samples.
    pub inner: P,
    /// The sessions with a request, and whether it was interrupted.
    requests: Mutex<BTreeMap<SessionId, bool>>,
    n_sampled: AtomicU64,
}

impl<P: Policy> Interruptible<P> {
    /// Creates a policy without requests.
    pub fn new(inner: P) -> Self {
        Self { inner, requests: Mutex::default(), n_sampled: AtomicU64::new(0) }
    }

    /// Returns the number of tokens sampled so far, over all requests.
    #[must_use]
    pub fn n_sampled(&self) -> u64 {
        self.n_sampled.load(Ordering::Relaxed)
    }

    fn requests(&self) -> std::sync::MutexGuard<'_, BTreeMap<SessionId, bool>> {
        self.requests.lock().expect("no holder panics")
    }

    async fn step_by_step(
        &self,
        request: &SampleRequest,
        constraint: Option<&Arc<dyn TokenConstraint>>,
    ) -> Result<Sample, PolicyError> {
        let mut sample = Sample::new("interruptible");
        let mut rest = SampleRequest { max_tokens: 1, ..request.clone() };
        while sample.tokens.len() < request.max_tokens {
            if self.requests().get(&request.session) == Some(&true) {
                sample.stop = StopReason::Interrupted;
                break;
            }
            let before = sample.tokens.iter().map(|token| token.id).collect();
            let one = match constraint.cloned() {
                None => self.inner.sample(rest.clone()).await?,
                Some(constraint) => {
                    let constraint = Arc::new(Continued { constraint, before });
                    self.inner.sample_constrained(rest.clone(), constraint).await?
                }
            };
            let token = one.tokens[0];
            self.n_sampled.fetch_add(1, Ordering::Relaxed);
            sample.push(token, one.kept.first().map_or(&[], Vec::as_slice));
            rest.prompt.push(token.id);
            rest.first_index += 1;
            rest.min_version = token.version;
            if one.stop == StopReason::EndOfTurn {
                sample.stop = StopReason::EndOfTurn;
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(sample)
    }
}

/// A request that is being answered; it ends when this value is dropped.
struct OpenRequest<'a, P: Policy>(&'a Interruptible<P>, SessionId);

impl<'a, P: Policy> OpenRequest<'a, P> {
    fn new(policy: &'a Interruptible<P>, session: SessionId) -> Self {
        policy.requests().insert(session, false);
        Self(policy, session)
    }
}

impl<P: Policy> Drop for OpenRequest<'_, P> {
    fn drop(&mut self) {
        self.0.requests().remove(&self.1);
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: Policy> Policy for Interruptible<P> {
    fn version(&self) -> PolicyVersion {
        self.inner.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let _open = OpenRequest::new(self, request.session);
        self.step_by_step(&request, None).await
    }

    async fn sample_constrained(
        &self,
        request: SampleRequest,
        constraint: Arc<dyn TokenConstraint>,
    ) -> Result<Sample, PolicyError> {
        let _open = OpenRequest::new(self, request.session);
        self.step_by_step(&request, Some(&constraint)).await
    }

    fn interrupt(&self, session: SessionId) -> bool {
        self.requests().get_mut(&session).map(|interrupted| *interrupted = true).is_some()
    }

    fn release(&self, session: SessionId) {
        self.inner.release(session);
    }
}

/// A policy that fails on every `every`-th request.
#[derive(Debug)]
pub struct Faulty<P> {
    /// The policy that samples.
    pub inner: P,
    /// The period of the failure, at least 1.
    pub every: u64,
    requests: AtomicU64,
}

impl<P> Faulty<P> {
    /// Counts a request, and fails on every `every`-th.
    fn count(&self) -> Result<(), PolicyError> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if number.is_multiple_of(self.every) {
            return Err(PolicyError::Failed(format!("request {number} was made to fail")));
        }
        Ok(())
    }

    /// Creates a policy that fails on request `every`, twice `every`, and so on.
    pub fn new(inner: P, every: u64) -> Self {
        Self { inner, every, requests: AtomicU64::new(0) }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: Policy> Policy for Faulty<P> {
    fn version(&self) -> PolicyVersion {
        self.inner.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        self.count()?;
        self.inner.sample(request).await
    }

    async fn sample_constrained(
        &self,
        request: SampleRequest,
        constraint: Arc<dyn TokenConstraint>,
    ) -> Result<Sample, PolicyError> {
        self.count()?;
        self.inner.sample_constrained(request, constraint).await
    }

    fn interrupt(&self, session: SessionId) -> bool {
        self.inner.interrupt(session)
    }

    fn release(&self, session: SessionId) {
        self.inner.release(session);
    }
}

/// A policy that passes each answer through a function, to simulate an engine that lies.
pub struct Lying<P, F> {
    /// The policy that samples.
    pub inner: P,
    /// The function applied to the policy's answers.
    pub lie: F,
}

impl<P, F> std::fmt::Debug for Lying<P, F> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Lying")
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: Policy, F: Fn(&SampleRequest, Sample) -> Sample + Send + Sync> Policy for Lying<P, F> {
    fn version(&self) -> PolicyVersion {
        self.inner.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let sample = self.inner.sample(request.clone()).await?;
        Ok((self.lie)(&request, sample))
    }

    async fn sample_constrained(
        &self,
        request: SampleRequest,
        constraint: Arc<dyn TokenConstraint>,
    ) -> Result<Sample, PolicyError> {
        let sample = self.inner.sample_constrained(request.clone(), constraint).await?;
        Ok((self.lie)(&request, sample))
    }

    fn interrupt(&self, session: SessionId) -> bool {
        self.inner.interrupt(session)
    }

    fn release(&self, session: SessionId) {
        self.inner.release(session);
    }
}
