//! Weights of sequences by their length.

/// The weight w_i of a sequence of n_i tokens; its token coefficients are (w_i/n_i)·s_i·A_t.
///
/// ```
/// use turnwise_objective::LengthWeight;
///
/// assert_eq!(LengthWeight::default().of(16), 1.0);
/// assert_eq!(LengthWeight::SqrtTokens.of(16), 4.0);
/// assert_eq!(LengthWeight::Tokens.of(16), 16.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LengthWeight {
    /// w = 1: every sequence weighs the same, its tokens 1/n_i each (arXiv 2507.18071, eq. 5).
    #[default]
    Mean,
    /// w = n_i: every token weighs the same in sequences of any length (LUSPO, arXiv 2602.05261).
    /// The gradient at π_θ = π_b is then the policy gradient of the return, without the 1/n_i that
    /// favours short successes and long failures.
    Tokens,
    /// w = √n_i, between the two. (FSPO, arXiv 2509.09177, reaches √n_i by widening the clip range,
    /// which is a different method.)
    SqrtTokens,
}

impl LengthWeight {
    /// Returns w of a sequence of `n_tokens` tokens.
    #[must_use]
    pub fn of(self, n_tokens: usize) -> f64 {
        match self {
            Self::Mean => 1.0,
            Self::Tokens => n_tokens as f64,
            Self::SqrtTokens => (n_tokens as f64).sqrt(),
        }
    }
}
