//! Each suite below breaks one promise, and its check finds the breach.

use turnwise_environment::check::{Player, check_suite, measure};
use turnwise_environment::{
    Action, Demonstrator, Environment, EnvironmentError, Observation, Random, Split, Step, Suite,
    TaskKey, TaskSet, async_trait,
};
use turnwise_testkit::conformance;

/// The promise that a suite breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    HasAnUnusableName,
    HasNoHeldOutTasks,
    SharesTasks,
    RepeatsATask,
    ExpertErrs,
    RandomWins,
    PanicsForKeys,
    GoesOnTooLong,
}

/// Asks for a digit, with reward 1 for the right one.
#[derive(Clone)]
struct Digit {
    digit: usize,
    n_asked: usize,
}

#[async_trait]
impl Environment for Digit {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok(format!("Say {}.", self.digit).into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.n_asked -= 1;
        if self.n_asked > 0 {
            return Ok(Step::next("Once more."));
        }
        Ok(Step::terminated(f64::from(u8::from(action.text == self.digit.to_string()))))
    }
}

struct Digits {
    broken: Broken,
    digits: Vec<usize>,
}

impl TaskSet for Digits {
    fn name(&self) -> &'static str {
        "digits"
    }

    fn len(&self) -> usize {
        self.digits.len()
    }

    fn key(&self, index: usize) -> TaskKey {
        assert!(self.broken != Broken::PanicsForKeys, "as asked");
        TaskKey::of(&self.digits[index].to_string())
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        let n_asked = if self.broken == Broken::GoesOnTooLong { 2 } else { 1 };
        Box::new(Digit { digit: self.digits[index], n_asked })
    }
}

fn digits(broken: Broken) -> Suite {
    let digits = |split| match (split, broken) {
        (Split::HeldOut, Broken::HasNoHeldOutTasks) => vec![],
        (Split::HeldOut, Broken::SharesTasks) => vec![5, 6, 7],
        (Split::HeldOut, Broken::RepeatsATask) => vec![6, 7, 7],
        (Split::HeldOut, _) => vec![6, 7],
        (Split::Train, _) => vec![0, 1, 2, 3, 4, 5],
    };
    let tasks = |split| Digits { broken, digits: digits(split) };
    let name = if broken == Broken::HasAnUnusableName { "Digits" } else { "digits" };
    let suite = Suite::new(name, tasks(Split::Train), tasks(Split::HeldOut))
        .description("say what you are told")
        .expert(move |_seed| Obeys { errs: broken == Broken::ExpertErrs })
        .max_turns(1);
    if broken == Broken::RandomWins {
        return suite.random(|_seed| Obeys { errs: false });
    }
    suite.random(|seed| AnyDigit(Random::new(seed)))
}

struct Obeys {
    errs: bool,
}

impl Demonstrator for Obeys {
    fn act(&mut self, observation: &Observation) -> Action {
        let asked = observation.messages[0].content.trim_matches(|c: char| !c.is_ascii_digit());
        Action::text(if self.errs { "?" } else { asked })
    }
}

struct AnyDigit(Random);

impl Demonstrator for AnyDigit {
    fn act(&mut self, _observation: &Observation) -> Action {
        Action::text(self.0.below(10).to_string())
    }
}

#[tokio::test]
async fn a_suite_that_keeps_its_promises_passes() {
    conformance::suite(&digits(Broken::Nothing)).await;
    conformance::expert_solves(&digits(Broken::Nothing), 1.0).await;
}

#[tokio::test]
async fn each_broken_promise_is_found_by_its_check() {
    for (broken, name) in [
        (Broken::HasAnUnusableName, "names and versions are usable"),
        (Broken::HasNoHeldOutTasks, "task keys stable, unique and disjoint"),
        (Broken::SharesTasks, "task keys stable, unique and disjoint"),
        (Broken::RepeatsATask, "task keys stable, unique and disjoint"),
        (Broken::PanicsForKeys, "task keys stable, unique and disjoint"),
        (Broken::ExpertErrs, "the expert solves tasks of both splits"),
        (Broken::RandomWins, "the random player earns little"),
        (Broken::GoesOnTooLong, "ends within its turns"),
    ] {
        let checks = check_suite(&digits(broken)).await;
        let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
        assert!(failed.iter().any(|check| check.name == name), "{broken:?}: {failed:?}");
    }
}

#[tokio::test]
async fn players_are_measured() {
    let suite = digits(Broken::Nothing);
    let expert = measure(&suite, Split::Train, Player::Expert, 7).await.unwrap().unwrap();
    assert_eq!((expert.n_episodes, expert.reward_mean, expert.solved_rate), (7, 1.0, 1.0));
    let random = measure(&suite, Split::HeldOut, Player::Random, 1000).await.unwrap().unwrap();
    assert!((0.05..0.15).contains(&random.solved_rate), "{random:?}");
    assert_eq!(random.solved_rate, random.reward_mean);
}

#[tokio::test]
async fn a_suite_needs_neither_expert_nor_random_player_nor_a_limit() {
    let tasks = |digits: &[usize]| Digits { broken: Broken::Nothing, digits: digits.to_vec() };
    let suite = Suite::new("digits", tasks(&[0, 1, 2]), tasks(&[3, 4]));
    conformance::suite(&suite).await;
    assert_eq!(measure(&suite, Split::Train, Player::Expert, 4).await, Ok(None));
}
