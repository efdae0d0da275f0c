//! The model of a benchmark.

use clap::{Args, ValueEnum};
use serde::Serialize;
use turnwise_candle::{
    AdamW, Architecture, CandleLearner, ComputePrecision, Decoder, DecoderConfig, EngineWeights,
    LearnerSettings, MomentPrecision,
};

use turnwise_run::Failure;

/// The sizes of a model with random weights and a tied head: those of a published model, or others.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct ModelArguments {
    /// A published model, whose sizes are taken
    #[arg(long, value_enum, value_name = "NAME", default_value_t = SizePreset::Small)]
    model: SizePreset,
    /// Size of the vocabulary, instead of the model's
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
    /// Width of the residual stream
    #[arg(long, value_name = "N")]
    hidden_size: Option<usize>,
    /// Width inside the feed-forward half
    #[arg(long, value_name = "N")]
    intermediate_size: Option<usize>,
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Query heads
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Key and value heads
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Width of a head
    #[arg(long, value_name = "N")]
    head_dim: Option<usize>,
    /// The precision of matrix products and of the engine's weights; int8 is the engine's alone, beside bf16
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Precision::F32)]
    precision: Precision,
}

/// How a model trains.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct LearnerArguments {
    /// Keep only the inputs of layers, and recompute each layer in the backward pass
    #[arg(long)]
    recompute_layers: bool,
    /// The precision of AdamW's moments in memory
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Moments::F32)]
    moments: Moments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Moments {
    F32,
    Bf16,
    Fp8,
}

impl LearnerArguments {
    /// Creates a learner of the model.
    pub(super) fn learner(
        self,
        model: &ModelArguments,
        max_positions: usize,
        threads: usize,
    ) -> Result<CandleLearner, Failure> {
        let moments = match self.moments {
            Moments::F32 => MomentPrecision::F32,
            Moments::Bf16 => MomentPrecision::Bf16,
            Moments::Fp8 => MomentPrecision::Fp8,
        };
        let settings = LearnerSettings {
            threads,
            recompute_layers: self.recompute_layers,
            compute: model.compute(),
            ..LearnerSettings::default()
        };
        let optimizer = AdamW { moments, ..AdamW::default() };
        CandleLearner::with_settings(model.make(max_positions)?, optimizer, settings)
            .map_err(|error| Failure::refused_by(&error))
    }
}

/// A published model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SizePreset {
    /// 6 layers of 256, vocabulary 8,192: of no published model
    Small,
    /// SmolLM2-135M
    Smollm2,
    /// Qwen3-0.6B
    #[value(name = "qwen3-0.6b")]
    Qwen3,
    /// Qwen2.5-0.5B
    #[value(name = "qwen2.5-0.5b")]
    Qwen2,
    /// Llama-3.2-1B
    #[value(name = "llama-3.2-1b")]
    Llama3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Precision {
    F32,
    Bf16,
    Int8,
}

/// The sizes of a model, as reports have them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ModelSizes {
    pub(super) vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    precision: Precision,
}

impl SizePreset {
    /// Returns vocabulary, width, feed-forward width, layers, heads, key heads and width of a head.
    fn sizes(self) -> [usize; 7] {
        match self {
            Self::Small => [8192, 256, 768, 6, 4, 2, 64],
            Self::Smollm2 => [49_152, 576, 1536, 30, 9, 3, 64],
            Self::Qwen3 => [151_936, 1024, 3072, 28, 16, 8, 128],
            Self::Qwen2 => [151_936, 896, 4864, 24, 14, 2, 64],
            Self::Llama3 => [128_256, 2048, 8192, 16, 32, 8, 64],
        }
    }

    fn architecture(self) -> Architecture {
        match self {
            Self::Small | Self::Qwen3 => Architecture::default(),
            Self::Smollm2 | Self::Llama3 => {
                Architecture::Llama { attention_bias: false, mlp_bias: false }
            }
            Self::Qwen2 => Architecture::Qwen2,
        }
    }
}

impl ModelArguments {
    pub(super) fn sizes(&self) -> ModelSizes {
        let [vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim] =
            self.model.sizes();
        ModelSizes {
            vocab_size: self.vocab_size.unwrap_or(vocab_size),
            hidden_size: self.hidden_size.unwrap_or(hidden_size),
            intermediate_size: self.intermediate_size.unwrap_or(intermediate_size),
            layers: self.layers.unwrap_or(layers),
            heads: self.heads.unwrap_or(heads),
            kv_heads: self.kv_heads.unwrap_or(kv_heads),
            head_dim: self.head_dim.unwrap_or(head_dim),
            precision: self.precision,
        }
    }

    /// Returns the precision of products in training, and of the engine's keys and values.
    pub(super) fn compute(&self) -> ComputePrecision {
        match self.precision {
            Precision::F32 => ComputePrecision::F32,
            Precision::Bf16 | Precision::Int8 => ComputePrecision::Bf16,
        }
    }

    /// Returns the numbers of the engine's matrices.
    pub(super) fn engine_weights(&self) -> EngineWeights {
        match self.precision {
            Precision::F32 | Precision::Bf16 => EngineWeights::Compute,
            Precision::Int8 => EngineWeights::Int8,
        }
    }

    pub(super) fn config(&self, max_positions: usize) -> DecoderConfig {
        let sizes = self.sizes();
        DecoderConfig {
            architecture: self.model.architecture(),
            hidden_size: sizes.hidden_size,
            intermediate_size: sizes.intermediate_size,
            n_layers: sizes.layers,
            n_heads: sizes.heads,
            n_kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            max_positions,
            ..DecoderConfig::small(sizes.vocab_size)
        }
    }

    /// Creates the model for sequences of at most `max_positions` tokens, always with the same weights.
    pub(super) fn make(&self, max_positions: usize) -> Result<Decoder, Failure> {
        let model = Decoder::random(self.config(max_positions), 1);
        let model = model.map_err(|error| Failure::refused_by(&error))?;
        Ok(model.with_precision(self.compute()))
    }

    pub(super) fn describe(&self) -> String {
        let ModelSizes {
            vocab_size,
            hidden_size,
            intermediate_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            precision,
        } = self.sizes();
        let precision = match precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16 with f32 sums, trained weights in f32",
            Precision::Int8 => "engine in int8, the rest in bf16 with f32 sums",
        };
        format!(
            "{layers} layers of width {hidden_size}, {heads} heads on {kv_heads} of {head_dim}, feed-forward \
             {intermediate_size}, vocabulary {vocab_size}, {precision}"
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use turnwise_candle::TrainingPlan;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        model: ModelArguments,
    }

    fn of(flags: &str) -> ModelArguments {
        let words = ["bench"].into_iter().chain(flags.split_whitespace());
        Command::try_parse_from(words).expect("these flags exist").model
    }

    /// The numbers of weights are those of the published files.
    #[test]
    fn presets_are_as_large_as_the_models_that_they_name() {
        for (name, weights) in [
            ("smollm2", 134_515_008),
            ("qwen3-0.6b", 596_049_920),
            ("qwen2.5-0.5b", 494_032_768),
            ("llama-3.2-1b", 1_235_814_400),
        ] {
            let config = of(&format!("--model {name}")).config(128);
            let memory = config.training_memory(&TrainingPlan::default());
            assert_eq!(memory.weights, 4 * weights, "{name}");
        }
    }

    #[test]
    fn a_size_replaces_that_of_the_preset() {
        let sizes = of("--model smollm2 --layers 2 --precision bf16").sizes();
        assert_eq!([sizes.layers, sizes.hidden_size, sizes.vocab_size], [2, 576, 49_152]);
        assert_eq!(sizes.precision, Precision::Bf16);
        assert_eq!(of("").sizes().precision, Precision::F32);
    }
}
