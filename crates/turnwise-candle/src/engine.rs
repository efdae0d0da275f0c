//! The inference engine: no tensors, no graph, one thread.
//!
//! # What a result depends on
//!
//! A token's logits depend on the tokens before it and on the weights, to the last bit: not on who else is in the batch,
//! on how a prompt was cut into steps, or on whether its keys and values were kept from an earlier turn. Products are
//! computed row by row in one order ([`multiply_rows_apart`](crate::matrix::multiply_rows_apart)), and attention, norms
//! and rotations belong to one token each.

mod compute;
mod kv;
mod mixture;
mod scheduler;
mod sessions;

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

pub(crate) use scheduler::{Command, Job, Scheduler};

/// What happens to the keys and values of a request when weights change in the middle of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvOnUpdate {
    /// They are computed again, so that each token is drawn from a distribution of one version.
    #[default]
    Recompute,
    /// They stay until the request is answered. Faster, but the log-probabilities then belong to no single version;
    /// `kv_version` of the tokens says so.
    Keep,
}

/// Limits of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// How many requests are served side by side; more wait.
    pub max_batch: usize,
    /// How many tokens are computed in one step, prompts included; at least one for each request that is drawing.
    pub max_step_tokens: usize,
    /// How much memory keys and values may take. Those of sessions that ask for nothing are given up when others need
    /// the room, least recently used first.
    pub max_kv_bytes: u64,
    /// What happens to keys and values in mid-request.
    pub kv_on_update: KvOnUpdate,
}

impl Default for EngineSettings {
    /// For models of up to a billion parameters on one machine.
    fn default() -> Self {
        Self {
            max_batch: 256,
            max_step_tokens: 1024,
            max_kv_bytes: 2 << 30,
            kv_on_update: KvOnUpdate::Recompute,
        }
    }
}

/// What an engine has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Tokens drawn.
    pub drawn: u64,
    /// Tokens whose keys and values were computed, in prompts and in answers.
    pub computed: u64,
    /// Tokens of prompts whose keys and values were still there.
    pub reused: u64,
    /// Sessions whose keys and values were given up to make room.
    pub evicted: u64,
    /// Tokens whose keys and values are held now.
    pub kv_tokens: u64,
}

/// [`EngineStats`] as they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    drawn: AtomicU64,
    computed: AtomicU64,
    reused: AtomicU64,
    evicted: AtomicU64,
    kv_tokens: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self) -> EngineStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineStats {
            drawn: read(&self.drawn),
            computed: read(&self.computed),
            reused: read(&self.reused),
            evicted: read(&self.evicted),
            kv_tokens: read(&self.kv_tokens),
        }
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}
