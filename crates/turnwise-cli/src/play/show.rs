//! Output for a person.

use std::io::{self, Write};

use serde_json::Value;
use turnwise_environment::{Ending, Message, Observation, Seat, Split, Step, Suite, ToolSpec};

use super::{Ended, Game, PlayOutcome, Table};
use turnwise_run::chat::{SPEAKER, speaker};
use turnwise_run::text;

/// Writes to the player.
pub(super) struct Shown<W> {
    out: W,
    /// The seat that moves; a person plays all of them.
    seat: Seat,
}

impl<W: Write> Shown<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, seat: Seat::default() }
    }

    pub(super) fn opening(
        &mut self,
        suite: &Suite,
        game: &Game,
        table: &Table<'_>,
    ) -> io::Result<()> {
        let split = match game.split {
            Split::Train => "train",
            Split::HeldOut => "held-out",
        };
        let task = format!("{split} task {}", table.task_index);
        self.line(&format!("{}  {task}  seed {}", suite.name(), game.seed))?;
        self.line(suite.about())?;
        self.tools(&table.tools)?;
        self.line("/help shows the commands")?;
        self.line("")?;
        self.observation(table.observation())
    }

    /// Writes the state of the episode and the prompt, whose line stays open.
    pub(super) fn prompt(
        &mut self,
        n_turns: usize,
        max: Option<usize>,
        reward: f64,
    ) -> io::Result<()> {
        let of = max.map_or_else(String::new, |max| format!("/{max}"));
        self.line(&format!("turn {}{of}  reward so far {reward:.2}", n_turns + 1))?;
        write!(self.out, "> ")?;
        self.out.flush()
    }

    pub(super) fn step(&mut self, step: &Step) -> io::Result<()> {
        if let Step::Next { observation, faults, .. } = step {
            self.observation(observation)?;
            if *faults > 0 {
                self.line("(that was a mistake of form; too many of them end a model's episode)")?;
            }
        }
        Ok(())
    }

    pub(super) fn undone(&mut self, observation: &Observation) -> io::Result<()> {
        self.line("undone; the environment had said:")?;
        self.observation(observation)
    }

    pub(super) fn unknown(&mut self, command: &str) -> io::Result<()> {
        self.line(&format!("unknown command {}; see /help", text::one_line(command)))
    }

    pub(super) fn help(&mut self, tools: &[ToolSpec]) -> io::Result<()> {
        self.line("TEXT             say it, as the model would")?;
        self.line("TOOL JSON        call a tool; without JSON, with no arguments")?;
        self.line(
            "<tool_call>…     call a tool in the form that a model writes, on one line or several",
        )?;
        self.line("/call NAME JSON  call a tool of any name")?;
        self.line("/say TEXT        say text that starts like a command or a tool")?;
        self.line("/undo            undo the last action")?;
        self.line("/quit            stop (or end the input)")?;
        self.tools(tools)
    }

    pub(super) fn outcome(&mut self, outcome: &PlayOutcome) -> io::Result<()> {
        let (reward, n_turns) = (outcome.reward(), outcome.transcript.rewards.len());
        let how = how_it_ended(outcome.ended);
        let turns = if n_turns == 1 { "turn" } else { "turns" };
        self.line(&format!("{how}: reward {reward:.2} in {n_turns} {turns}"))
    }

    pub(super) fn line(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }

    fn observation(&mut self, observation: &Observation) -> io::Result<()> {
        if observation.seat != self.seat {
            self.seat = observation.seat;
            self.line(&format!("seat {} moves", self.seat))?;
        }
        observation.messages.iter().try_for_each(|message| self.message(message))
    }

    fn message(&mut self, message: &Message) -> io::Result<()> {
        let mut who = speaker(message.role);
        for line in text::lines(&message.content) {
            self.line(format!("{who:SPEAKER$}{line}").trim_end())?;
            who = "";
        }
        Ok(())
    }

    fn tools(&mut self, tools: &[ToolSpec]) -> io::Result<()> {
        let mut who = "tools";
        for tool in tools {
            let line = format!("{}  {}", signature(tool), tool.description);
            self.line(format!("{who:SPEAKER$}{}", text::one_line(&line)).trim_end())?;
            who = "";
        }
        Ok(())
    }
}

fn how_it_ended(ended: Option<Ended>) -> &'static str {
    match ended {
        None => "stopped",
        Some(Ended { ending: Ending::Failed, .. }) => "the environment failed",
        Some(Ended { solved: true, .. }) => "solved",
        Some(Ended { ending: Ending::Truncated, .. }) => "cut off, not solved",
        Some(Ended { ending: Ending::Terminated, .. }) => "over, not solved",
    }
}

/// Formats a tool and its arguments, required ones first: `calc {"a": integer, "op": "+" or "-", "b": integer}`.
fn signature(tool: &ToolSpec) -> String {
    let required: Vec<&str> = match tool.parameters.get("required") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let mut properties: Vec<(&String, &Value)> = match tool.parameters.get("properties") {
        Some(Value::Object(properties)) => properties.iter().collect(),
        _ => Vec::new(),
    };
    let place = |name: &str| required.iter().position(|required| *required == name);
    properties.sort_by_key(|(name, _)| place(name).unwrap_or(usize::MAX));
    let arguments = properties.into_iter().map(|(name, schema)| {
        let optional = if place(name).is_some() { "" } else { " (optional)" };
        format!("\"{name}\": {}{optional}", kind(schema))
    });
    format!("{} {{{}}}", tool.name, arguments.collect::<Vec<String>>().join(", "))
}

/// Returns a word for the values that a JSON Schema allows.
fn kind(schema: &Value) -> String {
    match (schema.get("enum").and_then(Value::as_array), schema.get("type")) {
        (Some(values), _) => {
            values.iter().map(Value::to_string).collect::<Vec<String>>().join(" or ")
        }
        (None, Some(Value::String(kind))) => kind.clone(),
        (None, Some(kinds)) => kinds.to_string(),
        (None, None) => "anything".to_owned(),
    }
}
