//! A thread of the engine: its state and its loop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use tokio::sync::oneshot;
use turnwise_rollout::{PolicyError, Sample, SampleRequest, Sampler, SessionId, uniform_at};
use turnwise_trajectory::{SampledToken, StopReason};

use crate::GgufModel;
use crate::caches::Caches;
use crate::model::check_ids;
use crate::published::{Publication, Published};

/// A command to a thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// Answers a request.
    Sample(Job),
    /// Answers a session's requests with the tokens sampled so far.
    Interrupt(SessionId),
    /// Forgets a session.
    Release(SessionId),
}

/// A request and the channel of its answer.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: SampleRequest,
    pub(crate) reply: oneshot::Sender<Result<Sample, PolicyError>>,
}

/// The request that is being served.
#[derive(Debug)]
struct Active {
    job: Job,
    /// The prompt and the sampled tokens.
    ids: Vec<u32>,
    sample: Sample,
    /// A model whose cache is a prefix of `ids`, and never all of it between two steps.
    model: GgufModel,
    /// Whether the request started from an empty cache.
    is_cold: bool,
    /// Whether the session may send more requests.
    keep: bool,
}

/// Serves requests one after the other, in the order of arrival.
#[derive(Debug)]
pub(crate) struct Worker {
    name: String,
    published: Arc<Published>,
    current: Publication,
    caches: Caches,
    waiting: VecDeque<Job>,
    active: Option<Active>,
    sampler: Sampler,
}

impl Worker {
    /// Creates a worker that keeps at most `max_kv_bytes` of KV caches, but at least one sequence.
    pub(crate) fn new(name: String, published: Arc<Published>, max_kv_bytes: u64) -> Self {
        let current = published.newest();
        let each = current.prototype.network().bytes_per_sequence().max(1);
        let capacity = usize::try_from(max_kv_bytes / each).unwrap_or(usize::MAX);
        Self {
            name,
            published,
            current,
            caches: Caches::new(capacity),
            waiting: VecDeque::new(),
            active: None,
            sampler: Sampler::default(),
        }
    }

    /// Serves until every handle is dropped.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            if self.active.is_none() && self.waiting.is_empty() {
                let Ok(command) = commands.recv() else { return };
                self.take(command);
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    // A request's future borrows its handle, so no caller waits any more.
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.advance();
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Sample(job) => self.waiting.push_back(job),
            Command::Interrupt(session) => self.interrupt(session),
            Command::Release(session) => {
                self.caches.release(session);
                if let Some(active) = &mut self.active
                    && active.job.request.session == session
                {
                    active.keep = false;
                }
            }
        }
    }

    fn interrupt(&mut self, session: SessionId) {
        let asked = |job: &Job| job.request.session == session;
        let (interrupted, others) = self.waiting.drain(..).partition(|job| asked(job));
        self.waiting = others;
        for job in VecDeque::<Job>::into_iter(interrupted) {
            let sample = Sample { stop: StopReason::Interrupted, ..Sample::new(&self.name) };
            let _ = job.reply.send(Ok(sample));
        }
        if let Some(active) = self.active.take_if(|active| asked(&active.job)) {
            self.answer(active, StopReason::Interrupted);
        }
    }

    /// Runs one iteration between two looks at the commands: computes at most one token.
    fn advance(&mut self) {
        self.drop_abandoned();
        self.refresh();
        self.start();
        let Some(mut active) = self.active.take() else { return };
        match self.step(&mut active) {
            Ok(None) => self.active = Some(active),
            Ok(Some(stop)) => {
                self.answer(active, stop);
            }
            Err(error) => {
                let _ = active.job.reply.send(Err(error));
            }
        }
    }

    fn drop_abandoned(&mut self) {
        self.waiting.retain(|job| !job.reply.is_closed());
        if let Some(active) = self.active.take_if(|active| active.job.reply.is_closed()) {
            self.put_back(active);
        }
    }

    /// Takes the newest weights. Recomputes caches of older ones, so that each token is sampled from a distribution of
    /// one version.
    fn refresh(&mut self) {
        if self.published.serial() == self.current.serial {
            return;
        }
        self.current = self.published.newest();
        self.caches.clear();
        if let Some(active) = self.active.take() {
            self.restart(active);
        }
    }

    fn restart(&mut self, mut active: Active) {
        match self.current.prototype.fresh() {
            Ok(model) => {
                active.model = model;
                self.active = Some(active);
            }
            Err(error) => {
                let _ = active.job.reply.send(Err(PolicyError::Failed(error.to_string())));
            }
        }
    }

    /// Starts the oldest waiting request, unless one is being served.
    fn start(&mut self) {
        while self.active.is_none()
            && let Some(job) = self.waiting.pop_front()
        {
            let request = &job.request;
            let model = self.check(request).and_then(|()| {
                let prototype = &self.current.prototype;
                let model = self.caches.take(request.session, &request.prompt, prototype);
                model.map_err(|error| PolicyError::Failed(error.to_string()))
            });
            match model {
                Ok(model) => {
                    let (ids, is_cold) = (request.prompt.clone(), model.ids().is_empty());
                    let sample = Sample::new(&self.name);
                    self.active = Some(Active { job, ids, sample, model, is_cold, keep: true });
                }
                Err(error) => {
                    let _ = job.reply.send(Err(error));
                }
            }
        }
    }

    fn check(&self, request: &SampleRequest) -> Result<(), PolicyError> {
        let refuse = |reason: String| Err(PolicyError::Refused(reason));
        let model = &self.current.prototype;
        check_ids(&request.prompt, model.vocab_size(), model.max_positions())
            .or_else(|reason| refuse(format!("the prompt: {reason}")))?;
        let (prompt, more) = (request.prompt.len(), request.max_tokens);
        if more == 0 {
            return refuse("max_tokens is 0 and must be at least 1".to_owned());
        }
        if prompt.saturating_add(more) > model.max_positions() {
            return refuse(format!(
                "a prompt of {prompt} and {more} more tokens need more than the model's {} positions",
                model.max_positions()
            ));
        }
        if request.min_version > self.current.version {
            return refuse(format!(
                "{} is requested, but {} is served",
                request.min_version, self.current.version
            ));
        }
        request.sampling.validate().or_else(refuse)
    }

    /// Computes one token, and samples after the last. Returns the reason if the request is done.
    fn step(&mut self, active: &mut Active) -> Result<Option<StopReason>, PolicyError> {
        let Active { job: Job { request, .. }, ids, sample, model, is_cold, .. } = active;
        if *is_cold && sample.tokens.is_empty() && model.ids().len() + 1 == request.prompt.len() {
            self.caches.remember(model);
        }
        let logits = model.push(ids[model.ids().len()]);
        let logits = logits.map_err(|error| PolicyError::Failed(error.to_string()))?;
        if model.ids().len() < ids.len() {
            return Ok(None);
        }
        if logits.iter().any(|logit| !logit.is_finite()) {
            let reason = "every weight is finite, but the logits are not".to_owned();
            return Err(PolicyError::NotFinite(reason));
        }
        let index = request.first_index.wrapping_add(sample.tokens.len() as u64);
        let uniform = uniform_at(request.seed, index);
        let (id, logprob) = self.sampler.draw(&logits, &request.sampling, uniform);
        ids.push(id);
        let token = SampledToken::new(id, logprob, self.current.version);
        sample.push(token, self.sampler.support());
        let is_full = sample.tokens.len() == request.max_tokens;
        Ok(if request.stop.contains(&id) {
            Some(StopReason::EndOfTurn)
        } else {
            is_full.then_some(StopReason::MaxTokens)
        })
    }

    /// Keeps the cache for the session's next request.
    fn put_back(&mut self, active: Active) -> (Job, Sample) {
        let Active { job, sample, model, keep, .. } = active;
        if keep {
            self.caches.put(job.request.session, model);
        } else {
            self.caches.recycle(model);
        }
        (job, sample)
    }

    fn answer(&mut self, active: Active, stop: StopReason) {
        let (job, sample) = self.put_back(active);
        let _ = job.reply.send(Ok(Sample { stop, ..sample }));
    }
}
