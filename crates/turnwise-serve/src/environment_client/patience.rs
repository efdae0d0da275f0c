//! How long a server is waited for.

use std::time::Duration;

use turnwise_environment::EnvironmentError;

/// The deadlines of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// For a connection.
    pub(crate) connect: Duration,
    /// For an answer.
    pub(crate) answer: Duration,
    /// For a server that starts, or has no room.
    pub(crate) ready: Duration,
}

impl Patience {
    /// Reads seconds.
    pub(crate) fn read(
        connect_s: f64,
        answer_s: f64,
        ready_s: f64,
    ) -> Result<Self, EnvironmentError> {
        let seconds = |name: &str, value: f64| {
            let read = Duration::try_from_secs_f64(value).ok().filter(|time| !time.is_zero());
            read.ok_or_else(|| {
                EnvironmentError::new(format!("`{name}` is {value}, and must be above 0"))
            })
        };
        Ok(Self {
            connect: seconds("connect_timeout_s", connect_s)?,
            answer: seconds("timeout_s", answer_s)?,
            ready: seconds("ready_timeout_s", ready_s)?,
        })
    }
}

/// The longest pause before another attempt, whatever the server asks for.
const LONGEST: Duration = Duration::from_secs(10);

/// Pauses between attempts, each twice as long as the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackOff {
    next: Duration,
    left: Duration,
}

impl BackOff {
    /// Starts with half a second; the pauses sum to at most `total`.
    pub(crate) fn new(total: Duration) -> Self {
        Self { next: Duration::from_millis(500), left: total }
    }

    /// Returns the next pause, or nothing if there is no time left. `asked` is what the server asks for.
    pub(crate) fn pause(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let pause = asked.unwrap_or(self.next).clamp(Duration::from_millis(50), LONGEST);
        self.next = (self.next * 2).min(LONGEST);
        self.left = self.left.checked_sub(pause)?;
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_capped_and_end() {
        let mut back_off = BackOff::new(Duration::from_secs(20));
        let mut pauses = Vec::new();
        while let Some(pause) = back_off.pause(None) {
            pauses.push(pause.as_secs_f64());
        }
        assert_eq!(pauses, [0.5, 1.0, 2.0, 4.0, 8.0]);
        let mut back_off = BackOff::new(Duration::from_secs(20));
        let asked = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(back_off.pause(asked(3)), asked(3));
        assert_eq!(back_off.pause(asked(86_400)), asked(10));
        assert_eq!(back_off.pause(asked(0)), Some(Duration::from_millis(50)));
        assert_eq!(back_off.pause(asked(10)), None);
    }

    #[test]
    fn a_deadline_is_a_time() {
        assert!(Patience::read(1.0, 2.0, 3.0).is_ok());
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(Patience::read(wrong, 2.0, 3.0).is_err(), "{wrong}");
        }
    }
}
