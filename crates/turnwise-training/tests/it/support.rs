//! What the tests share.

pub(crate) use turnwise_testkit::scene::{
    LETTERS, OBJECTIVE, OUTCOME, agents, agents_with, echoes, identity, limits, pool_settings,
};
pub(crate) use turnwise_testkit::{Built, Cuts, RecordingPolicy, play, scored_token as token};
use turnwise_trajectory::{Outcome, Trajectory};

/// Runs a future to its end on one thread, with a clock that stands still while anything can go on.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// A trajectory of one turn with this reward and outcome.
pub(crate) fn ended(member: u32, reward: f64, outcome: Outcome) -> Trajectory {
    let built = Built::new(member).turn(vec![token(1, -0.5, 0.0)], reward);
    Trajectory { outcome, ..built.trajectory }
}
