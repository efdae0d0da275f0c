use serde::{Deserialize, Serialize};

use crate::PolicyVersion;

/// An index into the vocabulary.
pub type TokenId = u32;

/// An index into a trajectory's table of sampling settings.
pub type SamplingId = u16;

/// The origin of a token. Only sampled tokens can train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Sampled by the policy.
    Sampled,
    /// Text of the system prompt, the environment or a tool.
    Context,
    /// Tokens that the template adds: role markers, separators, the generation prompt.
    Scaffold,
    /// Assistant tokens that the policy did not sample: a forced end of turn, a prefill.
    Forced,
}

/// The reason why a sampled token does not train. A masked token is in neither the sum nor the count of its ratio
/// group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskReason {
    /// Another row trains the token.
    SharedPrefix,
    /// The policy version that sampled the token is too old.
    Stale,
    /// The episode reached a limit, and the run masks such episodes.
    Truncated,
    /// The episode ended by the agent's fault, and the run masks such episodes.
    AgentFault,
    /// The turn could not be parsed, and the run masks such turns.
    ParseError,
    /// The engine's prompt and the stored tokens differ in scaffold tokens.
    Realigned,
    /// The episode ended in an infrastructure fault.
    Infra,
    /// The user chose to mask the token.
    User,
}

/// A token that the policy sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// The id exactly as it was sampled; it is never decoded and encoded again.
    pub id: TokenId,
    /// Log-probability under the distribution that the token was sampled from, after temperature and truncation. In
    /// nats, finite, at most 0.
    pub logprob: f32,
    /// The version of the weights that sampled the token, recorded by the policy.
    pub version: PolicyVersion,
    /// The oldest version of the keys and values that the token attended to; equal to `version` if all were fresh.
    pub kv_version: PolicyVersion,
    /// The entry of the trajectory's sampling settings that the token was sampled with.
    pub sampling: SamplingId,
    /// The reason why the token does not train; `None` for a token that does.
    pub mask: Option<MaskReason>,
    /// The token's advantage. `None` is *not scored* and must not reach a loss; 0 is scored, has no gradient, and
    /// counts in the length of its ratio group.
    pub advantage: Option<f32>,
}

impl SampledToken {
    /// Creates a token that was sampled with the first sampling entry over a fresh KV cache, and is not scored.
    #[must_use]
    pub fn new(id: TokenId, logprob: f32, version: PolicyVersion) -> Self {
        Self { id, logprob, version, kv_version: version, sampling: 0, mask: None, advantage: None }
    }

    /// Returns whether the token counts in its ratio group.
    #[must_use]
    pub fn trains(&self) -> bool {
        self.mask.is_none()
    }
}
