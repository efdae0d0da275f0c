//! The environment keeps its contract, and its own rules.

use my_environment::{Settings, suite};
use turnwise::environment::{Action, Split, Step};
use turnwise_testkit::conformance;

/// Everything that `env check` looks at, as a test.
#[tokio::test]
async fn the_suite_keeps_its_contract() {
    let suite = suite(Settings::default()).expect("the defaults are fit");
    conformance::suite(&suite).await;
}

#[tokio::test]
async fn finding_the_number_is_worth_one() {
    let suite = suite(Settings { largest: 4, turns: 3 }).expect("they are fit");
    let mut episode = suite.tasks(Split::Train).environment(0);
    episode.reset(0).await.expect("it begins");
    for number in 1..=3 {
        let action = Action::call("try", serde_json::json!({ "number": number }));
        match episode.step(action).await.expect("it answers") {
            Step::Next { reward, .. } => assert_eq!(reward, None),
            Step::End { reward, solved, .. } => {
                assert_eq!(reward, Some(if solved { 1.0 } else { 0.0 }));
                return;
            }
        }
    }
    panic!("it never ends");
}

#[tokio::test]
async fn a_wrong_argument_is_named_to_the_model() {
    let suite = suite(Settings::default()).expect("the defaults are fit");
    let mut episode = suite.tasks(Split::Train).environment(0);
    episode.reset(0).await.expect("it begins");
    let action = Action::call("try", serde_json::json!({"number": "ten"}));
    let Step::Next { observation, faults, .. } = episode.step(action).await.expect("it answers")
    else {
        panic!("it goes on");
    };
    assert_eq!(faults, 1);
    let said = &observation.messages[0].content;
    assert!(said.starts_with("error: invalid_args: number: invalid type"), "{said}");
}
