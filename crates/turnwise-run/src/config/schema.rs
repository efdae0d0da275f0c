//! The settings of a run. Each table is read where its name says; defaults stand in the `Default` of each.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use turnwise_candle::{AdamW, ComputePrecision, Device, EngineSettings, LoraSettings};
use turnwise_chat::{Thinking, ToolPrompt};
use turnwise_objective::LengthWeight as ObjectiveLengthWeight;
use turnwise_rollout::{Compaction, Limits};
use turnwise_training::{
    Behavior, Canary, Curriculum, Decay, DynamicSampling, Overlong, RatioScope, RolloutMode,
    StaleTokens, TruncatedEpisodes,
};

use crate::form::TemplateName;

/// Everything a run is made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The run as a whole.
    pub run: Run,
    /// What is trained on.
    pub environment: EnvironmentChoice,
    /// The model, and how it is spoken to.
    pub model: Model,
    /// The inference engine.
    pub engine: EngineSettings,
    /// Supervised training before reinforcement learning.
    pub warm_start: WarmStart,
    /// How episodes are played.
    pub rollout: Rollout,
    /// What an episode may use.
    pub limits: Limits,
    /// The loss.
    pub objective: ObjectiveChoice,
    /// How rewards become advantages.
    pub credit: CreditChoice,
    /// How the model is trained on a batch.
    pub train: Train,
    /// AdamW.
    pub optimizer: AdamW,
    /// Evaluation on held-out tasks.
    pub eval: Eval,
    /// What is written down.
    pub log: Log,
}

/// The settings of a run as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// All randomness derives from it.
    pub seed: u64,
    /// Training steps.
    pub steps: u64,
    /// Where the run's files go; by default `runs/NAME-0001`, counted up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

impl Default for Run {
    fn default() -> Self {
        Self { seed: 1, steps: 200, directory: None }
    }
}

/// The choice of an environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EnvironmentChoice {
    /// One of `turnwise env list`.
    pub name: String,
    /// Its own settings.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub options: Value,
    /// The rubric that scores finished episodes, on top of the environment's rewards: one of the environment's, or `none`. Its
    /// first one if this is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rubric: Option<String>,
}

impl Default for EnvironmentChoice {
    fn default() -> Self {
        Self { name: "guess".to_owned(), options: Value::Null, rubric: None }
    }
}

/// The settings of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// A Hugging Face directory to start from, or the name of a model in the Hugging Face cache; without it a small model is
    /// made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// What trains the model and draws from it: `cpu`, or `cuda` (`cuda:1` and so on) in a build with the feature `cuda`.
    pub device: Device,
    /// What products are computed in when it is trained on another device than the processor: `f32` or `bf16`.
    pub compute: ComputePrecision,
    /// Tokens of the vocabulary of a model that is made here; the vocabulary is trained on demonstrations.
    pub vocab_size: usize,
    /// Width of a model that is made here.
    pub hidden_size: usize,
    /// Width of its MLPs.
    pub intermediate_size: usize,
    /// Its layers.
    pub n_layers: usize,
    /// Its attention heads.
    pub n_heads: usize,
    /// Its key-value heads; a divisor of `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// The form of conversations; where it is left out, the one that fits the model's control tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateName>,
    /// For the template `hf`: the hash of the model's own template, once you have read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    /// How tools are described in the prompt: `signatures` by default, `hermes` with the template `qwen3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<ToolPrompt>,
    /// What becomes of thinking in past turns.
    pub thinking: Thinking,
    /// For the template `hf`: the moment that it sees if it asks for the time, such as `2026-01-31` or `2026-01-31T14:30:00`. A prompt
    /// must not depend on when it is made.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "moment")]
    #[schemars(with = "Option<String>")]
    pub time: Option<String>,
    /// The most tokens of an observation after the first turn; a longer one loses its middle, visibly. The task itself stays whole.
    pub max_observation_tokens: usize,
    /// Low-rank adapters that train in the place of the model in `directory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSettings>,
}

/// Reads a moment as a text, or as TOML's own date and time.
fn moment<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "a moment must be written as \"2026-01-31\" or \"2026-01-31T14:30:00\""
    )]
    enum Moment {
        Text(String),
        Toml(toml_edit::Datetime),
    }
    Ok(Some(match Moment::deserialize(from)? {
        Moment::Text(text) => text,
        Moment::Toml(time) => time.to_string(),
    }))
}

impl Default for Model {
    fn default() -> Self {
        Self {
            directory: None,
            device: Device::Cpu,
            compute: ComputePrecision::F32,
            vocab_size: 320,
            hidden_size: 96,
            intermediate_size: 256,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 24,
            template: None,
            trust: None,
            tools: None,
            thinking: Thinking::Keep,
            time: None,
            max_observation_tokens: 8192,
            lora: None,
        }
    }
}

/// The settings of imitation before reinforcement learning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WarmStart {
    /// Supervised steps on the expert's demonstrations before reinforcement learning; 0 leaves it out.
    pub steps: u64,
    /// Demonstrations in a step.
    pub batch_size: usize,
    /// The learning rate of these steps; by default 2e-5 for a model that was loaded, 2e-4 for adapters.
    pub learning_rate: f64,
}

impl Default for WarmStart {
    fn default() -> Self {
        Self { steps: 0, batch_size: 32, learning_rate: 3e-3 }
    }
}

/// The settings of rollouts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rollout {
    /// Whether rollouts and training take turns, overlap reproducibly, or never wait for each other.
    pub mode: RolloutMode,
    /// Who draws: `candle` with the trainer's own numbers, or `gguf`, another engine with weights of another precision.
    pub engine: EngineName,
    /// For `gguf`: how its weights are rounded; `q8_0` by default. The more it rounds, the more `train.canary.tolerance` needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<QuantizationName>,
    /// Groups that are begun at each step; 8 by default for a model that was loaded.
    pub groups_per_step: usize,
    /// Episodes of one task, whose rewards are compared with each other.
    pub group_size: usize,
    /// A group with fewer scored members is dropped whole.
    pub min_group_size: usize,
    /// Episodes that run at the same time.
    pub max_concurrent: usize,
    /// Tokens that one iteration of the step may draw over all its episodes; what is cut goes on in the next. 0 lets every episode finish.
    pub tokens_per_step: u64,
    /// Seconds after which the step's episodes are cut; what is cut goes on in the next. 0 lets every episode finish.
    pub seconds_per_step: f64,
    /// Which tasks are played.
    pub curriculum: Curriculum,
    /// Groups that teach nothing are replaced in the same step, up to a bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_sampling: Option<DynamicSampling>,
    /// Conversations that grow long are summed up by the policy, and go on from the summary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compaction: Option<Compaction>,
    /// Sampling temperature.
    pub temperature: f32,
    /// Samples from the most likely tokens whose probabilities reach this sum; 1 for all tokens. Below 1 every token keeps
    /// the ids that it was sampled from, and training computes its softmax over them.
    pub top_p: f32,
    /// Samples from so many of the most likely tokens; 0 for all.
    pub top_k: u32,
    /// Samples from the tokens that are at least this fraction as likely as the most likely one; 0 for all.
    pub min_p: f32,
    /// New attempts at an episode that broke.
    pub max_retries: u32,
    /// How long the first new attempt waits, in seconds; every further one waits twice as long.
    pub retry_delay_s: f64,
    /// Infrastructure faults in a row that stop the run.
    pub max_faults_in_row: u32,
    /// Share of bad rewards that stops the run.
    pub max_bad_rewards: f64,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            mode: RolloutMode::Synchronous,
            engine: EngineName::Candle,
            quantization: None,
            groups_per_step: 16,
            group_size: 8,
            min_group_size: 2,
            max_concurrent: 256,
            tokens_per_step: 0,
            seconds_per_step: 0.0,
            curriculum: Curriculum::Epochs,
            dynamic_sampling: None,
            compaction: None,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            max_retries: 2,
            retry_delay_s: 0.1,
            max_faults_in_row: 20,
            max_bad_rewards: 0.01,
        }
    }
}

/// The variants of a name, and the word that each has in a file.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum $name {
            $(
                #[doc = concat!("`", $word, "`")]
                #[serde(rename = $word)]
                $variant,
            )*
        }

        impl $name {
            /// The word in a file.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

named!(
    /// An inference engine.
    EngineName {
    Candle = "candle",
    Gguf = "gguf",
});

named!(
    /// A precision of weights.
    QuantizationName {
    F32 = "f32",
    F16 = "f16",
    Bf16 = "bf16",
    Q8_0 = "q8_0",
    Q6K = "q6_k",
    Q5_1 = "q5_1",
    Q5_0 = "q5_0",
    Q5K = "q5_k",
    Q4_1 = "q4_1",
    Q4_0 = "q4_0",
    Q4K = "q4_k",
    Q3K = "q3_k",
    Q2K = "q2_k",
});

named!(ObjectiveName {
    GspoToken = "gspo_token",
    Gspo = "gspo",
    GspoTurn = "gspo_turn",
    Grpo = "grpo",
    Dapo = "dapo",
    DrGrpo = "dr_grpo",
    Cispo = "cispo",
    Gmpo = "gmpo",
    Sapo = "sapo",
    Reinforce = "reinforce",
});

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LengthWeightChoice {
    Mean,
    Tokens,
    SqrtTokens,
}

impl From<LengthWeightChoice> for ObjectiveLengthWeight {
    fn from(weight: LengthWeightChoice) -> Self {
        match weight {
            LengthWeightChoice::Mean => Self::Mean,
            LengthWeightChoice::Tokens => Self::Tokens,
            LengthWeightChoice::SqrtTokens => Self::SqrtTokens,
        }
    }
}

/// What is left out has the value of the objective's paper; what the objective does not read is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveChoice {
    /// The objective.
    pub name: ObjectiveName,
    /// ε of the lower bound 1 − ε of the ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_low: Option<f64>,
    /// ε of the upper bound 1 + ε of the ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_high: Option<f64>,
    /// A second upper bound of the ratio, for negative advantages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dual_clip: Option<f64>,
    /// How much a sequence weighs: each the same, by its tokens, or by their square root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_weight: Option<LengthWeightChoice>,
    /// For `dr_grpo`: the constant; without it `limits.max_sampled_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// For `gmpo`: the log ratio is bounded below by minus this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_clip_low: Option<f64>,
    /// For `gmpo`: the upper bound of the log ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_clip_high: Option<f64>,
    /// For `sapo`: the gate of positive advantages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tau_positive: Option<f64>,
    /// For `sapo`: the gate of negative advantages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tau_negative: Option<f64>,
    /// Negative advantages of a sequence are masked when its mean `log π_b − log π_θ` is above this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off_policy_mask: Option<f64>,
    /// The penalty for leaving the reference policy.
    pub kl: Kl,
}

impl Default for ObjectiveChoice {
    fn default() -> Self {
        Self {
            name: ObjectiveName::GspoToken,
            clip_low: None,
            clip_high: None,
            dual_clip: None,
            length_weight: None,
            max_tokens: None,
            log_clip_low: None,
            log_clip_high: None,
            tau_positive: None,
            tau_negative: None,
            off_policy_mask: None,
            kl: Kl::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kl {
    /// The weight of KL to the weights that reinforcement learning starts from; 0 has none.
    pub beta: f64,
    /// How the penalty is estimated; `k3` where it is left out. `k1` is no penalty: its gradient is 0 on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimator: Option<Estimator>,
}

impl Default for Kl {
    fn default() -> Self {
        Self { beta: 0.0, estimator: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    K1,
    K2,
    K3,
}

named!(CreditName {
    Outcome = "outcome",
    Turn = "turn",
    TurnBaseline = "turn_baseline",
    Return = "return",
    Gigpo = "gigpo",
    ReinforcePlusPlus = "reinforce_plus_plus",
    TurnIndexBiased = "turn_index_biased",
});

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalise {
    MeanStd,
    Mean,
    LeaveOneOut,
}

/// What is left out has its usual value; what the credit does not read is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CreditChoice {
    /// The credit.
    pub name: CreditName,
    /// How episodes of a group are compared; `mean_std` by default, `mean` with the objective `dr_grpo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalise: Option<Normalise>,
    /// Discount of later turns' rewards; 1 by default, 0.95 for `gigpo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// For `turn`: the weight of the outcome; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome_weight: Option<f64>,
    /// For `turn`: the weight of the turn's own return; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_weight: Option<f64>,
    /// For `gigpo`: the weight of the comparison at an anchor state; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_weight: Option<f64>,
}

impl Default for CreditChoice {
    fn default() -> Self {
        Self {
            name: CreditName::Outcome,
            normalise: None,
            gamma: None,
            outcome_weight: None,
            turn_weight: None,
            step_weight: None,
        }
    }
}

#[allow(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
/// The settings of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// The learning rate; by default 1e-5 for a model that was loaded, 1e-4 for adapters.
    pub learning_rate: f64,
    /// Steps in which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// How the learning rate falls until `run.steps`.
    pub decay: Decay,
    /// Euclidean norm that gradients are scaled down to.
    pub max_grad_norm: f64,
    /// Optimiser steps for each batch of rollouts.
    pub n_minibatches: usize,
    /// Tokens that go through the model at once, and so what memory training takes.
    pub micro_batch_tokens: usize,
    /// Versions a trained token may be behind.
    pub max_staleness: u32,
    /// What happens to older ones.
    pub stale: StaleTokens,
    /// What happens to episodes that ran into a limit.
    pub truncated: TruncatedEpisodes,
    /// A penalty for length, on the reward of episodes in groups that differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlong: Option<Overlong>,
    /// Whether the tokens of episodes that ended by the agent's fault are masked; their rewards stay in the baseline.
    pub mask_agent_faults: bool,
    /// Whether the tokens of turns with mistakes of form are masked.
    pub mask_parse_errors: bool,
    /// Whether groups with equal rewards are trained on: their advantages are 0, and they count in the denominator.
    pub keep_zero_variance: bool,
    /// Which tokens share an importance ratio.
    pub ratio_scope: RatioScope,
    /// Which log-probabilities stand in the ratio's denominator.
    pub behavior: Behavior,
    /// What the engine has to show after new weights.
    pub canary: Canary,
    /// The weight of the loss of unevenly used experts; 0 has none.
    pub balance: f64,
    /// Layers are computed again in the backward pass: a third more time, for the memory of one layer instead of all.
    pub recompute_layers: bool,
    /// Processors that training computes on, as `engine.threads` are the engine's. 0 takes all in turns with rollouts, and what
    /// the engine leaves where rollouts overlap with training.
    pub threads: usize,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            warmup_steps: 0,
            decay: Decay::Constant,
            max_grad_norm: 1.0,
            n_minibatches: 4,
            micro_batch_tokens: 4_096,
            max_staleness: 4,
            stale: StaleTokens::Drop,
            truncated: TruncatedEpisodes::Keep,
            overlong: None,
            mask_agent_faults: false,
            mask_parse_errors: false,
            keep_zero_variance: false,
            ratio_scope: RatioScope::Trajectory,
            behavior: Behavior::Recorded,
            canary: Canary::default(),
            balance: 0.0,
            recompute_layers: false,
            threads: 0,
        }
    }
}

/// The settings of evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Held-out episodes before and after; 64 by default for a model that was loaded.
    pub episodes: usize,
    /// Sampling temperature; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Steps between evaluations on the way; 0 has none.
    pub every: u64,
}

impl Default for Eval {
    fn default() -> Self {
        Self { episodes: 256, temperature: 1.0, every: 0 }
    }
}

/// The settings of what is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Trajectories written at each step.
    pub rollouts_per_step: usize,
    /// Steps between checkpoints; one is always written at the end. 10 by default for a model that was loaded.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept, at least 2: the newest may turn out to be damaged.
    pub keep_checkpoints: usize,
}

impl Default for Log {
    fn default() -> Self {
        Self { rollouts_per_step: 16, checkpoint_every: 50, keep_checkpoints: 2 }
    }
}
