//! CPU kernels of turnwise.
#![doc = include_str!("../README.md")]

#[cfg(feature = "allocator")]
pub mod allocator;
#[cfg(feature = "products")]
pub mod buffer;
#[cfg(feature = "products")]
pub mod byte_tile;
pub mod lanes;
pub mod math;
#[cfg(feature = "products")]
pub mod matrix;
#[cfg(feature = "products")]
pub mod number_tile;
#[cfg(feature = "products")]
pub mod pair_tile;
#[cfg(feature = "products")]
pub mod pairs;
#[cfg(feature = "products")]
pub mod panels;
#[cfg(feature = "products")]
mod peak;
pub mod reduce;
#[cfg(feature = "products")]
mod registers;
#[cfg(feature = "products")]
pub mod rounded;
pub mod simd;
#[cfg(feature = "products")]
pub mod small;
#[cfg(feature = "products")]
pub mod team;
#[cfg(feature = "products")]
pub mod tile;

#[cfg(feature = "products")]
pub use peak::{bf16_peak, gemm_peak, int8_peak, matrix_unit_peak, read_bandwidth};
