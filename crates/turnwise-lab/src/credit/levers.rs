use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnwise_environment::{
    Action, Demonstrator, Environment, EnvironmentError, Observation, Random, Step, TaskKey,
    TaskSet, derive_seed,
};

/// The sizes of the lever task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Levers {
    /// Doors, each a task of its own.
    pub doors: usize,
    /// Levers, one of which opens each door.
    pub levers: usize,
    /// Words of a report.
    pub report_words: usize,
    /// What a report earns or costs, as the judge pleases; 0 is a silent judge.
    pub judge: f64,
}

impl Default for Levers {
    /// One door, sixteen levers, a report of 24 words, and a judge who adds or takes as much as the door brings.
    fn default() -> Self {
        Self { doors: 1, levers: 16, report_words: 24, judge: 1.0 }
    }
}

impl Levers {
    /// What a door is called.
    #[must_use]
    pub fn door(door: usize) -> String {
        format!("door{door}")
    }

    /// What a lever is called, and a word of a report.
    #[must_use]
    pub fn lever(lever: usize) -> String {
        format!("lever{lever}")
    }

    /// The lever that opens a door: neighbours have different ones, and no door's number is its lever's.
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
/// The first word of the first turn is the lever. Its reward, 1 if the door opens, comes in that turn; the report's is the
/// judge's, up or down with equal odds over the seeds whatever the report says.
#[derive(Clone, Debug)]
pub struct LeverTask {
    door: String,
    right: String,
    /// Whether the lever of the first turn opened the door.
    opened: Option<bool>,
    judge: f64,
    /// The judge's mood.
    seed: u64,
}

impl LeverTask {
    /// The judge's score of a report: another wording or another seed, another score.
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

/// Pulls a lever at random and reports random words: it knows the form and nothing else.
#[derive(Clone, Debug)]
pub struct LeverPuller {
    levers: Levers,
    random: Random,
}

impl LeverPuller {
    /// A player of its own for each seed.
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
