//! The weights that the replicas serve.

use std::path::{Path, PathBuf};

use turnwise_trajectory::PolicyVersion;

use crate::WeightProbe;

/// The files of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightFiles {
    /// The directory of a PEFT adapter, which is loaded beside the server's own model.
    Adapter(PathBuf),
    /// The directory of a whole model, which replaces the server's.
    Model(PathBuf),
}

impl WeightFiles {
    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Adapter(path) | Self::Model(path) => path,
        }
    }
}

/// Weights under their version.
#[derive(Clone, Debug)]
pub(crate) struct PublishedWeights {
    pub(crate) version: PolicyVersion,
    /// The files by the server's own path.
    pub(crate) files: WeightFiles,
    pub(crate) probe: WeightProbe,
}

impl PublishedWeights {
    /// Returns the model's name in a request, where `base` is the name of the server's own model.
    pub(crate) fn model_name<'a>(&self, base: &'a str) -> std::borrow::Cow<'a, str> {
        match self.files {
            WeightFiles::Adapter(_) => adapter_name(self.version).into(),
            WeightFiles::Model(_) => base.into(),
        }
    }

    /// Returns whether all requests have to end before weights are loaded: whole models replace each other in place.
    pub(crate) fn replaces(&self) -> bool {
        matches!(self.files, WeightFiles::Model(_))
    }
}

/// Returns the name of a version's adapter. Each version has a name of its own, so that no request can meet another.
pub(crate) fn adapter_name(version: PolicyVersion) -> String {
    format!("turnwise-{version}")
}
