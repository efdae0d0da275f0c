//! Waiting for work without the interpreter's lock, and Ctrl-C meanwhile.

use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval};
use turnwise_rollout::StopHandle;

use crate::failure::broken;

/// How often the interpreter is asked for signals.
const TICK: Duration = Duration::from_millis(100);

/// Runs work to its end on a runtime of its own, without the interpreter's lock. If a signal handler raises an exception, as
/// Ctrl-C does, the work is dropped and the exception is returned.
pub(crate) fn wait<T: Send, W: Future<Output = T>>(
    py: Python<'_>,
    work: impl FnOnce() -> W + Send,
) -> PyResult<T> {
    py.detach(|| block_on(None, work))
}

/// Like [`wait`], but the first exception requests a stop, and the work is waited for. A second one drops the work. The
/// exception is returned in the place of what the work gives.
pub(crate) fn wait_or_stop<T: Send, W: Future<Output = T>>(
    py: Python<'_>,
    stop: &StopHandle,
    work: impl FnOnce() -> W + Send,
) -> PyResult<T> {
    py.detach(|| block_on(Some(stop), work))
}

/// Runs work to its end: on this thread, or on one of its own if this thread runs other work, whose function in Python called
/// this one.
fn block_on<T: Send, W: Future<Output = T>>(
    stop: Option<&StopHandle>,
    work: impl FnOnce() -> W + Send,
) -> PyResult<T> {
    if Handle::try_current().is_err() {
        return run(stop, work);
    }
    let ended = thread::scope(|scope| scope.spawn(|| run(stop, work)).join());
    ended.unwrap_or_else(|panic| resume_unwind(panic))
}

fn run<T, W: Future<Output = T>>(
    stop: Option<&StopHandle>,
    work: impl FnOnce() -> W,
) -> PyResult<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| broken(&error))?;
    let ended = runtime.block_on(async { watched(stop, work()).await });
    // A call of an environment that never returns must not keep the interpreter.
    runtime.shutdown_background();
    ended
}

async fn watched<T>(stop: Option<&StopHandle>, work: impl Future<Output = T>) -> PyResult<T> {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut raised: Option<PyErr> = None;
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return raised.map_or(Ok(done), Err),
            _ = ticks.tick() => {
                let Err(error) = Python::attach(handle_signals) else { continue };
                match (stop, &raised) {
                    (Some(stop), None) => {
                        stop.stop();
                        raised = Some(error);
                    }
                    _ => return Err(error),
                }
            }
        }
    }
}

/// Calls the handlers of the signals that have come, if this is the main thread.
fn handle_signals(py: Python<'_>) -> PyResult<()> {
    py.check_signals()
}
