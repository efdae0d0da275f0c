use tokio_util::sync::CancellationToken;

/// The bounds at which an episode suspends.
#[derive(Clone, Debug)]
pub struct Allowance {
    /// The number of tokens that the episode may sample.
    pub tokens: u64,
    /// The signal at which the episode suspends.
    pub stop: StopSignal,
}

impl Allowance {
    /// Returns an allowance without bounds other than the episode's limits.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::tokens(u64::MAX)
    }

    /// Returns an allowance of this many tokens, without a stop signal.
    #[must_use]
    pub fn tokens(tokens: u64) -> Self {
        Self { tokens, stop: StopSignal::never() }
    }
}

/// Requests a stop from every holder of its [`StopSignal`] or of a child of that signal. Dropping the handle requests
/// nothing.
#[derive(Clone, Debug)]
pub struct StopHandle(CancellationToken);

impl StopHandle {
    /// Requests a stop; every holder of the signal sees it at its next check.
    pub fn stop(&self) {
        self.0.cancel();
    }
}

/// A signal that tells its holders whether a stop was requested.
#[derive(Clone, Debug)]
pub struct StopSignal(CancellationToken);

impl StopSignal {
    /// Returns a signal that is never sent.
    #[must_use]
    pub fn never() -> Self {
        Self(CancellationToken::new())
    }

    /// Returns whether a stop was requested.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits for a stop request; forever if every handle is dropped.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }

    /// Creates a child signal, which is sent with this signal or by its own handle.
    #[must_use]
    pub fn child(&self) -> (StopHandle, Self) {
        let token = self.0.child_token();
        (StopHandle(token.clone()), Self(token))
    }
}

/// Creates a stop handle and its signal.
#[must_use]
pub fn stop_signal() -> (StopHandle, StopSignal) {
    StopSignal::never().child()
}
