use tokio_util::sync::CancellationToken;

/// How far an episode may go before it suspends.
#[derive(Clone, Debug)]
pub struct Allowance {
    /// How many tokens it may draw.
    pub tokens: u64,
    /// Asks it to suspend at the next opportunity.
    pub stop: StopSignal,
}

impl Allowance {
    /// No bound but the episode's own limits.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::tokens(u64::MAX)
    }

    /// This many tokens, and nobody who could ask it to stop.
    #[must_use]
    pub fn tokens(tokens: u64) -> Self {
        Self { tokens, stop: StopSignal::never() }
    }
}

/// Asks everything that holds its [`StopSignal`], or a child of it, to come to a halt; dropping it does not.
#[derive(Clone, Debug)]
pub struct StopHandle(CancellationToken);

impl StopHandle {
    /// Asks.
    pub fn stop(&self) {
        self.0.cancel();
    }
}

/// Whether somebody asked for a halt.
#[derive(Clone, Debug)]
pub struct StopSignal(CancellationToken);

impl StopSignal {
    /// A signal that never comes.
    #[must_use]
    pub fn never() -> Self {
        Self(CancellationToken::new())
    }

    /// Whether it has come.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until it comes; for ever, where nobody can send it any more.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }

    /// A signal that comes with this one, or alone when its own handle asks.
    #[must_use]
    pub fn child(&self) -> (StopHandle, Self) {
        let token = self.0.child_token();
        (StopHandle(token.clone()), Self(token))
    }
}

/// A handle that asks for a halt, and the signal to pass on.
#[must_use]
pub fn stop_signal() -> (StopHandle, StopSignal) {
    StopSignal::never().child()
}
