//! Atomic checkpoints: each is either whole or absent.
//!
//! A checkpoint is written to a staging directory, every file and the directory are synced, a manifest with lengths and
//! hashes is added, and then the directory is renamed to its final name. An existing checkpoint of that name is
//! exchanged with the new one in a single step, so that one of them is there at every moment. Loading verifies every
//! hash before it uses a byte. (This avoids the failures of verl#4873, Lightning#688 and speculators#739: no checkpoint
//! is overwritten in place, none is trusted by its name, and more than one is kept.)

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use turnwise_rollout::Meter;
use turnwise_trajectory::PolicyVersion;

use crate::disk::{free_bytes, swap};
use crate::manifest::{Manifest, entries, sync};
use crate::{Learner, LearnerError, Trainer, TrainerSnapshot};

/// The checkpoints of a run, in their directory.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    directory: PathBuf,
    /// The number of checkpoints to keep, at least 2, because the newest may turn out to be damaged.
    keep: usize,
    /// The progress of a verification.
    meter: Meter,
}

/// A verified checkpoint: its files match its manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The directory: a model directory, with the optimiser's and the trainer's state in it.
    pub directory: PathBuf,
    /// The next step, according to the manifest and not to the directory's name.
    pub step: u64,
    /// Notes about other directories: newer ones that were passed over, and why; names that contradict their manifest.
    pub notes: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct State {
    version: PolicyVersion,
    trainer: TrainerSnapshot,
}

/// A directory named `step-NNNNNN`.
struct Found {
    /// The step of the manifest, or of the name if there is no valid manifest.
    step: u64,
    /// Whether the name agrees with the step.
    is_named_right: bool,
    directory: PathBuf,
    manifest: Result<Manifest, String>,
}

const STATE: &str = "state.json";
/// The prefix of the directories of unfinished work.
const STAGING: &str = ".tmp-";
/// The pauses before a save is retried after a disk failure.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

impl Checkpoints {
    /// Returns the checkpoints of a directory, which is created at the first save.
    #[must_use]
    pub fn new(directory: PathBuf, keep: usize) -> Self {
        Self { directory, keep: keep.max(2), meter: Meter::default() }
    }

    /// Returns the progress, in bytes, of the hashes that [`Self::save`], [`Self::load`] or [`Self::newest`] compute.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Writes a checkpoint of the trainer between two steps. `extra` adds further files to the directory.
    ///
    /// If the disk fails or is full, the save is retried three times, with pauses.
    ///
    /// # Errors
    /// If a file cannot be written; existing checkpoints are unchanged.
    pub async fn save<L: Learner>(
        &self,
        trainer: &mut Trainer<L>,
        extra: impl Fn(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, CheckpointError> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let error = match self.try_save(trainer, &extra).await {
                Ok(published) => return Ok(published),
                Err(error) => error,
            };
            let Some(pause) = pauses.next().filter(|_| error.is_of_the_disk()) else {
                return Err(error);
            };
            let cause = root(&error);
            tracing::warn!(%cause, pause_s = pause.as_secs_f64(), "a checkpoint was not written; retrying");
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_save<L: Learner>(
        &self,
        trainer: &mut Trainer<L>,
        extra: &impl Fn(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, CheckpointError> {
        self.sweep()?;
        self.check_space()?;
        let step = trainer.next_step();
        let staging = self.directory.join(format!("{STAGING}{step:06}"));
        fs::create_dir_all(&staging).at(&staging)?;
        trainer.learner().save(&staging).await?;
        let snapshot = trainer.snapshot().await;
        let state = State { version: trainer.learner().version(), trainer: snapshot };
        let json = serde_json::to_vec(&state).map_err(io::Error::from).at(&staging)?;
        fs::write(staging.join(STATE), json).at(&staging)?;
        extra(&staging).at(&staging)?;
        write_manifest(&staging, step, &self.meter).await.at(&staging)?;
        let published = self.directory.join(name_of(step));
        self.publish(&staging, &published).at(&published)?;
        if let Err(error) = self.prune(&published) {
            // The new checkpoint is safe; the next save tries to delete again.
            tracing::warn!(%error, "an old checkpoint was not deleted");
        }
        Ok(published)
    }

    /// Restores the newest whole checkpoint into a fresh trainer; returns `None` if there are no checkpoints.
    ///
    /// # Errors
    /// If there are checkpoints but none is whole, or the trainer refuses its content.
    pub async fn load<L: Learner>(
        &self,
        trainer: &mut Trainer<L>,
    ) -> Result<Option<Checkpoint>, CheckpointError> {
        let checkpoints = self.clone();
        let newest = spawn_blocking(move || checkpoints.newest()).await;
        let newest = newest.map_err(io::Error::other).at(&self.directory)?;
        let Some(checkpoint) = newest? else { return Ok(None) };
        let directory = &checkpoint.directory;
        let content =
            |reason: String| CheckpointError::Content { directory: directory.clone(), reason };
        let json = fs::read(directory.join(STATE)).at(directory)?;
        let state: State =
            serde_json::from_slice(&json).map_err(|error| content(error.to_string()))?;
        trainer.learner().load(directory, state.version).await?;
        trainer.restore(state.trainer).map_err(|error| content(with_causes(&error)))?;
        Ok(Some(checkpoint))
    }

    /// Returns the newest whole checkpoint; `None` if there are no checkpoints. Reads all of it, which can take
    /// seconds.
    ///
    /// # Errors
    /// If there are checkpoints but none is whole.
    pub fn newest(&self) -> Result<Option<Checkpoint>, CheckpointError> {
        let mut notes = Vec::new();
        for found in self.found().at(&self.directory)?.into_iter().rev() {
            let Found { step, is_named_right, directory, manifest } = found;
            let shown = directory.display();
            if let Err(reason) =
                manifest.and_then(|manifest| manifest.verify(&directory, &self.meter))
            {
                notes.push(format!("passed over {shown}: {reason}"));
                continue;
            }
            if !is_named_right {
                notes.push(format!("{shown} holds step {step}; its name says another"));
            }
            return Ok(Some(Checkpoint { directory, step, notes }));
        }
        if notes.is_empty() { Ok(None) } else { Err(CheckpointError::NoneWhole { notes }) }
    }

    /// Removes the unfinished directories of a killed process.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn sweep(&self) -> Result<(), CheckpointError> {
        for path in entries(&self.directory).at(&self.directory)? {
            let is_ours =
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(STAGING));
            if is_ours {
                remove(&path).at(&path)?;
            }
        }
        Ok(())
    }

    /// Returns every directory named `step-NNNNNN`, oldest first; among those of one step, the one whose name agrees is
    /// last.
    fn found(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for directory in entries(&self.directory)? {
            let name = directory.file_name().and_then(|name| name.to_str());
            let number: Option<u64> =
                name.and_then(|name| name.strip_prefix("step-")?.parse().ok());
            let Some(number) = number else { continue };
            let is_directory =
                fs::symlink_metadata(&directory).is_ok_and(|metadata| metadata.is_dir());
            let manifest = if is_directory {
                Manifest::read(&directory)
            } else {
                Err("it is not a directory".to_owned())
            };
            let step = manifest.as_ref().map_or(number, |manifest| manifest.step);
            let is_named_right = step == number;
            found.push(Found { step, is_named_right, directory, manifest });
        }
        found.sort_by_key(|found| (found.step, found.is_named_right));
        Ok(found)
    }

    /// Returns an error if the disk has less room than the newest checkpoint takes.
    fn check_space(&self) -> Result<(), CheckpointError> {
        let found = self.found().at(&self.directory)?;
        let newest = found.iter().rev().find_map(|found| found.manifest.as_ref().ok());
        let needed = newest.map_or(0, Manifest::bytes);
        match free_bytes(&self.directory) {
            Some(free) if free < needed => {
                Err(CheckpointError::NoSpace { directory: self.directory.clone(), needed, free })
            }
            _ => Ok(()),
        }
    }

    /// Gives the staging directory its final name. An existing directory of that name stays until the new one takes its
    /// place.
    fn publish(&self, staging: &Path, published: &Path) -> io::Result<()> {
        if fs::symlink_metadata(published).is_err() {
            fs::rename(staging, published)?;
            return sync(&self.directory);
        }
        if swap(staging, published)? {
            sync(&self.directory)?;
            return set_aside(staging, published);
        }
        // The file system cannot exchange two names. An existing whole checkpoint of this step is as good as the new
        // one: it lacks only rollouts of the unfinished step, which are sampled again.
        if is_whole(published) {
            return fs::remove_dir_all(staging);
        }
        set_aside(published, published)?;
        fs::rename(staging, published)?;
        sync(&self.directory)
    }

    /// Deletes the oldest checkpoints beyond those to keep. Directories that are not whole checkpoints are neither
    /// counted nor touched.
    fn prune(&self, newest: &Path) -> io::Result<()> {
        let mut others: Vec<Found> = self.found()?;
        others.retain(|found| {
            let looks_whole = found
                .manifest
                .as_ref()
                .is_ok_and(|manifest| manifest.looks_whole(&found.directory));
            looks_whole && found.directory != newest
        });
        let n_old = (others.len() + 1).saturating_sub(self.keep);
        others.iter().take(n_old).try_for_each(|found| discard(&found.directory))
    }
}

/// Saves the weights of a learner, with a manifest, for a resumed run to compare with.
///
/// # Errors
/// If they cannot be written; then `directory` does not exist.
pub async fn save_weights<L: Learner>(
    learner: &mut L,
    directory: &Path,
    extra: impl Fn(&Path) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let staging = directory.with_file_name(format!("{STAGING}{name}"));
    for stale in [&staging, directory] {
        remove(stale).at(stale)?;
    }
    fs::create_dir_all(&staging).at(&staging)?;
    learner.save(&staging).await?;
    extra(&staging).at(&staging)?;
    write_manifest(&staging, 0, &Meter::default()).await.at(&staging)?;
    fs::rename(&staging, directory).at(directory)?;
    directory.parent().map_or(Ok(()), sync).at(directory)
}

/// Verifies saved weights against their manifest.
///
/// # Errors
/// If there are no saved weights, or a file differs from the manifest.
pub fn verify_weights(directory: &Path) -> Result<(), CheckpointError> {
    let verified = Manifest::read(directory)
        .and_then(|manifest| manifest.verify(directory, &Meter::default()));
    verified.map_err(|reason| CheckpointError::Content { directory: directory.to_owned(), reason })
}

/// Formats an error and its causes on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Syncs and hashes the content of a directory, outside of the async runtime, because it can take seconds.
async fn write_manifest(directory: &Path, step: u64, meter: &Meter) -> io::Result<()> {
    let (directory, meter) = (directory.to_owned(), meter.clone());
    let written = spawn_blocking(move || Manifest::write(&directory, step, &meter)).await;
    written.map_err(io::Error::other)?
}

fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

fn is_whole(directory: &Path) -> bool {
    let meter = Meter::default();
    Manifest::read(directory).and_then(|manifest| manifest.verify(directory, &meter)).is_ok()
}

/// Deletes a checkpoint so that a half-deleted directory never has a published name.
fn discard(directory: &Path) -> io::Result<()> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let hidden = directory.with_file_name(format!("{STAGING}old-{name}"));
    fs::rename(directory, &hidden)?;
    remove(&hidden)
}

/// Removes the former content of a checkpoint's name, which is now at `path`. Only a checkpoint or an empty directory
/// is deleted; other content is renamed and kept.
fn set_aside(path: &Path, published: &Path) -> io::Result<()> {
    if Manifest::read(path).is_ok() {
        return discard(path);
    }
    if fs::remove_dir(path).is_ok() {
        return Ok(());
    }
    let name = published.file_name().unwrap_or_default().to_string_lossy();
    let free = (1..).map(|n: u64| published.with_file_name(format!("not-a-checkpoint-{name}-{n}")));
    let aside = free.into_iter().find(|aside| fs::symlink_metadata(aside).is_err());
    fs::rename(path, aside.expect("some number is free"))
}

/// Removes a file, a link or a directory with its content; does nothing if the path does not exist.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns the last cause of an error.
fn root<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    error.source().map_or(error, root)
}

/// Attaches a path to a file-system error.
trait At<T> {
    fn at(self, path: &Path) -> Result<T, CheckpointError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, CheckpointError> {
        self.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
    }
}

/// An error of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file-system error.
    #[error("cannot write or read a checkpoint in {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The disk is full, or would be.
    #[error(
        "cannot write a checkpoint in {}: it needs {} MB, and {} MB are free",
        directory.display(), needed.div_ceil(1_000_000), free / 1_000_000
    )]
    NoSpace {
        /// The directory of the checkpoints.
        directory: PathBuf,
        /// The number of bytes that the newest checkpoint takes.
        needed: u64,
        /// The number of free bytes.
        free: u64,
    },
    /// The learner failed.
    #[error(transparent)]
    Learner(#[from] LearnerError),
    /// The content is damaged, or belongs to another run.
    #[error("cannot continue from {}: {reason}", directory.display())]
    Content {
        /// The checkpoint.
        directory: PathBuf,
        /// The reason.
        reason: String,
    },
    /// Every checkpoint is damaged.
    #[error("cannot find a whole checkpoint: {}", notes.join("; "))]
    NoneWhole {
        /// Each checkpoint, with the reason why it is not whole.
        notes: Vec<String>,
    },
}

impl CheckpointError {
    /// Returns whether the disk failed or is full, so that a retry may succeed.
    #[must_use]
    pub fn is_of_the_disk(&self) -> bool {
        let mut error: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(cause) = error {
            if cause.is::<io::Error>() {
                return true;
            }
            error = cause.source();
        }
        matches!(self, Self::NoSpace { .. })
    }
}
