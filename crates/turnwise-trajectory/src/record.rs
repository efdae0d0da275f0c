use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::{GraphError, Trajectory};

/// The version of the JSONL form that this crate writes.
pub const FORMAT: u32 = 1;

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
    if format != FORMAT {
        return Err(RecordError::Format { found: format });
    }
    let trajectory: Trajectory = serde_json::from_str(line).map_err(RecordError::Json)?;
    trajectory.graph.validate().map_err(RecordError::Graph)?;
    let n_nodes = trajectory.graph.nodes().len();
    if let Some(turn) = trajectory.turns.iter().position(|turn| turn.node.0 as usize >= n_nodes) {
        return Err(RecordError::Turn { turn });
    }
    if trajectory.sampled().any(|token| usize::from(token.sampling) >= trajectory.sampling.len()) {
        return Err(RecordError::Sampling);
    }
    Ok(trajectory)
}

/// The reason why a line cannot be read as a trajectory.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The line is not JSON, or has another shape.
    #[error("cannot read the trajectory record")]
    Json(#[source] serde_json::Error),
    /// The record has another format.
    #[error(
        "cannot read a trajectory record of format {found}: this version reads format {FORMAT}"
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
