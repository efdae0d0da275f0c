//! Time of training by kind of work.

use std::time::{Duration, Instant};

/// A kind of work in a forward or backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PassPart {
    /// Embedding lookup, and the selection of rows with predictions.
    Embedding,
    /// RMSNorm.
    Norms,
    /// Products with the matrices of layers.
    Linear,
    /// QK-norm, rotary position embedding and attention.
    Attention,
    /// The activation of the feed-forward half.
    FeedForward,
    /// Everything in mixture-of-experts layers.
    Experts,
    /// The output head and its distributions.
    Head,
    /// The optimiser.
    Optimizer,
}

impl PassPart {
    /// All kinds of work.
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

    /// Returns its name in reports.
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
    /// Returns the time of a kind of work.
    #[must_use]
    pub fn of(&self, part: PassPart) -> Duration {
        self.spent[part as usize]
    }

    /// Returns the total time.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.spent.iter().sum()
    }

    /// Returns the difference to an earlier measurement.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut spent = self.spent;
        for (spent, before) in spent.iter_mut().zip(earlier.spent) {
            *spent = spent.saturating_sub(before);
        }
        Self { spent }
    }

    /// Adds the time since `start`.
    pub(crate) fn add_since(&mut self, part: PassPart, start: Instant) {
        self.spent[part as usize] += start.elapsed();
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (spent, more) in self.spent.iter_mut().zip(other.spent) {
            *spent += more;
        }
    }
}
