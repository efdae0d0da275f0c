use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{Allowance, Episode, Policy, Progress};

/// Where the episodes of a [`RolloutPool`](crate::RolloutPool) run: in this process, or on workers.
///
/// # Contract
///
/// - `advance` returns the episode in the state that [`Episode::advance`] would leave it in: finished, or suspended when the
///   allowance is used up or a stop is requested. It never loses an episode: one whose worker is gone goes on elsewhere, from
///   its last known state.
/// - A stop is seen at the next token.
/// - Dropping the future abandons the episode.
///
/// # Example
///
/// A runner that counts:
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicUsize, Ordering};
///
/// use turnwise_environment::async_trait;
/// use turnwise_rollout::{Allowance, Episode, EpisodeRunner, Policy, Progress};
///
/// #[derive(Debug, Default)]
/// struct Counting(AtomicUsize);
///
/// #[async_trait]
/// impl EpisodeRunner for Counting {
///     async fn advance(
///         &self,
///         episode: Episode,
///         policy: &Arc<dyn Policy>,
///         allowance: &Allowance,
///     ) -> Progress {
///         self.0.fetch_add(1, Ordering::Relaxed);
///         episode.advance(&**policy, allowance).await
///     }
/// }
/// ```
#[async_trait]
pub trait EpisodeRunner: fmt::Debug + Send + Sync {
    /// Advances an episode until it has an outcome or the allowance is used up.
    async fn advance(
        &self,
        episode: Episode,
        policy: &Arc<dyn Policy>,
        allowance: &Allowance,
    ) -> Progress;
}

/// Runs episodes in this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

#[async_trait]
impl EpisodeRunner for InProcess {
    async fn advance(
        &self,
        episode: Episode,
        policy: &Arc<dyn Policy>,
        allowance: &Allowance,
    ) -> Progress {
        episode.advance(&**policy, allowance).await
    }
}
