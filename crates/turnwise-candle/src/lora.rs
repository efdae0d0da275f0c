//! Low-rank adapters: trainable low-rank matrices next to the frozen weights of a model.

mod peft;
mod reach;

use std::path::Path;

use candle_core::{Tensor, Var};
use peft::Peft;

use crate::checkpoint::Precision;
use crate::decoder::{NumberStorage, Parameter};
use crate::finite::{describe, first_not_finite};
use crate::layout::{Spec, specs};
use crate::{Decoder, LoraSettings, ModelError, initial};

/// What to do about an adapter of PEFT that is not supported.
const MERGE: &str = "merge it into its base with PEFT: AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…)";

impl Decoder {
    /// Attaches new adapters, which train instead of the model's own parameters. The results do not change until they
    /// are trained. `seed` determines A, sampled uniformly from -1 to 1 over the root of its width, as in PEFT.
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

    /// Attaches adapters with the given parameter values.
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
                let storage = NumberStorage::Own(var);
                Ok(Parameter { spec, storage, precision: Precision::Single, trainable: true })
            });
            each.collect()
        })
    }

    /// Merges the adapters into the model's own parameters, which then train. A model without adapters does not change.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] when a sum overflows; an error of reading the weights.
    pub fn merged(self) -> Result<Self, ModelError> {
        for (index, merged) in self.merged_matrices()? {
            let Spec { name, shape, .. } = self.parameters()[index].spec.clone();
            if let Some(index) = first_not_finite(&merged) {
                let action = "merge adapters".to_owned();
                let reason = describe(&name, &shape, index, merged[index]);
                return Err(ModelError::NotFinite { action, reason });
            }
            let merged = Tensor::from_vec(merged, shape, self.place())?;
            self.parameters()[index].var().set(&merged)?;
        }
        self.rearranged(None, |own| {
            let own = own.filter(|parameter| !parameter.spec.role.is_adapter());
            Ok(own.map(|parameter| Parameter { trainable: true, ..parameter }).collect())
        })
    }

    /// Returns the model's base with other adapters of the same settings, whose merged weights must equal the model
    /// `whole`.
    pub(crate) fn with_adapter_of(
        &self,
        directory: &Path,
        whole: &Self,
    ) -> Result<Self, ModelError> {
        let Peft { settings, values } = Peft::read(directory, self.config())?;
        if let Some(own) = self.lora().filter(|own| !own.same(&settings, self.config())) {
            let reason = format!("its adapters have {own}, and those there {settings}");
            return Err(ModelError::BadAdapter(reason));
        }
        let model = self.beside(values)?;
        for (linear, theirs) in model.own_linears().iter().zip(whole.parameters()) {
            let theirs = whole.numbers(theirs)?;
            if model.with_linear(linear, |own| differ(&own.merged(), &theirs))? {
                let name = &model.parameters()[linear.weight].spec.name;
                return Err(ModelError::BadAdapter(format!(
                    "{name} with its adapter differs from the checkpoint, so it was trained on another base"
                )));
            }
        }
        Ok(model)
    }

    /// Returns the matrices with adapters, merged, with the index of their parameter.
    fn merged_matrices(&self) -> Result<Vec<(usize, Vec<f32>)>, ModelError> {
        let linears = self.own_linears().into_iter().filter(|linear| linear.adapter.is_some());
        let merged = linears.map(|linear| {
            let merged = self.with_linear(&linear, |linear| linear.merged().into_owned());
            Ok((linear.weight, merged?))
        });
        merged.collect()
    }
}

/// Returns whether numbers differ by more than the rounding of other machines.
fn differ(ours: &[f32], theirs: &[f32]) -> bool {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let size: f64 = ours.iter().map(|x| square(*x)).sum();
    let difference: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
    difference.is_nan() || difference > 1e-10 * size
}
