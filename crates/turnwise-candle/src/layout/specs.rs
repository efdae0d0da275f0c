//! The parameters of a model: names, shapes and order.

use super::{Adapter, Choice, FeedForward, HeadNorms, Layer, Linear, Mixture, Mlp, Network};
use crate::{DecoderConfig, Experts, LoraSettings, LoraTarget};

/// The role of a parameter, which decides its initial values and whether it decays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParameterRole {
    /// A row per token. `[V, D]`
    Embedding,
    /// A matrix inside a layer. `[out, in]`, or one for each expert: `[E, out, in]`
    Matrix,
    /// A matrix whose product is added to the residual stream. `[out, in]` or `[E, out, in]`
    Residual,
    /// A bias of a product. `[out]`
    Bias,
    /// The gain of a norm. `[width]`
    Norm,
    /// The output head, unless it is the embedding. `[V, D]`
    Head,
    /// The first matrix of an adapter. `[rank, in]`
    AdapterDown,
    /// The second matrix of an adapter. `[out, rank]`
    AdapterUp,
}

impl ParameterRole {
    /// Returns whether it belongs to an adapter and not to a checkpoint.
    pub(crate) fn is_adapter(self) -> bool {
        matches!(self, Self::AdapterDown | Self::AdapterUp)
    }
}

/// A parameter's name in Hugging Face's files, its shape and its role.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// Has a `*` in place of the expert's number if the parameter is a stack of tensors.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) role: ParameterRole,
    /// Whether files have one tensor for each index of the first dimension.
    pub(crate) stacked: bool,
}

impl Spec {
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the number of its tensors in a file.
    pub(crate) fn n_tensors(&self) -> usize {
        if self.stacked { self.shape[0] } else { 1 }
    }

    /// Returns the shape of each tensor in a file.
    pub(crate) fn tensor_shape(&self) -> &[usize] {
        &self.shape[usize::from(self.stacked)..]
    }

    /// Iterates over the names of its tensors, which are consecutive in the parameter.
    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = String> {
        let name = |index: usize| {
            if self.stacked {
                self.name.replacen('*', &index.to_string(), 1)
            } else {
                self.name.clone()
            }
        };
        (0..self.n_tensors()).map(name)
    }
}

/// Returns all parameters in their fixed order: that of [`Network::map`], of checkpoints and of optimiser states. An
/// adapter's parameters come after the matrix that they are added to.
pub(crate) fn specs(config: &DecoderConfig, lora: Option<&LoraSettings>) -> Vec<Spec> {
    let mut specs = Vec::new();
    Network::of(config, lora).map(&mut |spec| specs.push(spec));
    specs
}

impl Network<Spec> {
    /// Returns the parameters of a model with this configuration.
    pub(crate) fn of(config: &DecoderConfig, lora: Option<&LoraSettings>) -> Self {
        let d = config.hidden_size;
        let tied = config.tie_word_embeddings;
        let layers = (0..config.n_layers).map(|layer| {
            let layer = Layer::of(config, layer);
            match lora {
                Some(lora) => layer.with_adapters(lora),
                None => layer,
            }
        });
        Self {
            embedding: weight(
                "model.embed_tokens",
                &[config.vocab_size, d],
                ParameterRole::Embedding,
            ),
            layers: layers.collect(),
            norm: weight("model.norm", &[d], ParameterRole::Norm),
            head: (!tied).then(|| weight("lm_head", &[config.vocab_size, d], ParameterRole::Head)),
        }
    }
}

impl Layer<Spec> {
    fn of(config: &DecoderConfig, layer: usize) -> Self {
        let d = config.hidden_size;
        let queries = config.n_heads * config.head_dim;
        let keys = config.n_kv_heads * config.head_dim;
        let biases = config.architecture.biases();
        let name = |module: &str| format!("model.layers.{layer}.{module}");
        let norm = |module: &str, width| weight(&name(module), &[width], ParameterRole::Norm);
        let input = |module: &str, out| {
            Linear::of(&name(module), [out, d], ParameterRole::Matrix, biases.inputs)
        };
        Self {
            attention_norm: norm("input_layernorm", d),
            query: input("self_attn.q_proj", queries),
            key: input("self_attn.k_proj", keys),
            value: input("self_attn.v_proj", keys),
            head_norms: config.architecture.norms_heads().then(|| HeadNorms {
                query: norm("self_attn.q_norm", config.head_dim),
                key: norm("self_attn.k_norm", config.head_dim),
            }),
            output: Linear::of(
                &name("self_attn.o_proj"),
                [d, queries],
                ParameterRole::Residual,
                biases.output,
            ),
            mlp_norm: norm("post_attention_layernorm", d),
            feed_forward: match config.architecture.experts_in(layer) {
                None => FeedForward::Dense(Mlp::of(config, &name("mlp"), biases.mlp)),
                Some(experts) => FeedForward::Mixture(Mixture::of(experts, &name("mlp"), d)),
            },
        }
    }
}

impl Layer<Spec> {
    /// Adds an adapter to every targeted matrix.
    fn with_adapters(mut self, lora: &LoraSettings) -> Self {
        let Self { query, key, value, output, feed_forward, .. } = &mut self;
        let mut linears = vec![
            (LoraTarget::Query, query),
            (LoraTarget::Key, key),
            (LoraTarget::Value, value),
            (LoraTarget::Output, output),
        ];
        if let FeedForward::Dense(Mlp { gate, up, down }) = feed_forward {
            linears.extend([
                (LoraTarget::Gate, gate),
                (LoraTarget::Up, up),
                (LoraTarget::Down, down),
            ]);
        }
        for (target, linear) in linears {
            linear.adapter = lora.reaches(target).then(|| Adapter::of(&linear.weight, lora));
        }
        self
    }
}

impl Adapter<Spec> {
    /// Returns the adapter's parameters, under the names of PEFT.
    fn of(matrix: &Spec, lora: &LoraSettings) -> Self {
        let module = matrix.name.trim_end_matches(".weight");
        let spec = |name: &str, shape, role| Spec {
            name: format!("base_model.model.{module}.{name}.weight"),
            shape,
            role,
            stacked: false,
        };
        let (out, width) = (matrix.shape[0], matrix.shape[1]);
        Self {
            down: spec("lora_A", vec![lora.rank, width], ParameterRole::AdapterDown),
            up: spec("lora_B", vec![out, lora.rank], ParameterRole::AdapterUp),
            rank: lora.rank,
            scale: lora.scale(),
        }
    }
}

impl Mlp<Spec> {
    fn of(config: &DecoderConfig, module: &str, bias: bool) -> Self {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let linear =
            |name: &str, shape, role| Linear::of(&format!("{module}.{name}"), shape, role, bias);
        Self {
            gate: linear("gate_proj", [inner, d], ParameterRole::Matrix),
            up: linear("up_proj", [inner, d], ParameterRole::Matrix),
            down: linear("down_proj", [d, inner], ParameterRole::Residual),
        }
    }
}

impl Mixture<Spec> {
    fn of(experts: &Experts, module: &str, d: usize) -> Self {
        let Experts { n_experts, n_chosen, intermediate_size: inner, renormalize, .. } = *experts;
        let stack = |name: &str, out, width, role| Spec {
            stacked: true,
            ..weight(&format!("{module}.experts.*.{name}"), &[n_experts, out, width], role)
        };
        Self {
            choice: Choice { n_experts, n_chosen, renormalize },
            router: weight(&format!("{module}.gate"), &[n_experts, d], ParameterRole::Matrix),
            gate: stack("gate_proj", inner, d, ParameterRole::Matrix),
            up: stack("up_proj", inner, d, ParameterRole::Matrix),
            down: stack("down_proj", d, inner, ParameterRole::Residual),
        }
    }
}

impl Linear<Spec> {
    fn of(module: &str, shape: [usize; 2], role: ParameterRole, bias: bool) -> Self {
        let bias = bias.then(|| Spec {
            name: format!("{module}.bias"),
            shape: vec![shape[0]],
            role: ParameterRole::Bias,
            stacked: false,
        });
        Self { weight: weight(module, &shape, role), bias, adapter: None }
    }
}

fn weight(module: &str, shape: &[usize], role: ParameterRole) -> Spec {
    Spec { name: format!("{module}.weight"), shape: shape.to_vec(), role, stacked: false }
}
