/// Derives the seed of a part from the seed of the whole: `derive_seed(run, task)`, then `derive_seed(that, member)`.
///
/// Equal arguments give equal seeds on every machine and in every version of this crate; the function is a bijection of
/// `label` for a fixed `seed`, so different labels never collide.
///
/// ```
/// use turnwise_environment::derive_seed;
///
/// assert_eq!(derive_seed(7, 1), derive_seed(7, 1));
/// assert_ne!(derive_seed(7, 1), derive_seed(7, 2));
/// ```
#[must_use]
pub fn derive_seed(seed: u64, label: u64) -> u64 {
    mix(label ^ mix(seed.wrapping_add(GOLDEN)))
}

/// The increment of `SplitMix64`: 2^64 over the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Applies the finaliser of `SplitMix64` (Steele, Lea and Flood, *Fast splittable pseudorandom number generators*,
/// 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A small random generator, `SplitMix64`, whose stream never changes between versions of this crate.
///
/// Environments use it so that a task sampled from a seed stays the same task. It is not cryptographically secure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Creates a generator that starts at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Returns the next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Returns a number in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number in `0..n`, each equally likely up to 2^-64.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "there is no number below 0");
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Shuffles the items (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}
