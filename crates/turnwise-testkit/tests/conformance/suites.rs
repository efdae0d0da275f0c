//! Each suite below breaks one promise, and its check finds it.

use std::sync::Arc;

use turnwise_environment::check::{Player, check_suite, measure};
use turnwise_environment::{
    Action, Demonstrator, Environment, EnvironmentError, Observation, Random, Split, Step, Suite,
    TaskKey, TaskSet, async_trait,
};
use turnwise_testkit::conformance;

/// The promise a suite breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    HasAnUnusableName,
    HasNoHeldOutTasks,
    SharesTasks,
    RepeatsATask,
    ExpertErrs,
    RandomWins,
    PanicsForTasks,
    GoesOnTooLong,
}

/// Ask for a digit; reward 1 for the right one.
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
        if self.broken == Broken::HasAnUnusableName { "Digits" } else { "digits" }
    }

    fn len(&self) -> usize {
        self.digits.len()
    }

    fn key(&self, index: usize) -> TaskKey {
        TaskKey::of(&self.digits[index].to_string())
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        let n_asked = if self.broken == Broken::GoesOnTooLong { 2 } else { 1 };
        Box::new(Digit { digit: self.digits[index], n_asked })
    }
}

struct DigitSuite(Broken);

impl Suite for DigitSuite {
    fn name(&self) -> &'static str {
        "digits"
    }

    fn description(&self) -> &'static str {
        "say what you are told"
    }

    fn tasks(&self, split: Split) -> Arc<dyn TaskSet> {
        assert!(self.0 != Broken::PanicsForTasks, "as asked");
        let digits = match (split, self.0) {
            (Split::HeldOut, Broken::HasNoHeldOutTasks) => vec![],
            (Split::HeldOut, Broken::SharesTasks) => vec![5, 6, 7],
            (Split::HeldOut, Broken::RepeatsATask) => vec![6, 7, 7],
            (Split::HeldOut, _) => vec![6, 7],
            (Split::Train, _) => vec![0, 1, 2, 3, 4, 5],
        };
        Arc::new(Digits { broken: self.0, digits })
    }

    fn expert(&self, _seed: u64) -> Box<dyn Demonstrator> {
        Box::new(Obeys { errs: self.0 == Broken::ExpertErrs })
    }

    fn random(&self, seed: u64) -> Box<dyn Demonstrator> {
        if self.0 == Broken::RandomWins {
            return Box::new(Obeys { errs: false });
        }
        Box::new(AnyDigit(Random::new(seed)))
    }

    fn max_turns(&self) -> usize {
        1
    }
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
    conformance::suite(&DigitSuite(Broken::Nothing)).await;
    conformance::expert_solves(&DigitSuite(Broken::Nothing), 1.0).await;
}

#[tokio::test]
async fn each_broken_promise_is_found_by_its_check() {
    for (broken, name) in [
        (Broken::HasAnUnusableName, "names and versions are usable"),
        (Broken::HasNoHeldOutTasks, "task keys stable, unique and disjoint"),
        (Broken::SharesTasks, "task keys stable, unique and disjoint"),
        (Broken::RepeatsATask, "task keys stable, unique and disjoint"),
        (Broken::PanicsForTasks, "task keys stable, unique and disjoint"),
        (Broken::ExpertErrs, "the expert solves tasks of both splits"),
        (Broken::RandomWins, "the random player earns little"),
        (Broken::GoesOnTooLong, "ends within its turns"),
    ] {
        let checks = check_suite(&DigitSuite(broken)).await;
        let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
        assert!(failed.iter().any(|check| check.name == name), "{broken:?}: {failed:?}");
    }
}

#[tokio::test]
async fn players_are_measured() {
    let suite = DigitSuite(Broken::Nothing);
    let expert = measure(&suite, Split::Train, Player::Expert, 7).await.unwrap();
    assert_eq!((expert.n_episodes, expert.reward_mean, expert.solved_rate), (7, 1.0, 1.0));
    let random = measure(&suite, Split::HeldOut, Player::Random, 1000).await.unwrap();
    assert!((0.05..0.15).contains(&random.solved_rate), "{random:?}");
    assert_eq!(random.solved_rate, random.reward_mean);
}
