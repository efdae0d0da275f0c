//! Access to the numbers of tensors.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Result, Storage, Tensor};

/// Returns the numbers of a contiguous f32 tensor on the CPU.
pub(crate) fn numbers(tensor: &Tensor) -> Result<impl Deref<Target = [f32]>> {
    lent(tensor)
}

/// Returns the numbers of a contiguous f32 tensor, copied to the CPU if needed.
pub(crate) fn host_numbers(tensor: &Tensor) -> Result<impl Deref<Target = [f32]>> {
    Ok(if tensor.device().is_cpu() {
        HostNumbers::Lent(lent(tensor)?)
    } else {
        HostNumbers::Copied(tensor.flatten_all()?.to_vec1()?)
    })
}

fn lent(tensor: &Tensor) -> Result<Numbers<impl Deref<Target = Storage>>> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => {
            Ok(Numbers { storage, range: start..end })
        }
        _ => {
            candle_core::bail!("a contiguous f32 tensor on the CPU is needed, not {layout:?}")
        }
    }
}

/// Numbers of a tensor, whose storage stays locked as long as the value exists.
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

/// Numbers on the CPU, borrowed or copied.
enum HostNumbers<S> {
    Lent(Numbers<S>),
    Copied(Vec<f32>),
}

impl<S: Deref<Target = Storage>> Deref for HostNumbers<S> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Lent(numbers) => numbers,
            Self::Copied(numbers) => numbers,
        }
    }
}
