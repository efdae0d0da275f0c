//! The kinds of servers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The program behind a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Server {
    /// vLLM, tested with version 0.32.
    Vllm,
    /// SGLang, written by its documentation and not tested.
    Sglang,
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
        })
    }
}

impl Server {
    /// Returns the name in a sample's record of its engine.
    pub(crate) fn engine(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
        }
    }
}
