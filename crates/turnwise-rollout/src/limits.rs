use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What an episode may use. The policy runs into the first four; the deadlines are for what is not its doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Turns of an episode.
    pub max_turns: usize,
    /// Tokens the policy may draw in one turn; a turn cut by it is closed with a forced token and answered as it is.
    pub max_turn_tokens: usize,
    /// Tokens the policy may draw in one episode. Text of environment and tools does not count.
    pub max_sampled_tokens: usize,
    /// Tokens the model can attend to, prompt and answers together.
    pub max_context_tokens: usize,
    /// Mistakes of form the agent may make; one more ends the episode as the agent's fault.
    pub max_faults: u32,
    /// The reward of an agent fault where the environment declares none.
    pub fault_reward: f64,
    /// How long one call of the environment may take, in seconds.
    pub environment_timeout_s: f64,
    /// How long one request to the engine may take, in seconds.
    pub engine_timeout_s: f64,
    /// How long an episode may take while it is not suspended, in seconds.
    pub episode_timeout_s: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_turns: 16,
            max_turn_tokens: 256,
            max_sampled_tokens: 4096,
            max_context_tokens: 4096,
            max_faults: 8,
            fault_reward: 0.0,
            environment_timeout_s: 60.0,
            engine_timeout_s: 600.0,
            episode_timeout_s: 3600.0,
        }
    }
}

impl Limits {
    pub(crate) fn environment_timeout(&self) -> Duration {
        seconds(self.environment_timeout_s)
    }

    pub(crate) fn engine_timeout(&self) -> Duration {
        seconds(self.engine_timeout_s)
    }

    pub(crate) fn episode_timeout(&self) -> Duration {
        seconds(self.episode_timeout_s)
    }
}

/// Settings are validated where they are read; whatever arrives here becomes a duration without a panic.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}
