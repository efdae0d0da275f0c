//! Settings of low-rank adapters.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DecoderConfig;
use crate::ModelError;

/// The largest plausible rank.
const LARGEST_RANK: usize = 1 << 16;

/// Settings of low-rank adapters (Hu et al., *Low-rank adaptation of large language models*, 2021, section 4.1).
///
/// ```text
/// y = x W' + (alpha / rank) (x A') B'        W [out, in], A [rank, in], B [out, rank]
/// ```
///
/// The model's own parameters are frozen: they have no gradient and no optimiser state. A starts random and B at zero,
/// so that an adapted model starts equal to its base. There is no dropout and no bias; all matrices have the same rank
/// and alpha. Experts cannot have adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraSettings {
    /// The rank: rows of A and columns of B.
    pub rank: usize,
    /// The scale of the product, times the rank.
    pub alpha: f64,
    /// The matrices with an adapter.
    pub targets: Vec<LoraTarget>,
}

impl Default for LoraSettings {
    /// Rank 16 with alpha 32, on all matrices.
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, targets: vec![LoraTarget::AllLinear] }
    }
}

/// A matrix of every layer, under its name in PEFT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub enum LoraTarget {
    /// All of the matrices.
    #[serde(rename = "all-linear")]
    AllLinear,
    /// The query projection.
    #[serde(rename = "q_proj")]
    Query,
    /// The key projection.
    #[serde(rename = "k_proj")]
    Key,
    /// The value projection.
    #[serde(rename = "v_proj")]
    Value,
    /// The output projection of attention.
    #[serde(rename = "o_proj")]
    Output,
    /// The gate projection of the feed-forward half.
    #[serde(rename = "gate_proj")]
    Gate,
    /// The up projection of the feed-forward half.
    #[serde(rename = "up_proj")]
    Up,
    /// The down projection of the feed-forward half.
    #[serde(rename = "down_proj")]
    Down,
    /// The projection to queries, keys and values of a family that has them in one matrix.
    #[serde(rename = "qkv_proj")]
    QueryKeyValue,
    /// The gate and up projection of a family that has both in one matrix.
    #[serde(rename = "gate_up_proj")]
    GateUp,
}

impl LoraTarget {
    /// All single matrices.
    const EACH: [Self; 9] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::QueryKeyValue,
        Self::GateUp,
    ];

    /// Returns the target of a module of a layer.
    pub(crate) fn of_module(module: &str) -> Option<Self> {
        let name = module.rsplit('.').next()?;
        Self::EACH.into_iter().find(|target| target.name() == name)
    }

    /// Returns whether the layers of a model have the matrix.
    fn is_in(self, config: &DecoderConfig) -> bool {
        let is_joined = config.architecture.properties().is_joined;
        match self {
            Self::AllLinear | Self::Output | Self::Down => true,
            Self::QueryKeyValue | Self::GateUp => is_joined,
            Self::Query | Self::Key | Self::Value | Self::Gate | Self::Up => !is_joined,
        }
    }

    /// Returns the name in PEFT.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AllLinear => "all-linear",
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
            Self::QueryKeyValue => "qkv_proj",
            Self::GateUp => "gate_up_proj",
        }
    }

    fn is_in_feed_forward(self) -> bool {
        matches!(self, Self::AllLinear | Self::Gate | Self::Up | Self::Down | Self::GateUp)
    }
}

/// Writes the settings as in a settings file.
impl fmt::Display for LoraSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, alpha, targets } = self;
        let targets: Vec<&str> = targets.iter().map(|target| target.name()).collect();
        write!(formatter, "rank = {rank}, alpha = {alpha:?}, targets = {targets:?}")
    }
}

impl LoraSettings {
    /// Checks that a model of this configuration can have these adapters.
    ///
    /// # Errors
    /// [`ModelError::BadAdapter`] for an invalid rank or alpha, for no targets, and for targets that are experts.
    pub fn validate(&self, config: &DecoderConfig) -> Result<(), ModelError> {
        let Self { rank, alpha, targets } = self;
        let refuse = |reason: String| Err(ModelError::BadAdapter(reason));
        if !(1..=LARGEST_RANK).contains(rank) {
            return refuse(format!("the rank is {rank} and must lie from 1 to {LARGEST_RANK}"));
        }
        if !(alpha.is_finite() && *alpha > 0.0) {
            return refuse(format!("alpha is {alpha} and must be a positive number"));
        }
        if targets.is_empty() {
            return refuse("there are no targets, so that nothing would train".to_owned());
        }
        if let Some(target) = targets.iter().find(|target| !target.is_in(config)) {
            let every = Self::default();
            let others = every.reached_in(config).map(LoraTarget::name);
            return refuse(format!(
                "the target {} is no matrix of a {}; it has {}",
                target.name(),
                config.architecture.properties().model_type,
                others.collect::<Vec<_>>().join(", ")
            ));
        }
        let has_experts =
            (0..config.n_layers).any(|layer| config.architecture.experts_in(layer).is_some());
        let reaching = targets.iter().find(|target| target.is_in_feed_forward());
        match reaching.filter(|_| has_experts) {
            Some(target) => refuse(format!(
                "the target {} reaches experts, which cannot have adapters; the targets q_proj, k_proj, v_proj and o_proj can",
                target.name()
            )),
            None => Ok(()),
        }
    }

    pub(crate) fn reaches(&self, target: LoraTarget) -> bool {
        self.targets.contains(&target) || self.targets.contains(&LoraTarget::AllLinear)
    }

    /// Iterates over the single matrices with an adapter in a model of this configuration.
    pub(crate) fn reached_in(&self, config: &DecoderConfig) -> impl Iterator<Item = LoraTarget> {
        LoraTarget::EACH.into_iter().filter(|target| target.is_in(config) && self.reaches(*target))
    }

    /// Returns whether two settings mean the same for a model of this configuration: the order of targets does not
    /// matter, nor whether all of them are named.
    ///
    /// ```
    /// use turnwise_candle::{DecoderConfig, LoraSettings, LoraTarget};
    ///
    /// let of = |targets: &[LoraTarget]| LoraSettings { targets: targets.to_vec(), ..LoraSettings::default() };
    /// let (one, other) = ([LoraTarget::Query, LoraTarget::Value], [LoraTarget::Value, LoraTarget::Query]);
    /// assert!(of(&one).same(&of(&other), &DecoderConfig::small(320)));
    /// ```
    #[must_use]
    pub fn same(&self, other: &Self, config: &DecoderConfig) -> bool {
        (self.rank, self.alpha) == (other.rank, other.alpha)
            && self.reached_in(config).eq(other.reached_in(config))
    }

    pub(crate) fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }
}
