use std::any::Any;
use std::error::Error;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use crate::EnvironmentError;

/// Awaits a call into an environment and returns its result, with an error or a panic as text.
pub(super) async fn guarded<T>(
    call: impl Future<Output = Result<T, EnvironmentError>> + Send,
) -> Result<T, String> {
    let mut call = pin!(call);
    // A call that panicked is never polled again and its environment is dropped, so broken state stays unobserved.
    poll_fn(|context| match caught(|| call.as_mut().poll(context)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(result)) => Poll::Ready(result.map_err(|error| explained(&error))),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// Returns the result of a synchronous call, with a panic as text.
pub(super) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| format!("panicked: {}", message(&*panic)))
}

/// Returns the message of a panic, if it has one.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Formats an error with its causes.
fn explained(error: &EnvironmentError) -> String {
    let mut text = format!("failed: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
