//! Reward shaping for over-long responses.

/// Soft over-long punishment: 0 up to a length, then a penalty that grows to −1 at the limit (DAPO,
/// arXiv 2503.14476, eq. 13).
///
/// ```text
/// 0                                         n ≤ max_tokens − buffer_tokens
/// (max_tokens − buffer_tokens − n)/buffer   up to max_tokens
/// −1                                        beyond
/// ```
///
/// The penalty is added to the reward of the episode. Without it, a correct response that was
/// truncated at the limit gets the reward of a wrong answer.
///
/// ```
/// use turnwise_objective::SoftOverlong;
///
/// let shaping = SoftOverlong { max_tokens: 100, buffer_tokens: 20 };
/// assert_eq!([80, 90, 100, 101].map(|n| shaping.penalty(n)), [0.0, -0.5, -1.0, -1.0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftOverlong {
    /// The length beyond which the penalty is −1.
    pub max_tokens: usize,
    /// The number of tokens before the limit over which the penalty grows. 0 makes the penalty a
    /// jump; more than `max_tokens` counts as `max_tokens`.
    pub buffer_tokens: usize,
}

impl SoftOverlong {
    /// 20480 tokens, the last 4096 of them punished (arXiv 2503.14476, section 4.1).
    pub const PAPER: Self = Self { max_tokens: 20_480, buffer_tokens: 4096 };

    /// Returns the number added to the reward of a response of `n_tokens` tokens, from −1 to 0.
    #[must_use]
    pub fn penalty(&self, n_tokens: usize) -> f64 {
        let buffer = self.buffer_tokens.min(self.max_tokens);
        let over = n_tokens.saturating_sub(self.max_tokens - buffer);
        if n_tokens > self.max_tokens {
            -1.0
        } else if over == 0 {
            0.0
        } else {
            -(over as f64 / buffer as f64)
        }
    }
}
