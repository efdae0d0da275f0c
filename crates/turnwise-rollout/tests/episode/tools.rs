use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;
use turnwise_environment::{
    CallAttempt, Environment, EnvironmentError, Message, Services, Tool, ToolCall, ToolLedger,
    ToolReply, ToolSpec, Toolbox, async_trait,
};
use turnwise_testkit::{Shop, Till};
use turnwise_trajectory::Outcome;

use crate::support::{ENGINE, Made, block_on, episode, finished};

const SECOND: Duration = Duration::from_secs(1);

fn toolbox(till: &Arc<Till>) -> Toolbox {
    Toolbox::new(vec![Arc::clone(till) as Arc<dyn Tool>])
}

fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().filter_map(|message| message.tool_call_id.as_deref()).collect()
}

proptest! {
    // Rollouts 13.19, 11.24: `z` answers before `a` in every order of calls, with and without a ledger.
    #[test]
    fn results_are_in_call_order_under_any_completion_order(
        items in "[s-y]{1,6}",
        has_ledger in any::<bool>(),
    ) {
        let till = Arc::new(Till::slow(SECOND));
        let mut tools = toolbox(&till).timeout(60 * SECOND).concurrent();
        let ledger = ToolLedger::new(0, 0, 0);
        if has_ledger {
            tools.connect(&Services::new(ledger.clone()));
        }
        let action = Shop::calls(&items);
        let (round, took) = block_on(async {
            let started = Instant::now();
            (tools.answer(&action).await.expect("nothing is broken"), started.elapsed())
        });
        let called: Vec<&str> = action.tool_calls().map(|call| call.id.as_str()).collect();
        prop_assert_eq!(ids(&round.messages), called);
        for (message, item) in round.messages.iter().zip(items.chars()) {
            prop_assert!(message.content.starts_with(item), "{}", message.content);
        }
        let mut sold = till.sold().concat().into_bytes();
        prop_assert!(sold.is_sorted_by(|a, b| a >= b), "the later letter takes less time");
        sold.sort_unstable();
        let mut asked = items.into_bytes();
        asked.sort_unstable();
        prop_assert_eq!(&sold, &asked);
        // In parallel: as long as the slowest call, not as long as all.
        prop_assert_eq!(took.as_secs(), u64::from(b'z' - asked[0]));
        prop_assert_eq!(ledger.records().len(), if has_ledger { asked.len() } else { 0 });
        prop_assert!(ledger.records().iter().all(|record| record.reply.is_some()));
    }
}

// Rollouts 13.19: in parallel only if the tool declares it.
#[test]
fn calls_run_one_after_the_other_unless_declared_otherwise() {
    let till = Arc::new(Till::slow(SECOND));
    let tools = toolbox(&till).timeout(60 * SECOND);
    block_on(async {
        let started = Instant::now();
        let round = tools.answer(&Shop::calls("wxy")).await.expect("nothing is broken");
        assert_eq!(started.elapsed().as_secs(), 3 + 2 + 1);
        assert_eq!(round.messages.len(), 3);
    });
    assert_eq!(till.sold(), ["w", "x", "y"]);
}

// A call that takes too long is the agent's mistake, and the tool stays usable.
#[test]
fn a_tool_that_times_out_is_an_observation_and_stays_usable() {
    let till = Arc::new(Till::slow(SECOND));
    let tools = toolbox(&till).timeout(5 * SECOND);
    block_on(async {
        let round = tools.answer(&Shop::calls("ay")).await.expect("nothing is broken");
        assert_eq!(round.messages[0].content, "error: timeout: timed out after 5 s");
        assert_eq!(round.messages[1].content, "y is sale 1");
        assert_eq!(round.faults, 1);
    });
    assert_eq!(till.sold(), ["y"], "what was given up does not act later");
}

// The same in an episode, whose reward is not affected.
#[test]
fn an_episode_goes_on_after_a_tool_timed_out() {
    let till = Arc::new(Till::slow(SECOND));
    let tasks = Made(|| -> Box<dyn Environment> {
        Box::new(Shop::with_tools(toolbox(&till).timeout(SECOND), 3))
    });
    let ended = block_on(finished(episode(&tasks, 3), &ENGINE));
    assert_eq!(ended.outcome, Outcome::Done);
    assert!(ended.turns.iter().map(|turn| turn.faults).sum::<u32>() > 0);
    assert!(ended.reward().is_some());
}

/// A tool whose server is dead.
struct Dead;

#[async_trait]
impl Tool for Dead {
    fn spec(&self) -> ToolSpec {
        let parameters = serde_json::json!({"type": "object"});
        ToolSpec { name: "sell".to_owned(), description: String::new(), parameters }
    }

    async fn call(&self, _: &serde_json::Value) -> Result<ToolReply, EnvironmentError> {
        Err(EnvironmentError::new("cannot reach the server"))
    }
}

// A dead tool is an infrastructure fault.
#[test]
fn a_dead_tool_is_an_infrastructure_fault() {
    let tasks = Made(|| -> Box<dyn Environment> {
        Box::new(Shop::with_tools(Toolbox::new(vec![Arc::new(Dead)]), 3))
    });
    let ended = block_on(finished(episode(&tasks, 3), &ENGINE));
    assert_eq!(crate::support::reason(&ended), Some(turnwise_trajectory::InfraReason::EnvError));
    assert_eq!(ended.reward(), None);
}

// Unknown tools and unreadable calls are answered in their place.
#[test]
fn wrong_calls_are_answered_where_they_stand() {
    let till = Arc::new(Till::new(false));
    let mut action = Shop::calls("ab");
    let unknown = ToolCall { id: "x".into(), name: "buy".into(), arguments: serde_json::json!({}) };
    action.calls.insert(1, CallAttempt::Call(unknown));
    let mut tools = toolbox(&till);
    let ledger = ToolLedger::new(0, 0, 0);
    tools.connect(&Services::new(ledger.clone()));
    let round = block_on(tools.answer(&action)).expect("nothing is broken");
    assert_eq!(ids(&round.messages), ["call_0", "x", "call_1"]);
    assert_eq!((round.faults, till.sold().len(), ledger.records().len()), (1, 2, 2));
}
