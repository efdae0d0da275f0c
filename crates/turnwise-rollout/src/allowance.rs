use tokio::sync::watch;

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
        Self { tokens, stop: StopSignal { receiver: None } }
    }
}

/// Asks everything that holds its [`StopSignal`] to come to a halt; dropping it does not.
#[derive(Debug)]
pub struct StopHandle {
    sender: watch::Sender<bool>,
}

impl StopHandle {
    /// Asks.
    pub fn stop(&self) {
        self.sender.send_replace(true);
    }
}

/// Whether somebody asked for a halt.
#[derive(Clone, Debug)]
pub struct StopSignal {
    receiver: Option<watch::Receiver<bool>>,
}

impl StopSignal {
    /// A signal that never comes.
    #[must_use]
    pub fn never() -> Self {
        Self { receiver: None }
    }

    /// Whether it has come.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.receiver.as_ref().is_some_and(|receiver| *receiver.borrow())
    }

    /// Waits until it comes; for ever, where nobody can send it any more.
    pub async fn wait(&self) {
        if let Some(mut receiver) = self.receiver.clone()
            && receiver.wait_for(|stop| *stop).await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

/// A handle that asks for a halt, and the signal to pass on.
#[must_use]
pub fn stop_signal() -> (StopHandle, StopSignal) {
    let (sender, receiver) = watch::channel(false);
    (StopHandle { sender }, StopSignal { receiver: Some(receiver) })
}
