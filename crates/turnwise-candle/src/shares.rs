//! Where time goes.

use std::time::{Duration, Instant};

/// What a forward or backward pass is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PassPart {
    /// Rows of tokens, and those that predictions stand behind.
    Embedding,
    /// Root-mean-square norms.
    Norms,
    /// Products with the matrices of layers.
    Linear,
    /// Norms and turns of heads, and attention.
    Attention,
    /// What stands between the matrices of a feed-forward half.
    FeedForward,
    /// Everything about experts.
    Experts,
    /// The output head and the distributions behind it.
    Head,
    /// The optimiser.
    Optimizer,
}

impl PassPart {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Embedding,
        Self::Norms,
        Self::Linear,
        Self::Attention,
        Self::FeedForward,
        Self::Experts,
        Self::Head,
        Self::Optimizer,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Norms => "norms",
            Self::Linear => "linear",
            Self::Attention => "attention",
            Self::FeedForward => "feed_forward",
            Self::Experts => "experts",
            Self::Head => "head",
            Self::Optimizer => "optimizer",
        }
    }
}

/// Wall time spent in each [`PassPart`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    spent: [Duration; PassPart::ALL.len()],
}

impl Shares {
    /// What a part took.
    #[must_use]
    pub fn of(&self, part: PassPart) -> Duration {
        self.spent[part as usize]
    }

    /// What all parts took together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.spent.iter().sum()
    }

    /// What was spent after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut spent = self.spent;
        for (spent, before) in spent.iter_mut().zip(earlier.spent) {
            *spent = spent.saturating_sub(before);
        }
        Self { spent }
    }

    /// Adds what has passed since `start`.
    pub(crate) fn add_since(&mut self, part: PassPart, start: Instant) {
        self.spent[part as usize] += start.elapsed();
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (spent, more) in self.spent.iter_mut().zip(other.spent) {
            *spent += more;
        }
    }
}
