use serde::{Deserialize, Serialize};

use crate::ToolSpec;

/// What an agent program asks of a turn, beside the messages; marks an observation that holds the whole conversation, as
/// programs send it with each request to a chat endpoint, instead of what follows the policy's last turn.
///
/// The agent continues the longest path of its graph that has the same messages, so that sampled tokens are used again;
/// messages that differ start a branch. [`Observation::whole`](crate::Observation::whole) creates such an observation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnRequest {
    /// The number of the request, for the endpoint that sent it; unique in the process.
    pub number: u64,
    /// The tools that the model may call in its next turn, in place of the environment's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<ToolSpec>,
    /// The most tokens of the next turn, if the program limits them. The run's own limits hold too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Texts that end the next turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}
