//! Which tokens are computed when.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

use rayon::prelude::*;
use tokio::sync::oneshot;
use turnwise_rollout::{PolicyError, Sample, SampleRequest, Sampler, uniform_at};
use turnwise_trajectory::{SampledToken, StopReason};

use super::compute::{Compute, Token};
use super::kv::{KvCache, bytes_per_token};
use super::sessions::Sessions;
use super::{Counters, EngineSettings, KvOnUpdate, add};
use crate::DecoderConfig;
use crate::published::{Publication, Published};

/// What every sample says of who drew it.
const ENGINE: &str = "candle";

/// What a policy's handles ask of its thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// Answer a request.
    Sample(Job),
    /// Answer a session's request with what is drawn of it.
    Interrupt(u64),
    /// Forget a session.
    Release(u64),
}

/// A request and where its answer goes.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: SampleRequest,
    pub(crate) reply: oneshot::Sender<Result<Sample, PolicyError>>,
}

/// A request that is being served.
#[derive(Debug)]
struct Slot {
    job: Job,
    /// The prompt and what was drawn.
    ids: Vec<u32>,
    drawn: Vec<SampledToken>,
    /// Keys and values of the first of `ids`; never of all, because the last one's logits come with computing it.
    cache: KvCache,
    /// Whether the session may ask again.
    keep: bool,
}

impl Slot {
    /// The most tokens it can come to hold.
    fn reserved(&self) -> usize {
        reserved(&self.job.request)
    }

    fn pending(&self) -> usize {
        self.ids.len() - self.cache.len()
    }
}

fn reserved(request: &SampleRequest) -> usize {
    request.prompt.len() + request.max_tokens
}

/// Owns all keys and values, and draws for all requests together.
#[derive(Debug)]
pub(crate) struct Scheduler {
    settings: EngineSettings,
    config: DecoderConfig,
    published: Published,
    current: Publication,
    waiting: VecDeque<Job>,
    active: Vec<Slot>,
    sessions: Sessions,
    max_kv_tokens: usize,
    compute: Compute,
    counters: Arc<Counters>,
}

impl Scheduler {
    pub(crate) fn new(
        published: Published,
        settings: EngineSettings,
        counters: Arc<Counters>,
    ) -> Self {
        let current = published.newest();
        let config = current.weights.config.clone();
        let max_kv_tokens = settings.max_kv_bytes / bytes_per_token(&config);
        Self {
            settings,
            config,
            published,
            current,
            waiting: VecDeque::new(),
            active: Vec::new(),
            sessions: Sessions::default(),
            max_kv_tokens: usize::try_from(max_kv_tokens).unwrap_or(usize::MAX),
            compute: Compute::default(),
            counters,
        }
    }

    /// Serves until every handle is gone.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            if self.active.is_empty() && self.waiting.is_empty() {
                let Ok(command) = commands.recv() else { return };
                self.take(command);
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    // A request's future borrows its handle, so nobody waits any more.
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.advance();
        }
    }

    /// Everything that happens between two looks at the commands.
    pub(crate) fn advance(&mut self) {
        self.drop_abandoned();
        self.refresh();
        self.admit();
        self.step();
        self.count_kv();
    }

    pub(crate) fn take(&mut self, command: Command) {
        match command {
            Command::Sample(job) => self.waiting.push_back(job),
            Command::Interrupt(session) => self.interrupt(session),
            Command::Release(session) => {
                self.sessions.take(session);
                let slots = self.active.iter_mut();
                for slot in slots.filter(|slot| slot.job.request.session == session) {
                    slot.keep = false;
                }
                self.count_kv();
            }
        }
    }

    /// Hands over what is drawn; keys and values wait for the session's next request.
    fn interrupt(&mut self, session: u64) {
        let interrupted = |tokens| {
            Ok(Sample { tokens, stop: StopReason::Interrupted, engine: ENGINE.to_owned() })
        };
        let Self { waiting, active, sessions, current, .. } = self;
        let (asked, others) =
            waiting.drain(..).partition(|job: &Job| job.request.session == session);
        *waiting = others;
        for job in VecDeque::<Job>::into_iter(asked) {
            let _ = job.reply.send(interrupted(Vec::new()));
        }
        for slot in active.extract_if(.., |slot| slot.job.request.session == session) {
            let Slot { job, drawn, cache, keep, .. } = slot;
            put_back(sessions, current, keep, session, cache);
            let _ = job.reply.send(interrupted(drawn));
        }
    }

    fn drop_abandoned(&mut self) {
        self.waiting.retain(|job| !job.reply.is_closed());
        let Self { active, sessions, current, .. } = self;
        for slot in active.extract_if(.., |slot| slot.job.reply.is_closed()) {
            put_back(sessions, current, slot.keep, slot.job.request.session, slot.cache);
        }
    }

    /// Takes the newest weights. What older ones computed is of no use to the next request of a session.
    fn refresh(&mut self) {
        if self.published.serial() == self.current.serial {
            return;
        }
        self.current = self.published.newest();
        self.sessions.clear();
        if self.settings.kv_on_update == KvOnUpdate::Recompute {
            self.active.iter_mut().for_each(|slot| slot.cache.truncate(0));
        }
    }

    /// Starts waiting requests, first come first served, while there is room.
    fn admit(&mut self) {
        let mut held: usize = self.active.iter().map(Slot::reserved).sum();
        while self.active.len() < self.settings.max_batch.max(1)
            && let Some(job) = self.waiting.front()
        {
            if let Err(error) = self.check(&job.request) {
                if let Some(job) = self.waiting.pop_front() {
                    let _ = job.reply.send(Err(error));
                }
                continue;
            }
            let needed = reserved(&job.request);
            if held + needed > self.max_kv_tokens {
                return;
            }
            held += needed;
            if let Some(job) = self.waiting.pop_front() {
                let slot = self.start(job);
                self.active.push(slot);
            }
            let evicted = self.sessions.shrink(self.max_kv_tokens - held);
            add(&self.counters.evicted, evicted);
        }
    }

    fn start(&mut self, job: Job) -> Slot {
        let ids = job.request.prompt.clone();
        let kept = self.sessions.take(job.request.session);
        let mut cache = kept.unwrap_or_else(|| KvCache::new(&self.config));
        // The last token is always computed, because its logits are needed.
        cache.truncate(cache.common(&ids).min(ids.len() - 1));
        add(&self.counters.reused, cache.len());
        Slot { job, ids, drawn: Vec::new(), cache, keep: true }
    }

    fn check(&self, request: &SampleRequest) -> Result<(), PolicyError> {
        let refuse = |reason: String| Err(PolicyError::Refused(reason));
        let DecoderConfig { vocab_size, max_positions, .. } = self.config;
        let (prompt, more) = (request.prompt.len(), request.max_tokens);
        if prompt == 0 {
            return refuse("the prompt is empty".to_owned());
        }
        if more == 0 {
            return refuse("max_tokens is 0 and must be at least 1".to_owned());
        }
        if prompt.saturating_add(more) > max_positions {
            return refuse(format!(
                "a prompt of {prompt} and {more} more tokens need more than the model's {max_positions} positions"
            ));
        }
        if let Some(at) = request.prompt.iter().position(|id| *id as usize >= vocab_size) {
            let id = request.prompt[at];
            return refuse(format!(
                "token {id} at position {at} is beyond the vocabulary of {vocab_size}"
            ));
        }
        if reserved(request) > self.max_kv_tokens {
            return refuse(format!(
                "{} tokens need more than the {} that max_kv_bytes has room for",
                reserved(request),
                self.max_kv_tokens
            ));
        }
        if request.min_version > self.current.version {
            return refuse(format!(
                "{} is asked for and {} is served",
                request.min_version, self.current.version
            ));
        }
        request.sampling.validate().or_else(refuse)
    }

    /// Computes some tokens of every request and draws for those whose last token was among them.
    fn step(&mut self) {
        let tokens = self.plan();
        if tokens.is_empty() {
            return;
        }
        let Publication { version, weights, serial } = &self.current;
        for cache in self.active.iter_mut().map(|slot| &mut slot.cache) {
            if cache.len() == 0 {
                (cache.oldest, cache.serial) = (*version, *serial);
            }
            cache.oldest = cache.oldest.min(*version);
        }
        let mut caches: Vec<&mut KvCache> =
            self.active.iter_mut().map(|slot| &mut slot.cache).collect();
        let logits = self.compute.run(weights, &tokens, &mut caches);
        add(&self.counters.computed, tokens.len());

        let ready: Vec<usize> =
            tokens.iter().filter(|token| token.wants_logits).map(|token| token.slot).collect();
        let active = &self.active;
        let draws: Vec<Option<(u32, f32)>> = logits
            .par_chunks_exact(self.config.vocab_size)
            .zip(&ready)
            .with_min_len(4)
            .map_init(Sampler::default, |sampler, (logits, slot)| {
                draw(sampler, logits, &active[*slot])
            })
            .collect();
        for (index, drawn) in ready.into_iter().zip(draws) {
            let slot = &mut self.active[index];
            let Some((id, logprob)) = drawn else { continue };
            slot.ids.push(id);
            let kv_version = slot.cache.oldest;
            slot.drawn
                .push(SampledToken { kv_version, ..SampledToken::new(id, logprob, *version) });
            add(&self.counters.drawn, 1);
        }
        self.finish();
    }

    /// Requests that are drawing come first, one token each; prompts share the rest of the step in order of arrival.
    fn plan(&self) -> Vec<Token> {
        let mut tokens = Vec::new();
        let slots = || self.active.iter().enumerate();
        let drawing = slots().filter(|(_, slot)| slot.pending() == 1);
        let prompts = slots().filter(|(_, slot)| slot.pending() > 1);
        for (index, slot) in drawing.chain(prompts) {
            let room = self.settings.max_step_tokens.saturating_sub(tokens.len());
            // At least one for each that draws, and at least one in all: every step must get somewhere.
            let least = usize::from(slot.pending() == 1 || tokens.is_empty());
            let count = slot.pending().min(room.max(least));
            let start = slot.cache.len();
            tokens.extend((start..start + count).map(|position| Token {
                slot: index,
                id: slot.ids[position],
                position,
                wants_logits: position + 1 == slot.ids.len(),
            }));
        }
        tokens
    }

    /// Answers the requests that are done.
    fn finish(&mut self) {
        let Self { active, sessions, current, .. } = self;
        for slot in active.extract_if(.., |slot| stop_reason(slot).is_some()) {
            let Some(outcome) = stop_reason(&slot) else { continue };
            let Slot { job, drawn, cache, keep, .. } = slot;
            put_back(sessions, current, keep && outcome.is_ok(), job.request.session, cache);
            let sample = |stop| Sample { tokens: drawn, stop, engine: ENGINE.to_owned() };
            let _ = job.reply.send(outcome.map(sample));
        }
        // What was reserved and not drawn is free again.
        let held: usize = self.active.iter().map(Slot::reserved).sum();
        let evicted = self.sessions.shrink(self.max_kv_tokens.saturating_sub(held));
        add(&self.counters.evicted, evicted);
    }

    fn count_kv(&self) {
        let held: usize = self.active.iter().map(|slot| slot.cache.len()).sum();
        let tokens = (held + self.sessions.tokens()) as u64;
        self.counters.kv_tokens.store(tokens, Ordering::Relaxed);
    }
}

/// Keeps what a session computed for its next request, unless older weights had a part in it.
fn put_back(
    sessions: &mut Sessions,
    current: &Publication,
    keep: bool,
    session: u64,
    cache: KvCache,
) {
    if keep && cache.len() > 0 && cache.serial == current.serial {
        sessions.put(session, cache);
    }
}

/// `None` when the logits are not numbers.
fn draw(sampler: &mut Sampler, logits: &[f32], slot: &Slot) -> Option<(u32, f32)> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return None;
    }
    let request = &slot.job.request;
    let index = request.first_index.wrapping_add(slot.drawn.len() as u64);
    Some(sampler.draw(logits, &request.sampling, uniform_at(request.seed, index)))
}

/// Why a slot is done, if it is.
fn stop_reason(slot: &Slot) -> Option<Result<StopReason, PolicyError>> {
    if slot.pending() == 0 {
        return Some(Err(PolicyError::Failed("the logits are not finite".to_owned())));
    }
    let request = &slot.job.request;
    let last = slot.drawn.last()?;
    if request.stop.contains(&last.id) {
        return Some(Ok(StopReason::EndOfTurn));
    }
    (slot.drawn.len() == request.max_tokens).then_some(Ok(StopReason::MaxTokens))
}
