//! Settings of a remote engine.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a remote engine is, and how it is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteSettings {
    /// The replicas, such as `["http://127.0.0.1:8000"]`. The turns of an episode go to the same replica, whose prefix
    /// cache then has the conversation.
    pub urls: Vec<String>,
    /// The name under which the server serves the model; by default the first that it lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A file with the server's API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The directory through which the server gets new weights; by default `engine` in the run's directory. The server must
    /// see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights_directory: Option<PathBuf>,
    /// The same directory by the server's own path, if that is another, as in a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights_directory_of_server: Option<PathBuf>,
    /// Requests that one replica has at a time; further requests wait.
    pub max_requests: usize,
    /// Sends a seed with each request. Runs are not reproducible even so, and vLLM samples seeded requests one by one; its
    /// version 0.32 breaks on them without a GPU.
    pub seeds: bool,
    /// Seconds until a request without any new token counts as lost.
    pub timeout_s: f64,
    /// Seconds until new weights must be loaded.
    pub load_timeout_s: f64,
    /// Seconds that a request waits for a replica that answers, before it fails.
    pub max_wait_s: f64,
    /// The largest accepted difference between the server's and the trainer's log-probabilities of the same tokens, in nats,
    /// when new weights are checked. Servers in bf16 need about 0.1.
    pub tolerance: f64,
}

impl Default for RemoteSettings {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            model: None,
            key_file: None,
            weights_directory: None,
            weights_directory_of_server: None,
            max_requests: 256,
            seeds: false,
            timeout_s: 120.0,
            load_timeout_s: 600.0,
            max_wait_s: 300.0,
            tolerance: 0.1,
        }
    }
}

impl RemoteSettings {
    /// Returns the server's path of a file in the weights directory `ours`.
    #[must_use]
    pub(crate) fn path_of_server(&self, ours: &Path, file: &Path) -> PathBuf {
        match (&self.weights_directory_of_server, file.strip_prefix(ours)) {
            (Some(theirs), Ok(inside)) => theirs.join(inside),
            _ => file.to_owned(),
        }
    }
}
