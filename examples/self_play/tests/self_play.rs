//! Nim keeps the contract of environments, and tells each player of their own moves alone.

use self_play::Nim;
use turnwise::environment::{Environment, Observation, Seat, Split, Step};
use turnwise_testkit::conformance;

#[tokio::test]
async fn the_suite_keeps_its_contract() {
    conformance::suite(&Nim::suite()).await;
}

/// Begins the first game, and returns its pile.
async fn begun() -> (Box<dyn Environment>, u32) {
    let mut game = Nim::suite().tasks(Split::Train).environment(0);
    let shown = game.reset(0).await.expect("it begins").messages[0].content.clone();
    let stones = shown.split(' ').next().and_then(|word| word.parse().ok());
    (game, stones.expect("it says how many stones there are"))
}

#[tokio::test]
async fn the_last_stone_wins_and_the_other_seat_loses() {
    let (mut game, stones) = begun().await;
    for left in (1..stones).rev() {
        let seat = Seat((stones - left) % 2);
        let step = game.step("1".into()).await.expect("it answers");
        assert_eq!(step, Step::next(Observation::from(format!("{left} stones")).to(seat)));
    }
    let last = game.step("1".into()).await.expect("it answers");
    let loser = Seat(stones % 2);
    assert_eq!(last, Step::terminated(1.0).reward_of(loser, 0.0));
}

#[tokio::test]
async fn an_impossible_move_loses() {
    for text in ["0", "4", "two", ""] {
        let (mut game, _) = begun().await;
        let step = game.step(text.into()).await.expect("it answers");
        assert_eq!(step, Step::terminated(0.0).reward_of(Seat(1), 1.0), "{text:?}");
    }
}
