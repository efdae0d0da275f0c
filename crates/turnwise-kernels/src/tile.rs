//! What register tiles have in common: small products whose elements are summed in a fixed order, regardless of the tile's
//! size.
//!
//! Each element is one chain of sums over the inner index, from the first term to the last, in a lane of a register. The
//! number of rows or columns that share the registers does not change it, so that one row and a thousand give the same
//! bits.

/// The numbers of a vector, on every processor.
pub const LANES: usize = 16;

/// The most column vectors in a tile.
pub const MAX_VECTORS: usize = 8;

/// The most numbers in a tile.
pub const MAX_TILE: usize = 24 * LANES;

/// Sixteen numbers in a cache line of their own, so that a vector is loaded with one access.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct CacheLine(pub [f32; LANES]);

impl CacheLine {
    /// Zeros.
    pub const ZERO: Self = Self([0.0; LANES]);
}

/// Returns the numbers of consecutive cache lines.
#[inline]
#[must_use]
pub fn numbers(lines: &[CacheLine]) -> &[f32] {
    // SAFETY: a cache line is 16 numbers without padding, by its representation.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LANES) }
}

/// Returns the numbers of consecutive cache lines, mutably.
#[inline]
#[must_use]
pub fn numbers_mut(lines: &mut [CacheLine]) -> &mut [f32] {
    // SAFETY: as above, and every bit pattern is a number.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}

/// Returns consecutive cache lines as twice as many bf16 numbers.
#[inline]
#[must_use]
pub fn halves(lines: &[CacheLine]) -> &[Half] {
    // SAFETY: a cache line is 64 bytes without padding, which are 32 numbers of two bytes of any bit pattern.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 2 * LANES) }
}

/// Returns consecutive cache lines as twice as many bf16 numbers, mutably.
#[inline]
#[must_use]
pub fn halves_mut(lines: &mut [CacheLine]) -> &mut [Half] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 2 * LANES) }
}

/// What a product does with the numbers in its target (beta of BLAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Overwrites them (beta = 0); their values are ignored.
    Replace,
    /// Adds the product to them (beta = 1).
    Add,
}

/// A bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Half(pub u16);

/// The target of a tile: row `r` starts at `r * stride`.
#[derive(Debug)]
pub struct TileTarget<'a> {
    /// The numbers that contain the tile.
    pub data: &'a mut [f32],
    /// Distance between rows.
    pub stride: usize,
    /// Whether sums start from 0 or from the target's numbers.
    pub write: Write,
}
