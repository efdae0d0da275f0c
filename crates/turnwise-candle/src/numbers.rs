//! Slices out of tensors and tensors out of slices.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor};

/// The numbers of a contiguous f32 tensor on the processor.
pub(crate) fn numbers(tensor: &Tensor) -> Result<impl Deref<Target = [f32]>> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => {
            Ok(Numbers { storage, range: start..end })
        }
        _ => {
            candle_core::bail!("a contiguous f32 tensor on the processor is needed, not {layout:?}")
        }
    }
}

/// Keeps the storage locked while its numbers are read.
struct Numbers<S> {
    storage: S,
    range: Range<usize>,
}

impl<S: Deref<Target = Storage>> Deref for Numbers<S> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => &[],
        }
    }
}

/// The numbers of a contiguous f32 storage, as custom operations receive it.
pub(crate) fn stored_numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("a contiguous f32 tensor is needed, not {layout:?}"),
    }
}

/// What a custom operation's forward pass returns.
pub(crate) fn stored(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

/// A gradient with the shape of what it belongs to.
pub(crate) fn like(values: Vec<f32>, tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, tensor.shape(), &Device::Cpu)
}
