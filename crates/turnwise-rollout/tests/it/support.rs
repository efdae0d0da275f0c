//! What the tests share.

pub(crate) use turnwise_testkit::scene::{
    LETTERS, agents, agents_with, echoes, identity, limits, pool_settings,
};
pub(crate) use turnwise_testkit::{Cuts, RecordedExchange, RecordingPolicy, play};

/// Runs a future to its end on one thread, with a clock that stands still while anything can go on.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(future)
}
