//! The calculator keeps the contract of environments, and its own rules.

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use turnwise_calculator::{
    Calc, CalculatorEpisode, CalculatorSettings, CalculatorTask, Expression, Operation, suite,
};
use turnwise_environment::check::{Player, measure};
use turnwise_environment::{
    Action, CallAttempt, CallError, Environment, MalformedCall, Message, Split, Step, Suite, Tool,
    ToolCall, ToolReply,
};
use turnwise_testkit::conformance;

fn calculator(settings: CalculatorSettings) -> Suite {
    suite(settings).expect("the settings are valid")
}

/// `7 + 5 - 3` in five turns.
fn episode() -> CalculatorEpisode {
    let steps = vec![(Operation::Add, 5), (Operation::Subtract, 3)];
    let expression = Expression { first: 7, steps };
    CalculatorEpisode::new(CalculatorTask { expression, turns: 5 })
}

fn call(a: i64, op: &str, b: i64) -> Action {
    Action::call("calc", json!({"a": a, "op": op, "b": b}))
}

/// The answer to the one call of an action.
fn answered(text: &str, reward: f64) -> Step {
    Step::next(vec![Message::tool("call_0", text)]).reward(reward)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

#[tokio::test]
async fn the_suite_keeps_its_contract() {
    let calculator = calculator(CalculatorSettings::default());
    conformance::suite(&calculator).await;
    conformance::expert_solves(&calculator, 1.0).await;
}

// Rollouts 13.30
#[tokio::test]
async fn an_episode_keeps_its_contract() {
    conformance::check(episode, &["what?", "", "9"]).await;
}

#[tokio::test]
async fn the_random_player_solves_next_to_nothing() {
    let calculator = calculator(CalculatorSettings::default());
    let random = measure(&calculator, Split::Train, Player::Random, 1000).await;
    let random = random.expect("it plays").expect("a player");
    assert!(random.solved_rate < 0.05 && random.reward_mean < 0.05, "{random:?}");
}

#[tokio::test]
async fn the_playthroughs_are_as_they_were() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/playthroughs");
    conformance::playthroughs(&calculator(CalculatorSettings::default()), &folder).await;
}

#[tokio::test]
async fn each_result_is_rewarded_once_and_in_order() {
    let mut episode = episode();
    assert_eq!(episode.reset(0).await.unwrap(), "Compute 7 + 5 - 3, left to right.".into());
    // The right value from other operands, then the second result before the first.
    assert_eq!(episode.step(call(6, "+", 6)).await.unwrap(), answered("12", 0.0));
    assert_eq!(episode.step(call(12, "-", 3)).await.unwrap(), answered("9", 0.0));
    assert_eq!(episode.step(call(7, "+", 5)).await.unwrap(), answered("12", 0.25));
    assert_eq!(episode.step(call(7, "+", 5)).await.unwrap(), answered("12", 0.0));
    // The turns are used up, and the last one keeps what it brought.
    let last = episode.step(call(12, "-", 3)).await.unwrap();
    assert_eq!(last, Step::terminated(0.25));
}

#[tokio::test]
async fn operands_may_be_swapped_where_that_changes_nothing() {
    let mut episode = episode();
    episode.reset(0).await.unwrap();
    assert_eq!(episode.step(call(5, "+", 7)).await.unwrap(), answered("12", 0.25));
    assert_eq!(episode.step(call(3, "-", 12)).await.unwrap(), answered("-9", 0.0));
}

#[tokio::test]
async fn several_calls_of_one_turn_are_answered_and_rewarded_in_order() {
    let attempt = |id: &str, arguments: Value| {
        let (id, name) = (id.to_owned(), "calc".to_owned());
        CallAttempt::Call(ToolCall { id, name, arguments })
    };
    let calls = vec![
        attempt("x", json!({"a": 7, "op": "+", "b": 5})),
        attempt("y", json!({"a": 7, "op": "/", "b": 5})),
        attempt("z", json!({"a": 12, "op": "-", "b": 3})),
    ];
    let mut episode = episode();
    episode.reset(0).await.unwrap();
    let messages = vec![
        Message::tool("x", "12"),
        Message::tool("y", "error: invalid_args: op must be +, - or *"),
        Message::tool("z", "9"),
    ];
    let step = episode.step(Action { calls, ..Action::text("9") }).await.unwrap();
    assert_eq!(step, Step::next(messages).reward(0.5).faults(1));
    assert_eq!(episode.step("9".into()).await.unwrap(), Step::terminated(0.5).solved(true));
}

#[tokio::test]
async fn an_answer_ends_the_episode() {
    for (said, step) in [("9", Step::terminated(0.5).solved(true)), ("12", Step::terminated(0.0))] {
        let mut episode = episode();
        episode.reset(0).await.unwrap();
        assert_eq!(episode.step(said.into()).await.unwrap(), step);
    }
}

#[tokio::test]
async fn what_is_neither_call_nor_number_is_told_so() {
    let mut episode = episode();
    episode.reset(0).await.unwrap();
    let complaint = Step::next("Call calc or answer with a number.").reward(0.0).faults(1);
    for _ in 0..4 {
        assert_eq!(episode.step("nine".into()).await.unwrap(), complaint);
    }
    assert_eq!(episode.step("nine".into()).await.unwrap(), Step::terminated(0.0));
}

#[tokio::test]
async fn a_wrong_call_is_answered_with_what_is_wrong() {
    for (arguments, why) in [
        (json!([]), "the arguments must be an object"),
        (json!({"op": "+", "b": 5}), "a is missing"),
        (json!({"a": 7, "b": 5}), "op is missing"),
        (json!({"a": 7, "op": "+"}), "b is missing"),
        (json!({"a": "7", "op": "+", "b": 5}), "a must be an integer"),
        (json!({"a": 7, "op": "+", "b": 5.5}), "b must be an integer"),
        (json!({"a": u64::MAX, "op": "+", "b": 5}), "a must be an integer"),
        (json!({"a": 7, "op": "plus", "b": 5}), "op must be +, - or *"),
        (json!({"a": 7, "op": "+", "b": 5, "c": 1}), "give a, op and b only"),
        (json!({"a": i64::MAX, "op": "*", "b": 2}), "the result is too large"),
    ] {
        let reply = Calc.call(&arguments).await.unwrap();
        let error = ToolReply::Error(CallError::InvalidArgs, why.to_owned());
        assert_eq!(reply, error, "{arguments}");
    }
}

#[tokio::test]
async fn a_snapshot_of_a_longer_episode_is_refused() {
    let mut episode = episode();
    assert!(episode.restore(br#"{"turns_used":4,"n_results":2}"#).is_ok());
    assert!(episode.restore(br#"{"turns_used":5,"n_results":2}"#).is_err());
    assert!(episode.restore(br#"{"turns_used":4,"n_results":3}"#).is_err());
    assert!(episode.restore(br#"{"turns_used":4}"#).is_err());
}

#[test]
fn settings_are_checked() {
    let good = CalculatorSettings::default();
    for bad in [
        CalculatorSettings { operations: 0, ..good },
        CalculatorSettings { operations: 7, ..good },
        CalculatorSettings { max_operand: 1, ..good },
        CalculatorSettings { max_value: 8, ..good },
        CalculatorSettings { max_value: 1000, ..good },
        CalculatorSettings { tasks: 1, ..good },
        CalculatorSettings { turns: Some(2), ..good },
        CalculatorSettings { operations: usize::MAX, max_operand: u32::MAX, ..good },
    ] {
        assert!(suite(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn settings_are_read_with_defaults_and_without_strangers() {
    let read = serde_json::from_str::<CalculatorSettings>;
    assert_eq!(read("{}").unwrap(), CalculatorSettings::default());
    assert_eq!(read(r#"{"operations": 3}"#).unwrap().turn_limit(), 6);
    assert_eq!(read(r#"{"turns": 9}"#).unwrap().turn_limit(), 9);
    assert!(read(r#"{"operation": 3}"#).is_err());
}

fn any_settings() -> impl Strategy<Value = CalculatorSettings> {
    (1_usize..=6, 5_u32..=20, 20_u32..=200, 50_usize..=400).prop_map(
        |(operations, max_operand, max_value, tasks)| CalculatorSettings {
            operations,
            max_operand,
            max_value,
            tasks,
            turns: None,
        },
    )
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        let name = prop_oneof!["a", "b", "op", any::<String>()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..4)
                .prop_map(|object| Value::Object(object.into_iter().collect())),
        ]
    })
}

fn any_action() -> impl Strategy<Value = Action> {
    let right = prop_oneof![Just(call(7, "+", 5)), Just(call(12, "-", 3))];
    let near = (-1_i64..20, "[-+*/]", -1_i64..20).prop_map(|(a, op, b)| call(a, &op, b));
    let hostile = any_value().prop_map(|arguments| Action::call("calc", arguments));
    let stranger = any::<String>().prop_map(|name| Action::call(name, json!({})));
    let text = any::<String>().prop_map(Action::text);
    let number = (0_i64..20).prop_map(|number| Action::text(number.to_string()));
    let broken = any::<String>().prop_map(|raw| Action {
        calls: vec![CallAttempt::Malformed(MalformedCall {
            id: "call_0".to_owned(),
            raw,
            error: CallError::Decode,
            message: "not JSON".to_owned(),
        })],
        ..Action::default()
    });
    prop_oneof![4 => right, 2 => near, 2 => hostile, 1 => stranger, 1 => text, 1 => number, 1 => broken]
}

/// Plays until the end; the number of turns and the rewards.
async fn play(mut episode: CalculatorEpisode, actions: Vec<Action>) -> (usize, Vec<f64>) {
    episode.reset(0).await.expect("it starts");
    let mut rewards = Vec::new();
    for action in actions {
        let step = episode.step(action).await.expect("it answers");
        let (Step::Next { reward, .. } | Step::End { reward, .. }) = &step;
        rewards.push(reward.expect("every turn is scored"));
        if matches!(step, Step::End { .. }) {
            return (rewards.len(), rewards);
        }
    }
    panic!("the episode is not over");
}

proptest! {
    #[test]
    fn any_actions_end_the_episode_in_time_and_in_range(
        actions in prop::collection::vec(any_action(), 5),
    ) {
        let (n_turns, rewards) = block_on(play(episode(), actions));
        prop_assert!(n_turns <= 5);
        prop_assert!((0.0..=1.0).contains(&rewards.iter().sum()));
    }

    #[test]
    fn no_order_of_calls_earns_more_than_the_results_are_worth(
        order in prop::collection::vec(prop::bool::ANY, 5),
    ) {
        let calls = [call(7, "+", 5), call(12, "-", 3)];
        let actions = order.iter().map(|second| calls[usize::from(*second)].clone()).collect();
        let (_, rewards) = block_on(play(episode(), actions));
        // The first result counts when it comes, the second one only after it.
        let first = order.iter().position(|second| !second);
        let second = first.and_then(|first| order[first..].iter().position(|second| *second));
        let expected = 0.25 * f64::from(u8::from(first.is_some()) + u8::from(second.is_some()));
        prop_assert_eq!(rewards.iter().sum::<f64>(), expected);
    }

    #[test]
    fn hostile_arguments_get_a_short_reason(arguments in any_value()) {
        match block_on(Calc.call(&arguments)).unwrap() {
            ToolReply::Result(text) => prop_assert!(text.parse::<i64>().is_ok()),
            ToolReply::Error(error, why) => {
                prop_assert_eq!(error, CallError::InvalidArgs);
                prop_assert!(!why.is_empty() && why.len() < 40);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_expert_earns_exactly_one(settings in any_settings()) {
        let calculator = calculator(settings);
        for split in [Split::Train, Split::HeldOut] {
            let expert = block_on(measure(&calculator, split, Player::Expert, 20)).unwrap().unwrap();
            prop_assert_eq!(expert.solved_rate, 1.0);
            prop_assert!((expert.reward_mean - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn the_splits_are_a_partition(settings in any_settings(), n_fewer in 0_usize..50) {
        let calculator = calculator(settings);
        let keys = |split| {
            let tasks = calculator.tasks(split);
            (0..tasks.len()).map(|index| tasks.key(index)).collect::<BTreeSet<_>>()
        };
        let (train, held_out) = (keys(Split::Train), keys(Split::HeldOut));
        let n_tasks = [Split::Train, Split::HeldOut].map(|split| calculator.tasks(split).len());
        prop_assert_eq!([train.len(), held_out.len()], n_tasks);
        prop_assert!(train.is_disjoint(&held_out));
        prop_assert!(n_tasks[0] + n_tasks[1] <= settings.tasks);
        // With other numbers of tasks, other expressions are drawn; those that both have stay where they are.
        let fewer = CalculatorSettings { tasks: settings.tasks - n_fewer.min(20), ..settings };
        let fewer = self::calculator(fewer).tasks(Split::HeldOut);
        prop_assert!((0..fewer.len()).all(|index| !train.contains(&fewer.key(index))));
    }
}

#[tokio::test]
async fn no_number_of_operations_lets_the_rewards_exceed_one() {
    for operations in 1..=6 {
        let calculator = calculator(CalculatorSettings { operations, ..Default::default() });
        // The mean of one episode is its sum, without another rounding.
        let expert = measure(&calculator, Split::Train, Player::Expert, 1).await.unwrap().unwrap();
        assert!((1.0 - 1e-12..=1.0).contains(&expert.reward_mean), "{operations}: {expert:?}");
    }
}

#[test]
fn about_one_expression_in_four_is_held_out() {
    for operations in 2..=6 {
        let calculator = calculator(CalculatorSettings { operations, ..Default::default() });
        let n_held_out = calculator.tasks(Split::HeldOut).len();
        assert!((430..570).contains(&n_held_out), "{n_held_out} of 2000");
    }
}
