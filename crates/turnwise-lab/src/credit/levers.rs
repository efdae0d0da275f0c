use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnwise_environment::{
    Action, Demonstrator, Environment, EnvironmentError, Observation, Random, Step, TaskKey,
    TaskSet, derive_seed,
};

/// The sizes of the lever task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Levers {
    /// The number of doors, each a task of its own.
    pub doors: usize,
    /// The number of levers; one of them opens each door.
    pub levers: usize,
    /// The number of words of a report.
    pub report_words: usize,
    /// The amount that a report earns or costs at the judge's whim; 0 silences the judge.
    pub judge: f64,
}

impl Default for Levers {
    /// Returns one door, sixteen levers, a report of 24 words, and a judge whose score is as large as the door's
    /// reward.
    fn default() -> Self {
        Self { doors: 1, levers: 16, report_words: 24, judge: 1.0 }
    }
}

impl Levers {
    /// Returns the name of a door.
    #[must_use]
    pub fn door(door: usize) -> String {
        format!("door{door}")
    }

    /// Returns the name of a lever, which is also a word of a report.
    #[must_use]
    pub fn lever(lever: usize) -> String {
        format!("lever{lever}")
    }

    /// Returns the lever that opens a door: adjacent doors have different ones, and no door's lever has the door's
    /// number.
    #[must_use]
    pub fn right(&self, door: usize) -> usize {
        (3 * door + 1) % self.levers
    }
}

/// The tasks: one for each door.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeverTasks(pub Levers);

impl TaskSet for LeverTasks {
    fn name(&self) -> &'static str {
        "levers"
    }

    fn len(&self) -> usize {
        self.0.doors
    }

    fn key(&self, index: usize) -> TaskKey {
        TaskKey::of(&format!(
            "levers {} door {index} opens with {}",
            self.0.levers,
            self.0.right(index)
        ))
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        Box::new(LeverTask {
            door: Levers::door(index),
            right: Levers::lever(self.0.right(index)),
            opened: None,
            judge: self.0.judge,
            seed: 0,
        })
    }
}

/// One episode: a lever, then a report.
///
/// The first word of the first turn is the lever. Its reward, 1 if the door opens, is given in that turn. The report's
/// reward is the judge's score, positive or negative with equal odds over the seeds for every report.
#[derive(Clone, Debug)]
pub struct LeverTask {
    door: String,
    right: String,
    /// Whether the lever of the first turn opened the door.
    opened: Option<bool>,
    judge: f64,
    /// The seed of the judge's scores.
    seed: u64,
}

impl LeverTask {
    /// Returns the judge's score of a report; it depends on the wording and the seed.
    fn score(&self, report: &str) -> f64 {
        let mood = report.bytes().fold(self.seed, |mood, byte| derive_seed(mood, u64::from(byte)));
        if Random::new(mood).uniform() < 0.5 { self.judge } else { -self.judge }
    }
}

#[async_trait]
impl Environment for LeverTask {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        self.seed = seed;
        Ok(self.door.as_str().into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        if let Some(opened) = self.opened {
            return Ok(Step::terminated(self.score(&action.text)).solved(opened));
        }
        let opened = action.text.split_whitespace().next() == Some(self.right.as_str());
        self.opened = Some(opened);
        Ok(Step::next("report").reward(f64::from(u8::from(opened))))
    }

    fn reward_range(&self) -> std::ops::RangeInclusive<f64> {
        -self.judge..=1.0 + self.judge
    }
}

/// A player that pulls random levers and reports random words: it knows the form only.
#[derive(Clone, Debug)]
pub struct LeverPuller {
    levers: Levers,
    random: Random,
}

impl LeverPuller {
    /// Creates a player for a seed.
    #[must_use]
    pub fn new(levers: Levers, seed: u64) -> Self {
        Self { levers, random: Random::new(seed) }
    }
}

impl Demonstrator for LeverPuller {
    fn act(&mut self, observation: &Observation) -> Action {
        let reports = observation.messages.iter().any(|message| message.content == "report");
        let n = if reports { self.levers.report_words } else { 1 };
        let mut word = || Levers::lever(self.random.below(self.levers.levers as u64) as usize);
        Action::text((0..n).map(|_| word()).collect::<Vec<_>>().join(" "))
    }
}
