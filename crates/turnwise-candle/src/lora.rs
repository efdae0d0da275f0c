//! Low-rank adapters: a model that is frozen, and a small part beside it that trains.

mod peft;

use std::borrow::Cow;
use std::path::Path;

use candle_core::{Tensor, Var};
use peft::Peft;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_kernels::matrix::{Accuracy, Matrix, MatrixMut, Parallelism, Write, multiply};

use crate::checkpoint::Precision;
use crate::decoder::Parameter;
use crate::finite::{describe, first_not_finite};
use crate::layout::{Adapter, Linear, Spec, specs};
use crate::{Decoder, DecoderConfig, ModelError, initial};

/// The largest rank that is believed to be meant.
const LARGEST_RANK: usize = 1 << 16;

/// Low-rank adapters of a model (Hu et al., *Low-rank adaptation of large language models*, 2021, section 4.1).
///
/// ```text
/// y = x W' + (alpha / rank) (x A') B'        W [out, in], A [rank, in], B [out, rank]
/// ```
///
/// The model's own parameters are frozen: they have no gradient and no optimiser state. A begins random and B at zero, so that
/// an adapted model begins as its base. No dropout, no biases, one rank and one alpha for all matrices. The experts of a
/// mixture cannot have adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraSettings {
    /// How many rows A has, and columns B.
    pub rank: usize,
    /// What the product is multiplied by, times the rank.
    pub alpha: f64,
    /// Which matrices have an adapter.
    pub targets: Vec<LoraTarget>,
}

impl Default for LoraSettings {
    /// Rank 16 with alpha 32, on all matrices.
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, targets: vec![LoraTarget::AllLinear] }
    }
}

/// A matrix of every layer, by the name that PEFT knows it under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub enum LoraTarget {
    /// All of the others.
    #[serde(rename = "all-linear")]
    AllLinear,
    /// Makes queries.
    #[serde(rename = "q_proj")]
    Query,
    /// Makes keys.
    #[serde(rename = "k_proj")]
    Key,
    /// Makes values.
    #[serde(rename = "v_proj")]
    Value,
    /// Mixes the heads' results.
    #[serde(rename = "o_proj")]
    Output,
    /// The gate of a feed-forward half.
    #[serde(rename = "gate_proj")]
    Gate,
    /// What the gate lets through.
    #[serde(rename = "up_proj")]
    Up,
    /// What leads back to the residual stream.
    #[serde(rename = "down_proj")]
    Down,
}

impl LoraTarget {
    /// The single matrices.
    const EACH: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// As PEFT writes it.
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
        }
    }

    fn is_in_feed_forward(self) -> bool {
        matches!(self, Self::AllLinear | Self::Gate | Self::Up | Self::Down)
    }
}

impl LoraSettings {
    /// Whether these adapters can be those of such a model.
    ///
    /// # Errors
    /// [`ModelError::BadAdapter`] for a rank or an alpha that cannot be, for no targets, and for targets that are experts.
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

    /// The single matrices that have an adapter.
    fn reached(&self) -> impl Iterator<Item = LoraTarget> {
        LoraTarget::EACH.into_iter().filter(|target| self.reaches(*target))
    }

    /// Whether they mean the same, however it is written.
    fn same(&self, other: &Self) -> bool {
        (self.rank, self.alpha) == (other.rank, other.alpha) && self.reached().eq(other.reached())
    }

    pub(crate) fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }
}

impl Decoder {
    /// The same model with new adapters, which train in the place of its own parameters. It computes what it computed before
    /// until they do. `seed` decides A, drawn evenly from -1 to 1 over the root of its width, as PEFT does.
    ///
    /// ```
    /// use turnwise_candle::{Decoder, DecoderConfig, LoraSettings};
    ///
    /// let base = Decoder::random(DecoderConfig::small(320), 7)?;
    /// let scored = base.score(&[vec![3, 1, 4]])?;
    /// let model = base.with_lora(&LoraSettings { rank: 4, ..LoraSettings::default() }, 1)?;
    /// assert_eq!(model.score(&[vec![3, 1, 4]])?, scored);
    /// assert!(model.n_trainable() < model.n_parameters() / 4);
    /// # Ok::<(), turnwise_candle::ModelError>(())
    /// ```
    ///
    /// # Errors
    /// As [`LoraSettings::validate`], and when the model has adapters already.
    pub fn with_lora(self, settings: &LoraSettings, seed: u64) -> Result<Self, ModelError> {
        settings.validate(self.config())?;
        let (config, mut drawn) = (self.config().clone(), 0);
        self.adapted(settings, |spec| initial::first(spec, &config, seed, &mut drawn))
    }

    /// The same model with adapters of which every parameter has a value.
    fn adapted(
        self,
        settings: &LoraSettings,
        mut value: impl FnMut(&Spec) -> Vec<f32>,
    ) -> Result<Self, ModelError> {
        if self.lora().is_some() {
            return Err(ModelError::BadAdapter("it has adapters already".to_owned()));
        }
        let specs = specs(self.config(), Some(settings));
        let place = self.place().clone();
        self.rearranged(Some(settings.clone()), |own| {
            let each = specs.into_iter().map(|spec| {
                if !spec.role.is_adapter() {
                    let own = own.next().expect("a model has all parameters but its adapters");
                    return Ok(Parameter { trainable: false, ..own });
                }
                let var = Var::from_vec(value(&spec), spec.shape.clone(), &place)?;
                Ok(Parameter { spec, var, precision: Precision::Single, trainable: true })
            });
            each.collect()
        })
    }

    /// The same model with its adapters in its own parameters, which then train. A model without adapters is as it was.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] when a sum overflows, and when the weights cannot be read.
    pub fn merged(self) -> Result<Self, ModelError> {
        for (index, merged) in self.merged_matrices()? {
            let Spec { name, shape, .. } = self.parameters()[index].spec.clone();
            if let Some(index) = first_not_finite(&merged) {
                let action = "merge adapters".to_owned();
                let reason = describe(&name, &shape, index, merged[index]);
                return Err(ModelError::NotFinite { action, reason });
            }
            let merged = Tensor::from_vec(merged, shape, self.place())?;
            self.parameters()[index].var.set(&merged)?;
        }
        self.rearranged(None, |own| {
            let own = own.filter(|parameter| !parameter.spec.role.is_adapter());
            Ok(own.map(|parameter| Parameter { trainable: true, ..parameter }).collect())
        })
    }

    /// This model's base with other adapters of the same settings, which must together be the model `whole`.
    pub(crate) fn with_adapter_of(
        &self,
        directory: &Path,
        whole: &Self,
    ) -> Result<Self, ModelError> {
        let Peft { settings, values } = Peft::read(directory, self.config())?;
        if !self.lora().is_some_and(|own| own.same(&settings)) {
            let reason = format!("its adapters are {:?}, and there are {settings:?}", self.lora());
            return Err(ModelError::BadAdapter(reason));
        }
        let model = self.beside(values)?;
        let differs = whole.with_linears(|theirs| {
            model.with_linears(|ours| {
                let ours = ours.iter().zip(model.parameters());
                let ours = ours.filter(|(_, parameter)| !parameter.spec.role.is_adapter());
                let mut pairs = ours.zip(theirs);
                let differs = pairs.find(|((own, _), other)| differ(&own.merged(), other.weight));
                differs.map(|((_, parameter), _)| parameter.spec.name.clone())
            })
        })??;
        match differs {
            Some(name) => Err(ModelError::BadAdapter(format!(
                "{name} with its adapter is not what the checkpoint holds, so its base was another one"
            ))),
            None => Ok(model),
        }
    }

    /// The matrices that have adapters, with these in them, by the place of the parameter.
    fn merged_matrices(&self) -> Result<Vec<(usize, Vec<f32>)>, ModelError> {
        self.with_linears(|linears| {
            let adapted = linears.iter().enumerate().filter(|(_, linear)| linear.adapter.is_some());
            adapted.map(|(index, linear)| (index, linear.merged().into_owned())).collect()
        })
    }
}

/// Whether numbers differ by more than the rounding of other machines.
fn differ(ours: &[f32], theirs: &[f32]) -> bool {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let size: f64 = ours.iter().map(|x| square(*x)).sum();
    let difference: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
    difference.is_nan() || difference > 1e-10 * size
}

impl<'a> Linear<&'a [f32]> {
    /// The matrix with its adapter in it.
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
