//! Manifests: directories whose files are verified by length and hash.
//!
//! A manifest is written last, when everything else is synced. A reader compares every file with it before using a
//! byte. The manifest also has the step, because the name of a directory is never trusted.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use turnwise_rollout::Meter;

/// The content of a directory at the time of writing.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format: u32,
    pub(crate) step: u64,
    files: Vec<ManifestFile>,
    /// Hash of the fields above, against damage of the manifest itself.
    digest: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFile {
    name: String,
    bytes: u64,
    sha256: String,
}

const FORMAT: u32 = 1;
const MANIFEST: &str = "MANIFEST.json";
/// The maximal size of a manifest: one of 10,000 files has 1.5 MB.
const MAX_MANIFEST_BYTES: u64 = 1 << 24;

impl Manifest {
    /// Syncs everything in a directory and writes its manifest. `meter` counts the hashed bytes.
    pub(crate) fn write(directory: &Path, step: u64, meter: &Meter) -> io::Result<()> {
        let mut files = Vec::new();
        meter.begin(Meter::BYTES, size(directory)?);
        let listed = list(directory, "", &mut files, meter);
        meter.end();
        listed?;
        let digest = digest(step, &files);
        let manifest = Self { format: FORMAT, step, files, digest };
        let path = directory.join(MANIFEST);
        fs::write(&path, serde_json::to_vec_pretty(&manifest)?)?;
        sync(&path)?;
        sync(directory)
    }

    /// Reads the manifest of a directory, or says why it is missing or invalid.
    pub(crate) fn read(directory: &Path) -> Result<Self, String> {
        let wrong = |what: String| format!("{MANIFEST}: {what}");
        let path = directory.join(MANIFEST);
        let bytes = regular(&path).map_err(wrong)?.len();
        if bytes > MAX_MANIFEST_BYTES {
            return Err(wrong(format!("it has {bytes} bytes, more than any manifest")));
        }
        let json = fs::read(&path).map_err(|error| wrong(error.to_string()))?;
        let manifest: Self =
            serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
        if manifest.format != FORMAT {
            let format = manifest.format;
            return Err(format!("format {format}, and this version reads format {FORMAT}"));
        }
        if manifest.digest != digest(manifest.step, &manifest.files) {
            return Err(format!("{MANIFEST} was changed after it was written"));
        }
        Ok(manifest)
    }

    /// Compares every file with the manifest; the error names the first that differs, and why. `meter` counts the
    /// bytes.
    pub(crate) fn verify(&self, directory: &Path, meter: &Meter) -> Result<(), String> {
        meter.begin(Meter::BYTES, self.bytes());
        let verified = self.verify_files(directory, meter);
        meter.end();
        verified
    }

    fn verify_files(&self, directory: &Path, meter: &Meter) -> Result<(), String> {
        for file in &self.files {
            let path = file.locate(directory)?;
            let found =
                hash_file(&path, meter).map_err(|error| format!("{}: {error}", file.name))?;
            if found != file.sha256 {
                let (name, expected) = (&file.name, &file.sha256);
                return Err(format!("{name}: sha256 is {found}, the manifest says {expected}"));
            }
        }
        self.refuse_unlisted(directory, "")
    }

    /// Returns whether every file exists with its length. Reads no content, so it costs little compared with a save.
    pub(crate) fn looks_whole(&self, directory: &Path) -> bool {
        self.files.iter().all(|file| file.locate(directory).is_ok())
    }

    /// Returns the number of bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Rejects files that a loader would read and that did not exist when the directory was written.
    fn refuse_unlisted(&self, directory: &Path, prefix: &str) -> Result<(), String> {
        let paths = entries(directory).map_err(|error| error.to_string())?;
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("{prefix}{name}");
            let is_directory = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            if is_directory {
                self.refuse_unlisted(&path, &format!("{name}/"))?;
            } else if name != MANIFEST && is_read(&path) && !self.lists(&name) {
                return Err(format!("{name}: it was added after the checkpoint was written"));
            }
        }
        Ok(())
    }

    fn lists(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.name == name)
    }
}

impl ManifestFile {
    /// Returns the path of a file that is a regular file of the directory and has its length. Opens nothing: a pipe
    /// would block, and a link to a device would never end.
    fn locate(&self, directory: &Path) -> Result<PathBuf, String> {
        let name = &self.name;
        let mut path = directory.to_owned();
        let mut parts = Path::new(name).components().peekable();
        if parts.peek().is_none() {
            return Err(format!("{MANIFEST} names `{name}`, which is not a file of the directory"));
        }
        while let Some(part) = parts.next() {
            let Component::Normal(part) = part else {
                return Err(format!(
                    "{MANIFEST} names `{name}`, which is not a file of the directory"
                ));
            };
            path.push(part);
            if parts.peek().is_some() {
                let metadata = fs::symlink_metadata(&path);
                let metadata = metadata.map_err(|error| format!("{name}: {error}"))?;
                if !metadata.is_dir() {
                    return Err(format!("{name}: its directory is {}", kind(&metadata)));
                }
            }
        }
        let found = regular(&path).map_err(|why| format!("{name}: {why}"))?.len();
        if found != self.bytes {
            let expected = self.bytes;
            return Err(format!("{name}: it has {found} bytes, the manifest says {expected}"));
        }
        Ok(path)
    }
}

/// Returns whether a file of this name may change how a model directory is read. A note or a model card does not.
fn is_read(path: &Path) -> bool {
    let readable = ["json", "jsonl", "safetensors", "toml", "jinja", "txt", "model"];
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|extension| {
        readable.iter().any(|readable| extension.eq_ignore_ascii_case(readable))
    })
}

/// Returns the metadata of a regular file; the error says what else has that path.
fn regular(path: &Path) -> Result<Metadata, String> {
    let metadata = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if metadata.is_file() { Ok(metadata) } else { Err(format!("it is {}", kind(&metadata))) }
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_file() {
        "a file"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a link, and a link is not followed"
    } else {
        "a pipe, a socket or a device"
    }
}

/// Lists the content of a directory and its subdirectories, with names that begin with `prefix`.
fn list(
    directory: &Path,
    prefix: &str,
    files: &mut Vec<ManifestFile>,
    meter: &Meter,
) -> io::Result<()> {
    for path in entries(directory)? {
        sync(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            list(&path, &format!("{name}/"), files, meter)?;
            continue;
        }
        let (bytes, sha256) = (fs::metadata(&path)?.len(), hash_file(&path, meter)?);
        files.push(ManifestFile { name, bytes, sha256 });
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

/// Returns the number of bytes of all files in a directory and its subdirectories.
fn size(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for path in entries(directory)? {
        let metadata = fs::symlink_metadata(&path)?;
        bytes += if metadata.is_dir() { size(&path)? } else { metadata.len() };
    }
    Ok(bytes)
}

fn hash_file(path: &Path, meter: &Meter) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                meter.advance(n as u64);
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |hex, byte| hex + &format!("{byte:02x}"))
}

/// Returns the entries of a directory in the order of their names; an empty list if the directory does not exist.
pub(crate) fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut paths = listing.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

pub(crate) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
