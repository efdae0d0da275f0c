//! The structure of a model's parameters.

mod specs;

pub(crate) use specs::{ParameterRole, Spec, specs};

use std::borrow::Cow;

use turnwise_kernels::matrix::{Accuracy, Matrix, MatrixMut, Parallelism, Write, multiply};

use crate::{DecoderConfig, LoraSettings};

/// One value per parameter of a model, by its role.
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
    pub(crate) query: Linear<T>,
    pub(crate) key: Linear<T>,
    pub(crate) value: Linear<T>,
    pub(crate) head_norms: Option<HeadNorms<T>>,
    pub(crate) output: Linear<T>,
    pub(crate) mlp_norm: T,
    pub(crate) feed_forward: FeedForward<T>,
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

/// The matrices of SwiGLU.
#[derive(Clone, Debug)]
pub(crate) struct Mlp<T> {
    pub(crate) gate: Linear<T>,
    pub(crate) up: Linear<T>,
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
            layers: self.layers.into_iter().map(|layer| layer.map(f)).collect(),
            norm: f(self.norm),
            head: self.head.map(f),
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
    fn linears(&self) -> impl Iterator<Item = &Linear<T>> {
        let mlp = match &self.feed_forward {
            FeedForward::Dense(Mlp { gate, up, down }) => Some([gate, up, down]),
            FeedForward::Mixture(_) => None,
        };
        let attention = [&self.query, &self.key, &self.value, &self.output];
        attention.into_iter().chain(mlp.into_iter().flatten())
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<T>> {
        let mlp = match &mut self.feed_forward {
            FeedForward::Dense(Mlp { gate, up, down }) => Some([gate, up, down]),
            FeedForward::Mixture(_) => None,
        };
        let attention = [&mut self.query, &mut self.key, &mut self.value, &mut self.output];
        attention.into_iter().chain(mlp.into_iter().flatten())
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
            attention_norm: f(self.attention_norm),
            query: self.query.map(f),
            key: self.key.map(f),
            value: self.value.map(f),
            head_norms: self
                .head_norms
                .map(|norms| HeadNorms { query: f(norms.query), key: f(norms.key) }),
            output: self.output.map(f),
            mlp_norm: f(self.mlp_norm),
            feed_forward: match self.feed_forward {
                FeedForward::Dense(mlp) => FeedForward::Dense(Mlp {
                    gate: mlp.gate.map(f),
                    up: mlp.up.map(f),
                    down: mlp.down.map(f),
                }),
                FeedForward::Mixture(mixture) => FeedForward::Mixture(Mixture {
                    choice: mixture.choice,
                    router: f(mixture.router),
                    gate: f(mixture.gate),
                    up: f(mixture.up),
                    down: f(mixture.down),
                }),
            },
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

impl<T> Adapter<T> {
    pub(crate) fn map<U>(self, f: &mut impl FnMut(T) -> U) -> Adapter<U> {
        let Self { down, up, rank, scale } = self;
        Adapter { down: f(down), up: f(up), rank, scale }
    }
}
