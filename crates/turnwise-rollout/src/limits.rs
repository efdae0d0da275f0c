use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The limits of an episode; in an environment with several seats, of each seat. Budgets of different kinds are independent. The policy is responsible for reaching a limit
/// of turns, tokens, calls, repeats or faults, but not for a missed deadline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Maximal number of turns of an episode.
    pub max_turns: usize,
    /// Tokens the policy may sample in one turn; a turn cut by it is closed with a forced token and answered as it is.
    pub max_turn_tokens: usize,
    /// Tokens the policy may sample in one episode. Text of environment and tools does not count.
    pub max_sampled_tokens: usize,
    /// Maximal context length in tokens, prompt and answers together.
    pub max_context_tokens: usize,
    /// Tool calls the agent may make, including malformed ones.
    pub max_tool_calls: usize,
    /// Bytes of one observation; the middle of a longer one is cut out. This bounds memory: the renderer decides how
    /// many of its tokens the model sees.
    pub max_observation_bytes: usize,
    /// The number of equal exchanges in a row (equal actions with equal answers) that ends the episode as a loop; 0
    /// allows any number. Off by default, since waiting is a valid action in many environments.
    pub max_repeats: u32,
    /// Malformed answers and calls that the agent may make; one more ends the episode as the agent's fault.
    pub max_faults: u32,
    /// The reward of an agent fault if the environment declares none.
    pub fault_reward: f64,
    /// Deadline of one call of the environment, in seconds.
    pub environment_timeout_s: f64,
    /// Deadline of one request to the engine, in seconds.
    pub engine_timeout_s: f64,
    /// Deadline of an episode in seconds, counted while it is not suspended.
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
    /// Checks that every number is in its range.
    ///
    /// # Errors
    /// A sentence that names the field and its range.
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

/// Converts seconds to a duration without a panic; the settings were validated where they were read.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}
