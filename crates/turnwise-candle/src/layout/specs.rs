//! The parameters of a model: names, shapes and order.

use super::{
    Adapter, Attending, Choice, FeedForward, HeadNorms, Layer, Linear, Mixture, Mlp, Network,
    SharedExpert,
};
use crate::architecture::{Activation, NormPlaces, QueryKeyNorm};
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
    /// Returns whether it is a matrix of products, which engines pack into panels.
    pub(crate) fn is_packed(self) -> bool {
        matches!(self, Self::Matrix | Self::Residual | Self::Head)
    }

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
        let scales = config.scales();
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
            embedding_scale: scales.embedding,
            layers: layers.collect(),
            norm: weight("model.norm", &[d], ParameterRole::Norm),
            head: (!tied).then(|| weight("lm_head", &[config.vocab_size, d], ParameterRole::Head)),
            logit_scale: scales.logits,
        }
    }
}

/// The names of a layer's norms: before attention, after it, before the feed-forward half, after it.
fn norm_names(places: NormPlaces) -> [Option<&'static str>; 4] {
    let (input, after_attention) = ("input_layernorm", "post_attention_layernorm");
    let after_mlp = "post_feedforward_layernorm";
    match places {
        // Named after its place and not after the half that it belongs to.
        NormPlaces::Before => [Some(input), None, Some(after_attention), None],
        NormPlaces::After => [None, Some(after_attention), None, Some(after_mlp)],
        NormPlaces::Both => {
            [Some(input), Some(after_attention), Some("pre_feedforward_layernorm"), Some(after_mlp)]
        }
    }
}

impl Layer<Spec> {
    fn of(config: &DecoderConfig, layer: usize) -> Self {
        let d = config.hidden_size;
        let queries = config.n_heads * config.head_dim;
        let keys = config.n_kv_heads * config.head_dim;
        let properties = config.architecture.properties();
        let biases = properties.biases;
        let name = |module: &str| format!("model.layers.{layer}.{module}");
        let norm = |module: &str, width| weight(&name(module), &[width], ParameterRole::Norm);
        let input = |(module, out): (&str, usize)| {
            Linear::of(&name(module), [out, d], ParameterRole::Matrix, biases.inputs)
        };
        let [attention_norm, attention_norm_after, mlp_norm, mlp_norm_after] =
            norm_names(properties.norms).map(|module| module.map(|module| norm(module, d)));
        let inputs: &[(&str, usize)] = if properties.is_joined {
            &[("self_attn.qkv_proj", queries + 2 * keys)]
        } else {
            &[("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)]
        };
        let head_norms = |query, key| HeadNorms {
            query: norm("self_attn.q_norm", query),
            key: norm("self_attn.k_norm", key),
        };
        let window = config.window_of(layer);
        let rope = config.architecture.rope_of(layer, window.is_some());
        Self {
            attending: Attending { window, rope },
            attention_norm,
            qkv: inputs.iter().copied().map(input).collect(),
            head_norms: match properties.query_key_norm {
                QueryKeyNorm::Absent => None,
                QueryKeyNorm::Heads => Some(head_norms(config.head_dim, config.head_dim)),
                QueryKeyNorm::Whole => Some(head_norms(queries, keys)),
            },
            output: Linear::of(
                &name("self_attn.o_proj"),
                [d, queries],
                ParameterRole::Residual,
                biases.output,
            ),
            attention_norm_after,
            mlp_norm,
            feed_forward: FeedForward::of(config, layer),
            mlp_norm_after,
            residual_scale: config.scales().residual,
        }
    }

    /// Adds an adapter to every targeted matrix.
    fn with_adapters(mut self, lora: &LoraSettings) -> Self {
        for linear in self.linears_mut() {
            let module = linear.weight.name.trim_end_matches(".weight");
            let target = LoraTarget::of_module(module);
            let is_reached = target.is_some_and(|target| lora.reaches(target));
            linear.adapter = is_reached.then(|| Adapter::of(&linear.weight, lora));
        }
        self
    }
}

impl FeedForward<Spec> {
    fn of(config: &DecoderConfig, layer: usize) -> Self {
        let d = config.hidden_size;
        let properties = config.architecture.properties();
        let (module, parts) = properties.experts;
        let Some(experts) = config.architecture.experts_in(layer) else {
            let module = format!("model.layers.{layer}.mlp");
            let (biased, joined) = (properties.biases.mlp, properties.is_joined);
            let sides = [d, config.intermediate_size];
            return Self::Dense(Mlp::of(properties.activation, &module, sides, biased, joined));
        };
        let module = format!("model.layers.{layer}.{module}");
        let shared = config.architecture.shared_size().map(|size| SharedExpert {
            mlp: Mlp::of(
                properties.activation,
                &format!("{module}.shared_expert"),
                [d, size],
                false,
                false,
            ),
            gate: Linear::of(
                &format!("{module}.shared_expert_gate"),
                [1, d],
                ParameterRole::Matrix,
                false,
            ),
        });
        Self::Mixture(Mixture { shared, ..Mixture::of(experts, &module, parts, d) })
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
    /// Returns the matrices of a feed-forward half with the given width of its rows and of its inside.
    fn of(
        activation: Activation,
        module: &str,
        [d, inner]: [usize; 2],
        bias: bool,
        is_joined: bool,
    ) -> Self {
        let linear =
            |name: &str, shape, role| Linear::of(&format!("{module}.{name}"), shape, role, bias);
        let gate_up = if is_joined {
            vec![linear("gate_up_proj", [2 * inner, d], ParameterRole::Matrix)]
        } else {
            let side = |name| linear(name, [inner, d], ParameterRole::Matrix);
            vec![side("gate_proj"), side("up_proj")]
        };
        let down = linear("down_proj", [d, inner], ParameterRole::Residual);
        Self { activation, gate_up, down }
    }
}

impl Mixture<Spec> {
    fn of(experts: &Experts, module: &str, parts: [&str; 3], d: usize) -> Self {
        let Experts { n_experts, n_chosen, intermediate_size: inner, renormalize, .. } = *experts;
        let stack = |name: &str, out, width, role| Spec {
            stacked: true,
            ..weight(&format!("{module}.experts.*.{name}"), &[n_experts, out, width], role)
        };
        let [gate, up, down] = parts;
        Self {
            choice: Choice { n_experts, n_chosen, renormalize },
            router: weight(&format!("{module}.gate"), &[n_experts, d], ParameterRole::Matrix),
            gate: stack(gate, inner, d, ParameterRole::Matrix),
            up: stack(up, inner, d, ParameterRole::Matrix),
            down: stack(down, d, inner, ParameterRole::Residual),
            shared: None,
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
