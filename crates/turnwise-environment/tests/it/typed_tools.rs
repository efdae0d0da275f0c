//! Tools whose arguments are types, over the state of an environment.

use std::time::Duration;

use proptest::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use turnwise_environment::{
    Action, CallAttempt, EnvironmentError, Message, Reply, Step, ToolCall, ToolError, Tools,
};

#[derive(Clone, Debug, Default, PartialEq)]
struct Order {
    items: Vec<(String, u32)>,
}

/// Adds an item to the order.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddItem {
    /// Its name on the menu.
    item: String,
    /// How many of it.
    count: u32,
    /// A size, if it has one.
    size: Option<Size>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Size {
    Small,
    Large,
}

/// Takes time.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "wait")]
struct WaitArguments {
    seconds: u64,
}

/// Breaks.
#[derive(Debug, Deserialize, JsonSchema)]
struct Break {}

fn add_item(order: &mut Order, call: AddItem) -> Result<Reply, String> {
    if call.count == 0 {
        return Err("the count must be at least 1".to_owned());
    }
    let size = call.size.map_or("", |size| match size {
        Size::Small => "small ",
        Size::Large => "large ",
    });
    order.items.push((format!("{size}{}", call.item), call.count));
    Ok(Reply::text("added").reward(0.25))
}

async fn wait(order: &mut Order, call: WaitArguments) -> String {
    tokio::time::sleep(Duration::from_secs(call.seconds)).await;
    format!("{} items", order.items.len())
}

async fn break_down(_: &mut Order, _: Break) -> Result<String, ToolError> {
    Err(EnvironmentError::new("cannot reach the kitchen").into())
}

fn tools() -> Tools<Order> {
    Tools::new().tool(add_item).async_tool(wait).async_tool(break_down)
}

fn calls(calls: &[(&str, Value)]) -> Action {
    let attempts = calls.iter().enumerate().map(|(index, (name, arguments))| {
        let (id, name) = (format!("call_{index}"), (*name).to_owned());
        CallAttempt::Call(ToolCall { id, name, arguments: arguments.clone() })
    });
    Action { calls: attempts.collect(), ..Action::default() }
}

async fn answered(action: &Action) -> (Order, Step) {
    let mut order = Order::default();
    let round = tools().answer(&mut order, action).await.expect("nothing breaks");
    (order, round.into())
}

#[test]
fn name_description_and_schema_come_from_the_type() {
    let specs = tools().specs();
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names, ["add_item", "wait", "break"]);
    assert_eq!(specs[0].description, "Adds an item to the order.");
    let parameters = &specs[0].parameters;
    assert_eq!(
        parameters["properties"]["count"],
        json!({"description": "How many of it.", "type": "integer", "minimum": 0})
    );
    assert_eq!(parameters["required"], json!(["item", "count"]));
    assert_eq!(parameters["additionalProperties"], json!(false));
    // A model reads it as it stands: no references to definitions elsewhere, nothing about Rust.
    let text = parameters.to_string();
    assert!(
        !text.contains("$ref") && !text.contains("$schema") && !text.contains("uint"),
        "{text}"
    );
}

#[tokio::test]
async fn a_call_changes_the_state_and_earns_its_reward() {
    let action = calls(&[
        ("add_item", json!({"item": "tea", "count": 2})),
        ("add_item", json!({"item": "cake", "count": 1, "size": "large"})),
    ]);
    let (order, step) = answered(&action).await;
    assert_eq!(order.items, [("tea".to_owned(), 2), ("large cake".to_owned(), 1)]);
    let answers = vec![Message::tool("call_0", "added"), Message::tool("call_1", "added")];
    assert_eq!(step, Step::next(answers).reward(0.5));
}

#[tokio::test]
async fn what_earns_nothing_is_not_scored() {
    let (_, step) = answered(&calls(&[("wait", json!({"seconds": 0}))])).await;
    assert_eq!(step, Step::next(vec![Message::tool("call_0", "0 items")]));
}

#[tokio::test]
async fn arguments_that_do_not_fit_are_named_and_change_nothing() {
    for (arguments, expected) in [
        (
            json!({"item": "tea", "count": "two"}),
            "count: invalid type: string \"two\", expected u32",
        ),
        (json!({"item": "tea"}), "missing field `count`"),
        (json!({"item": "tea", "count": -1}), "count: invalid value: integer `-1`, expected u32"),
        (json!({"item": "tea", "count": 1, "size": "huge"}), "size: unknown variant `huge`"),
        (json!({"item": "tea", "count": 1, "color": "red"}), "color: unknown field `color`"),
        (json!({"item": "tea", "count": 0}), "the count must be at least 1"),
        (json!("tea"), "the arguments must be an object"),
        (Value::Null, "missing field `item`"),
    ] {
        let (order, step) = answered(&calls(&[("add_item", arguments.clone())])).await;
        assert_eq!(order, Order::default());
        let Step::Next { observation, reward: None, faults: 1, .. } = step else {
            panic!("{step:?}")
        };
        let text = &observation.messages[0].content;
        assert!(
            text.starts_with(&format!("error: invalid_args: {expected}")),
            "{arguments}: {text}"
        );
    }
}

#[tokio::test]
async fn an_error_is_short_enough_to_be_read_by_a_model() {
    let long = json!({"item": "tea", "count": "x".repeat(100_000)});
    let (_, step) =
        answered(&calls(&[("add_item", long), ("x".repeat(9000).as_str(), json!({}))])).await;
    let Step::Next { observation, faults: 2, .. } = step else { panic!("{step:?}") };
    assert!(observation.messages.iter().all(|message| message.content.chars().count() < 250));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_is_given_up() {
    let mut order = Order::default();
    let tools = tools().timeout(Duration::from_secs(2));
    let action = calls(&[
        ("wait", json!({"seconds": 60})),
        ("add_item", json!({"item": "tea", "count": 1})),
    ]);
    let round = tools.answer(&mut order, &action).await.expect("nothing breaks");
    assert_eq!(round.messages[0].content, "error: timeout: timed out after 2 s");
    assert_eq!((round.faults, order.items.len()), (1, 1));
}

#[tokio::test]
async fn a_broken_tool_breaks_the_episode() {
    let action = calls(&[("break", json!({}))]);
    let error = tools().answer(&mut Order::default(), &action).await.expect_err("it breaks");
    assert_eq!(error.to_string(), "cannot reach the kitchen");
}

#[test]
#[should_panic(expected = "two tools are called add_item")]
fn two_tools_of_one_name_are_refused() {
    let _ = tools().tool(add_item);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("item|count|size|.{0,6}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever a model writes is answered, call by call, and only calls that fit change anything.
    #[test]
    fn every_call_is_answered(written in prop::collection::vec(("add_item|no|", any_json()), 0..5)) {
        let attempts: Vec<(&str, Value)> =
            written.iter().map(|(name, arguments)| (name.as_str(), arguments.clone())).collect();
        let action = calls(&attempts);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut order = Order::default();
        let round = runtime.block_on(tools().answer(&mut order, &action)).expect("nothing breaks");
        prop_assert_eq!(round.messages.len(), written.len());
        let n_good = round.messages.iter().filter(|message| message.content == "added").count();
        prop_assert_eq!(n_good, order.items.len());
        prop_assert_eq!(round.faults as usize, written.len() - n_good);
        prop_assert_eq!(round.reward, (n_good > 0).then_some(0.25 * n_good as f64));
    }
}
