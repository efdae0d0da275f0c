//! The clip range, and the side of it on which a ratio lies.

use turnwise_kernels::lanes::LANES;
use turnwise_kernels::lanes::lanes;

use crate::ObjectiveError;

/// The range 1 − ε_l ..= 1 + ε_h in which a ratio is not clipped.
///
/// A ratio exactly at a bound is inside: it has its full gradient.
///
/// ```
/// use turnwise_objective::{Clip, ObjectiveError};
///
/// let clip = Clip::new(0.2, 0.28)?;
/// assert_eq!((clip.low(), clip.high()), (0.2, 0.28));
/// assert!(Clip::new(1.0, 0.2).is_err());
/// # Ok::<(), ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    low: f64,
    high: f64,
    dual: Option<f64>,
}

impl Clip {
    /// ε_l = 3e-4, ε_h = 4e-4: GSPO, arXiv 2507.18071, section 5.1.
    pub const PAPER_GSPO: Self = Self { low: 3e-4, high: 4e-4, dual: None };

    /// ε_l = 0.2, ε_h = 0.27: the GRPO baseline of arXiv 2507.18071, section 5.1.
    pub const PAPER_GRPO: Self = Self { low: 0.2, high: 0.27, dual: None };

    /// ε_l = 0.2, ε_h = 0.28: DAPO, arXiv 2503.14476, section 4.1.
    pub const PAPER_DAPO: Self = Self { low: 0.2, high: 0.28, dual: None };

    /// ε = 0.2 on both sides: PPO, arXiv 1707.06347, section 6.1.
    pub const PAPER_PPO: Self = Self { low: 0.2, high: 0.2, dual: None };

    /// Creates the range 1 − `low` ..= 1 + `high`.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::InvalidClip`] unless 0 ≤ `low` < 1 and 0 ≤ `high` < ∞.
    pub fn new(low: f64, high: f64) -> Result<Self, ObjectiveError> {
        let valid = (0.0..1.0).contains(&low) && (0.0..f64::INFINITY).contains(&high);
        if valid {
            Ok(Self { low, high, dual: None })
        } else {
            Err(ObjectiveError::InvalidClip { low, high })
        }
    }

    /// Returns this range with the dual bound of another one.
    pub(crate) fn with_dual_of(self, other: Self) -> Self {
        Self { dual: other.dual, ..self }
    }

    /// Adds a second upper bound for negative advantages (dual clip, arXiv 1912.09729, eq. 5, with
    /// bound 3).
    ///
    /// ```text
    /// A < 0:  max( min(r A, clip(r) A), bound · A )      so that r > bound has no gradient
    /// ```
    ///
    /// The range alone does not bound a ratio from above if the advantage is negative: one token
    /// that has become far more probable can dominate a step. With token ratios that token loses
    /// its gradient. With a sequence's ratio (GSPO) the bound is on s_i: if s_i exceeds it, *all*
    /// of the sequence's tokens with a negative advantage lose their gradient. Since log s_i is a
    /// mean over tokens, a single token rarely moves it that far.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::InvalidDualClip`] unless `bound` is finite and above 1 + ε_h.
    ///
    /// ```
    /// use turnwise_objective::{Advantages, Clip, Grpo, Objective, Sequence};
    ///
    /// let grpo = Grpo { clip: Clip::PAPER_GRPO.with_dual(3.0)? };
    /// let sequence = Sequence::new(&[-0.5, -0.5], &[-2.5, -1.0], Advantages::Uniform(-1.0))?;
    /// let mut gradient = [0.0; 2];
    /// let evaluated = grpo.evaluate(&sequence, &mut gradient)?;
    /// assert_eq!(gradient[0], 0.0); // a ratio of e²
    /// assert!(gradient[1] > 0.0); // of e^½
    /// assert_eq!(evaluated.stats.n_clipped_dual, 1);
    /// # Ok::<(), turnwise_objective::ObjectiveError>(())
    /// ```
    pub fn with_dual(self, bound: f64) -> Result<Self, ObjectiveError> {
        let above = 1.0 + self.high;
        if bound > above && bound.is_finite() {
            Ok(Self { dual: Some(bound), ..self })
        } else {
            Err(ObjectiveError::InvalidDualClip { bound, above })
        }
    }

    /// Returns the second upper bound, for negative advantages, if there is one.
    #[must_use]
    pub fn dual(&self) -> Option<f64> {
        self.dual
    }

    /// Returns ε_l.
    #[must_use]
    pub fn low(&self) -> f64 {
        self.low
    }

    /// Returns ε_h.
    #[must_use]
    pub fn high(&self) -> f64 {
        self.high
    }

    /// Returns ln(1 + ε_h) − ln(1 − ε_l), the width of the range in log space.
    #[must_use]
    pub fn log_width(&self) -> f64 {
        self.high.ln_1p() - (-self.low).ln_1p()
    }
}

/// A clip range with its bounds in linear and log space, computed once per sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Band {
    /// 1 − ε_l and 1 + ε_h.
    pub(crate) low: f64,
    pub(crate) high: f64,
    log_low: f64,
    log_high: f64,
    /// The dual clip's bound and its logarithm; ∞ without one.
    pub(crate) dual: f64,
    log_dual: f64,
    /// The distance from a bound within which log space cannot tell the two sides apart.
    tie: f64,
}

impl From<Clip> for Band {
    fn from(clip: Clip) -> Self {
        let (log_low, log_high) = ((-clip.low).ln_1p(), clip.high.ln_1p());
        let tie = 4.0 * f64::EPSILON * (1.0 + log_high.max(-log_low));
        let dual = clip.dual.unwrap_or(f64::INFINITY);
        Self {
            low: 1.0 - clip.low,
            high: 1.0 + clip.high,
            log_low,
            log_high,
            dual,
            log_dual: dual.ln(),
            tie,
        }
    }
}

impl Band {
    /// Returns whether the ratio is strictly below 1 − ε_l.
    ///
    /// The decision is made in log space, where no ratio overflows. Within a few roundings of the
    /// bound, the logarithm of the bound is itself rounded, so there the ratio decides: a ratio
    /// that equals the bound in f64 is inside, the next one is outside.
    #[inline(always)]
    pub(crate) fn is_below(&self, log_ratio: f64) -> bool {
        if (log_ratio - self.log_low).abs() > self.tie {
            log_ratio < self.log_low
        } else {
            log_ratio.exp() < self.low
        }
    }

    /// Returns whether the ratio is strictly above 1 + ε_h; decided like [`Band::is_below`].
    #[inline(always)]
    pub(crate) fn is_above(&self, log_ratio: f64) -> bool {
        if (log_ratio - self.log_high).abs() > self.tie {
            log_ratio > self.log_high
        } else {
            log_ratio.exp() > self.high
        }
    }

    /// Returns whether the ratio is strictly above the dual clip's bound; false without one.
    #[inline(always)]
    pub(crate) fn is_beyond_dual(&self, log_ratio: f64) -> bool {
        log_ratio > self.log_dual
    }

    /// Applies [`Band::is_below`] and [`Band::is_above`] to eight log ratios.
    #[inline(always)]
    pub(crate) fn sides(&self, log_ratios: &[f64; LANES]) -> ([bool; LANES], [bool; LANES]) {
        let mut is_near = false;
        for log_ratio in log_ratios {
            is_near |= ((log_ratio - self.log_low).abs() <= self.tie)
                | ((log_ratio - self.log_high).abs() <= self.tie);
        }
        if is_near {
            return self.sides_one_by_one(log_ratios);
        }
        (
            lanes(|lane| log_ratios[lane] < self.log_low),
            lanes(|lane| log_ratios[lane] > self.log_high),
        )
    }

    #[cold]
    #[inline(never)]
    fn sides_one_by_one(&self, log_ratios: &[f64; LANES]) -> ([bool; LANES], [bool; LANES]) {
        (
            log_ratios.map(|log_ratio| self.is_below(log_ratio)),
            log_ratios.map(|log_ratio| self.is_above(log_ratio)),
        )
    }
}
