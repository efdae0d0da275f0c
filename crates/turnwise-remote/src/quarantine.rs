//! When a replica that failed may be tried again.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause of a replica that does not answer.
const FIRST: Duration = Duration::from_secs(1);
/// The first pause of a replica that answered wrongly.
const FIRST_WRONG: Duration = Duration::from_secs(30);
/// The longest pause.
const LONGEST: Duration = Duration::from_mins(10);

/// Whether a replica serves requests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Health {
    /// It does.
    Serving,
    /// It failed, and is left alone for a time; then it gets the newest weights again and is checked.
    Quarantined {
        /// When it may be tried again.
        until: Instant,
        /// The pause, which doubles with each failure in a row.
        pause: Duration,
        /// Why.
        reason: String,
    },
}

impl Health {
    /// Returns the state after another failure at `now`.
    pub(crate) fn after_failure(&self, now: Instant, was_wrong: bool, reason: String) -> Self {
        let first = if was_wrong { FIRST_WRONG } else { FIRST };
        let pause = match self {
            Self::Serving => first,
            Self::Quarantined { pause, .. } => (*pause * 2).max(first).min(LONGEST),
        };
        Self::Quarantined { until: now + pause, pause, reason }
    }

    pub(crate) fn is_serving(&self) -> bool {
        *self == Self::Serving
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_are_longer_after_a_wrong_answer() {
        let now = Instant::now();
        let mut health = Health::Serving;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            health = health.after_failure(now, false, "gone".to_owned());
            let Health::Quarantined { pause, until, .. } = &health else { panic!("it failed") };
            assert_eq!(*until, now + *pause);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        let wrong = Health::Serving.after_failure(now, true, "nonsense".to_owned());
        assert!(matches!(wrong, Health::Quarantined { pause, .. } if pause.as_secs() == 30));
    }
}
