//! Each environment below breaks one promise, and its check finds the breach.

use std::ops::RangeInclusive;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use turnwise_environment::check::{Check, check_environment};
use turnwise_environment::{
    Action, Demonstrator, Environment, EnvironmentError, Message, Observation, Recovery, Role,
    Step, ToolSpec, async_trait,
};
use turnwise_testkit::conformance::{self, Script};

/// The promise that an environment breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    PanicsInReset,
    FailsInReset,
    PanicsOnEmptyText,
    FailsOnCalls,
    EndsAsFailed,
    NotANumber,
    OutOfRange,
    ReadsAClock,
    ForgetsItsCount,
    TakesGarbage,
    PanicsOnGarbage,
    SnapshotChangesIt,
    SaysNothing,
    SpeaksForTheAgent,
    ForgetsAnAnswer,
    ChangesItsTools,
    NeverEnds,
    DeclaresSnapshots,
    DeclaresNone,
    DeclaresAReplay,
}

/// An environment that counts to three, whatever the action says.
struct Counter {
    broken: Broken,
    count: u8,
    snapshots: std::sync::atomic::AtomicU8,
    /// Appended to every observation; empty unless the promise about observations is broken.
    noise: String,
}

/// State outside of the episode, such as a clock.
static CLOCK: AtomicU64 = AtomicU64::new(0);

impl Counter {
    fn new(broken: Broken) -> Self {
        Self { broken, count: 0, snapshots: 0.into(), noise: String::new() }
    }

    fn answers(&self, action: &Action) -> Vec<Message> {
        let n_skipped = usize::from(self.broken == Broken::ForgetsAnAnswer);
        let calls = action.calls.iter().skip(n_skipped).map(|attempt| match attempt {
            turnwise_environment::CallAttempt::Call(call) => &call.id,
            turnwise_environment::CallAttempt::Malformed(call) => &call.id,
        });
        calls.map(|id| Message::tool(id.clone(), "no")).collect()
    }

    fn last_reward(&self) -> f64 {
        match self.broken {
            Broken::NotANumber => f64::NAN,
            Broken::OutOfRange => 1.5,
            _ => 1.0,
        }
    }
}

#[async_trait]
impl Environment for Counter {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        assert!(self.broken != Broken::PanicsInReset, "as asked");
        match self.broken {
            Broken::FailsInReset => Err(EnvironmentError::new("cannot open the door")),
            Broken::SaysNothing => Ok(Observation::default()),
            Broken::SpeaksForTheAgent => Ok(vec![Message::new(Role::Assistant, "I win.")].into()),
            Broken::ReadsAClock => Ok(CLOCK.fetch_add(1, Ordering::Relaxed).to_string().into()),
            Broken::DeclaresAReplay => {
                self.noise = CLOCK.fetch_add(1, Ordering::Relaxed).to_string();
                Ok("Count to three.".into())
            }
            _ => Ok("Count to three.".into()),
        }
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        assert!(self.broken != Broken::PanicsOnEmptyText || !action.text.is_empty(), "as asked");
        if self.broken == Broken::FailsOnCalls && !action.calls.is_empty() {
            return Err(EnvironmentError::new("cannot answer a call"));
        }
        if self.broken == Broken::EndsAsFailed && action.text == "-1" {
            return Ok(Step::failed());
        }
        self.count += 1;
        let n_disturbed = self.snapshots.load(Ordering::Relaxed);
        if self.count + n_disturbed >= 3 && self.broken != Broken::NeverEnds {
            return Ok(Step::terminated(self.last_reward()));
        }
        let mut messages = self.answers(&action);
        messages.push(Message::user(format!("{} so far.{}", self.count, self.noise)));
        Ok(Step::next(messages))
    }

    fn tools(&self) -> Vec<ToolSpec> {
        let name = if self.broken == Broken::ChangesItsTools && self.count > 1 { "b" } else { "a" };
        let parameters = json!({"type": "object", "properties": {"x": {"type": "integer"}}});
        vec![ToolSpec { name: name.to_owned(), description: String::new(), parameters }]
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        0.0..=1.0
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        if self.broken == Broken::SnapshotChangesIt {
            self.snapshots.fetch_add(1, Ordering::Relaxed);
        }
        if self.broken == Broken::DeclaresSnapshots {
            return None;
        }
        let count = if self.broken == Broken::ForgetsItsCount { 0 } else { self.count };
        Some(vec![7, count])
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        match snapshot {
            [7, count @ 0..=2] => self.count = *count,
            _ if self.broken == Broken::TakesGarbage => {}
            _ if self.broken == Broken::PanicsOnGarbage => panic!("as asked"),
            _ => return Err(EnvironmentError::new("cannot read a count")),
        }
        Ok(())
    }

    fn recovery(&self) -> Recovery {
        match self.broken {
            Broken::DeclaresNone => Recovery::Restart,
            Broken::DeclaresAReplay => Recovery::Replay,
            _ => Recovery::Snapshot,
        }
    }
}

async fn checks(broken: Broken) -> Vec<Check> {
    let player = |_seed| Box::new(Script::new(&["one", "two", "three"])) as Box<dyn Demonstrator>;
    check_environment(move || Box::new(Counter::new(broken)), player, Some(3)).await
}

/// Returns the names of the checks that failed.
async fn failed(broken: Broken) -> Vec<&'static str> {
    let checks = checks(broken).await;
    checks.iter().filter(|check| !check.passed()).map(|check| check.name).collect()
}

#[tokio::test]
async fn an_environment_that_keeps_its_promises_passes() {
    assert_eq!(failed(Broken::Nothing).await, [""; 0]);
}

// Rollouts 13.30
#[tokio::test]
async fn each_broken_promise_is_found_by_its_check() {
    let cases = [
        (Broken::PanicsInReset, "reset/step with 64 seeds"),
        (Broken::FailsInReset, "reset/step with 64 seeds"),
        (Broken::PanicsOnEmptyText, "survives hostile actions"),
        (Broken::FailsOnCalls, "survives hostile actions"),
        (Broken::EndsAsFailed, "survives hostile actions"),
        (Broken::NotANumber, "rewards finite and in range"),
        (Broken::OutOfRange, "rewards finite and in range"),
        (Broken::ReadsAClock, "same seed, same transcript"),
        (Broken::ForgetsItsCount, "snapshot/restore continues identically"),
        (Broken::SnapshotChangesIt, "snapshot/restore continues identically"),
        (Broken::TakesGarbage, "refuses what is no snapshot"),
        (Broken::PanicsOnGarbage, "refuses what is no snapshot"),
        (Broken::SaysNothing, "observations are not empty and not the agent's"),
        (Broken::SpeaksForTheAgent, "observations are not empty and not the agent's"),
        (Broken::ForgetsAnAnswer, "answers tool calls in order"),
        (Broken::ChangesItsTools, "tools stay the same"),
        (Broken::NeverEnds, "ends within its turns"),
        (Broken::DeclaresSnapshots, "goes on as it declares"),
        (Broken::DeclaresNone, "goes on as it declares"),
        (Broken::DeclaresAReplay, "goes on as it declares"),
    ];
    for (broken, check) in cases {
        let failed = failed(broken).await;
        assert!(failed.contains(&check), "{broken:?} is found by {failed:?}, not by {check:?}");
    }
}

/// A cloned environment whose clones share a count. Episodes one after the other work, because `reset` restarts the
/// count.
#[derive(Clone, Debug, Default)]
struct Together(Arc<Mutex<u8>>);

#[async_trait]
impl Environment for Together {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        *self.0.lock().expect("nobody panics with it") = 0;
        Ok("Count.".into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        let mut count = self.0.lock().expect("nobody panics with it");
        *count += 1;
        Ok(if *count < 3 { Step::next(format!("{count}")) } else { Step::terminated(1.0) })
    }
}

// Field 22
#[tokio::test]
async fn state_that_clones_share_is_found_and_named() {
    let shared = Together::default();
    let player = |_seed| Box::new(Script::new(&["a", "b", "c"])) as Box<dyn Demonstrator>;
    let checks = check_environment(move || Box::new(shared.clone()), player, Some(3)).await;
    let failed: Vec<&Check> = checks.iter().filter(|check| !check.passed()).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].name, "episodes side by side leave each other alone");
    let why = failed[0].result.as_ref().expect_err("it failed");
    assert!(why.contains("`Arc<Mutex<…>>` inside an environment that is cloned"), "{why}");
}

#[tokio::test]
async fn what_is_wrong_is_said_with_its_cause() {
    let checks = checks(Broken::FailsInReset).await;
    assert_eq!(checks[0].result, Err("seed 0: reset failed: cannot open the door".to_owned()));
    assert!(checks.iter().all(|check| !check.passed()), "nothing passes for want of an episode");
}

#[tokio::test]
async fn the_report_can_be_made_on_any_thread() {
    fn is_send<T: Send>(future: T) -> T {
        future
    }
    is_send(checks(Broken::Nothing)).await;
}

#[tokio::test]
async fn the_one_liner_passes_and_panics() {
    conformance::check(|| Counter::new(Broken::Nothing), &["one", "two", "three"]).await;
    let panic =
        panic_of(conformance::check(|| Counter::new(Broken::OutOfRange), &["one", "two", "three"]))
            .await;
    assert!(panic.contains("environment: 1 of 12 checks failed"), "{panic}");
    assert!(panic.contains("sum to 1.5, outside 0.0..=1.0"), "{panic}");
    let panic = panic_of(conformance::check(
        || Counter::new(Broken::Nothing),
        &["one", "two", "three", "four"],
    ))
    .await;
    assert!(panic.contains("the script goes on with [\"four\"]"), "{panic}");
}

async fn panic_of(future: impl Future<Output = ()>) -> String {
    let mut future = std::pin::pin!(future);
    let panic = std::future::poll_fn(|context| {
        let polled = AssertUnwindSafe(|| future.as_mut().poll(context));
        match std::panic::catch_unwind(polled) {
            Ok(poll) => poll.map(|()| None),
            Err(panic) => std::task::Poll::Ready(Some(panic)),
        }
    })
    .await
    .expect("it panics");
    panic.downcast_ref::<String>().expect("a text").clone()
}
