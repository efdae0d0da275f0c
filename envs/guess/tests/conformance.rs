//! The game keeps the contract of environments, and its own rules.

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;
use turnwise_environment::check::{Player, measure};
use turnwise_environment::{
    Action, CallAttempt, CallError, Environment, MalformedCall, Split, Step, Suite,
};
use turnwise_guess::{Guess, GuessGame, GuessSettings, GuessTask};
use turnwise_testkit::conformance;

fn guess(settings: GuessSettings) -> Guess {
    Guess::new(settings).expect("the settings are valid")
}

fn game() -> GuessGame {
    GuessGame::new(GuessTask { low: 1, high: 40, secret: 7, turns: 6 })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

#[tokio::test]
async fn the_suite_keeps_its_contract() {
    let guess = guess(GuessSettings::default());
    conformance::suite(&guess).await;
    conformance::expert_solves(&guess, 1.0).await;
}

#[tokio::test]
async fn a_game_keeps_its_contract() {
    conformance::check(game, &["20", "ten", "10", "-5", "7"]).await;
}

#[tokio::test]
async fn the_random_player_solves_less_than_a_fifth() {
    let guess = guess(GuessSettings::default());
    let random = measure(&guess, Split::Train, Player::Random, 1000).await.expect("it plays");
    assert!((0.05..0.2).contains(&random.solved_rate), "{random:?}");
}

#[tokio::test]
async fn the_playthroughs_are_as_they_were() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/playthroughs");
    conformance::playthroughs(&guess(GuessSettings::default()), &folder).await;
}

#[tokio::test]
async fn every_answer_gets_the_hint_of_the_rules() {
    let mut game = game();
    assert_eq!(game.reset(0).await.unwrap(), "Guess 1-40 in 6.".into());
    assert_eq!(game.step("20".into()).await.unwrap(), Step::next("lower"));
    assert_eq!(game.step("-20".into()).await.unwrap(), Step::next("higher"));
    let complaint = Step::next("Answer with a number.").faults(1);
    assert_eq!(game.step("seven".into()).await.unwrap(), complaint);
    assert_eq!(game.step("5000".into()).await.unwrap(), Step::next("lower"));
    assert_eq!(game.step(" 7 ".into()).await.unwrap(), Step::terminated(1.0));
}

#[tokio::test]
async fn the_last_turn_ends_the_game() {
    for last in ["8", "seven"] {
        let mut game = game();
        game.reset(0).await.unwrap();
        for _ in 0..5 {
            assert!(matches!(game.step("9".into()).await.unwrap(), Step::Next { .. }));
        }
        assert_eq!(game.step(last.into()).await.unwrap(), Step::terminated(0.0));
    }
}

#[tokio::test]
async fn a_snapshot_of_a_longer_game_is_refused() {
    let mut game = game();
    assert!(game.restore(br#"{"turns_used":5}"#).is_ok());
    assert!(game.restore(br#"{"turns_used":6}"#).is_err());
    assert!(game.restore(br#"{"turns_used":5,"secret":7}"#).is_err());
}

#[test]
fn settings_are_checked() {
    let good = GuessSettings::default();
    for bad in [
        GuessSettings { span: 1, ..good },
        GuessSettings { ranges: 0, ..good },
        GuessSettings { turns: 0, ..good },
        GuessSettings { span: 1000, ranges: 1, ..good },
        GuessSettings { ranges: u32::MAX, span: u32::MAX, ..good },
    ] {
        assert!(Guess::new(bad).is_err(), "{bad:?}");
    }
    assert!(Guess::new(GuessSettings { span: 999, ranges: 1, ..good }).is_ok());
}

#[test]
fn settings_are_read_with_defaults_and_without_strangers() {
    let read = serde_json::from_str::<GuessSettings>;
    assert_eq!(read("{}").unwrap(), GuessSettings::default());
    assert_eq!(read(r#"{"span": 10}"#).unwrap().span, 10);
    assert!(read(r#"{"spam": 10}"#).is_err());
}

fn any_settings() -> impl Strategy<Value = GuessSettings> {
    (2_u32..=120, 1_u32..=6, 1_usize..=8).prop_map(|(span, ranges, turns)| GuessSettings {
        span,
        ranges,
        turns,
    })
}

/// Settings with fewer numbers than that many halvings can tell apart.
fn bisectable_settings() -> impl Strategy<Value = GuessSettings> {
    (2_usize..=8).prop_flat_map(|turns| {
        (2_u32..1 << turns, 1_u32..=6).prop_map(move |(span, ranges)| GuessSettings {
            span,
            ranges,
            turns,
        })
    })
}

fn any_action() -> impl Strategy<Value = Action> {
    let number = (-5_i64..60).prop_map(|number| Action::text(number.to_string()));
    let text = any::<String>().prop_map(Action::text);
    let call = any::<String>().prop_map(|name| Action::call(name, serde_json::json!({"n": 7})));
    let broken = any::<String>().prop_map(|raw| Action {
        calls: vec![CallAttempt::Malformed(MalformedCall {
            id: "call_0".to_owned(),
            raw,
            error: CallError::Decode,
            message: "not JSON".to_owned(),
        })],
        ..Action::default()
    });
    prop_oneof![3 => number, 1 => text, 1 => call, 1 => broken]
}

/// Plays until the end; the number of turns and the sum of rewards.
async fn play(mut game: GuessGame, actions: Vec<Action>) -> (usize, f64) {
    game.reset(0).await.expect("it starts");
    let mut sum = 0.0;
    for (n_before, action) in actions.into_iter().enumerate() {
        match game.step(action).await.expect("it answers") {
            Step::Next { reward, .. } => sum += reward.unwrap_or(0.0),
            Step::End { reward, .. } => return (n_before + 1, sum + reward.unwrap_or(0.0)),
        }
    }
    panic!("the game is not over");
}

proptest! {
    #[test]
    fn any_actions_end_the_game_in_time_and_in_range(
        turns in 1_usize..=6,
        secret in 1_u32..=40,
        actions in prop::collection::vec(any_action(), 6),
    ) {
        let game = GuessGame::new(GuessTask { low: 1, high: 40, secret, turns });
        let (n_turns, sum) = block_on(play(game, actions));
        prop_assert!(n_turns <= turns);
        prop_assert!(sum == 0.0 || sum == 1.0);
    }

    #[test]
    fn the_splits_are_a_partition_and_every_range_is_in_both(settings in any_settings()) {
        let guess = guess(settings);
        let mut keys = BTreeSet::new();
        let mut n_tasks = 0;
        for split in [Split::Train, Split::HeldOut] {
            let tasks = guess.tasks(split);
            n_tasks += tasks.len();
            keys.extend((0..tasks.len()).map(|index| tasks.key(index)));
        }
        prop_assert_eq!(n_tasks, (settings.span * settings.ranges) as usize);
        prop_assert_eq!(keys.len(), n_tasks);
        let n_held_out = guess.tasks(Split::HeldOut).len();
        let per_range = ((settings.span + 2) / 4).max(1);
        prop_assert_eq!(n_held_out, (per_range * settings.ranges) as usize);
    }

    #[test]
    fn an_expert_solves_what_can_be_bisected(settings in bisectable_settings()) {
        let guess = guess(settings);
        for split in [Split::Train, Split::HeldOut] {
            let n_tasks = guess.tasks(split).len();
            let expert = block_on(measure(&guess, split, Player::Expert, n_tasks)).unwrap();
            prop_assert_eq!(expert.solved_rate, 1.0);
        }
    }
}
