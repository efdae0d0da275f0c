use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{GraphError, Trajectory};

/// The version of the JSONL form that this crate writes.
pub const FORMAT: u32 = 2;

/// The format in which a turn had one reward, to which the rubric's score and the trainer's penalty were added.
const SUMMED: u32 = 1;

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    #[serde(flatten)]
    trajectory: &'a Trajectory,
}

#[derive(Deserialize)]
struct Header {
    format: u32,
}

/// Writes a trajectory as one line of JSON.
///
/// # Errors
/// When the writer fails.
pub fn write_line(mut writer: impl Write, trajectory: &Trajectory) -> io::Result<()> {
    serde_json::to_writer(&mut writer, &Written { format: FORMAT, trajectory })?;
    writer.write_all(b"\n")
}

/// Reads a trajectory from one line of JSON, and checks the invariants that types cannot enforce.
///
/// # Errors
/// If the line is not a record, has another format, or holds a trajectory that violates an invariant.
pub fn read_line(line: &str) -> Result<Trajectory, RecordError> {
    let Header { format } = serde_json::from_str(line).map_err(RecordError::Json)?;
    let trajectory: Trajectory = match format {
        FORMAT => serde_json::from_str(line),
        SUMMED => serde_json::from_str(line).and_then(|line| serde_json::from_value(apart(line))),
        found => return Err(RecordError::Format { found }),
    }
    .map_err(RecordError::Json)?;
    validate(&trajectory)?;
    trajectory.others.iter().try_for_each(validate)?;
    Ok(trajectory)
}

fn validate(trajectory: &Trajectory) -> Result<(), RecordError> {
    trajectory.graph.validate().map_err(RecordError::Graph)?;
    let n_nodes = trajectory.graph.nodes().len();
    if let Some(turn) = trajectory.turns.iter().position(|turn| turn.node.0 as usize >= n_nodes) {
        return Err(RecordError::Turn { turn });
    }
    if trajectory.sampled().any(|token| usize::from(token.sampling) >= trajectory.sampling.len()) {
        return Err(RecordError::Sampling);
    }
    Ok(())
}

/// Takes a record of format 1 with the parts of its rewards apart: a score had the reward before it was added.
fn apart(mut line: Value) -> Value {
    let turns = line.get_mut("turns").and_then(Value::as_array_mut).into_iter().flatten();
    for turn in turns.filter_map(Value::as_object_mut) {
        let Some(Value::Object(mut score)) = turn.remove("score") else { continue };
        turn.insert("reward".to_owned(), score.remove("before").unwrap_or_default());
        if score.get("rubric") == Some(&Value::from("admission")) {
            turn.insert("penalty".to_owned(), score.remove("value").unwrap_or_default());
        } else {
            turn.insert("score".to_owned(), Value::Object(score));
        }
    }
    line
}

/// The reason why a line cannot be read as a trajectory.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The line is not JSON, or has another shape.
    #[error("cannot read the trajectory record")]
    Json(#[source] serde_json::Error),
    /// The record has another format.
    #[error(
        "cannot read a trajectory record of format {found}: this version reads formats {SUMMED} and {FORMAT}"
    )]
    Format {
        /// The line's format.
        found: u32,
    },
    /// The message graph violates an invariant.
    #[error("cannot read a trajectory record with an invalid message graph")]
    Graph(#[source] GraphError),
    /// A turn refers to a node that the graph lacks.
    #[error(
        "cannot read a trajectory record whose turn {turn} refers to a node that is not in its graph"
    )]
    Turn {
        /// The index of the turn.
        turn: usize,
    },
    /// A token refers to sampling settings that the record lacks.
    #[error("cannot read a trajectory record with a token whose sampling settings are not in it")]
    Sampling,
}
