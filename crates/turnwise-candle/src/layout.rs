//! The structure of a model's parameters.

mod specs;

pub(crate) use specs::{ParameterRole, Spec, specs};

use std::borrow::Cow;

use turnwise_kernels::matrix::{Accuracy, Matrix, MatrixMut, Parallelism, Write, multiply};

use crate::architecture::{Activation, RopeKind};
use crate::{DecoderConfig, LoraSettings};

/// One value per parameter of a model, by its role.
#[derive(Clone, Debug)]
pub(crate) struct Network<T> {
    pub(crate) embedding: T,
    /// The factor of embeddings.
    pub(crate) embedding_scale: f32,
    pub(crate) layers: Vec<Layer<T>>,
    pub(crate) norm: T,
    /// `None` when the embedding is the head.
    pub(crate) head: Option<T>,
    /// The factor of logits.
    pub(crate) logit_scale: f32,
}

/// One value per parameter of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer<T> {
    pub(crate) attending: Attending,
    /// The norm before attention.
    pub(crate) attention_norm: Option<T>,
    /// The projections to queries, keys and values, or to all of them together.
    pub(crate) qkv: Vec<Linear<T>>,
    pub(crate) head_norms: Option<HeadNorms<T>>,
    pub(crate) output: Linear<T>,
    /// The norm of attention's output.
    pub(crate) attention_norm_after: Option<T>,
    /// The norm before the feed-forward half.
    pub(crate) mlp_norm: Option<T>,
    pub(crate) feed_forward: FeedForward<T>,
    /// The norm of the feed-forward half's output.
    pub(crate) mlp_norm_after: Option<T>,
    /// The factor of each half before it is added to the residual stream.
    pub(crate) residual_scale: f32,
}

/// The tokens that a layer attends to, and how it knows their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attending {
    /// The number of latest tokens that a token attends to, itself included; all tokens if `None`.
    pub(crate) window: Option<usize>,
    pub(crate) rope: RopeKind,
}

/// A matrix with its bias and adapter.
#[derive(Clone, Debug)]
pub(crate) struct Linear<T> {
    pub(crate) weight: T,
    pub(crate) bias: Option<T>,
    pub(crate) adapter: Option<Adapter<T>>,
}

/// Two low-rank matrices whose product is added to a matrix: `scale * up down` (Hu et al., *Low-rank adaptation*, 2021,
/// section 4.1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adapter<T> {
    /// Called A in the paper. `[rank, in]`
    pub(crate) down: T,
    /// Called B in the paper. `[out, rank]`
    pub(crate) up: T,
    pub(crate) rank: usize,
    /// Alpha over the rank.
    pub(crate) scale: f32,
}

/// Gains of QK-norm.
#[derive(Clone, Debug)]
pub(crate) struct HeadNorms<T> {
    pub(crate) query: T,
    pub(crate) key: T,
}

/// The feed-forward half of a layer.
#[derive(Clone, Debug)]
pub(crate) enum FeedForward<T> {
    /// Dense: the same for all tokens.
    Dense(Mlp<T>),
    /// Mixture of experts: a few experts for each token.
    Mixture(Mixture<T>),
}

/// The matrices of a gated feed-forward half.
#[derive(Clone, Debug)]
pub(crate) struct Mlp<T> {
    pub(crate) activation: Activation,
    /// Gate and up, or both together.
    pub(crate) gate_up: Vec<Linear<T>>,
    pub(crate) down: Linear<T>,
}

/// Experts and their router.
#[derive(Clone, Debug)]
pub(crate) struct Mixture<T> {
    pub(crate) choice: Choice,
    /// `[E, D]`
    pub(crate) router: T,
    /// `[E, I, D]`
    pub(crate) gate: T,
    /// `[E, I, D]`
    pub(crate) up: T,
    /// `[E, D, I]`
    pub(crate) down: T,
    pub(crate) shared: Option<SharedExpert<T>>,
}

/// An expert that serves every token, times the sigmoid of its gate's product.
#[derive(Clone, Debug)]
pub(crate) struct SharedExpert<T> {
    pub(crate) mlp: Mlp<T>,
    /// `[1, D]`
    pub(crate) gate: Linear<T>,
}

/// How experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) n_experts: usize,
    pub(crate) n_chosen: usize,
    pub(crate) renormalize: bool,
}

impl<T> Network<T> {
    /// Arranges values that come in the order of [`specs`].
    ///
    /// # Panics
    /// When there are too few values.
    pub(crate) fn arrange(
        config: &DecoderConfig,
        lora: Option<&LoraSettings>,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        let mut values = values.into_iter();
        Network::of(config, lora)
            .map(&mut |_| values.next().expect("there is a value for every parameter"))
    }

    /// Maps each value, in the fixed order: fields are evaluated in the order in which they are written.
    fn map<U>(self, f: &mut impl FnMut(T) -> U) -> Network<U> {
        Network {
            embedding: f(self.embedding),
            embedding_scale: self.embedding_scale,
            layers: self.layers.into_iter().map(|layer| layer.map(f)).collect(),
            norm: f(self.norm),
            head: self.head.map(f),
            logit_scale: self.logit_scale,
        }
    }

    /// Iterates over the matrices that may have an adapter: those of attention and of dense feed-forward halves.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<T>> {
        self.layers.iter().flat_map(Layer::linears)
    }

    /// Like [`Self::linears`], mutably.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<T>> {
        self.layers.iter_mut().flat_map(Layer::linears_mut)
    }

    /// Maps each value, until one fails.
    pub(crate) fn try_map<U, E>(
        self,
        f: &mut impl FnMut(T) -> Result<U, E>,
    ) -> Result<Network<U>, E> {
        let mut failed = None;
        let network = self.map(&mut |value| match f(value) {
            Ok(value) => Some(value),
            Err(error) => {
                failed.get_or_insert(error);
                None
            }
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(network.map(&mut |value| value.expect("none has failed"))),
        }
    }

    /// Returns the output head.
    pub(crate) fn output_head(&self) -> &T {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

impl<'a> Linear<&'a [f32]> {
    /// Returns the matrix with its adapter merged.
    pub(crate) fn merged(&self) -> Cow<'a, [f32]> {
        let Some(Adapter { down, up, rank, scale }) = self.adapter else {
            return Cow::Borrowed(self.weight);
        };
        let width = down.len() / rank;
        let mut merged = self.weight.to_vec();
        let mut target = MatrixMut::rows(&mut merged, width);
        let sides = [Matrix::rows(up, rank), Matrix::rows(down, width)];
        multiply(&mut target, Write::Add, scale, sides, Accuracy::Full, Parallelism::Pool);
        Cow::Owned(merged)
    }
}

impl<T> Layer<T> {
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<T>> {
        let mlp = match &self.feed_forward {
            FeedForward::Dense(Mlp { gate_up, down, .. }) => Some(gate_up.iter().chain([down])),
            FeedForward::Mixture(_) => None,
        };
        self.qkv.iter().chain([&self.output]).chain(mlp.into_iter().flatten())
    }

    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<T>> {
        let mlp = match &mut self.feed_forward {
            FeedForward::Dense(Mlp { gate_up, down, .. }) => Some(gate_up.iter_mut().chain([down])),
            FeedForward::Mixture(_) => None,
        };
        self.qkv.iter_mut().chain([&mut self.output]).chain(mlp.into_iter().flatten())
    }
}

impl<T: Copy> Layer<T> {
    /// Returns whether any of its parameters satisfies a predicate.
    pub(crate) fn any(&self, is_so: impl Fn(T) -> bool) -> bool {
        let mut any = false;
        self.clone().map(&mut |value| any |= is_so(value));
        any
    }
}

impl<T> Layer<T> {
    pub(crate) fn map<U>(self, f: &mut impl FnMut(T) -> U) -> Layer<U> {
        Layer {
            attending: self.attending,
            attention_norm: self.attention_norm.map(&mut *f),
            qkv: self.qkv.into_iter().map(|linear| linear.map(f)).collect(),
            head_norms: self
                .head_norms
                .map(|norms| HeadNorms { query: f(norms.query), key: f(norms.key) }),
            output: self.output.map(f),
            attention_norm_after: self.attention_norm_after.map(&mut *f),
            mlp_norm: self.mlp_norm.map(&mut *f),
            feed_forward: match self.feed_forward {
                FeedForward::Dense(mlp) => FeedForward::Dense(mlp.map(f)),
                FeedForward::Mixture(mixture) => FeedForward::Mixture(mixture.map(f)),
            },
            mlp_norm_after: self.mlp_norm_after.map(&mut *f),
            residual_scale: self.residual_scale,
        }
    }
}

impl<T> Mlp<T> {
    fn map<U>(self, f: &mut impl FnMut(T) -> U) -> Mlp<U> {
        Mlp {
            activation: self.activation,
            gate_up: self.gate_up.into_iter().map(|linear| linear.map(f)).collect(),
            down: self.down.map(f),
        }
    }
}

impl<T> Mixture<T> {
    fn map<U>(self, f: &mut impl FnMut(T) -> U) -> Mixture<U> {
        Mixture {
            choice: self.choice,
            router: f(self.router),
            gate: f(self.gate),
            up: f(self.up),
            down: f(self.down),
            shared: self
                .shared
                .map(|shared| SharedExpert { mlp: shared.mlp.map(f), gate: shared.gate.map(f) }),
        }
    }
}

impl<T> Linear<T> {
    fn map<U>(self, f: &mut impl FnMut(T) -> U) -> Linear<U> {
        Linear {
            weight: f(self.weight),
            bias: self.bias.map(&mut *f),
            adapter: self.adapter.map(|adapter| adapter.map(f)),
        }
    }
}

impl Adapter<Vec<f32>> {
    pub(crate) fn as_ref(&self) -> Adapter<&[f32]> {
        let Self { down, up, rank, scale } = self;
        Adapter { down, up, rank: *rank, scale: *scale }
    }
}

impl<T> Adapter<T> {
    pub(crate) fn map<U>(self, f: &mut impl FnMut(T) -> U) -> Adapter<U> {
        let Self { down, up, rank, scale } = self;
        Adapter { down: f(down), up: f(up), rank, scale }
    }
}
