//! Ctrl-C, SIGTERM and SIGHUP: the first requests a stop, the second ends the process.

use std::sync::atomic::{AtomicU8, Ordering};

use turnwise_rollout::{StopSignal, stop_signal};

use turnwise_run::ExitCode;

/// The source of a stop request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Request {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP: the terminal was closed.
    HangUp,
}

static FIRST: AtomicU8 = AtomicU8::new(Request::Interrupt as u8);

/// Returns a stop signal that is set when the process is asked to stop. The second request exits at once, which is
/// safe: the last checkpoint is always complete. A closed terminal may send SIGHUP several times, so only the first
/// counts.
pub(crate) fn listen() -> StopSignal {
    let (handle, signal) = stop_signal();
    tokio::spawn(async move {
        FIRST.store(request().await as u8, Ordering::Relaxed);
        handle.stop();
        while request().await == Request::HangUp {}
        std::process::exit(exit_code() as i32);
    });
    signal
}

/// Returns the exit code of a run that was asked to stop.
pub(crate) fn exit_code() -> ExitCode {
    match FIRST.load(Ordering::Relaxed) {
        code if code == Request::Terminate as u8 => ExitCode::Terminated,
        code if code == Request::HangUp as u8 => ExitCode::HungUp,
        _ => ExitCode::Interrupted,
    }
}

/// Waits for a stop request.
#[cfg(unix)]
async fn request() -> Request {
    use tokio::signal::unix::{SignalKind, signal};

    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    // Listening would undo the effect of `nohup`.
    let mut hang_up = if ignores_hang_up() { None } else { signal(SignalKind::hangup()).ok() };
    let closed = async {
        match &mut hang_up {
            Some(hang_up) => hang_up.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = interrupt.recv() => Request::Interrupt,
        _ = terminate.recv() => Request::Terminate,
        _ = closed => Request::HangUp,
    }
}

/// Returns whether the process ignores SIGHUP, to outlive its terminal. The system reports the mask in hexadecimal,
/// with SIGHUP in the lowest bit.
#[cfg(unix)]
fn ignores_hang_up() -> bool {
    use std::sync::OnceLock;

    static IGNORED: OnceLock<bool> = OnceLock::new();
    *IGNORED.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & 1 == 1)
    })
}

#[cfg(not(unix))]
async fn request() -> Request {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
    Request::Interrupt
}
