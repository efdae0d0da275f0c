//! The settings of a run. Each table is read by the code that its name says; the `Default` of each table has the
//! defaults.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use turnwise_candle::{AdamW, ComputePrecision, Device, EngineSettings, LoraSettings};
use turnwise_chat::{Thinking, ToolPrompt};
use turnwise_objective::LengthWeight as ObjectiveLengthWeight;
use turnwise_remote::{RemoteSettings, TinkerSettings};
use turnwise_rollout::{Compaction, Limits};
use turnwise_training::{
    Behavior, Canary, Curriculum, Decay, DynamicSampling, Overlong, RatioScope, RolloutMode,
    StaleTokens, TruncatedEpisodes,
};
use turnwise_trajectory::Sampling;

pub use crate::agent::{AgentChoice, ExampleMessage, ExampleRole, PromptText};
pub use crate::constraint::ConstraintChoice;
use crate::form::TemplateName;
use crate::workers::WorkersChoice;

/// All settings of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The run as a whole.
    pub run: Run,
    /// The environment to train on.
    pub environment: EnvironmentChoice,
    /// The model and its chat form.
    pub model: Model,
    /// The agent: its system prompt and examples, and how its turns begin and end.
    pub agent: AgentChoice,
    /// The inference engine.
    pub engine: EngineSettings,
    /// Supervised training before reinforcement learning.
    pub warm_start: WarmStart,
    /// How episodes are played.
    pub rollout: Rollout,
    /// The limits of an episode.
    pub limits: Limits,
    /// The objective, which computes the loss.
    pub objective: ObjectiveChoice,
    /// How rewards become advantages.
    pub credit: CreditChoice,
    /// How the model is trained on a batch.
    pub train: Train,
    /// AdamW.
    pub optimizer: AdamW,
    /// Evaluation on held-out tasks.
    pub eval: Eval,
    /// What a run writes.
    pub log: Log,
}

/// The settings of a run as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// The seed from which all randomness derives.
    pub seed: u64,
    /// Training steps.
    pub steps: u64,
    /// The directory of the run's files; by default `runs/NAME-0001`, counted up.
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
    /// The name of the environment, one of `turnwise env list`.
    pub name: String,
    /// The environment's own settings.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub options: Value,
    /// The rubric that scores finished episodes, on top of the environment's rewards: the name of one of the
    /// environment's rubrics, or `none`. By default the environment's first rubric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rubric: Option<String>,
    /// The opponent of the policy in an environment with several seats: `self` (by default; the policy plays every seat,
    /// and learns from each), `expert` or `random` (the players of the environment's suite), or the directory of a model
    /// or a checkpoint, which does not train. Against an opponent other than itself, the policy's seat changes from group
    /// to group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opponent: Option<String>,
}

impl Default for EnvironmentChoice {
    fn default() -> Self {
        Self { name: "guess".to_owned(), options: Value::Null, rubric: None, opponent: None }
    }
}

/// The settings of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// The model to start from: a Hugging Face directory, a GGUF file, the directory of a PEFT adapter, or the name of a
    /// model in the Hugging Face cache. Without it, the run starts from a new small model with random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// The base of the adapter in `directory`, if its files do not name the place. The adapter goes on training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// The device that trains the model and samples from it: `cpu`, or `cuda` (`cuda:1` and so on) in a build with the
    /// feature `cuda`.
    pub device: Device,
    /// The precision of matrix products: `f32` or `bf16`, which is about twice as fast on processors with AVX-512-BF16 or
    /// AMX and on graphics processors. Trained weights, optimiser, norms, softmax and log-probabilities stay f32; the
    /// engine keeps its matrices in bf16, half as large, and so are the frozen matrices beside adapters. Left out, it is `f32`, and `bf16` for a loaded model of 100 million weights or
    /// more on such a processor.
    pub compute: ComputePrecision,
    /// Vocabulary size of a new model; its tokenizer is trained on demonstrations.
    pub vocab_size: usize,
    /// Width of a new model.
    pub hidden_size: usize,
    /// Width of a new model's MLPs.
    pub intermediate_size: usize,
    /// Layers of a new model.
    pub n_layers: usize,
    /// Attention heads of a new model.
    pub n_heads: usize,
    /// Key-value heads of a new model; a divisor of `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a new model's heads; even.
    pub head_dim: usize,
    /// The chat form, in which conversations are rendered; by default the one that fits the model's control tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateName>,
    /// For the template `hf`: the hash of the model's own template, as a sign that you have read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    /// How tools are described in the prompt: `signatures` by default, `hermes` with the template `qwen3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<ToolPrompt>,
    /// A file with a Jinja template, in the place of the model's own; for a model that has none, such as a base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_file: Option<PathBuf>,
    /// Further variables of the model's own template, such as `{ enable_thinking = false }`.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub template_arguments: Map<String, Value>,
    /// How prompts treat the thinking of past turns.
    pub thinking: Thinking,
    /// For the template `hf`: the date and time that the template sees if it asks for them, such as `2026-01-31` or
    /// `2026-01-31T14:30:00`. A prompt must not depend on when it is made.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "moment")]
    #[schemars(with = "Option<String>")]
    pub time: Option<String>,
    /// The most tokens of a message after the first turn. The model sees a longer message without its middle, in whose
    /// place stands `[... N bytes omitted ...]`; the messages before the first turn, which are the task, stay whole.
    /// Episodes with such a message are counted in the metric `length/shortened_frac`, `turnwise doctor` and the end of
    /// the run name them, and `turnwise show` marks the messages.
    pub max_observation_tokens: usize,
    /// Low-rank adapters (LoRA), which train instead of the weights of the model in `directory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSettings>,
}

/// Reads a date and time from a string, or from TOML's own type.
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
            base: None,
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
            template_file: None,
            template_arguments: Map::new(),
            trust: None,
            tools: None,
            thinking: Thinking::Keep,
            time: None,
            max_observation_tokens: 8192,
            lora: None,
        }
    }
}

/// The settings of the warm start: imitation before reinforcement learning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WarmStart {
    /// Supervised steps on the expert's demonstrations before reinforcement learning; 0 disables them.
    pub steps: u64,
    /// Demonstrations in a step.
    pub batch_size: usize,
    /// The learning rate of these steps; by default 2e-5 for a loaded model, 2e-4 for adapters.
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
    /// Whether rollouts and training alternate, overlap reproducibly, or never wait for each other.
    pub mode: RolloutMode,
    /// The engine that samples: `candle` with the trainer's own numbers, `gguf`, another engine with weights of another
    /// precision, or a server, `vllm` or `sglang` (the latter by its documentation, not tested).
    pub engine: EngineName,
    /// For `gguf`: the precision to which its weights are rounded; by default `q8_0`. A coarser precision needs a
    /// larger `train.canary.tolerance`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<QuantizationName>,
    /// For `vllm`: where the server is, and how it is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vllm: Option<RemoteSettings>,
    /// For `sglang`: where the server is, and how it is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sglang: Option<RemoteSettings>,
    /// Where workers join, which run the episodes of training; without it, they run in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkersChoice>,
    /// Groups that begin at each step; by default 8 for a loaded model.
    pub groups_per_step: usize,
    /// Episodes of one task in a group, whose rewards are compared with each other.
    pub group_size: usize,
    /// The fewest scored members of a group; a group with fewer is dropped whole.
    pub min_group_size: usize,
    /// Episodes that run at the same time.
    pub max_concurrent: usize,
    /// Tokens that one iteration may sample over all its episodes; an episode that is cut goes on in the next
    /// iteration. 0 lets every episode finish.
    pub tokens_per_step: u64,
    /// Seconds after which an iteration's episodes are cut; an episode that is cut goes on in the next iteration. 0
    /// lets every episode finish.
    pub seconds_per_step: f64,
    /// How tasks are chosen.
    pub curriculum: Curriculum,
    /// Replaces groups with equal rewards by further groups in the same step, up to a bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_sampling: Option<DynamicSampling>,
    /// Lets the policy summarise a conversation that grows long; the conversation then goes on from the summary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compaction: Option<Compaction>,
    /// A grammar that every turn matches: a regular expression, a JSON schema or a Lark grammar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<ConstraintChoice>,
    /// Sampling temperature.
    pub temperature: f32,
    /// Samples from the most likely tokens whose probabilities reach this sum; 1 for all tokens. Below 1 every token keeps
    /// the ids that it was sampled from, and training computes its softmax over them.
    pub top_p: f32,
    /// Samples from this many of the most likely tokens; 0 for all.
    pub top_k: u32,
    /// Samples from the tokens that are at least this fraction as likely as the most likely one; 0 for all.
    pub min_p: f32,
    /// New attempts at an episode that broke.
    pub max_retries: u32,
    /// How long the first new attempt waits, in seconds; each further attempt waits twice as long as the one before.
    pub retry_delay_s: f64,
    /// Infrastructure faults in a row that stop the run.
    pub max_faults_in_row: u32,
    /// The fraction of bad rewards that stops the run.
    pub max_bad_rewards: f64,
}

impl Rollout {
    /// Returns how tokens are sampled.
    pub(crate) fn sampling(&self) -> Sampling {
        let &Self { temperature, top_p, top_k, min_p, .. } = self;
        Sampling { temperature, top_p, top_k, min_p }
    }

    /// Returns the settings of the server, if the engine is one.
    pub(crate) fn server(&self) -> Option<&RemoteSettings> {
        match self.engine {
            EngineName::Candle | EngineName::Gguf => None,
            EngineName::Vllm => self.vllm.as_ref(),
            EngineName::Sglang => self.sglang.as_ref(),
        }
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            mode: RolloutMode::Synchronous,
            engine: EngineName::Candle,
            quantization: None,
            vllm: None,
            sglang: None,
            workers: None,
            groups_per_step: 16,
            group_size: 8,
            min_group_size: 2,
            max_concurrent: 256,
            tokens_per_step: 0,
            seconds_per_step: 0.0,
            curriculum: Curriculum::Epochs,
            dynamic_sampling: None,
            compaction: None,
            constraint: None,
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

/// Declares an enum of names, with the word of each in a file.
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
            /// Returns the word in a file.
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
    Vllm = "vllm",
    Sglang = "sglang",
});

named!(
    /// A learner.
    LearnerName {
    Candle = "candle",
    Tinker = "tinker",
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

/// The settings of the objective. A setting that is left out has the value of the objective's paper; a setting that the
/// objective does not read is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveChoice {
    /// The name of the objective.
    pub name: ObjectiveName,
    /// The rule of the clip range: `auto` measures the spread σ of the log-ratio and sets ε to `clip_multiple` times σ,
    /// and to no less than the paper's range, by default for a loaded model and an objective of the GSPO family. Without it, the numbers below count, or those
    /// of the objective's paper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipRule>,
    /// For `clip = "auto"`: ε of the lower bound in units of σ; by default 1. The upper bound is 4/3 of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_multiple: Option<f64>,
    /// ε of the lower bound 1 − ε of the importance ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_low: Option<f64>,
    /// ε of the upper bound 1 + ε of the importance ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_high: Option<f64>,
    /// A second upper bound of the importance ratio, for negative advantages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dual_clip: Option<f64>,
    /// The weight of a sequence: equal for all, by its tokens, or by their square root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_weight: Option<LengthWeightChoice>,
    /// For `dr_grpo`: the constant that divides the loss; by default `limits.max_sampled_tokens`.
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
    /// Masks the negative advantages of a sequence whose mean `log π_b − log π_θ` is above this bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off_policy_mask: Option<f64>,
    /// The KL penalty, for moving away from the reference policy.
    pub kl: Kl,
}

/// How the clip range is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClipRule {
    /// By the measured spread of the log-ratio.
    Auto,
    /// As in the objective's paper.
    Paper,
}

impl Default for ObjectiveChoice {
    fn default() -> Self {
        Self {
            name: ObjectiveName::GspoToken,
            clip: None,
            clip_multiple: None,
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
    /// The weight of the KL penalty towards the weights that reinforcement learning starts from; 0 disables it.
    pub beta: f64,
    /// How the KL penalty is estimated; by default `k3`. `k1` is refused, because its gradient is 0 on average.
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

/// The settings of credit. A setting that is left out has its usual value; a setting that the credit does not read is
/// refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CreditChoice {
    /// The name of the credit.
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
    /// What trains: `candle` in this process, or `tinker`, a server that speaks Tinker's protocol, which then samples too.
    pub learner: LearnerName,
    /// For `tinker`: where the server is, and how it is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tinker: Option<TinkerSettings>,
    /// The learning rate; by default 1e-5 for a loaded model, 1e-4 for adapters.
    pub learning_rate: f64,
    /// Steps in which the learning rate rises from 0; by default 4 for a loaded model.
    pub warmup_steps: u64,
    /// How the learning rate falls until `run.steps`.
    pub decay: Decay,
    /// The Euclidean norm to which larger gradients are scaled down.
    pub max_grad_norm: f64,
    /// Optimiser steps for each batch of rollouts.
    pub n_minibatches: usize,
    /// Tokens that go through the model at once; more need more memory.
    pub micro_batch_tokens: usize,
    /// The most versions that a trained token may be behind.
    pub max_staleness: u32,
    /// What happens to tokens that are staler than `max_staleness`.
    pub stale: StaleTokens,
    /// What happens to episodes that reached a limit.
    pub truncated: TruncatedEpisodes,
    /// A penalty on the reward of long episodes, in groups whose rewards differ.
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
    /// The log-probabilities in the denominator of the importance ratio.
    pub behavior: Behavior,
    /// The check that the engine has the new weights after a publication.
    pub canary: Canary,
    /// The weight of the load-balancing loss of experts; 0 disables it.
    pub balance: f64,
    /// Whether layers are recomputed in the backward pass: a third more time, for the memory of one layer instead of
    /// all. Left out, they are if the run would not fit the memory that is free otherwise; results are the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompute_layers: Option<bool>,
    /// Threads that training computes on, as `engine.threads` are the engine's. 0 takes all processors when rollouts
    /// and training alternate, and those that the engine leaves when rollouts overlap with training.
    pub threads: usize,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            learner: LearnerName::Candle,
            tinker: None,
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
            recompute_layers: None,
            threads: 0,
        }
    }
}

/// The settings of evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Held-out episodes of each evaluation; by default 64 for a loaded model.
    pub episodes: usize,
    /// Sampling temperature; 0 always takes the most likely token.
    pub temperature: f32,
    /// Steps between evaluations during training; 0 evaluates only before and after.
    pub every: u64,
    /// The opponent in evaluations, named as in `environment.opponent`. By default that one; a policy that trains against
    /// itself is evaluated against the random player, if the environment has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opponent: Option<String>,
}

impl Default for Eval {
    fn default() -> Self {
        Self { episodes: 256, temperature: 1.0, every: 0, opponent: None }
    }
}

/// The settings of logs and checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Trajectories written at each step.
    pub rollouts_per_step: usize,
    /// Steps between checkpoints; one is always written at the end. By default 10 for a loaded model.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept, at least 2: the newest may turn out to be damaged.
    pub keep_checkpoints: usize,
}

impl Default for Log {
    fn default() -> Self {
        Self { rollouts_per_step: 16, checkpoint_every: 50, keep_checkpoints: 2 }
    }
}
