use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an episode may use: budgets of several kinds, none of which is spent from another. The policy runs into those of
/// turns, tokens, calls, repeats and faults; the deadlines are for what is not its doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Calls of tools the agent may make, those that cannot be read included.
    pub max_tool_calls: usize,
    /// Bytes of one observation; of a longer one the middle is cut out. A bound on memory: how many of its tokens the model
    /// sees is for the renderer to say.
    pub max_observation_bytes: usize,
    /// This many times in a row the same action and the same answer to it end the episode as a loop; 0 lets it go on. Off
    /// by default, since in many environments waiting is a fair move.
    pub max_repeats: u32,
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
            max_tool_calls: 1024,
            max_observation_bytes: 1 << 20,
            max_repeats: 0,
            max_faults: 8,
            fault_reward: 0.0,
            environment_timeout_s: 60.0,
            engine_timeout_s: 600.0,
            episode_timeout_s: 3600.0,
        }
    }
}

impl Limits {
    /// What is wrong with these numbers, if anything.
    ///
    /// # Errors
    /// A sentence that names the field and what it must be.
    pub fn validate(&self) -> Result<(), String> {
        let counts = [
            ("max_turns", self.max_turns),
            ("max_turn_tokens", self.max_turn_tokens),
            ("max_sampled_tokens", self.max_sampled_tokens),
            ("max_context_tokens", self.max_context_tokens),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(format!("{name} must be at least 1"));
        }
        let times = [
            ("environment_timeout_s", self.environment_timeout_s),
            ("engine_timeout_s", self.engine_timeout_s),
            ("episode_timeout_s", self.episode_timeout_s),
        ];
        if let Some((name, _)) = times.iter().find(|(_, s)| !(s.is_finite() && *s > 0.0)) {
            return Err(format!("{name} must be a finite number above 0"));
        }
        if !self.fault_reward.is_finite() {
            return Err("fault_reward must be a finite number".to_owned());
        }
        Ok(())
    }

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
