//! Intel's matrix unit (AMX): products of tiles of bf16, summed in f32.
//!
//! The standard library has no stable functions for it, so the few instructions are written out (Intel, *Instruction set
//! extensions programming reference*, chapter 3). The unit has eight registers of 16 rows of 64 bytes.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _MM_HINT_ET0, _mm_prefetch};
use std::marker::PhantomData;
use std::sync::LazyLock;

use super::split::{SplitCount, Tile};
use crate::simd::{Level, level};

/// The number of rows, and of columns, of the target that are computed at once: two tiles each way.
pub(super) const SIDE: usize = 32;

/// Returns whether the processor has the unit and the system lets this process use it. The first call asks the system.
pub(super) fn is_available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        is_wanted() && level() == Level::Avx512 && is_on_processor() && is_permitted()
    });
    *AVAILABLE
}

/// `TURNWISE_AMX=off` disables the unit, for comparison or because another process needs it.
fn is_wanted() -> bool {
    std::env::var_os("TURNWISE_AMX").is_none_or(|value| value != "off")
}

/// Returns whether the processor has AMX-BF16 and AMX-TILE and the system saves their state.
fn is_on_processor() -> bool {
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u32 = 1 << 17 | 1 << 18;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let kept: u32;
    // SAFETY: the instruction exists where OSXSAVE is set, and reads a register.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") kept, out("edx") _, options(nomem, nostack));
    }
    __cpuid_count(7, 0).edx & FEATURES == FEATURES && kept & TILE_STATE == TILE_STATE
}

/// Requests permission from Linux, which keeps the large registers only for processes that ask (`arch_prctl(2)`,
/// `ARCH_REQ_XCOMP_PERM`).
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const REQUEST: libc::c_int = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call reads two numbers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) };
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Loads one part of 32 rows, at a byte offset in the tiles of a step.
macro_rules! left {
    ($at:literal) => {
        concat!(
            "tileloadd tmm4, [{a} + {row}*1 + ",
            $at,
            "]\n",
            "tileloadd tmm5, [{a} + {row}*1 + ",
            $at,
            " + 1024]",
        )
    };
}

/// Loads one part of 32 columns.
macro_rules! right {
    ($at:literal) => {
        concat!(
            "tileloadd tmm6, [{b} + {row}*1 + ",
            $at,
            "]\n",
            "tileloadd tmm7, [{b} + {row}*1 + ",
            $at,
            " + 1024]",
        )
    };
}

/// Adds the products of the parts that were loaded last.
macro_rules! products {
    () => {
        concat!(
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7",
        )
    };
}

/// Accumulates in four registers over all steps of the given size in bytes; the body is one step.
macro_rules! sums {
    (
        [$target:ident, $stride:ident, $adds:ident, $a:ident, $b:ident, $steps:ident, $bytes:literal]
        $($line:expr),* $(,)?
    ) => {
        asm!(
            "test {adds:e}, {adds:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{upper} + {stride}*1]",
            "tileloadd tmm1, [{upper} + {stride}*1 + 64]",
            "tileloadd tmm2, [{lower} + {stride}*1]",
            "tileloadd tmm3, [{lower} + {stride}*1 + 64]",
            "3:",
            $($line,)*
            concat!("add {a}, ", $bytes),
            concat!("add {b}, ", $bytes),
            "dec {steps}",
            "jnz 3b",
            "tilestored [{upper} + {stride}*1], tmm0",
            "tilestored [{upper} + {stride}*1 + 64], tmm1",
            "tilestored [{lower} + {stride}*1], tmm2",
            "tilestored [{lower} + {stride}*1 + 64], tmm3",
            adds = in(reg) u32::from($adds),
            upper = in(reg) $target,
            lower = in(reg) $target.add(16 * $stride),
            stride = in(reg) $stride * size_of::<f32>(),
            row = in(reg) 64_usize,
            a = inout(reg) $a.as_ptr() => _,
            b = inout(reg) $b.as_ptr() => _,
            steps = inout(reg) $steps => _,
            options(nostack),
        )
    };
}

/// The unit, configured for this thread until the value is dropped.
#[derive(Debug)]
pub(super) struct Unit {
    /// Tile registers belong to a thread, so that the type is not `Send`.
    thread: PhantomData<*const ()>,
}

/// The tile configuration (`LDTILECFG`): palette 1, then bytes per row and rows of each register.
#[repr(C, align(64))]
struct Layout([u8; 64]);

/// All eight registers at full size.
static WHOLE: Layout = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut register = 0;
    while register < 8 {
        bytes[16 + 2 * register] = 64;
        bytes[48 + register] = 16;
        register += 1;
    }
    Layout(bytes)
};

impl Unit {
    /// # Panics
    /// When the unit is not available.
    pub(super) fn new() -> Self {
        assert!(is_available(), "the matrix unit must be available");
        // SAFETY: the instruction is there, and reads 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly));
        }
        Self { thread: PhantomData }
    }

    /// Computes `target = a b`, or adds it if `adds`, for 32 rows and columns; rows of the target are `stride` numbers
    /// apart.
    ///
    /// A product of parts is summed if one of them is a number's first part, and with three parts also if both are
    /// second parts: the others are below the combined precision of the parts.
    ///
    /// # Panics
    /// When the packed sides differ in length, or the target reaches beyond its slice.
    #[expect(clippy::unused_self, reason = "whoever has it has set up the unit")]
    pub(super) fn multiply(
        &mut self,
        target: &mut [f32],
        stride: usize,
        adds: bool,
        parts: SplitCount,
        [a, b]: [&[Tile]; 2],
    ) {
        let step = parts.step_tiles();
        assert!(a.len() == b.len() && a.len().is_multiple_of(step), "whole steps of terms");
        assert!(stride >= SIDE && target.len() >= (SIDE - 1) * stride + SIDE, "the target fits");
        let steps = a.len() / step;
        if steps == 0 {
            return;
        }
        for line in 0..SIDE {
            // SAFETY: a prefetch has no other effect.
            unsafe {
                let line = target.as_ptr().wrapping_add(line * stride).cast();
                _mm_prefetch::<_MM_HINT_ET0>(line);
                _mm_prefetch::<_MM_HINT_ET0>(line.wrapping_add(64));
            }
        }
        // SAFETY: `self` proves that the unit is configured for this thread. The loops read `steps` times two, four or six
        // tiles of each side and read and write two by two tiles of the target; the assertions ensure that all of them
        // lie inside their slices. The compiler does not use the unit's registers.
        unsafe {
            let target = target.as_mut_ptr();
            match parts {
                SplitCount::One => sums!(
                    [target, stride, adds, a, b, steps, "2048"]
                    left!("0"), right!("0"), products!(),
                ),
                SplitCount::Two => sums!(
                    [target, stride, adds, a, b, steps, "4096"]
                    left!("0"), right!("2048"), products!(), // first, second
                    right!("0"), products!(), // first, first
                    left!("2048"), products!(), // second, first
                ),
                SplitCount::Three => sums!(
                    [target, stride, adds, a, b, steps, "6144"]
                    left!("4096"), right!("0"), products!(), // third, first
                    left!("2048"), products!(), // second, first
                    right!("2048"), products!(), // second, second
                    left!("0"), products!(), // first, second
                    right!("4096"), products!(), // first, third
                    right!("0"), products!(), // first, first
                ),
            }
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: the unit is configured.
        unsafe {
            asm!("tilerelease", options(nomem, nostack));
        }
    }
}
