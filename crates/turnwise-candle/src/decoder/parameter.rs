//! The storage of parameters: in a tensor of its own, or, frozen beside adapters, in the engine's panels.

use std::ops::Deref;
use std::sync::Arc;

use candle_core::{Result, Var};

use super::Decoder;
use crate::checkpoint::Precision;
use crate::forward::Kernels;
use crate::layout::{Adapter, Linear, Network, Spec};
use crate::numbers::host_numbers;
use crate::snapshot::{PackedAdapters, PackedPolicy, StoredAdapter};
use crate::weights::{AdaptedLinear, LayerAdapters, PackedMatrix, StoredParameter, Weights};

/// A tensor of a model.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) spec: Spec,
    pub(crate) storage: NumberStorage,
    /// Its format in the file that it was read from.
    pub(crate) precision: Precision,
    /// Whether training changes it.
    pub(crate) trainable: bool,
}

/// Where a parameter's numbers are.
#[derive(Clone, Debug)]
pub(crate) enum NumberStorage {
    /// Always f32.
    Own(Var),
    /// A parameter of the model's packed base, by its index there.
    Packed(usize),
}

impl Parameter {
    /// Returns its tensor, unless it is packed.
    pub(crate) fn own(&self) -> Option<&Var> {
        match &self.storage {
            NumberStorage::Own(var) => Some(var),
            NumberStorage::Packed(_) => None,
        }
    }

    /// Returns the tensor of a parameter that is not packed, such as a trainable one.
    ///
    /// # Panics
    /// When it is packed.
    pub(crate) fn var(&self) -> &Var {
        self.own().expect("only frozen matrices of a learner on the CPU are packed")
    }
}

impl Decoder {
    /// Packs the frozen matrices of a model with adapters for the CPU's engine, which shares them: they are in memory once.
    /// They are rounded to the precision of products. A model without adapters does not change, nor does one that is computed
    /// in tensors.
    pub(crate) fn with_packed_base(mut self) -> Result<Self> {
        let is_in_tensors = !self.place.is_cpu() || self.kernels == Kernels::Plain;
        if self.lora.is_none() || is_in_tensors || self.base.is_some() {
            return Ok(self);
        }
        let mut tensors = Vec::with_capacity(self.parameters.len());
        for Parameter { spec, storage, .. } in &mut self.parameters {
            let NumberStorage::Own(var) = &*storage else { continue };
            if spec.role.is_adapter() {
                continue;
            }
            tensors.push(var.as_detached_tensor());
            if spec.role.is_packed() {
                *storage = NumberStorage::Packed(tensors.len() - 1);
            }
        }
        let network = Network::arrange(&self.config, None, tensors);
        let (precision, ropes) = (self.precision, self.ropes.clone());
        let base = Weights::new(&self.config, ropes, network, precision, precision.panels())?;
        Ok(Self { base: Some(Arc::new(base)), ..self })
    }

    /// Returns the packed matrices of each parameter, in order; none for one with a tensor of its own.
    pub(crate) fn packed_matrices(&self) -> Vec<Vec<PackedMatrix<'_>>> {
        let stored = self.base.as_ref().map(|base| base.stored()).unwrap_or_default();
        let matrices = self.parameters.iter().map(|parameter| match parameter.storage {
            NumberStorage::Own(_) => Vec::new(),
            NumberStorage::Packed(index) => match &stored[index] {
                StoredParameter::Matrices(matrices) => matrices.clone(),
                other => unreachable!("only matrices are packed, not {other:?}"),
            },
        });
        matrices.collect()
    }

    /// Returns the numbers of a parameter, copied to the CPU or unpacked if needed.
    pub(crate) fn numbers<'a>(
        &'a self,
        parameter: &'a Parameter,
    ) -> Result<Box<dyn Deref<Target = [f32]> + 'a>> {
        match (&parameter.storage, &self.base) {
            (NumberStorage::Own(var), _) => Ok(Box::new(host_numbers(var)?)),
            (NumberStorage::Packed(index), Some(base)) => {
                Ok(Box::new(base.stored()[*index].numbers()?))
            }
            (NumberStorage::Packed(_), None) => unreachable!("what is packed has a base"),
        }
    }

    /// Returns the index of each of the model's own parameters, with those of its adapter.
    pub(crate) fn own_linears(&self) -> Vec<Linear<usize>> {
        let mut adapters: Vec<Option<Adapter<usize>>> = vec![None; self.parameters.len()];
        for linear in self.arrange(0..self.parameters.len()).linears() {
            adapters[linear.weight] = linear.adapter;
        }
        let own = self.parameters.iter().zip(adapters).enumerate();
        let own = own.filter(|(_, (parameter, _))| !parameter.spec.role.is_adapter());
        own.map(|(weight, (_, adapter))| Linear { weight, bias: None, adapter }).collect()
    }

    /// Calls a function with the numbers of a parameter and its adapter.
    pub(crate) fn with_linear<R>(
        &self,
        linear: &Linear<usize>,
        see: impl FnOnce(Linear<&[f32]>) -> R,
    ) -> Result<R> {
        let weight = self.numbers(&self.parameters[linear.weight])?;
        let Some(Adapter { down, up, rank, scale }) = linear.adapter else {
            return Ok(see(Linear { weight: &weight, bias: None, adapter: None }));
        };
        let (down, up) =
            (self.numbers(&self.parameters[down])?, self.numbers(&self.parameters[up])?);
        let adapter = Some(Adapter { down: &**down, up: &**up, rank, scale });
        Ok(see(Linear { weight: &weight, bias: None, adapter }))
    }

    /// Packs the adapters for an engine that shares the packed base; `None` if there is none.
    pub(crate) fn packed_policy(&self) -> Result<Option<PackedPolicy>> {
        let Some(base) = &self.base else { return Ok(None) };
        let held = self.parameters.iter().map(|parameter| {
            let is_adapter = parameter.spec.role.is_adapter();
            is_adapter.then(|| host_numbers(parameter.var())).transpose()
        });
        let held = held.collect::<Result<Vec<_>>>()?;
        let network = self.arrange(0..held.len());
        let layers = network.layers.into_iter().map(|mut layer| {
            let mut adapted = layer.clone().map(&mut |_| AdaptedLinear::default());
            for (linear, adapted) in layer.linears_mut().zip(adapted.linears_mut()) {
                adapted.weight = AdaptedLinear {
                    out: self.parameters[linear.weight].spec.shape[0],
                    adapter: linear.adapter.map(|adapter| {
                        adapter.map(&mut |index| {
                            &**held[index].as_ref().expect("an adapter's numbers are held")
                        })
                    }),
                };
            }
            LayerAdapters::new(&adapted, self.precision.panels())
        });
        let layers = layers.collect();
        let adapters = self.own_linears().into_iter().map(|linear| linear.adapter).enumerate();
        let stored = adapters.filter_map(|(matrix, adapter)| {
            let adapter = adapter?;
            let specs = [adapter.down, adapter.up].map(|index| self.parameters[index].spec.clone());
            let owned = |of: usize| held[of].as_ref().map(|numbers| numbers.to_vec());
            let mut owned = |of| owned(of).expect("an adapter's numbers are held");
            Some(StoredAdapter { matrix, specs, adapter: adapter.map(&mut owned) })
        });
        let adapters = PackedAdapters { stored: stored.collect(), layers };
        Ok(Some(PackedPolicy::new(base.clone(), Some(adapters))))
    }
}
