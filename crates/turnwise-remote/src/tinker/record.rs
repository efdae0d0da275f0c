//! The file of a checkpoint, which names the weights that the server has.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::TinkerError;

/// Weights and optimiser state on a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) path: String,
    pub(super) base_model: String,
    pub(super) rank: u32,
}

const FILE: &str = "tinker.json";
/// The longest file that is read.
const LONGEST: u64 = 64 * 1024;

impl Record {
    pub(super) fn write(&self, directory: &Path) -> Result<(), TinkerError> {
        let path = directory.join(FILE);
        let text = serde_json::to_string_pretty(self).map_err(|error| bad(&path, &error))?;
        fs::write(&path, text).map_err(|error| bad(&path, &error))
    }

    pub(super) fn read(directory: &Path) -> Result<Self, TinkerError> {
        let path = directory.join(FILE);
        let length = fs::metadata(&path).map_err(|error| bad(&path, &error))?.len();
        if length > LONGEST {
            return Err(bad(&path, &format!("{length} bytes are no record of weights")));
        }
        let text = fs::read_to_string(&path).map_err(|error| bad(&path, &error))?;
        serde_json::from_str(&text).map_err(|error| bad(&path, &error))
    }

    /// Checks that a model of this kind can load the weights.
    pub(super) fn check(
        &self,
        directory: &Path,
        base_model: &str,
        rank: u32,
    ) -> Result<(), TinkerError> {
        if self.base_model == base_model && self.rank == rank {
            return Ok(());
        }
        let reason = format!(
            "it has adapters of rank {} for `{}`, and the settings say rank {rank} for `{base_model}`",
            self.rank, self.base_model
        );
        Err(bad(&directory.join(FILE), &reason))
    }
}

pub(super) fn bad(path: &Path, reason: &dyn std::fmt::Display) -> TinkerError {
    TinkerError::BadFile { path: path.display().to_string(), reason: reason.to_string() }
}
