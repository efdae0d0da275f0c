//! The game keeps the contract of environments, and its own rules.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use proptest::prelude::*;
use turnwise_environment::check::{Player, measure};
use turnwise_environment::{
    Action, CallAttempt, CallError, Environment, MalformedCall, Split, Step, Suite, TaskKey,
};
use turnwise_guess::{GuessGame, GuessSettings, GuessTask, suite};
use turnwise_testkit::conformance;

fn guess(settings: GuessSettings) -> Suite {
    suite(settings).expect("the settings are valid")
}

fn game() -> GuessGame {
    GuessGame::new(GuessTask { low: 1, high: 40, secret: 7, turns: 6 })
}

/// How many numbers the expert is sure to search in 1 answer, in 2 and so on, however it misses the middle.
const SURE: [u32; 8] = [1, 3, 7, 13, 23, 39, 64, 104];

fn keys(guess: &Suite, split: Split) -> BTreeSet<TaskKey> {
    let tasks = guess.tasks(split);
    (0..tasks.len()).map(|index| tasks.key(index)).collect()
}

/// The lowest and the highest number of each range of at least `span` numbers, from the definition.
fn ranges(settings: GuessSettings) -> Vec<(u32, u32)> {
    let GuessSettings { numbers, span, .. } = settings;
    let pairs = (1..=numbers).flat_map(|low| (low..=numbers).map(move |high| (low, high)));
    pairs.filter(|(low, high)| high - low + 1 >= span).collect()
}

/// The part of a player's tasks that it solves, when it plays each of them `n_times`.
fn solved_rate(guess: &Suite, split: Split, player: Player, n_times: usize) -> f64 {
    let n_episodes = n_times * guess.tasks(split).len();
    block_on(measure(guess, split, player, n_episodes))
        .expect("it plays")
        .expect("a player")
        .solved_rate
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

// Rollouts 13.30
#[tokio::test]
async fn a_game_keeps_its_contract() {
    conformance::check(game, &["20", "ten", "10", "-5", "7"]).await;
}

/// Of `n` numbers, it misses the secret with each answer with probability `1 - 1 / n`: 0.321 over all tasks.
#[test]
fn the_random_player_solves_a_third() {
    let guess = guess(GuessSettings::default());
    for split in [Split::Train, Split::HeldOut] {
        let rate = solved_rate(&guess, split, Player::Random, 20);
        assert!((0.30..0.34).contains(&rate), "{rate} of {split:?}");
    }
}

/// The expert goes by the last hint alone: what it may say to ranges of every size decides how long it can take.
#[test]
fn the_expert_is_sure_to_find_the_secret_in_time() {
    // Answers to a range of that many numbers, when each hint leaves the most that it can.
    let mut longest = vec![0_usize];
    for n in 1..=SURE[7] + 1 {
        let left = format!("lower: 1-{n}");
        let guess = guess(GuessSettings::default());
        let said: BTreeSet<u32> = (0..3000)
            .map(|seed| {
                guess
                    .make_expert(seed)
                    .expect("it offers one")
                    .act(&left.as_str().into())
                    .text
                    .parse()
                    .expect("number")
            })
            .collect();
        let worst = said.iter().flat_map(|said| [said - 1, n - said]).map(|n| longest[n as usize]);
        longest.push(1 + worst.max().expect("it said something"));
    }
    let sure = |turns: usize| longest.iter().rposition(|needed| *needed <= turns);
    let found: Vec<Option<usize>> = (1..=8).map(sure).collect();
    assert_eq!(found, SURE.iter().map(|n| Some(*n as usize)).collect::<Vec<_>>());
    assert!(longest.is_sorted());
    let GuessSettings { numbers, turns, .. } = GuessSettings::default();
    assert!(numbers <= SURE[turns - 1]);
}

/// The exact middle would always do; a row of misses may cost an answer that is not there.
#[test]
fn the_expert_solves_nearly_all_that_can_be_bisected() {
    for turns in 2..=7 {
        let numbers = (1 << turns) - 1;
        let guess = guess(GuessSettings { numbers, span: numbers, turns });
        let rate = solved_rate(&guess, Split::Train, Player::Expert, 100);
        assert!(rate >= 0.95, "{rate} of {numbers} numbers in {turns}");
    }
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
    assert_eq!(game.step("20".into()).await.unwrap(), Step::next("lower: 1-19"));
    assert_eq!(game.step("-20".into()).await.unwrap(), Step::next("higher: 1-19"));
    let complaint = Step::next("Answer with a number.").faults(1);
    assert_eq!(game.step("seven".into()).await.unwrap(), complaint);
    assert_eq!(game.step("5".into()).await.unwrap(), Step::next("higher: 6-19"));
    assert_eq!(game.step("5000".into()).await.unwrap(), Step::next("lower: 6-19"));
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
async fn numbers_that_no_computer_word_holds_are_ordinary_answers() {
    let mut game = game();
    game.reset(0).await.unwrap();
    for (said, hint) in [
        ("9".repeat(30), "lower: 1-40"),
        (format!("-{}", "9".repeat(30)), "higher: 1-40"),
        ("4294967296".to_owned(), "lower: 1-40"),
        ("-4294967296".to_owned(), "higher: 1-40"),
    ] {
        assert_eq!(game.step(said.as_str().into()).await.unwrap(), Step::next(hint), "{said}");
    }
}

#[tokio::test]
async fn a_snapshot_of_another_game_is_refused() {
    for good in [
        r#"{"turns_used":0,"low":1,"high":40}"#,
        r#"{"turns_used":5,"low":1,"high":40}"#,
        r#"{"turns_used":2,"low":7,"high":7}"#,
    ] {
        assert!(game().restore(good.as_bytes()).is_ok(), "{good}");
    }
    for bad in [
        r#"{"turns_used":6,"low":1,"high":40}"#,
        r#"{"turns_used":2,"low":0,"high":40}"#,
        r#"{"turns_used":2,"low":1,"high":41}"#,
        r#"{"turns_used":2,"low":8,"high":40}"#,
        r#"{"turns_used":2,"low":1,"high":6}"#,
        r#"{"turns_used":2,"low":1}"#,
        r#"{"turns_used":2,"low":1,"high":40,"secret":7}"#,
    ] {
        assert!(game().restore(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn settings_are_checked() {
    let good = GuessSettings::default();
    for bad in [
        GuessSettings { span: 1, ..good },
        GuessSettings { span: 21, ..good },
        GuessSettings { span: u32::MAX, ..good },
        GuessSettings { turns: 0, ..good },
        GuessSettings { numbers: 9, ..good },
        GuessSettings { numbers: 0, span: 0, ..good },
        GuessSettings { numbers: 201, ..good },
        GuessSettings { numbers: u32::MAX, ..good },
    ] {
        assert!(suite(bad).is_err(), "{bad:?}");
    }
    for edge in [
        GuessSettings { numbers: 200, span: 200, turns: 1 },
        GuessSettings { numbers: 2, span: 2, turns: 1 },
        GuessSettings { span: 20, ..good },
    ] {
        assert!(suite(edge).is_ok(), "{edge:?}");
    }
}

/// Otherwise training would reward never to say it.
#[test]
fn every_number_is_a_secret_to_train_on_and_a_secret_held_out() {
    let settings = GuessSettings::default();
    let guess = guess(settings);
    for split in [Split::Train, Split::HeldOut] {
        let keys = keys(&guess, split);
        for secret in 1..=settings.numbers {
            let is_secret = |(low, high): &(u32, u32)| {
                let task = GuessTask { low: *low, high: *high, secret, turns: settings.turns };
                keys.contains(&task.key())
            };
            assert!(ranges(settings).iter().any(is_secret), "{secret} of {split:?}");
        }
    }
}

#[test]
fn settings_are_read_with_defaults_and_without_strangers() {
    let read = serde_json::from_str::<GuessSettings>;
    assert_eq!(read("{}").unwrap(), GuessSettings::default());
    assert_eq!(read(r#"{"span": 10}"#).unwrap().span, 10);
    assert!(read(r#"{"spam": 10}"#).is_err());
}

fn any_settings() -> impl Strategy<Value = GuessSettings> {
    (2_u32..=30, 1_usize..=8).prop_flat_map(|(numbers, turns)| {
        (2..=numbers).prop_map(move |span| GuessSettings { numbers, span, turns })
    })
}

/// Settings whose ranges hold no more numbers than the expert is sure to search.
fn sure_settings() -> impl Strategy<Value = GuessSettings> {
    let of_turns = |turns: usize| (2..=SURE[turns - 1]).prop_map(move |numbers| (numbers, turns));
    let numbers_and_turns = (2_usize..=7).prop_flat_map(of_turns);
    numbers_and_turns.prop_flat_map(|(numbers, turns)| {
        let spans = numbers.saturating_sub(4).max(2)..=numbers;
        spans.prop_map(move |span| GuessSettings { numbers, span, turns })
    })
}

/// A game with a range that need not start at 1.
fn any_task(turns: RangeInclusive<usize>) -> impl Strategy<Value = GuessTask> {
    (1_u32..=20, 1_u32..=40, turns).prop_flat_map(|(low, n_numbers, turns)| {
        let high = low + n_numbers - 1;
        (low..=high).prop_map(move |secret| GuessTask { low, high, secret, turns })
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

/// Plays until the end or out of actions; what each was answered with.
async fn answers(game: &mut GuessGame, actions: &[Action]) -> Vec<Step> {
    let mut answers = Vec::new();
    for action in actions {
        let answer = game.step(action.clone()).await.expect("it answers");
        let is_last = matches!(answer, Step::End { .. });
        answers.push(answer);
        if is_last {
            break;
        }
    }
    answers
}

proptest! {
    #[test]
    fn any_actions_end_the_game_in_time_and_in_range(
        task in any_task(1..=6),
        actions in prop::collection::vec(any_action(), 6),
    ) {
        let (n_turns, sum) = block_on(play(GuessGame::new(task), actions));
        prop_assert!(n_turns <= task.turns);
        prop_assert!(sum == 0.0 || sum == 1.0);
    }

    #[test]
    fn a_hint_leaves_the_secret_and_just_what_no_answer_ruled_out(
        task in any_task(21..=21),
        said in prop::collection::vec(prop_oneof![4 => -5_i64..70, 1 => any::<i64>()], 20),
    ) {
        let mut game = GuessGame::new(task);
        block_on(game.reset(0)).unwrap();
        let secret = i64::from(task.secret);
        let mut left: BTreeSet<i64> = (task.low.into()..=task.high.into()).collect();
        for said in said {
            let step = block_on(game.step(said.to_string().as_str().into())).unwrap();
            if said == secret {
                prop_assert_eq!(step, Step::terminated(1.0));
                break;
            }
            left.retain(|number| (*number < said) == (secret < said) && *number != said);
            prop_assert!(left.contains(&secret));
            let direction = if said < secret { "higher" } else { "lower" };
            let (low, high) = (left.first().unwrap(), left.last().unwrap());
            prop_assert_eq!(step, Step::next(format!("{direction}: {low}-{high}")));
        }
    }

    #[test]
    fn a_game_goes_on_from_any_snapshot_as_it_would_have(
        task in any_task(1..=8),
        actions in prop::collection::vec(any_action(), 8),
        n_before in 0_usize..8,
    ) {
        let (before, after) = actions.split_at(n_before);
        let mut game = GuessGame::new(task);
        block_on(game.reset(0)).unwrap();
        let is_over = matches!(block_on(answers(&mut game, before)).last(), Some(Step::End { .. }));
        prop_assume!(!is_over);
        let mut restored = GuessGame::new(task);
        restored.restore(&game.snapshot().unwrap()).unwrap();
        prop_assert_eq!(
            block_on(answers(&mut restored, after)),
            block_on(answers(&mut game, after))
        );
    }

    #[test]
    fn a_snapshot_is_refused_where_the_secret_is_ruled_out(
        task in any_task(9..=9),
        other in any_task(9..=9),
        actions in prop::collection::vec(any_action(), 8),
    ) {
        let mut game = GuessGame::new(task);
        block_on(game.reset(0)).unwrap();
        let mut left = (task.low, task.high);
        for answer in block_on(answers(&mut game, &actions)) {
            let Step::Next { observation, .. } = answer else { return Ok(()) };
            if let Some((_, hint)) = observation.messages[0].content.split_once(": ") {
                let (low, high) = hint.split_once('-').unwrap();
                left = (low.parse().unwrap(), high.parse().unwrap());
            }
        }
        let is_possible = other.low <= left.0
            && left.1 <= other.high
            && (left.0..=left.1).contains(&other.secret);
        let is_taken = GuessGame::new(other).restore(&game.snapshot().unwrap()).is_ok();
        prop_assert_eq!(is_taken, is_possible);
    }

    #[test]
    fn the_splits_are_a_partition_and_a_quarter_of_every_range_is_held_out(
        settings in any_settings(),
    ) {
        let guess = guess(settings);
        let (train, held_out) = (keys(&guess, Split::Train), keys(&guess, Split::HeldOut));
        prop_assert!(train.is_disjoint(&held_out));
        let n_tasks = guess.tasks(Split::Train).len() + guess.tasks(Split::HeldOut).len();
        prop_assert_eq!(n_tasks, train.len() + held_out.len());
        let mut n_expected = 0;
        for (low, high) in ranges(settings) {
            let task = |secret| GuessTask { low, high, secret, turns: settings.turns };
            let tasks: Vec<TaskKey> = (low..=high).map(|secret| task(secret).key()).collect();
            let n_held_out = tasks.iter().filter(|key| held_out.contains(*key)).count();
            let n_train = tasks.iter().filter(|key| train.contains(*key)).count();
            prop_assert_eq!(n_held_out, ((tasks.len() + 2) / 4).max(1));
            prop_assert_eq!(n_train, tasks.len() - n_held_out);
            n_expected += tasks.len();
        }
        prop_assert_eq!(n_tasks, n_expected);
    }

    #[test]
    fn what_is_held_out_does_not_depend_on_the_other_settings(
        settings in any_settings(),
        turns in 1_usize..=8,
    ) {
        let few = guess(settings);
        let all = guess(GuessSettings { numbers: 30, span: 2, turns });
        let held_out = [keys(&few, Split::HeldOut), keys(&all, Split::HeldOut)];
        for (low, high) in ranges(settings) {
            for secret in low..=high {
                let task = GuessTask { low, high, secret, turns };
                let same = GuessTask { turns: settings.turns, ..task };
                prop_assert_eq!(
                    held_out[0].contains(&same.key()),
                    held_out[1].contains(&task.key())
                );
            }
        }
    }

    #[test]
    fn an_expert_solves_what_it_is_sure_to_find(settings in sure_settings()) {
        let guess = guess(settings);
        for split in [Split::Train, Split::HeldOut] {
            prop_assert_eq!(solved_rate(&guess, split, Player::Expert, 1), 1.0);
        }
    }
}
