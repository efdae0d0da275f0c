//! Which replica serves which session.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::Instant;
use turnwise_environment::derive_seed;
use turnwise_rollout::SessionId;

use crate::fault::ServerFault;
use crate::published::PublishedWeights;
use crate::quarantine::Health;
use crate::replica::Replica;

/// The replicas of a model.
#[derive(Debug)]
pub(crate) struct Replicas(pub(crate) Vec<Arc<Replica>>);

impl Replicas {
    /// Returns the replica of a session: always the same while the same replicas serve, and if one of them fails, only its own
    /// sessions move (rendezvous hashing). `None` if none serves.
    pub(crate) fn of(&self, session: SessionId) -> Option<Arc<Replica>> {
        let serving = self.0.iter().filter(|replica| replica.health().is_serving());
        serving.max_by_key(|replica| affinity(session, &replica.url())).cloned()
    }

    /// Gives weights to all replicas, those in quarantine too. Returns what each answered.
    pub(crate) async fn install(
        &self,
        published: &PublishedWeights,
    ) -> Vec<Result<f64, ServerFault>> {
        join_all(self.0.iter().map(|replica| async {
            let _guard = replica.reviving.lock().await;
            let installed = replica.install(published).await;
            if let Err(fault) = &installed {
                replica.quarantine(fault);
            }
            installed
        }))
        .await
    }

    /// Tries replicas again whose pause is over. While another replica serves, whole models are left to the next publication,
    /// because loading them takes long.
    pub(crate) async fn revive(&self, published: &PublishedWeights) {
        let serves = self.0.iter().any(|replica| replica.health().is_serving());
        if serves && published.replaces() {
            return;
        }
        for replica in &self.0 {
            let is_due = |health: &Health| match health {
                Health::Serving => false,
                Health::Quarantined { until, .. } => *until <= Instant::now(),
            };
            if !is_due(&replica.health()) {
                continue;
            }
            let Ok(_guard) = replica.reviving.try_lock() else { continue };
            if !is_due(&replica.health()) {
                continue;
            }
            match replica.install(published).await {
                Ok(_) => tracing::info!(url = replica.url(), "a replica serves again"),
                Err(fault) => replica.quarantine(&fault),
            }
        }
    }

    /// Returns when the next replica may be tried again, with what was wrong with it.
    pub(crate) fn next_try(&self) -> Option<(Instant, String)> {
        let waits = self.0.iter().filter_map(|replica| match replica.health() {
            Health::Serving => None,
            Health::Quarantined { until, reason, .. } => {
                Some((until, format!("{}: {reason}", replica.url())))
            }
        });
        waits.min_by_key(|(until, _)| *until)
    }
}

/// Returns how close a session is to a replica.
fn affinity(session: SessionId, url: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    url.hash(&mut hasher);
    derive_seed(hasher.finish(), session.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_spread_over_replicas_and_move_only_from_one_that_fails() {
        let urls = ["http://one", "http://two", "http://three"];
        let best = |session: u64, urls: &[&'static str]| {
            *urls.iter().max_by_key(|url| affinity(SessionId(session), url)).unwrap()
        };
        let mut counts = [0; 3];
        for session in 0..3_000 {
            let url = best(session, &urls);
            counts[urls.iter().position(|one| *one == url).unwrap()] += 1;
            let left = best(session, &urls[..2]);
            assert!(url == "http://three" || left == url);
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }
}
