//! Checkpoints that are either whole or not there.
//!
//! A checkpoint is written to a staging directory, every file and the directory are synced, a manifest with lengths and
//! hashes is added, and only then is the directory renamed to its final name. Loading verifies every hash before it uses a
//! byte. (The recipe avoids the failures of verl#4873, Lightning#688 and speculators#739: none overwritten in place, none
//! trusted by its name, never only one kept.)

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use turnwise_trajectory::PolicyVersion;

use crate::{Learner, LearnerError, Trainer, TrainerSnapshot};

/// Where the checkpoints of a run are.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    directory: PathBuf,
    /// How many are kept, at least 2: the newest may turn out to be damaged.
    keep: usize,
}

/// A checkpoint whose files are what its manifest says.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Its directory: a model directory, with the optimiser's and the trainer's state beside.
    pub directory: PathBuf,
    /// The step that comes next.
    pub step: u64,
    /// Newer ones that were passed over, and why.
    pub refused: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    step: u64,
    files: Vec<ManifestFile>,
    /// Hash of the lines above, against accidents with the manifest itself.
    digest: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFile {
    name: String,
    bytes: u64,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct State {
    version: PolicyVersion,
    trainer: TrainerSnapshot,
}

const FORMAT: u32 = 1;
const MANIFEST: &str = "MANIFEST.json";
const STATE: &str = "state.json";

impl Checkpoints {
    /// The checkpoints in a directory, which is made when the first is written.
    #[must_use]
    pub fn new(directory: PathBuf, keep: usize) -> Self {
        Self { directory, keep: keep.max(2) }
    }

    /// Writes a checkpoint of the trainer as it stands between two steps. `extra` adds files of its own to the directory.
    ///
    /// # Errors
    /// When something cannot be written; the checkpoints that were there are as they were.
    pub async fn save<L: Learner>(
        &self,
        trainer: &mut Trainer<L>,
        extra: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, CheckpointError> {
        let step = trainer.next_step();
        let staging = self.directory.join(format!(".tmp-{step:06}"));
        self.sweep().at(&self.directory)?;
        fs::create_dir_all(&staging).at(&staging)?;
        trainer.learner().save(&staging).await?;
        let snapshot = trainer.snapshot().await;
        let state = State { version: trainer.learner().version(), trainer: snapshot };
        let json = serde_json::to_vec(&state).map_err(io::Error::from).at(&staging)?;
        fs::write(staging.join(STATE), json).at(&staging)?;
        extra(&staging).at(&staging)?;
        write_manifest(&staging, step).at(&staging)?;
        let published = self.directory.join(format!("step-{step:06}"));
        self.publish(&staging, &published).at(&published)?;
        self.prune().at(&self.directory)?;
        Ok(published)
    }

    /// Restores the newest whole checkpoint into a fresh trainer; `None` where there is none at all.
    ///
    /// # Errors
    /// When there are checkpoints and none is whole, or the trainer refuses its content.
    pub async fn load<L: Learner>(
        &self,
        trainer: &mut Trainer<L>,
    ) -> Result<Option<Checkpoint>, CheckpointError> {
        let Some(checkpoint) = self.newest()? else { return Ok(None) };
        let directory = &checkpoint.directory;
        let json = fs::read(directory.join(STATE)).at(directory)?;
        let state: State = serde_json::from_slice(&json).map_err(|error| {
            CheckpointError::Content { directory: directory.clone(), reason: error.to_string() }
        })?;
        trainer.learner().load(directory, state.version).await?;
        trainer.restore(state.trainer).map_err(|error| CheckpointError::Content {
            directory: directory.clone(),
            reason: error.to_string(),
        })?;
        Ok(Some(checkpoint))
    }

    /// The newest checkpoint that is whole; `None` where there is none at all.
    ///
    /// # Errors
    /// When there are checkpoints and none is whole.
    pub fn newest(&self) -> Result<Option<Checkpoint>, CheckpointError> {
        let mut refused = Vec::new();
        for (step, directory) in self.published().at(&self.directory)?.into_iter().rev() {
            match verify(&directory) {
                Ok(()) => return Ok(Some(Checkpoint { directory, step, refused })),
                Err(reason) => refused.push(format!("{}: {reason}", directory.display())),
            }
        }
        if refused.is_empty() { Ok(None) } else { Err(CheckpointError::NoneWhole { refused }) }
    }

    /// Step and directory of every published checkpoint, oldest first.
    fn published(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found: Vec<(u64, PathBuf)> = entries(&self.directory)?
            .into_iter()
            .filter_map(|path| {
                Some((path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?, path))
            })
            .collect();
        found.sort();
        Ok(found)
    }

    /// Removes what a killed process left half written or half deleted.
    fn sweep(&self) -> io::Result<()> {
        for path in entries(&self.directory)? {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".tmp-")) {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    fn publish(&self, staging: &Path, published: &Path) -> io::Result<()> {
        if published.exists() {
            // A rename cannot replace a directory that is not empty.
            discard(published)?;
        }
        fs::rename(staging, published)?;
        sync(&self.directory)
    }

    fn prune(&self) -> io::Result<()> {
        let published = self.published()?;
        let n_old = published.len().saturating_sub(self.keep);
        published[..n_old].iter().try_for_each(|(_, directory)| discard(directory))
    }
}

/// Deletes a checkpoint so that no half-deleted directory ever has a published name.
fn discard(directory: &Path) -> io::Result<()> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let hidden = directory.with_file_name(format!(".tmp-old-{name}"));
    fs::rename(directory, &hidden)?;
    fs::remove_dir_all(hidden)
}

fn write_manifest(directory: &Path, step: u64) -> io::Result<()> {
    let mut files = Vec::new();
    list(directory, "", &mut files)?;
    let digest = digest(step, &files);
    let manifest = Manifest { format: FORMAT, step, files, digest };
    let path = directory.join(MANIFEST);
    fs::write(&path, serde_json::to_vec_pretty(&manifest)?)?;
    sync(&path)?;
    sync(directory)
}

/// Lists what is in a directory and in those inside it, whose names begin with `prefix`.
fn list(directory: &Path, prefix: &str, files: &mut Vec<ManifestFile>) -> io::Result<()> {
    for path in entries(directory)? {
        sync(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            list(&path, &format!("{name}/"), files)?;
            continue;
        }
        let (bytes, sha256) = (fs::metadata(&path)?.len(), hash_file(&path)?);
        files.push(ManifestFile { name, bytes, sha256 });
    }
    Ok(())
}

/// Why a directory is not the checkpoint it says it is.
fn verify(directory: &Path) -> Result<(), String> {
    let json =
        fs::read(directory.join(MANIFEST)).map_err(|error| format!("{MANIFEST}: {error}"))?;
    let manifest: Manifest =
        serde_json::from_slice(&json).map_err(|error| format!("{MANIFEST}: {error}"))?;
    if manifest.format != FORMAT {
        return Err(format!("format {}, and this version reads format {FORMAT}", manifest.format));
    }
    if manifest.digest != digest(manifest.step, &manifest.files) {
        return Err(format!("{MANIFEST} was changed after it was written"));
    }
    for file in &manifest.files {
        let mut parts = Path::new(&file.name).components();
        if file.name.is_empty() || !parts.all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!(
                "{MANIFEST} names `{}`, which is not a file of the directory",
                file.name
            ));
        }
        let path = directory.join(&file.name);
        let found = hash_file(&path).map_err(|error| format!("{}: {error}", file.name))?;
        if found != file.sha256 {
            return Err(format!(
                "{}: sha256 is {found}, the manifest says {}",
                file.name, file.sha256
            ));
        }
    }
    Ok(())
}

fn digest(step: u64, files: &[ManifestFile]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{FORMAT} {step}\n"));
    for file in files {
        hasher.update(format!("{} {} {}\n", file.name, file.bytes, file.sha256));
    }
    hex(&hasher.finalize())
}

fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |hex, byte| hex + &format!("{byte:02x}"))
}

/// The entries of a directory in the order of their names; none where there is no directory.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut paths = listing.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Attaches a path to an error of the file system.
trait At<T> {
    fn at(self, path: &Path) -> Result<T, CheckpointError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, CheckpointError> {
        self.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
    }
}

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system.
    #[error("write or read a checkpoint in {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The learner.
    #[error(transparent)]
    Learner(#[from] LearnerError),
    /// It is whole, but not of this run.
    #[error("go on from {}: {reason}", directory.display())]
    Content {
        /// The checkpoint.
        directory: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// All are damaged.
    #[error("find a whole checkpoint: {}", refused.join("; "))]
    NoneWhole {
        /// Each of them, and what is wrong.
        refused: Vec<String>,
    },
}
