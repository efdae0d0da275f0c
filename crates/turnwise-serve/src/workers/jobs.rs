//! The episodes that wait for a worker or are with one.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use turnwise_rollout::EpisodeSnapshot;
use turnwise_trajectory::Trajectory;

use super::wire::{Heartbeat, Lease, LeaseVerdict, Pulse};
use crate::key::SessionKey;

/// The number of an episode that is being advanced.
pub(super) type JobId = u64;

/// The state in which an episode comes back.
#[derive(Debug)]
pub(super) enum Returned {
    Finished(Box<Trajectory>),
    Suspended(Box<EpisodeSnapshot>),
    /// As it was sent.
    Unchanged,
}

/// All jobs, and who has them.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    next: JobId,
    open: BTreeMap<JobId, Job>,
    /// Jobs that no worker has, oldest first.
    waiting: VecDeque<JobId>,
    /// The job of each lease that is current.
    leases: HashMap<String, JobId>,
    /// The leases that ended with a result, the latest of them: a result that is sent twice is accepted twice.
    ended: VecDeque<String>,
    workers: HashMap<String, Instant>,
    /// The episodes that each worker could not make.
    refusals: HashMap<String, u32>,
    /// How often an episode was taken from a worker that was silent.
    pub(super) n_lost: u64,
}

#[derive(Debug)]
struct Job {
    /// The last known state.
    episode: EpisodeSnapshot,
    /// Whether a worker has reported a turn, so that the episode is no longer what was sent.
    has_moved: bool,
    /// The tokens that the episode may sample from its last known state on.
    tokens: u64,
    /// The tokens that it might sample when its lease began.
    tokens_at_lease: u64,
    stops: bool,
    lease: Option<Held>,
    reply: Option<oneshot::Sender<Returned>>,
}

#[derive(Debug)]
struct Held {
    lease: String,
    worker: String,
    since: Instant,
}

/// How many ended leases are remembered.
const REMEMBERED: usize = 4_096;
/// How many episodes a worker may fail to make before it gets no more.
const MAX_REFUSALS: u32 = 3;

impl Jobs {
    /// Adds an episode; it comes back at the receiver.
    pub(super) fn add(
        &mut self,
        episode: EpisodeSnapshot,
        tokens: u64,
    ) -> (JobId, oneshot::Receiver<Returned>) {
        let (reply, returned) = oneshot::channel();
        let job = self.next;
        self.next += 1;
        let held = Job {
            episode,
            has_moved: false,
            tokens,
            tokens_at_lease: tokens,
            stops: false,
            lease: None,
            reply: Some(reply),
        };
        self.open.insert(job, held);
        self.waiting.push_back(job);
        (job, returned)
    }

    /// Notes a new worker, and returns its name.
    pub(super) fn welcome(&mut self, now: Instant) -> String {
        let worker = SessionKey::random().as_str().to_owned();
        self.workers.insert(worker.clone(), now);
        worker
    }

    /// Returns the number of workers of which something was heard.
    pub(super) fn n_workers(&self) -> usize {
        self.workers.len()
    }

    /// Forgets a worker that was told to leave.
    pub(super) fn leave(&mut self, worker: &str) {
        self.workers.remove(worker);
    }

    /// Notes a sign of life; returns whether the worker is known.
    pub(super) fn hear(&mut self, worker: &str, now: Instant) -> bool {
        let seen = self.workers.get_mut(worker);
        seen.map(|seen| *seen = now).is_some()
    }

    /// Takes the episodes of workers that are silent, for others.
    pub(super) fn reap(&mut self, now: Instant, lease: Duration) {
        let silent: HashSet<String> = {
            let silent = self.workers.iter().filter(|(_, seen)| now - **seen > lease);
            silent.map(|(worker, _)| worker.clone()).collect()
        };
        for worker in &silent {
            self.workers.remove(worker);
            self.refusals.remove(worker);
            tracing::warn!(
                worker = short(worker),
                "a worker is silent; others go on with its episodes"
            );
        }
        if silent.is_empty() {
            return;
        }
        self.take_from(|held| silent.contains(&held.worker));
    }

    /// Takes leases away, and returns or gives on their episodes.
    fn take_from(&mut self, is_lost: impl Fn(&mut Held) -> bool) {
        for (id, job) in &mut self.open {
            if let Some(held) = job.lease.take_if(&is_lost) {
                self.leases.remove(&held.lease);
                self.n_lost += 1;
                if job.stops {
                    job.give_back();
                } else {
                    // Its group waits for it.
                    self.waiting.push_front(*id);
                }
            }
        }
        self.forget_returned();
    }

    /// Returns whether an episode waits for a worker.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives up to `n` waiting episodes to a worker, but no more than its share among all workers: a slow or dying one must not
    /// have them all.
    pub(super) fn lease(&mut self, worker: &str, n: usize, now: Instant) -> Vec<Lease> {
        let mut leases = Vec::new();
        if self.refusals.get(worker).is_some_and(|n| *n >= MAX_REFUSALS) {
            return leases;
        }
        let share = self.waiting.len().div_ceil(self.workers.len().max(1));
        while leases.len() < n.min(share) {
            let Some(id) = self.waiting.pop_front() else { break };
            let Some(job) = self.open.get_mut(&id) else { continue };
            let lease = SessionKey::random().as_str().to_owned();
            job.tokens_at_lease = job.tokens;
            job.lease = Some(Held { lease: lease.clone(), worker: worker.to_owned(), since: now });
            self.leases.insert(lease.clone(), id);
            leases.push(Lease { id: lease, tokens: job.tokens, episode: job.episode.clone() });
        }
        leases
    }

    /// Returns the last known state of a lease's episode, if the lease is the worker's.
    pub(super) fn of_lease(&self, worker: &str, lease: &str) -> Option<&EpisodeSnapshot> {
        let job = self.open.get(self.leases.get(lease)?)?;
        job.lease.as_ref().filter(|held| held.worker == worker)?;
        Some(&job.episode)
    }

    /// Notes the state of an episode after a turn; `n_sampled` is the number of tokens since the lease began.
    pub(super) fn turn(
        &mut self,
        worker: &str,
        lease: &str,
        episode: EpisodeSnapshot,
        n_sampled: u64,
    ) -> LeaseVerdict {
        let Some(job) = self.job_of(worker, lease) else { return self.stale(lease) };
        job.tokens = job.tokens_at_lease.saturating_sub(n_sampled);
        job.episode = episode;
        job.has_moved = true;
        LeaseVerdict { is_current: true, stops: job.stops }
    }

    /// Takes the result of a lease.
    pub(super) fn end(&mut self, worker: &str, lease: &str, returned: Returned) -> LeaseVerdict {
        let Some(job) = self.job_of(worker, lease) else { return self.stale(lease) };
        let returned = match returned {
            // The last known state is newer than what was sent.
            Returned::Unchanged if job.has_moved => {
                Returned::Suspended(Box::new(job.episode.clone()))
            }
            other => other,
        };
        job.return_as(returned);
        self.leases.remove(lease);
        self.ended.push_back(lease.to_owned());
        if self.ended.len() > REMEMBERED {
            self.ended.pop_front();
        }
        self.forget_returned();
        LeaseVerdict { is_current: true, stops: false }
    }

    /// Takes an episode back that a worker cannot make, for others.
    pub(super) fn refuse(&mut self, worker: &str, lease: &str) -> LeaseVerdict {
        let Some(job) = self.job_of(worker, lease) else { return self.stale(lease) };
        job.lease = None;
        let id = self.leases.remove(lease).expect("the lease is current");
        self.waiting.push_back(id);
        *self.refusals.entry(worker.to_owned()).or_default() += 1;
        LeaseVerdict { is_current: false, stops: true }
    }

    /// Answers a sign of life. Episodes that the worker does not know of, because their leases got lost on the way, are given
    /// to others.
    pub(super) fn pulse(&mut self, heartbeat: &Heartbeat, now: Instant, lease: Duration) -> Pulse {
        let known: HashSet<&String> = heartbeat.leases.iter().collect();
        let is_unknown = |held: &mut Held| {
            held.worker == heartbeat.worker
                && !known.contains(&held.lease)
                && now - held.since > lease
        };
        self.take_from(is_unknown);
        let mut pulse = Pulse::default();
        for lease in &heartbeat.leases {
            match self.leases.get(lease).and_then(|id| self.open.get(id)) {
                None => pulse.lost.push(lease.clone()),
                Some(job) if job.stops => pulse.stop.push(lease.clone()),
                Some(_) => {}
            }
        }
        pulse
    }

    /// Asks for an episode: at once if no worker has it, otherwise as soon as its worker hears of it.
    pub(super) fn stop(&mut self, id: JobId) {
        let Some(job) = self.open.get_mut(&id) else { return };
        job.stops = true;
        if job.lease.is_none() {
            job.give_back();
            self.forget_returned();
        }
    }

    /// Forgets an episode that nobody waits for any more.
    pub(super) fn withdraw(&mut self, id: JobId) {
        if let Some(held) = self.open.remove(&id).and_then(|job| job.lease) {
            self.leases.remove(&held.lease);
        }
        self.waiting.retain(|waiting| *waiting != id);
    }

    fn job_of(&mut self, worker: &str, lease: &str) -> Option<&mut Job> {
        self.of_lease(worker, lease)?;
        self.open.get_mut(self.leases.get(lease)?)
    }

    /// Answers a report of a lease that is not current: one that ended with a result was heard before.
    fn stale(&self, lease: &str) -> LeaseVerdict {
        LeaseVerdict { is_current: self.ended.iter().any(|ended| ended == lease), stops: true }
    }

    fn forget_returned(&mut self) {
        self.open.retain(|_, job| job.reply.is_some());
        let jobs = &self.open;
        self.waiting.retain(|id| jobs.contains_key(id));
    }
}

impl Job {
    /// Returns the episode in its last known state.
    fn give_back(&mut self) {
        let returned = if self.has_moved {
            Returned::Suspended(Box::new(self.episode.clone()))
        } else {
            Returned::Unchanged
        };
        self.return_as(returned);
    }

    fn return_as(&mut self, returned: Returned) {
        if let Some(reply) = self.reply.take() {
            // Whoever waited may have given up.
            let _ = reply.send(returned);
        }
    }
}

/// Returns the beginning of a name, for logs: the whole is what a worker authenticates with.
pub(super) fn short(name: &str) -> &str {
    name.get(..6).unwrap_or(name)
}
