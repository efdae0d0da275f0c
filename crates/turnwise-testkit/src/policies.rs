//! Policies that wrap a policy: each changes one thing.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest};
use turnwise_trajectory::{PolicyVersion, StopReason};

/// Interrupts every request after at most this many tokens.
#[derive(Clone, Debug)]
pub struct Interrupting<P> {
    /// The policy that draws.
    pub inner: P,
    /// At least 1.
    pub after: usize,
}

#[async_trait]
impl<P: Policy> Policy for Interrupting<P> {
    fn version(&self) -> PolicyVersion {
        self.inner.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let wanted = request.max_tokens;
        let max_tokens = wanted.min(self.after);
        let mut sample = self.inner.sample(SampleRequest { max_tokens, ..request }).await?;
        if sample.stop == StopReason::MaxTokens && max_tokens < wanted {
            sample.stop = StopReason::Interrupted;
        }
        Ok(sample)
    }

    fn release(&self, session: u64) {
        self.inner.release(session);
    }
}

/// Breaks on every `every`-th request.
#[derive(Debug)]
pub struct Faulty<P> {
    /// The policy that draws.
    pub inner: P,
    /// At least 1.
    pub every: u64,
    requests: AtomicU64,
}

impl<P> Faulty<P> {
    /// A policy that breaks on request `every`, twice `every`, and so on.
    pub fn new(inner: P, every: u64) -> Self {
        Self { inner, every, requests: AtomicU64::new(0) }
    }
}

#[async_trait]
impl<P: Policy> Policy for Faulty<P> {
    fn version(&self) -> PolicyVersion {
        self.inner.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if number.is_multiple_of(self.every) {
            return Err(PolicyError::Failed(format!("request {number} was made to fail")));
        }
        self.inner.sample(request).await
    }

    fn release(&self, session: u64) {
        self.inner.release(session);
    }
}

/// Passes each answer through a function: an engine that lies.
pub struct Lying<P, F> {
    /// The policy that draws.
    pub inner: P,
    /// What is done to its answers.
    pub lie: F,
}

impl<P, F> std::fmt::Debug for Lying<P, F> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Lying")
    }
}

#[async_trait]
impl<P: Policy, F: Fn(&SampleRequest, Sample) -> Sample + Send + Sync> Policy for Lying<P, F> {
    fn version(&self) -> PolicyVersion {
        self.inner.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let sample = self.inner.sample(request.clone()).await?;
        Ok((self.lie)(&request, sample))
    }

    fn release(&self, session: u64) {
        self.inner.release(session);
    }
}
