//! Time of steps by kind of work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// A kind of work in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepPart {
    Embedding,
    Linear,
    Attention,
    Head,
    Sampling,
    Other,
}

/// Seconds of an engine's steps, by kind of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSeconds {
    /// Embedding lookup.
    pub embedding: f64,
    /// Products with weights, except the output head.
    pub linear: f64,
    /// Attention, including writes of keys and values.
    pub attention: f64,
    /// The output head.
    pub head: f64,
    /// Sampling.
    pub sampling: f64,
    /// Norms and scheduling.
    pub other: f64,
    /// Total of the steps with prompt tokens; these steps may decode too.
    pub prefill: f64,
    /// Total of the steps that only decoded.
    pub decode: f64,
}

impl EngineSeconds {
    /// Returns the difference to earlier seconds.
    #[must_use]
    pub fn since(self, earlier: &Self) -> Self {
        Self {
            embedding: self.embedding - earlier.embedding,
            linear: self.linear - earlier.linear,
            attention: self.attention - earlier.attention,
            head: self.head - earlier.head,
            sampling: self.sampling - earlier.sampling,
            other: self.other - earlier.other,
            prefill: self.prefill - earlier.prefill,
            decode: self.decode - earlier.decode,
        }
    }
}

/// Counters, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct PartCounters {
    parts: [AtomicU64; 6],
    prefill: AtomicU64,
    decode: AtomicU64,
}

/// Nanoseconds of one step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PartTimes([u64; 6]);

/// Measures a running step.
#[derive(Debug)]
pub(super) struct Clock<'a> {
    parts: &'a mut PartTimes,
    last: Instant,
}

impl PartTimes {
    pub(super) fn start(&mut self) -> Clock<'_> {
        Clock { parts: self, last: Instant::now() }
    }
}

impl Clock<'_> {
    /// Assigns the time since the last call to a kind of work.
    pub(super) fn lap(&mut self, part: StepPart) {
        let now = Instant::now();
        self.parts.0[part as usize] += (now - self.last).as_nanos() as u64;
        self.last = now;
    }
}

impl PartCounters {
    pub(super) fn add(&self, parts: PartTimes, has_prompts: bool) {
        for (counter, nanoseconds) in self.parts.iter().zip(parts.0) {
            counter.fetch_add(nanoseconds, Ordering::Relaxed);
        }
        let total = if has_prompts { &self.prefill } else { &self.decode };
        total.fetch_add(parts.0.iter().sum(), Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> EngineSeconds {
        let seconds = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64 * 1e-9;
        let [embedding, linear, attention, head, sampling, other] = &self.parts;
        EngineSeconds {
            embedding: seconds(embedding),
            linear: seconds(linear),
            attention: seconds(attention),
            head: seconds(head),
            sampling: seconds(sampling),
            other: seconds(other),
            prefill: seconds(&self.prefill),
            decode: seconds(&self.decode),
        }
    }
}
