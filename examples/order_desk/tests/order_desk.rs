//! The order desk keeps the contract of environments, and pays for what its tools changed.

use order_desk::OrderDesk;
use serde_json::{Value, json};
use turnwise::environment::{Action, Environment, Split, Step};
use turnwise_testkit::conformance;

#[tokio::test]
async fn the_suite_keeps_its_contract() {
    conformance::suite(&OrderDesk::suite()).await;
}

/// Begins the first order, and returns what was asked for.
async fn begun() -> (Box<dyn Environment>, Vec<(String, u32)>) {
    let mut desk = OrderDesk::suite().tasks(Split::Train).environment(0);
    let asked = desk.reset(0).await.expect("it begins").messages[0].content.clone();
    let words: Vec<&str> = asked.split(' ').map(|word| word.trim_matches(',')).collect();
    let numbers =
        words.windows(2).filter_map(|pair| Some((pair[1].to_owned(), pair[0].parse().ok()?)));
    let wanted = numbers.collect();
    (desk, wanted)
}

async fn called(desk: &mut Box<dyn Environment>, name: &str, arguments: Value) -> Step {
    desk.step(Action::call(name, arguments)).await.expect("it answers")
}

#[tokio::test]
async fn an_order_that_is_right_earns_one() {
    let (mut desk, wanted) = begun().await;
    for (item, count) in wanted {
        let step = called(&mut desk, "add_item", json!({"item": item, "count": count})).await;
        assert!(matches!(step, Step::Next { reward: Some(0.25), faults: 0, .. }), "{step:?}");
    }
    let end = called(&mut desk, "hand_in", json!({})).await;
    assert_eq!(end, Step::terminated(0.5).solved(true));
}

#[tokio::test]
async fn what_is_not_on_the_menu_is_said_to_the_model() {
    let (mut desk, _) = begun().await;
    let step = called(&mut desk, "add_item", json!({"item": "pizza", "count": 1})).await;
    let Step::Next { observation, reward: None, faults: 1, .. } = step else { panic!("{step:?}") };
    let said = &observation.messages[0].content;
    assert!(said.contains("item") && said.contains("`tea`, `coffee`, `cake`, `soup`"), "{said}");
    let end = called(&mut desk, "hand_in", json!({})).await;
    assert_eq!(end, Step::terminated(0.0).solved(false));
}
