use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;
use turnwise_rollout::{
    Policy, PolicyError, Sample, SampleRequest, Sampler, SessionId, uniform_at,
};
use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason};

use crate::letters::{END, N_IDS};
use crate::witness::{extend, hash_ids};
use crate::world::World;
use crate::{FaultKind, Invariant, Mutation, Violation};

/// An engine whose logits are a hash of context and weights. It records every sampled token, and fails according to the
/// plan.
pub(crate) struct Engine {
    pub(crate) world: Arc<World>,
}

const BREAKS: [FaultKind; 5] = [
    FaultKind::EngineError,
    FaultKind::EnginePanic,
    FaultKind::EngineDead,
    FaultKind::EngineSlow,
    FaultKind::EngineLate,
];

const LIES: [FaultKind; 8] = [
    FaultKind::LogprobNotANumber,
    FaultKind::LogprobPositive,
    FaultKind::TooFewTokens,
    FaultKind::NoTokens,
    FaultKind::TooManyTokens,
    FaultKind::TokensAfterStop,
    FaultKind::VersionBack,
    FaultKind::KeysAhead,
];

/// Returns the logits of a context under some weights.
pub(crate) fn logits(weights: u64, context: u64) -> Vec<f32> {
    let seed = weights ^ context;
    (0..N_IDS as u64).map(|id| 3.0 * uniform_at(seed, id) as f32).collect()
}

#[async_trait]
impl Policy for Engine {
    fn version(&self) -> PolicyVersion {
        self.world.state().witness.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let limit = self.world.plan.limits().engine_timeout_s;
        let _call = self.world.call("a request", Duration::from_secs_f64(limit));
        self.accept(&request);
        match self.world.fault(&BREAKS) {
            Some(FaultKind::EngineError) => {
                return Err(PolicyError::Failed("simulated".to_owned()));
            }
            // Without the panic hook: the panic is caught, and thousands of messages would fill the screen.
            Some(FaultKind::EnginePanic) => std::panic::resume_unwind(Box::new("simulated")),
            Some(FaultKind::EngineDead) => std::future::pending().await,
            Some(FaultKind::EngineSlow) => sleep(Duration::from_secs_f64(limit * 0.5)).await,
            Some(FaultKind::EngineLate) => sleep(Duration::from_secs_f64(limit * 1.5)).await,
            _ => sleep(self.world.latency(2000)).await,
        }
        let mut sample = self.draw(&request).await?;
        if let Some(lie) = self.world.fault(&LIES) {
            tell(lie, &request, &mut sample);
        }
        self.mutate(&mut sample);
        let last = sample.tokens.last().map_or(0, |token| u64::from(token.version.0));
        let stop = sample.stop as u64;
        self.world.event("answer", &[request.session.0, sample.tokens.len() as u64, last, stop]);
        Ok(sample)
    }

    fn release(&self, session: SessionId) {
        self.world.event("release", &[session.0]);
        if !self.world.is(Mutation::KeepsSessions) {
            self.world.state().sessions.remove(&session);
        }
    }
}

impl Engine {
    /// Opens the session, and checks the request against its limits.
    fn accept(&self, request: &SampleRequest) {
        let SampleRequest { session, first_index, .. } = *request;
        let prompt = hash_ids(0, &request.prompt);
        self.world.event("request", &[session.0, first_index, prompt, request.max_tokens as u64]);
        self.world.state().sessions.insert(session);
        let limits = self.world.plan.limits();
        let fits = request.max_tokens >= 1
            && request.max_tokens <= limits.max_turn_tokens
            && request.prompt.len() + request.max_tokens <= limits.max_context_tokens
            && first_index as usize + request.max_tokens <= limits.max_sampled_tokens;
        if !fits {
            let found = format!(
                "{} tokens asked for after {} of {} in context, {first_index} drawn",
                request.max_tokens,
                request.prompt.len(),
                limits.max_context_tokens
            );
            self.world.violate(Violation::new(Invariant::Requests, found));
        }
    }

    async fn draw(&self, request: &SampleRequest) -> Result<Sample, PolicyError> {
        let mut sampler = Sampler::default();
        let mut context = hash_ids(0, &request.prompt);
        let mut sample = Sample::new("scripted");
        while sample.tokens.len() < request.max_tokens {
            if self.world.below(4) == 0 {
                sleep(self.world.latency(250)).await;
            }
            if self.world.happens(self.world.plan.drift) {
                let version = self.world.state().witness.publish();
                self.world.event("drift", &[u64::from(version.0)]);
            }
            let place = request.first_index + sample.tokens.len() as u64;
            let token = self.draw_one(&mut sampler, request, place, context)?;
            sample.push(token, sampler.support());
            context = extend(context, token.id);
            if token.id == END {
                sample.stop = StopReason::EndOfTurn;
                break;
            }
        }
        Ok(sample)
    }

    fn draw_one(
        &self,
        sampler: &mut Sampler,
        request: &SampleRequest,
        place: u64,
        context: u64,
    ) -> Result<SampledToken, PolicyError> {
        let mut state = self.world.state();
        let version = state.witness.version();
        if version < request.min_version {
            return Err(PolicyError::Refused(format!("{} is not served yet", request.min_version)));
        }
        let logits = logits(state.witness.published(), context);
        let (id, logprob) =
            sampler.draw(&logits, &request.sampling, uniform_at(request.seed, place));
        let token = SampledToken::new(id, logprob, version);
        if let Err(violation) = state.witness.draw(request.seed, place, context, token) {
            state.violation.get_or_insert(violation);
        }
        Ok(token)
    }

    fn mutate(&self, sample: &mut Sample) {
        for token in &mut sample.tokens {
            if self.world.is(Mutation::StampsTooNew) {
                token.version = token.version.next();
            }
            if self.world.is(Mutation::AltersLogprob) {
                token.logprob -= 0.25;
            }
        }
    }
}

/// Turns an honest answer into one that violates the contract.
fn tell(lie: FaultKind, request: &SampleRequest, sample: &mut Sample) {
    let Some(mut last) = sample.tokens.last().copied() else { return };
    match lie {
        FaultKind::LogprobNotANumber => last.logprob = f32::NAN,
        FaultKind::LogprobPositive => last.logprob = 0.5,
        FaultKind::KeysAhead => last.kv_version = last.version.next(),
        FaultKind::VersionBack => {
            // Lies only if an older version exists.
            match request.min_version.0.checked_sub(1) {
                Some(older) => {
                    last = SampledToken::new(last.id, last.logprob, PolicyVersion(older));
                }
                None => last.logprob = f32::NEG_INFINITY,
            }
        }
        FaultKind::NoTokens => return sample.tokens.clear(),
        FaultKind::TooFewTokens => {
            sample.tokens.pop();
            sample.stop = StopReason::MaxTokens;
            return;
        }
        FaultKind::TooManyTokens => return sample.tokens.resize(request.max_tokens + 1, last),
        FaultKind::TokensAfterStop => {
            sample.stop = StopReason::EndOfTurn;
            return sample.tokens.push(SampledToken::new(1, -1.0, last.version));
        }
        _ => return,
    }
    *sample.tokens.last_mut().expect("it was just read") = last;
}
