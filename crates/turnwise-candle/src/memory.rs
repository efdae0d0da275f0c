//! Estimates of the memory and disk space of training.

use crate::architecture::{NormPlaces, QueryKeyNorm};
use crate::batch::CHUNK_TOKENS;
use crate::engine::{PAGE, page_bytes};
use crate::layout::{FeedForward, Network, Spec, specs};
use crate::{ComputePrecision, DecoderConfig, EngineWeights, LoraSettings, MomentPrecision};

/// The properties of a training run that its memory depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingPlan {
    /// The settings of adapters; `None` when the whole model trains.
    pub lora: Option<LoraSettings>,
    /// Whether a reference policy is kept for a KL penalty.
    pub keeps_reference: bool,
    /// Distinct tokens of one forward and backward pass.
    pub micro_batch_tokens: usize,
    /// Whether the backward pass recomputes layers.
    pub recompute_layers: bool,
    /// Distinct tokens in the engine's KV cache at the same time, those of episodes that have ended included: they stay
    /// until there are new weights, or no room.
    pub kv_tokens: usize,
    /// The number of these episodes: each has a page of its own that is half full.
    pub kv_episodes: usize,
    /// The limit of the KV cache, as in [`EngineSettings`](crate::EngineSettings).
    pub max_kv_bytes: u64,
    /// Whether an engine of this process samples with the weights; otherwise none are packed for it.
    pub samples_here: bool,
    /// The precision of products, which is that of the engine's matrices.
    pub compute: ComputePrecision,
    /// The numbers of the engine's matrices.
    pub engine_weights: EngineWeights,
    /// The precision of the optimiser's moments.
    pub moments: MomentPrecision,
}

/// Peak memory of training on the CPU, in bytes, by use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrainingMemory {
    /// The weights of the learner; beside adapters, without the frozen matrices, which the engine's packed ones serve.
    pub weights: u64,
    /// The reference policy.
    pub reference: u64,
    /// A gradient for each trainable number.
    pub gradients: u64,
    /// Two moments for each trainable number.
    pub moments: u64,
    /// The activations of the forward pass, and the work space of the backward pass.
    pub activations: u64,
    /// The engine's packed weights, twice while a new version is published. Those beside adapters stay, and only the
    /// adapters are published.
    pub engine: u64,
    /// The engine's KV cache.
    pub kv: u64,
    /// The weights as they are loaded, in f32, before training begins: not beside the others.
    pub loaded: u64,
}

impl TrainingMemory {
    /// Returns the total of training, or what loading takes if that is more.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { weights, reference, gradients, moments, activations, engine, kv, loaded } =
            *self;
        [weights, reference, gradients, moments, activations, engine, kv]
            .into_iter()
            .fold(0, u64::saturating_add)
            .max(loaded)
    }

    /// Returns what training needs beyond the loaded weights.
    #[must_use]
    pub fn beyond_loaded(&self) -> u64 {
        self.total().saturating_sub(self.loaded)
    }
}

impl DecoderConfig {
    /// Estimates the peak memory of training a model of this size with the fused kernels, beside some ten megabytes of the
    /// program itself. `cargo bench -p turnwise-candle --bench memory` compares it to what is measured.
    ///
    /// ```
    /// use turnwise_candle::{DecoderConfig, TrainingPlan};
    ///
    /// let plan = TrainingPlan { micro_batch_tokens: 1024, ..TrainingPlan::default() };
    /// let memory = DecoderConfig::small(320).training_memory(&plan);
    /// assert!(memory.moments == 2 * memory.gradients && memory.total() < 100_000_000);
    /// ```
    #[must_use]
    pub fn training_memory(&self, plan: &TrainingPlan) -> TrainingMemory {
        let lora = plan.lora.as_ref();
        let all = specs(self, lora);
        let trains = |spec: &&Spec| lora.is_none() || spec.role.is_adapter();
        let trained = bytes(all.iter().filter(trains));
        let pages = (plan.kv_tokens.div_ceil(PAGE) + plan.kv_episodes / 2) as u64;
        let loaded = bytes(all.iter());
        let (weights, engine) = self.weight_bytes(&all, plan);
        TrainingMemory {
            loaded,
            weights,
            reference: if plan.keeps_reference { trained } else { 0 },
            gradients: trained,
            moments: plan.moments.bytes(trained / 4),
            activations: self.activation_bytes(plan, all.iter().filter(trains).count()),
            engine,
            kv: if plan.samples_here {
                pages.saturating_mul(page_bytes(self, plan.compute)).min(plan.max_kv_bytes)
            } else {
                0
            },
        }
    }

    /// Returns the size of a checkpoint of such a model on disk, in bytes: weights and adapters in f32, the optimiser's
    /// moments in f32 or bf16.
    ///
    /// ```
    /// use turnwise_candle::{DecoderConfig, LoraSettings, MomentPrecision};
    ///
    /// let (config, moments) = (DecoderConfig::small(320), MomentPrecision::F32);
    /// let adapters = config.checkpoint_bytes(Some(&LoraSettings::default()), moments);
    /// assert!(adapters < config.checkpoint_bytes(None, moments));
    /// ```
    #[must_use]
    pub fn checkpoint_bytes(&self, lora: Option<&LoraSettings>, moments: MomentPrecision) -> u64 {
        let all = specs(self, lora);
        let own = bytes(all.iter().filter(|spec| !spec.role.is_adapter()));
        let adapters = bytes(all.iter().filter(|spec| spec.role.is_adapter()));
        let trained = if lora.is_some() { adapters } else { own };
        own.saturating_add(adapters).saturating_add(moments.file_bytes(trained / 4))
    }

    /// Returns the bytes of the learner's weights and of the engine's. A tied head is packed separately from the embedding,
    /// which stays f32.
    fn weight_bytes(&self, all: &[Spec], plan: &TrainingPlan) -> (u64, u64) {
        let matrices = bytes(all.iter().filter(|spec| spec.role.is_packed()));
        let tied = if self.tie_word_embeddings { self.embedding_bytes() } else { 0 };
        let packed = matrices.saturating_add(tied);
        let panels = |weights| match (weights, plan.compute) {
            (EngineWeights::Compute, ComputePrecision::F32) => packed,
            (EngineWeights::Compute, ComputePrecision::Bf16) => packed / 2,
            // A byte for each number, and four for the scale of 64.
            (EngineWeights::Int8, _) => packed / 4 + packed / 64,
        };
        let adapters = bytes(all.iter().filter(|spec| spec.role.is_adapter()));
        let held = bytes(all.iter()).saturating_sub(matrices);
        if plan.lora.is_none() {
            let engine = held.saturating_add(panels(plan.engine_weights));
            let copies = if plan.samples_here { 2 } else { 0 };
            return (held.saturating_add(matrices), engine.saturating_mul(copies));
        }
        let shared = panels(EngineWeights::Compute);
        let own = match plan.engine_weights {
            EngineWeights::Compute => 0,
            EngineWeights::Int8 => panels(EngineWeights::Int8),
        };
        // Adapters are kept as they are, and packed with zeros beside them for joined matrices; twice while they are published.
        (held, shared.saturating_add(own).saturating_add(6 * adapters))
    }

    /// Returns the numbers of the matrices that a learner with adapters unpacks at once: gate and up, or all experts of a layer.
    fn largest_matrices(&self) -> u64 {
        let each = (0..self.n_layers).map(|layer| match self.architecture.experts_in(layer) {
            None => 2 * self.intermediate_size as u64,
            Some(experts) => 3 * (experts.n_experts * experts.intermediate_size) as u64,
        });
        each.max().unwrap_or(0).saturating_mul(self.hidden_size as u64)
    }

    fn embedding_bytes(&self) -> u64 {
        4 * self.vocab_size as u64 * self.hidden_size as u64
    }

    /// Returns the bytes of a micro-batch's activations. `[N, width]` each.
    fn activation_bytes(&self, plan: &TrainingPlan, n_trained: usize) -> u64 {
        let n = plan.micro_batch_tokens as u64;
        let d = self.hidden_size as u64;
        let network = Network::of(self, plan.lora.as_ref());
        let layers: Vec<Saved> = (0..self.n_layers).map(|layer| self.saved(layer)).collect();
        let ranks = network.linears().filter_map(|linear| linear.adapter.as_ref());
        let ranks: u64 = ranks.map(|adapter| adapter.rank as u64).sum();
        let largest = layers.iter().map(|saved| saved.exact + saved.rounded).max().unwrap_or(0);
        let bytes_of = |saved: &Saved| saved.bytes(plan.compute);
        let kept = if plan.recompute_layers {
            4 * d * self.n_layers as u64 + layers.iter().map(bytes_of).max().unwrap_or(0)
        } else {
            layers.iter().map(bytes_of).sum::<u64>() + 4 * ranks
        };
        // The backward pass of a layer holds a gradient for most of its inputs.
        let below = largest * u64::from(n_trained > 0);
        // Parts of the vocabulary run backward in parallel, each into a sum of its own; at most all wait for the first.
        let lanes = (self.vocab_size.div_ceil(512)).min(16) as u64;
        let head = d * (lanes + 4);
        let mixture =
            network.layers.iter().any(|l| matches!(l.feed_forward, FeedForward::Mixture(_)));
        let gathered = if mixture { largest } else { 0 };
        // The head's sums are gone when the layers' gradients come.
        let step = n.min(CHUNK_TOKENS as u64) * (below.max(head) + gathered);
        let in_use = n.saturating_mul(kept).saturating_add(step.saturating_mul(4));
        let unpacked = if plan.lora.is_some() { self.largest_matrices() } else { 0 };
        let in_use = in_use.saturating_add(unpacked.saturating_mul(4));
        // Buffers have room for a sixteenth more on average, and a pool keeps an eighth, in buffers of other lengths.
        in_use.saturating_add(in_use / 16).saturating_add(in_use / 8)
    }

    /// Returns the numbers that a layer saves per token: its inputs before the norms, queries, keys and values after rotary
    /// position embedding, the output of attention, gate and up. Norms and gates are computed again.
    fn saved(&self, layer: usize) -> Saved {
        let Self { hidden_size, n_heads, n_kv_heads, head_dim, intermediate_size, .. } = *self;
        let properties = self.architecture.properties();
        let qkv = (n_heads + 2 * n_kv_heads) * head_dim;
        // QK-norm reads what was there before it.
        let before = if properties.query_key_norm == QueryKeyNorm::Absent { 0 } else { qkv };
        let (inner, gates) = match self.architecture.experts_in(layer) {
            None => (0, 2 * intermediate_size),
            Some(experts) => {
                let shared = self.architecture.shared_size();
                let routed = experts.n_chosen * (3 * experts.intermediate_size + hidden_size)
                    + experts.n_experts
                    + hidden_size;
                (routed + shared.map_or(0, |_| 2 * hidden_size), 2 * shared.unwrap_or(0))
            }
        };
        // Products that are normed before they are added are saved, too.
        let halves = match properties.norms {
            NormPlaces::Before => 0,
            NormPlaces::After | NormPlaces::Both => 2,
        };
        Saved {
            exact: (n_heads + inner) as u64,
            rounded: ((2 + halves) * hidden_size + qkv + before + n_heads * head_dim + gates)
                as u64,
        }
    }
}

/// The numbers that a layer saves per token.
#[derive(Clone, Copy, Debug)]
struct Saved {
    /// In f32.
    exact: u64,
    /// In the precision of products.
    rounded: u64,
}

impl Saved {
    fn bytes(&self, compute: ComputePrecision) -> u64 {
        let width = match compute {
            ComputePrecision::F32 => 4,
            ComputePrecision::Bf16 => 2,
        };
        4 * self.exact + width * self.rounded
    }
}

impl Default for TrainingPlan {
    /// Returns a plan that trains the whole model, 4,096 tokens at a time, with an engine for 16 episodes of 1,024
    /// tokens.
    fn default() -> Self {
        Self {
            lora: None,
            keeps_reference: false,
            micro_batch_tokens: 4096,
            recompute_layers: false,
            kv_tokens: 16 * 1024,
            kv_episodes: 0,
            max_kv_bytes: 2 << 30,
            samples_here: true,
            compute: ComputePrecision::F32,
            engine_weights: EngineWeights::Compute,
            moments: MomentPrecision::F32,
        }
    }
}

/// Returns the bytes of some parameters in F32.
fn bytes<'a>(specs: impl Iterator<Item = &'a Spec>) -> u64 {
    specs.fold(0, |all, spec| all.saturating_add(4 * spec.len() as u64))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use turnwise_training::Update;

    use crate::decoder::Parameter;
    use crate::trainer::{LearnerSettings, LearnerState};
    use crate::{AdamW, Decoder};

    use super::*;

    #[test]
    fn what_is_counted_is_what_there_is() {
        for lora in [None, Some(LoraSettings { rank: 3, ..LoraSettings::default() })] {
            let config = DecoderConfig::small(320);
            let mut model = Decoder::random(config.clone(), 1).unwrap();
            if let Some(lora) = &lora {
                model = model.with_lora(lora, 1).unwrap();
            }
            let plan = TrainingPlan { lora: lora.clone(), ..TrainingPlan::default() };
            let memory = config.training_memory(&plan);
            assert_eq!(memory.loaded, 4 * model.n_parameters() as u64);
            // Beside adapters, the learner holds what is not packed.
            let is_held =
                |parameter: &&Parameter| lora.is_none() || !parameter.spec.role.is_packed();
            let held =
                model.parameters().iter().filter(is_held).map(|parameter| parameter.spec.len());
            assert_eq!(memory.weights, 4 * held.sum::<usize>() as u64);
            assert_eq!(memory.gradients, 4 * model.n_trainable() as u64);

            let directory = tempfile::tempdir().unwrap();
            let trainer = LearnerState::new(model, AdamW::default(), LearnerSettings::default());
            let mut trainer = trainer.unwrap();
            // Before the first step there are no moments to save.
            trainer.step(Update { learning_rate: 0.0, max_grad_norm: 1.0 }).unwrap();
            trainer.save(directory.path()).unwrap();
            let adapter = fs::read_dir(directory.path().join("adapter")).into_iter().flatten();
            let files = fs::read_dir(directory.path()).unwrap().chain(adapter);
            let files = files.map(|entry| entry.unwrap().metadata().unwrap());
            let size: u64 = files.filter(fs::Metadata::is_file).map(|file| file.len()).sum();
            let estimate = config.checkpoint_bytes(lora.as_ref(), MomentPrecision::F32);
            // Names and shapes take space in files, too.
            assert!((estimate..estimate + 32_768).contains(&size), "{size} {estimate}");
        }
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let config =
            DecoderConfig { vocab_size: 1 << 28, hidden_size: 1 << 28, ..DecoderConfig::small(8) };
        let plan = TrainingPlan {
            micro_batch_tokens: usize::MAX,
            kv_tokens: usize::MAX,
            ..TrainingPlan::default()
        };
        assert!(config.training_memory(&plan).total() > 1 << 58);
    }
}
