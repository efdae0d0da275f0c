//! Find a hidden number with a tool that says whether it is higher or lower.
//!
//! The rules are an example: replace them with yours, from top to bottom.

use std::cmp::Ordering;
use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise::environment::{
    Action, Demonstrator, Environment, EnvironmentError, Observation, Reply, Step, Suite, Tasks,
    ToolSpec, Tools, async_trait,
};

/// `[environment.options]` in the settings of a run.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The largest number there is.
    pub largest: u32,
    /// How many numbers may be tried.
    pub turns: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { largest: 8, turns: 3 }
    }
}

/// One task. Tasks that serialise alike are the same task.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Task {
    low: u32,
    high: u32,
    secret: u32,
    turns: u32,
}

/// The environment under its name: its tasks, and those that are held out for evaluation.
///
/// Every fourth range is held out, with all its numbers. If single numbers were held out, a model could learn which numbers of
/// a range are never hidden, and do worse on just these.
///
/// # Errors
/// When the settings leave nothing to find.
pub fn suite(settings: Settings) -> Result<Suite, EnvironmentError> {
    let Settings { largest, turns } = settings;
    if largest < 4 || turns == 0 {
        return Err(EnvironmentError::new(
            "cannot set up the environment: largest must be at least 4 and turns at least 1",
        ));
    }
    // Every range of at least half of the numbers.
    let ranges =
        (1..=largest).flat_map(|low| (low + largest / 2..=largest).map(move |high| (low, high)));
    let (held_out, train): (Vec<_>, Vec<_>) =
        ranges.enumerate().partition(|(index, _)| index % 4 == 2);
    let tasks = |ranges: Vec<(usize, (u32, u32))>| {
        let hidden = ranges.into_iter().flat_map(move |(_, (low, high))| {
            (low..=high).map(move |secret| Task { low, high, secret, turns })
        });
        Tasks::new(hidden, |task| Episode::new(*task))
    };
    Ok(Suite::new("my-environment", tasks(train), tasks(held_out))
        .description("find a hidden number with a tool")
        .expert(|_seed| Halving::default())
        .max_turns(turns as usize))
}

/// What changes within an episode. The tools reach it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct State {
    secret: u32,
    turns_left: u32,
    is_found: bool,
}

/// Tries a number.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Try {
    /// The number to try.
    number: u32,
}

/// The tool. What it returns is what the model reads; a reward belongs to the turn that made the call.
fn try_number(state: &mut State, Try { number }: Try) -> Reply {
    match number.cmp(&state.secret) {
        Ordering::Less => "higher".into(),
        Ordering::Greater => "lower".into(),
        Ordering::Equal => {
            state.is_found = true;
            Reply::text("found").reward(1.0)
        }
    }
}

/// One episode.
#[derive(Debug)]
pub struct Episode {
    task: Task,
    state: State,
    tools: Tools<State>,
}

impl Episode {
    fn new(task: Task) -> Self {
        let state = State { secret: task.secret, turns_left: task.turns, is_found: false };
        Self { task, state, tools: Tools::new().tool(try_number) }
    }
}

#[async_trait]
impl Environment for Episode {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        let Task { low, high, turns, .. } = self.task;
        Ok(format!("Find a number from {low} to {high} in {turns} tries.").into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.state.turns_left -= 1;
        let round = self.tools.answer(&mut self.state, &action).await?;
        let is_last = self.state.is_found || self.state.turns_left == 0;
        Ok(match (is_last, action.calls.is_empty()) {
            (true, _) => Step::terminated(round.reward.unwrap_or(0.0)).solved(self.state.is_found),
            (false, true) => Step::next("Call the tool `try`.").faults(1),
            (false, false) => round.into(),
        })
    }

    fn tools(&self) -> Vec<ToolSpec> {
        self.tools.specs()
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        0.0..=1.0
    }

    // With these two an episode survives a restart of the program in mid-game.
    fn snapshot(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(&self.state).ok()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        let refuse = || EnvironmentError::new("cannot restore an episode");
        let state: State =
            serde_json::from_slice(snapshot).map_err(|error| refuse().caused_by(error))?;
        if state.secret != self.task.secret || state.turns_left == 0 || state.is_found {
            return Err(refuse().caused_by("the snapshot is of another episode"));
        }
        self.state = state;
        Ok(())
    }
}

/// A player to imitate before training: optional, but without one a model that knows nothing takes long to make its first call.
/// It halves what is left.
#[derive(Default)]
struct Halving {
    low: u32,
    high: u32,
    last: u32,
}

impl Demonstrator for Halving {
    fn act(&mut self, observation: &Observation) -> Action {
        let said = observation.messages.last().map_or("", |message| message.content.as_str());
        match said {
            "higher" => self.low = self.last + 1,
            "lower" => self.high = self.last - 1,
            opening => {
                let mut numbers = opening.split(' ').filter_map(|word| word.parse().ok());
                (self.low, self.high) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(1));
            }
        }
        self.last = u32::midpoint(self.low, self.high);
        Action::call("try", serde_json::json!({"number": self.last}))
    }
}
