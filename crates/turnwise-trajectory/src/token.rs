use serde::{Deserialize, Serialize};

use crate::PolicyVersion;

/// An entry of the vocabulary.
pub type TokenId = u32;

/// An entry of a trajectory's table of sampling settings.
pub type SamplingId = u16;

/// Where a token comes from. Only sampled tokens can train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Drawn by the policy.
    Sampled,
    /// What the system, the environment or a tool said.
    Context,
    /// What the template adds: role markers, separators, the generation prompt.
    Scaffold,
    /// Put into the model's mouth: a close it did not write, a prefill.
    Forced,
}

/// Why a sampled token is left out of training. It is then in neither the sum nor the count of its ratio group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskReason {
    /// Another row trains it.
    SharedPrefix,
    /// Drawn by a policy too old.
    Stale,
    /// Its episode ran into a limit, and the run masks those.
    Truncated,
    /// Its episode ended by the agent's fault, and the run masks those.
    AgentFault,
    /// It belongs to a turn that could not be parsed, and the run masks those.
    ParseError,
    /// The engine's prompt and the held tokens drifted apart in scaffold.
    Realigned,
    /// Its episode broke.
    Infra,
    /// The user's own choice.
    User,
}

/// A token that the policy drew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// Exactly what was drawn; it is never encoded again.
    pub id: TokenId,
    /// Log-probability under the distribution it was drawn from, after temperature and truncation. Nats, finite, at most 0.
    pub logprob: f32,
    /// The weights that drew it, stamped by the policy.
    pub version: PolicyVersion,
    /// The oldest weights that wrote the keys and values it was drawn over; equal to `version` when those were fresh.
    pub kv_version: PolicyVersion,
    /// Which of the trajectory's sampling settings it was drawn with.
    pub sampling: SamplingId,
    /// Why it does not train; `None` for a token that does.
    pub mask: Option<MaskReason>,
    /// Credit for it. `None` is *not scored* and must not reach a loss; 0 is scored, without signal, and counts in the
    /// length of its ratio group.
    pub advantage: Option<f32>,
}

impl SampledToken {
    /// A token fresh from a policy: drawn with the first sampling entry over fresh keys and values, not yet scored.
    #[must_use]
    pub fn new(id: TokenId, logprob: f32, version: PolicyVersion) -> Self {
        Self { id, logprob, version, kv_version: version, sampling: 0, mask: None, advantage: None }
    }

    /// Whether it counts in its ratio group.
    #[must_use]
    pub fn trains(&self) -> bool {
        self.mask.is_none()
    }
}
