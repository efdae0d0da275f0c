//! Settings of a Tinker server.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a Tinker server is, and how it is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TinkerSettings {
    /// The server, such as `"http://127.0.0.1:8000"`.
    pub url: String,
    /// The name under which the server has the model; by default the first that it lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// A file with the server's API key, which begins with `tml-`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The rank of the adapters; the server decides their alpha.
    pub rank: u32,
    /// The seed of the adapters' initial values. A run derives it from its own.
    #[serde(skip)]
    pub seed: u32,
    /// Decay rate of Adam's first moment. A run has it in `[optimizer]`, like the three that follow.
    #[serde(skip)]
    pub beta1: f64,
    /// Decay rate of Adam's second moment.
    #[serde(skip)]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[serde(skip)]
    pub epsilon: f64,
    /// Weight decay, multiplied by the learning rate.
    #[serde(skip)]
    pub weight_decay: f64,
    /// The most tokens of one training request; larger batches are sent in several.
    pub max_request_tokens: usize,
    /// Requests to sample that the server has at a time; further requests wait.
    pub max_requests: usize,
    /// Seconds until a server that sends nothing is asked again.
    pub timeout_s: f64,
    /// Seconds that a request is tried again on a server that does not answer, and that a request to sample waits for
    /// weights to be published.
    pub max_wait_s: f64,
    /// Seconds that a result may take.
    pub result_timeout_s: f64,
}

impl Default for TinkerSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            base_model: None,
            key_file: None,
            rank: 16,
            seed: 1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            max_request_tokens: 32_768,
            max_requests: 256,
            timeout_s: 45.0,
            max_wait_s: 300.0,
            result_timeout_s: 3_600.0,
        }
    }
}
