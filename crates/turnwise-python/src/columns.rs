//! Columns of numbers, which cross the boundary to Python as bytes in the machine's own order: `NumPy` reads and writes them
//! without a loop, and this crate needs no header of `NumPy`.

use pyo3::prelude::*;
use pyo3::types::PyByteArray;

/// A number of a column.
pub(crate) trait ColumnNumber: Copy {
    /// Reads the numbers of a column.
    fn read(bytes: &[u8]) -> Vec<Self>;

    /// Returns the bytes of a column.
    fn bytes(column: &[Self]) -> Vec<u8>;
}

macro_rules! number {
    ($($type:ty),*) => {
        $(impl ColumnNumber for $type {
            fn read(bytes: &[u8]) -> Vec<Self> {
                let (numbers, _) = bytes.as_chunks();
                numbers.iter().map(|number| Self::from_ne_bytes(*number)).collect()
            }

            fn bytes(column: &[Self]) -> Vec<u8> {
                column.iter().flat_map(|number| number.to_ne_bytes()).collect()
            }
        })*
    };
}

number!(f32, f64, u8, u32, u64);

/// Returns a column as a `bytearray`, over which `numpy.frombuffer` makes an array that can be written to.
pub(crate) fn column<'py, N: ColumnNumber>(
    py: Python<'py>,
    numbers: &[N],
) -> Bound<'py, PyByteArray> {
    PyByteArray::new(py, &N::bytes(numbers))
}
