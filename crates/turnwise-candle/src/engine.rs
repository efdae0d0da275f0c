//! The inference engine: it has no graph and runs on threads of its own.
//!
//! # What a result depends on
//!
//! A token's logits depend on the tokens before it and on the weights, to the last bit. They do not depend on other
//! requests in the batch, on how a prompt was divided into steps, on the number of threads, or on whether keys and
//! values were computed for this request, for an earlier turn or for another session. Every element of a product is one
//! sum in one order ([`tile`](turnwise_kernels::tile)), pages of keys and values begin at fixed positions, and norms
//! and rotations concern single tokens.
//!
//! # Modules
//!
//! [`EngineScheduler`] decides which tokens a step computes; [`tree::Tree`] knows the content of each page; a
//! [`compute::Compute`] owns the pages and does the arithmetic. The first two are independent of the device.

mod adapted;
mod attention;
mod compute;
mod drafts;
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

use crate::{ComputePrecision, DecoderConfig, EngineWeights};

/// What happens to the KV cache of a running request when the weights change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KvOnUpdate {
    /// It is recomputed, so that each token is sampled from a distribution of one version.
    #[default]
    Recompute,
    /// It stays until the request is answered. This is faster, but log-probabilities then belong to no single version;
    /// `kv_version` of the tokens records it.
    Keep,
}

/// The implementation that an engine computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineCompute {
    /// Buffers for a model on the CPU, tensors for one elsewhere.
    #[default]
    Auto,
    /// Raw buffers and the CPU's vector units, wherever the model is trained.
    Buffers,
    /// The tensor library, on the model's device. Results agree up to rounding; it is many times slower on the CPU, and
    /// bits may depend on the other requests. Products have the precision that the model is trained in.
    Tensors,
}

/// Limits of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// The most requests that are served at the same time; others wait.
    pub max_batch: usize,
    /// The most tokens of one step, prompts included; every decoding request gets at least one.
    pub max_step_tokens: usize,
    /// The most memory of the KV cache, with shared pages counted once. When room is needed, pages that no request
    /// reads are evicted, least recently used first; if that is not enough, the latest requests wait and are
    /// recomputed.
    pub max_kv_bytes: u64,
    /// What happens to the KV cache of running requests when weights change.
    pub kv_on_update: KvOnUpdate,
    /// The implementation.
    pub compute: EngineCompute,
    /// The numbers of the matrices.
    pub weights: EngineWeights,
    /// The most tokens that are guessed for a request, from what followed the same tokens before, and computed beside its
    /// last one while few requests are served; 0 for none. The tokens sampled are the same without.
    pub max_drafts: usize,
    /// The number of compute threads, the engine's own included; 0 means one per processor. They wait actively for a
    /// few tenths of a millisecond and sleep when idle.
    pub threads: usize,
}

impl Default for EngineSettings {
    /// Returns settings for models of up to a billion parameters on one machine.
    fn default() -> Self {
        Self {
            max_batch: 256,
            max_step_tokens: 1024,
            max_kv_bytes: 2 << 30,
            kv_on_update: KvOnUpdate::Recompute,
            compute: EngineCompute::Auto,
            weights: EngineWeights::Compute,
            max_drafts: 4,
            threads: 0,
        }
    }
}

/// Statistics of an engine since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineStats {
    /// Steps computed; each reads all weights once.
    pub steps: u64,
    /// Tokens sampled.
    pub drawn: u64,
    /// Tokens whose keys and values were computed, in prompts, answers and drafts.
    pub computed: u64,
    /// Tokens of drafts.
    #[serde(default)]
    pub drafted: u64,
    /// Tokens of drafts that were sampled.
    #[serde(default)]
    pub confirmed: u64,
    /// Prompt tokens whose keys and values were reused from an earlier turn or another request.
    pub reused: u64,
    /// Tokens whose keys and values were evicted.
    pub evicted: u64,
    /// How often a request lost its pages and had to wait.
    pub paused: u64,
    /// Tokens whose keys and values are in memory now.
    pub kv_tokens: u64,
    /// Memory of their pages, in bytes.
    pub kv_bytes: u64,
    /// The largest value of `kv_bytes` so far.
    pub kv_bytes_peak: u64,
    /// Time by kind of work.
    pub seconds: EngineSeconds,
}

impl EngineStats {
    /// Returns the difference to earlier statistics. Memory and its peak keep their current values.
    #[must_use]
    pub fn since(self, earlier: &Self) -> Self {
        Self {
            steps: self.steps - earlier.steps,
            drawn: self.drawn - earlier.drawn,
            computed: self.computed - earlier.computed,
            drafted: self.drafted - earlier.drafted,
            confirmed: self.confirmed - earlier.confirmed,
            reused: self.reused - earlier.reused,
            evicted: self.evicted - earlier.evicted,
            paused: self.paused - earlier.paused,
            seconds: self.seconds.since(&earlier.seconds),
            ..self
        }
    }
}

/// Counters of [`EngineStats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    steps: AtomicU64,
    drawn: AtomicU64,
    computed: AtomicU64,
    drafted: AtomicU64,
    confirmed: AtomicU64,
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
            drafted: read(&self.drafted),
            confirmed: read(&self.confirmed),
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

/// Returns the memory of a page of keys and values.
pub(crate) fn page_bytes(config: &DecoderConfig, precision: ComputePrecision) -> u64 {
    PageLayout::new(config, precision).bytes()
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}
