//! The inference engine: no tensors, no graph, threads of its own.
//!
//! # What a result depends on
//!
//! A token's logits depend on the tokens before it and on the weights, to the last bit: not on who else is in the batch, on how
//! a prompt was cut into steps, on how many threads there are, or on whether keys and values were computed for this request,
//! for an earlier turn or for somebody else. Every element of a product is one sum in one order ([`tile`](turnwise_kernels::tile)), pages
//! of keys and values begin at fixed positions, and norms and rotations belong to one token each.
//!
//! # Who does what
//!
//! [`EngineScheduler`] decides which tokens a step computes; [`tree::Tree`] knows which page holds what; a [`compute::Compute`] owns
//! the pages and does the arithmetic. The first two know no device.

mod attention;
mod compute;
mod drawing;
mod mixture;
mod pages;
mod parts;
mod scheduler;
mod slot;
mod tensors;
mod tree;

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use pages::PAGE;
use pages::PageLayout;
pub use parts::EngineSeconds;
use parts::PartCounters;
pub(crate) use scheduler::{Command, EngineScheduler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub(crate) use slot::Job;

use crate::DecoderConfig;

/// What happens to the keys and values of a request when weights change in the middle of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KvOnUpdate {
    /// They are computed again, so that each token is drawn from a distribution of one version.
    #[default]
    Recompute,
    /// They stay until the request is answered. Faster, but the log-probabilities then belong to no single version;
    /// `kv_version` of the tokens says so.
    Keep,
}

/// What an engine computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineCompute {
    /// Buffers for a model on the processor, and tensors for one elsewhere.
    #[default]
    Auto,
    /// Raw buffers and the processor's vectors, wherever the model is trained.
    Buffers,
    /// The tensor library, where the model is. The same up to rounding, many times slower on the processor, and without the
    /// promise of equal bits whatever runs beside a request. Products are in the precision that the model is trained in.
    Tensors,
}

/// Limits of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// How many requests are served side by side; more wait.
    pub max_batch: usize,
    /// How many tokens are computed in one step, prompts included; at least one for each request that is drawing.
    pub max_step_tokens: usize,
    /// How much memory keys and values may take, what is shared counted once. Those that no request reads are given up when
    /// others need the room, least recently used first; when that is not enough, requests that came last wait and are computed
    /// again.
    pub max_kv_bytes: u64,
    /// What happens to keys and values in mid-request.
    pub kv_on_update: KvOnUpdate,
    /// What computes.
    pub compute: EngineCompute,
    /// How many threads compute, the engine's own among them; 0 means one for each processor. They wait awake for a few tenths
    /// of a millisecond and sleep when there is nothing to do.
    pub threads: usize,
}

impl Default for EngineSettings {
    /// For models of up to a billion parameters on one machine.
    fn default() -> Self {
        Self {
            max_batch: 256,
            max_step_tokens: 1024,
            max_kv_bytes: 2 << 30,
            kv_on_update: KvOnUpdate::Recompute,
            compute: EngineCompute::Auto,
            threads: 0,
        }
    }
}

/// What an engine has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineStats {
    /// Steps computed: each reads all weights once.
    pub steps: u64,
    /// Tokens drawn.
    pub drawn: u64,
    /// Tokens whose keys and values were computed, in prompts and in answers.
    pub computed: u64,
    /// Tokens of prompts whose keys and values did not have to be: they were there from an earlier turn, or another request
    /// computed them.
    pub reused: u64,
    /// Tokens whose keys and values were given up to make room.
    pub evicted: u64,
    /// How often a request had to give up its keys and values and wait.
    pub paused: u64,
    /// Tokens whose keys and values are held now.
    pub kv_tokens: u64,
    /// Memory of the pages that hold them, in bytes.
    pub kv_bytes: u64,
    /// The most that there ever was.
    pub kv_bytes_peak: u64,
    /// Where the time went.
    pub seconds: EngineSeconds,
}

impl EngineStats {
    /// What was done since an earlier look. What is held, and its peak, is what it is now.
    #[must_use]
    pub fn since(self, earlier: &Self) -> Self {
        Self {
            steps: self.steps - earlier.steps,
            drawn: self.drawn - earlier.drawn,
            computed: self.computed - earlier.computed,
            reused: self.reused - earlier.reused,
            evicted: self.evicted - earlier.evicted,
            paused: self.paused - earlier.paused,
            seconds: self.seconds.since(&earlier.seconds),
            ..self
        }
    }
}

/// [`EngineStats`] as they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    steps: AtomicU64,
    drawn: AtomicU64,
    computed: AtomicU64,
    reused: AtomicU64,
    evicted: AtomicU64,
    paused: AtomicU64,
    kv_tokens: AtomicU64,
    kv_bytes: AtomicU64,
    kv_bytes_peak: AtomicU64,
    parts: PartCounters,
}

impl Counters {
    pub(crate) fn read(&self) -> EngineStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineStats {
            steps: read(&self.steps),
            drawn: read(&self.drawn),
            computed: read(&self.computed),
            reused: read(&self.reused),
            evicted: read(&self.evicted),
            paused: read(&self.paused),
            kv_tokens: read(&self.kv_tokens),
            kv_bytes: read(&self.kv_bytes),
            kv_bytes_peak: read(&self.kv_bytes_peak),
            seconds: self.parts.read(),
        }
    }

    fn count_kv(&self, tokens: u64, bytes: u64) {
        self.kv_tokens.store(tokens, Ordering::Relaxed);
        self.kv_bytes.store(bytes, Ordering::Relaxed);
        self.kv_bytes_peak.fetch_max(bytes, Ordering::Relaxed);
    }
}

/// Memory of a page of keys and values.
pub(crate) fn page_bytes(config: &DecoderConfig) -> u64 {
    PageLayout::new(config).bytes()
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}
