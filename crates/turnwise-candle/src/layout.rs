//! Which parameters a model has, under which names, in which order.

use crate::DecoderConfig;

/// What a parameter is for: decides its first values and whether it decays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A row per token. `[V, D]`
    Embedding,
    /// A matrix inside a layer. `[out, in]`
    Matrix,
    /// A matrix whose product is added to the residual stream. `[out, in]`
    Residual,
    /// The gain of a norm. `[width]`
    Norm,
    /// The output head, when it is not the embedding. `[V, D]`
    Head,
}

/// A parameter's name in Hugging Face's files, its shape and its role.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) role: Role,
}

impl Spec {
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// One value per parameter, by its place in the model.
#[derive(Clone, Debug)]
pub(crate) struct Network<T> {
    pub(crate) embedding: T,
    pub(crate) layers: Vec<Layer<T>>,
    pub(crate) norm: T,
    /// `None` when the embedding is the head.
    pub(crate) head: Option<T>,
}

/// One value per parameter of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer<T> {
    pub(crate) attention_norm: T,
    pub(crate) query: T,
    pub(crate) key: T,
    pub(crate) value: T,
    pub(crate) query_norm: T,
    pub(crate) key_norm: T,
    pub(crate) output: T,
    pub(crate) mlp_norm: T,
    pub(crate) gate: T,
    pub(crate) up: T,
    pub(crate) down: T,
}

/// All parameters in their fixed order: that of [`Network::arrange`], of checkpoints and of optimiser states.
pub(crate) fn specs(config: &DecoderConfig) -> Vec<Spec> {
    let d = config.hidden_size;
    let (queries, keys) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let mut specs = vec![spec("model.embed_tokens", &[config.vocab_size, d], Role::Embedding)];
    for layer in 0..config.n_layers {
        let mut add = |name: &str, shape: &[usize], role| {
            specs.push(spec(&format!("model.layers.{layer}.{name}"), shape, role));
        };
        add("input_layernorm", &[d], Role::Norm);
        add("self_attn.q_proj", &[queries, d], Role::Matrix);
        add("self_attn.k_proj", &[keys, d], Role::Matrix);
        add("self_attn.v_proj", &[keys, d], Role::Matrix);
        add("self_attn.q_norm", &[config.head_dim], Role::Norm);
        add("self_attn.k_norm", &[config.head_dim], Role::Norm);
        add("self_attn.o_proj", &[d, queries], Role::Residual);
        add("post_attention_layernorm", &[d], Role::Norm);
        add("mlp.gate_proj", &[config.intermediate_size, d], Role::Matrix);
        add("mlp.up_proj", &[config.intermediate_size, d], Role::Matrix);
        add("mlp.down_proj", &[d, config.intermediate_size], Role::Residual);
    }
    specs.push(spec("model.norm", &[d], Role::Norm));
    if !config.tie_word_embeddings {
        specs.push(spec("lm_head", &[config.vocab_size, d], Role::Head));
    }
    specs
}

fn spec(module: &str, shape: &[usize], role: Role) -> Spec {
    Spec { name: format!("{module}.weight"), shape: shape.to_vec(), role }
}

impl<T> Network<T> {
    /// Puts values that come in the order of [`specs`] in their places.
    ///
    /// # Panics
    /// When there are too few.
    pub(crate) fn arrange(config: &DecoderConfig, values: impl IntoIterator<Item = T>) -> Self {
        let mut values = values.into_iter();
        let mut next = || values.next().expect("there is a value for every parameter");
        // Fields are evaluated in the order they are written, which is that of `specs`.
        Self {
            embedding: next(),
            layers: (0..config.n_layers)
                .map(|_| Layer {
                    attention_norm: next(),
                    query: next(),
                    key: next(),
                    value: next(),
                    query_norm: next(),
                    key_norm: next(),
                    output: next(),
                    mlp_norm: next(),
                    gate: next(),
                    up: next(),
                    down: next(),
                })
                .collect(),
            norm: next(),
            head: (!config.tie_word_embeddings).then(next),
        }
    }

    /// What turns the last hidden state into logits.
    pub(crate) fn output_head(&self) -> &T {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}
