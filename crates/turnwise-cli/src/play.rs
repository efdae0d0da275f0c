//! `turnwise play`: a person instead of the agent.
//!
//! The input is parsed like a model's turns, so that an environment answers a person as it answers a model, mistakes of
//! form included.

mod input;
mod show;

use std::fmt;
use std::io::{self, BufRead, Write};

use turnwise_environment::{
    Action, Ending, Environment, EnvironmentError, Message, Observation, Split, Step, Suite,
    ToolSpec, Transcript, derive_seed,
};

use turnwise_run::{ExitCode, Failure, Registry, from_arguments};

use input::{Line, read_line};
use show::Shown;

/// The episode to play.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Game {
    /// The seed of the environment and of the choice of a task.
    pub(crate) seed: u64,
    /// The index of the task; `None` chooses one by the seed.
    pub(crate) task: Option<usize>,
    /// The split of the task.
    pub(crate) split: Split,
}

/// A played episode.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlayOutcome {
    /// The index of the task in its split.
    pub(crate) task_index: usize,
    /// The conversation, and the reward of each turn, without undone turns.
    pub(crate) transcript: Transcript,
    /// The end of the episode; `None` if the person stopped.
    pub(crate) ended: Option<Ended>,
}

/// The end of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The reason of the end.
    pub(crate) ending: Ending,
    /// Whether the task was solved.
    pub(crate) solved: bool,
}

impl PlayOutcome {
    /// Returns the sum of the rewards.
    pub(crate) fn reward(&self) -> f64 {
        sum(self.transcript.rewards.iter().copied())
    }
}

/// Implements `turnwise play` on the terminal; options are like `span=20`.
///
/// # Errors
/// When the environment or the task does not exist, or the episode fails.
pub(crate) async fn run(
    registry: &Registry,
    env: &str,
    options: &[String],
    seed: u64,
    task: Option<usize>,
    held_out: bool,
) -> Result<(), Failure> {
    let suite = registry.suite(env, &from_arguments(options)?)?;
    let split = if held_out { Split::HeldOut } else { Split::Train };
    let game = Game { seed, task, split };
    match play(&suite, game, io::stdin().lock(), io::stdout().lock()).await {
        // A closed output ends the game.
        Err(PlayError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        played => played.map(|_| ()).map_err(|error| of_play(&error)),
    }
}

/// Lets a person play one episode, until it ends, they quit or the input ends.
///
/// `input` is read line by line and blocks the thread.
///
/// # Errors
/// When the task does not exist, the environment fails, or `input` or `out` fails.
pub(crate) async fn play(
    suite: &Suite,
    game: Game,
    mut input: impl BufRead,
    mut out: impl Write,
) -> Result<PlayOutcome, PlayError> {
    let mut table = Table::set(suite, game).await?;
    let mut show = Shown::new(&mut out);
    show.opening(suite, &game, &table)?;
    let mut ended = None;
    while ended.is_none() {
        show.prompt(table.n_turns(), suite.turn_limit(), table.reward())?;
        match read_line(&mut input, &table.tools)? {
            Line::End => {
                // The line of the prompt is still open.
                show.line("")?;
                break;
            }
            Line::Quit => break,
            Line::Help => show.help(&table.tools)?,
            Line::Undo => match table.undo() {
                Ok(()) => show.undone(table.observation())?,
                Err(why) => show.line(&why)?,
            },
            Line::Unknown(command) => show.unknown(&command)?,
            Line::Empty => show.line("an empty line is not sent; /help shows the commands")?,
            Line::Act(action) => {
                let step = table.act(action).await?;
                show.step(&step)?;
                ended = ending_of(&step);
            }
        }
    }
    let outcome = table.into_outcome(ended);
    show.outcome(&outcome)?;
    Ok(outcome)
}

/// Adds rewards, from 0: the sum of nothing would be shown as -0.
fn sum(rewards: impl Iterator<Item = Option<f64>>) -> f64 {
    rewards.flatten().fold(0.0, |sum, reward| sum + reward)
}

fn ending_of(step: &Step) -> Option<Ended> {
    match *step {
        Step::Next { .. } => None,
        Step::End { ending, solved, .. } => Some(Ended { ending, solved }),
    }
}

/// An environment and the episode so far.
struct Table<'a> {
    suite: &'a Suite,
    split: Split,
    task_index: usize,
    environment: Box<dyn Environment>,
    tools: Vec<ToolSpec>,
    first: Observation,
    turns: Vec<PlayedTurn>,
}

/// One turn, with the snapshot before it.
struct PlayedTurn {
    before: Option<Vec<u8>>,
    action: Action,
    step: Step,
}

impl<'a> Table<'a> {
    async fn set(suite: &'a Suite, game: Game) -> Result<Self, PlayError> {
        let Game { seed, task, split } = game;
        let tasks = suite.tasks(split);
        let n_tasks = tasks.len();
        let drawn = derive_seed(seed, 0).checked_rem(n_tasks as u64).unwrap_or(0);
        // It is below the number of tasks, which is a `usize`.
        let task_index = task.unwrap_or(drawn as usize);
        if task_index >= n_tasks {
            return Err(PlayError::NoTask { task: task_index, n_tasks });
        }
        let mut environment = tasks.environment(task_index);
        let tools = environment.tools();
        let first = environment.reset(seed).await?;
        Ok(Self { suite, split, task_index, environment, tools, first, turns: Vec::new() })
    }

    async fn act(&mut self, action: Action) -> Result<Step, PlayError> {
        let before = self.environment.snapshot();
        let step = self.environment.step(action.clone()).await?;
        self.turns.push(PlayedTurn { before, action, step: step.clone() });
        Ok(step)
    }

    /// Undoes the last action, or returns why that is not possible.
    fn undo(&mut self) -> Result<(), String> {
        let last = self.turns.last().ok_or("there is nothing to undo")?;
        let before = last
            .before
            .as_ref()
            .ok_or("this environment takes no snapshots, so nothing can be undone")?;
        // A snapshot is restored into a new environment; if that fails, the present one stays.
        let mut fresh = self.suite.tasks(self.split).environment(self.task_index);
        fresh.restore(before).map_err(|error| format!("the snapshot was refused: {error}"))?;
        self.environment = fresh;
        self.turns.pop();
        Ok(())
    }

    /// Returns the current observation.
    fn observation(&self) -> &Observation {
        match self.turns.last().map(|turn| &turn.step) {
            Some(Step::Next { observation, .. }) => observation,
            Some(Step::End { .. }) | None => &self.first,
        }
    }

    fn n_turns(&self) -> usize {
        self.turns.len()
    }

    fn rewards(&self) -> impl Iterator<Item = Option<f64>> {
        self.turns.iter().map(|turn| {
            let (Step::Next { reward, late, .. } | Step::End { reward, late, .. }) = &turn.step;
            let late = late.iter().map(|late| late.reward);
            reward.iter().copied().chain(late).reduce(|sum, part| sum + part)
        })
    }

    fn reward(&self) -> f64 {
        sum(self.rewards())
    }

    fn messages(&self) -> Vec<Message> {
        let mut messages = self.first.messages.clone();
        for turn in &self.turns {
            messages.push(turn.action.to_message());
            if let Step::Next { observation, .. } = &turn.step {
                messages.extend_from_slice(&observation.messages);
            }
        }
        messages
    }

    fn into_outcome(self, ended: Option<Ended>) -> PlayOutcome {
        let task = self.suite.tasks(self.split).key(self.task_index);
        let (messages, rewards) = (self.messages(), self.rewards().collect());
        let transcript = Transcript { task, messages, rewards };
        PlayOutcome { task_index: self.task_index, transcript, ended }
    }
}

/// An error of playing an episode.
#[derive(Debug)]
pub(crate) enum PlayError {
    /// A task index beyond the split.
    NoTask {
        /// The requested index.
        task: usize,
        /// The number of tasks.
        n_tasks: usize,
    },
    /// An error of the environment.
    Environment(EnvironmentError),
    /// An error of input or output.
    Io(io::Error),
}

impl fmt::Display for PlayError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTask { task, n_tasks: 0 } => {
                write!(formatter, "cannot play task {task}: the split has no tasks")
            }
            Self::NoTask { task, n_tasks } => {
                write!(
                    formatter,
                    "cannot play task {task}: the split has tasks 0 to {}",
                    n_tasks - 1
                )
            }
            Self::Environment(error) => {
                write!(formatter, "cannot play on: the environment broke: {error}")
            }
            Self::Io(_) => formatter.write_str("cannot talk to the player"),
        }
    }
}

impl std::error::Error for PlayError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoTask { .. } => None,
            // The message repeats the environment's, so the source is its source.
            Self::Environment(error) => error.source(),
            Self::Io(error) => Some(error),
        }
    }
}

fn of_play(error: &PlayError) -> Failure {
    match error {
        PlayError::NoTask { .. } => Failure::refused_by(error),
        PlayError::Environment(_) => Failure::new(ExitCode::Infrastructure, error.to_string())
            .help("check its contract:  turnwise env check NAME"),
        PlayError::Io(_) => Failure::runtime(error),
    }
}

impl From<EnvironmentError> for PlayError {
    fn from(error: EnvironmentError) -> Self {
        Self::Environment(error)
    }
}

impl From<io::Error> for PlayError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[cfg(test)]
mod tests;
