//! Where the time of steps goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What a step consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepPart {
    Embedding,
    Linear,
    Attention,
    Head,
    Sampling,
    Other,
}

/// Seconds of the steps of an engine, by what they were spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSeconds {
    /// Looking up tokens.
    pub embedding: f64,
    /// Products with weights, the head's apart.
    pub linear: f64,
    /// Attention, with keys and values put where they are kept.
    pub attention: f64,
    /// Logits.
    pub head: f64,
    /// Drawing.
    pub sampling: f64,
    /// Norms, and deciding what is computed.
    pub other: f64,
    /// All of these, in steps that computed tokens of prompts (and may have drawn too).
    pub prefill: f64,
    /// All of these, in steps that only drew.
    pub decode: f64,
}

impl EngineSeconds {
    /// What was spent since an earlier look.
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

/// Nanoseconds as they are counted.
#[derive(Debug, Default)]
pub(super) struct PartCounters {
    parts: [AtomicU64; 6],
    prefill: AtomicU64,
    decode: AtomicU64,
}

/// Nanoseconds of one step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PartTimes([u64; 6]);

/// Runs while a step does.
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
    /// The time since the last call was spent on this.
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
