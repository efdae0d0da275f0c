use turnwise_calculator::CalculatorSettings;
use turnwise_environment::{Role, TaskSet, async_trait};
use turnwise_guess::GuessSettings;

use super::*;

const GAME: Game = Game { seed: 7, task: Some(0), split: Split::Train };

async fn played(
    suite: &Suite,
    game: Game,
    typed: &str,
) -> (Result<PlayOutcome, PlayError>, String) {
    let mut out = Vec::new();
    let outcome = play(suite, game, typed.as_bytes(), &mut out).await;
    (outcome, String::from_utf8(out).expect("what is shown is UTF-8"))
}

fn calculator() -> Suite {
    turnwise_calculator::suite(CalculatorSettings::default()).expect("the defaults are fit")
}

#[tokio::test]
async fn an_episode_is_played_to_its_end() {
    let typed = "/call calc {\"a\": 9, \"op\": \"*\", \"b\": 6}\ncalc {\"a\": 1\n48\n";
    let (outcome, shown) = played(&calculator(), GAME, typed).await;
    let outcome = outcome.expect("it can be played");
    let expected = [
        "calculator  train task 0  seed 7",
        "compute an expression step by step with a tool",
        r#"tools   calc {"a": integer, "op": "+" or "-" or "*", "b": integer}  Computes a op b."#,
        "/help shows the commands",
        "",
        "env     Compute 9 * 6 - 6, left to right.",
        "turn 1/5  reward so far 0.00",
        "> tool    54",
        "turn 2/5  reward so far 0.25",
        "> tool    error: decode: the call cannot be read as JSON: EOF while parsing an object at line 1 column 38",
        "(that was a mistake of form; too many of them end a model's episode)",
        "turn 3/5  reward so far 0.25",
        "> solved: reward 0.75 in 3 turns",
    ];
    assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    assert_eq!(outcome.transcript.rewards.len(), 3);
    assert!(outcome.ended.is_some_and(|ended| ended.solved));
    let roles: Vec<Role> = outcome.transcript.messages.iter().map(|message| message.role).collect();
    let expected =
        [Role::User, Role::Assistant, Role::Tool, Role::Assistant, Role::Tool, Role::Assistant];
    assert_eq!(roles, expected);
}

#[tokio::test]
async fn undone_turns_leave_no_trace() {
    let guess = turnwise_guess::suite(GuessSettings::default()).expect("the defaults are fit");
    let (outcome, shown) = played(&guess, GAME, "/undo\n20\n/undo\n21\n/quit\n").await;
    let outcome = outcome.expect("it can be played");
    let said: Vec<&str> = outcome
        .transcript
        .messages
        .iter()
        .filter(|message| message.role == Role::Assistant)
        .map(|message| message.content.as_str())
        .collect();
    assert_eq!(said, ["21"]);
    assert!(shown.contains("there is nothing to undo"));
    assert!(shown.contains("undone; the environment had said:\nenv     Guess "));
    assert!(shown.ends_with("stopped: reward 0.00 in 1 turn\n"), "{shown}");
}

#[tokio::test]
async fn the_end_of_the_input_stops() {
    let (outcome, shown) = played(&calculator(), GAME, "").await;
    let outcome = outcome.expect("it can be played");
    assert_eq!((outcome.ended, outcome.transcript.rewards), (None, Vec::new()));
    assert!(shown.ends_with("> \nstopped: reward 0.00 in 0 turns\n"), "{shown}");
}

#[tokio::test]
async fn commands_and_slips_cost_no_turn() {
    let (outcome, shown) = played(&calculator(), GAME, "\n/exit\n/help\n").await;
    assert!(outcome.expect("it can be played").transcript.rewards.is_empty());
    assert_eq!(shown.matches("turn 1/5").count(), 4);
    assert!(shown.contains("unknown command /exit; see /help"));
}

#[tokio::test]
async fn the_seed_draws_the_task() {
    let suite = calculator();
    let task = |seed| {
        let suite = &suite;
        async move {
            let (outcome, _) = played(suite, Game { seed, task: None, ..GAME }, "").await;
            outcome.expect("it can be played").task_index
        }
    };
    assert_eq!(task(1).await, task(1).await);
    assert_ne!(task(1).await, task(2).await);
}

#[tokio::test]
async fn a_task_that_does_not_exist_is_refused() {
    let (outcome, _) = played(&calculator(), Game { task: Some(5000), ..GAME }, "").await;
    let error = outcome.expect_err("there is no such task");
    assert_eq!(error.to_string(), "cannot play task 5000: the split has tasks 0 to 1468");
}

/// An environment without snapshots that prints terminal escapes and then fails.
struct Nasty;

#[async_trait]
impl Environment for Nasty {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("\u{1b}[2Jtwo\nlines".into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        match action.text.as_str() {
            "break" => Err(EnvironmentError::new("cannot open the database")),
            _ => Ok(Step::next("on")),
        }
    }
}

impl TaskSet for Nasty {
    fn name(&self) -> &'static str {
        "nasty"
    }

    fn len(&self) -> usize {
        1
    }

    fn key(&self, _index: usize) -> turnwise_environment::TaskKey {
        turnwise_environment::TaskKey::of("nasty")
    }

    fn environment(&self, _index: usize) -> Box<dyn Environment> {
        Box::new(Nasty)
    }
}

fn nasty() -> Suite {
    Suite::new("nasty", Nasty, Nasty)
}

#[tokio::test]
async fn without_snapshots_nothing_is_undone() {
    let (outcome, shown) = played(&nasty(), GAME, "on\n/undo\n").await;
    assert_eq!(outcome.expect("it can be played").transcript.rewards, [None]);
    assert!(shown.contains("this environment takes no snapshots"));
}

#[tokio::test]
async fn what_the_environment_says_cannot_move_the_cursor() {
    let (_, shown) = played(&nasty(), GAME, "").await;
    assert!(shown.contains("env     [2Jtwo\n        lines\n"), "{shown:?}");
}

#[tokio::test]
async fn a_broken_environment_is_an_error() {
    let (outcome, _) = played(&nasty(), GAME, "break\n").await;
    let error = outcome.expect_err("it broke");
    assert_eq!(
        error.to_string(),
        "cannot play on: the environment broke: cannot open the database"
    );
}
