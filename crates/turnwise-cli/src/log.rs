//! Trace output of libraries.

use tracing_subscriber::filter::LevelFilter;

/// Writes warnings to standard error; `TURNWISE_LOG=debug` shows more, `TURNWISE_LOG=off` nothing.
pub(crate) fn to_stderr() {
    let level = std::env::var("TURNWISE_LOG")
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::WARN);
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}
