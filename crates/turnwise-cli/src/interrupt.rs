//! Ctrl-C and SIGTERM: once asks for a halt, twice ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use turnwise::rollout::{StopSignal, stop_signal};

use crate::failure::ExitCode;

static TERMINATED: AtomicBool = AtomicBool::new(false);

/// A signal that comes when the process is asked to stop. The second request exits at once: the last checkpoint is whole
/// whenever that happens.
pub(crate) fn listen() -> StopSignal {
    let (handle, signal) = stop_signal();
    tokio::spawn(async move {
        TERMINATED.store(request().await, Ordering::Relaxed);
        handle.stop();
        request().await;
        std::process::exit(exit_code() as i32);
    });
    signal
}

/// The exit code of a run that was asked to stop.
pub(crate) fn exit_code() -> ExitCode {
    if TERMINATED.load(Ordering::Relaxed) { ExitCode::Terminated } else { ExitCode::Interrupted }
}

/// Waits for a request; true when it was SIGTERM.
#[cfg(unix)]
async fn request() -> bool {
    use tokio::signal::unix::{SignalKind, signal};

    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        result = tokio::signal::ctrl_c() => if result.is_ok() { false } else { std::future::pending().await },
        _ = terminate.recv() => true,
    }
}

#[cfg(not(unix))]
async fn request() -> bool {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
    false
}
