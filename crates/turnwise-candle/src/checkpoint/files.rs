//! The weight files of a checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::{INDEX, Precision, WEIGHTS, read_object};
use crate::ModelError;

/// The bytes of one read: a file is never in memory next to its decoded numbers.
const PIECE: usize = 1 << 20;

/// The longest header of a safetensors file, by the format's limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// A safetensors file with a parsed header.
#[derive(Debug)]
pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    /// The offset of the numbers.
    start: u64,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

impl TensorFile {
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let failed = |error| ModelError::read(path, error);
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let malformed =
            |reason: String| ModelError::malformed(path, format!("{reason} ({length} bytes)"));
        let mut size = [0; 8];
        if length < 8 {
            return Err(malformed("it is too short to be a safetensors file".to_owned()));
        }
        file.read_exact(&mut size).map_err(failed)?;
        let size = u64::from_le_bytes(size);
        if size > LONGEST_HEADER || size > length - 8 {
            return Err(malformed(format!("its header of {size} bytes does not fit")));
        }
        let mut header = vec![0; size as usize];
        file.read_exact(&mut header).map_err(failed)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| malformed(error.to_string()))?;
        if metadata.data_len() as u64 != length - 8 - size {
            let (expected, has) = (metadata.data_len(), length - 8 - size);
            return Err(malformed(format!("its tensors take {expected} bytes and it has {has}")));
        }
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone()));
        Ok(Self { path: path.to_owned(), file, start: 8 + size, tensors: tensors.collect() })
    }

    /// Passes the numbers of a tensor to `each` in order, some at a time.
    pub(super) fn read(
        &mut self,
        info: &TensorInfo,
        precision: Precision,
        mut take: impl FnMut(&[f32]),
    ) -> Result<(), ModelError> {
        let (start, end) = info.data_offsets;
        let (mut bytes, mut numbers) = (vec![0; PIECE.min(end - start)], Vec::new());
        let mut run = || {
            self.file.seek(SeekFrom::Start(self.start + start as u64))?;
            let mut rest = end - start;
            while rest > 0 {
                let bytes = &mut bytes[..PIECE.min(rest)];
                self.file.read_exact(bytes)?;
                rest -= bytes.len();
                numbers.clear();
                precision.decode(bytes, &mut numbers);
                take(&numbers);
            }
            Ok(())
        };
        run().map_err(|error| ModelError::read(&self.path, error))
    }
}

/// Opens the weight files of a checkpoint and returns them with the problems of their index. Like transformers, it
/// prefers a single file to shards.
pub(super) fn open_all(directory: &Path) -> Result<(Vec<TensorFile>, Vec<String>), ModelError> {
    let (whole, index) = (directory.join(WEIGHTS), directory.join(INDEX));
    if whole.exists() || !index.exists() {
        return Ok((vec![TensorFile::open(&whole)?], Vec::new()));
    }
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for (name, tensors) in read_index(&index)? {
        let path = directory.join(&name);
        if !path.exists() {
            let count = tensors.len();
            problems.push(format!("the file {name} is missing, which should hold {count} tensors"));
            continue;
        }
        let file = TensorFile::open(&path)?;
        let lost = tensors.iter().filter(|tensor| !file.tensors.contains_key(*tensor));
        problems.extend(
            lost.map(|tensor| format!("{tensor} is not in {name}, although the index says so")),
        );
        files.push(file);
    }
    Ok((files, problems))
}

/// Returns whether there are weights, or an index of shards.
pub(crate) fn has_weights(directory: &Path) -> bool {
    directory.join(WEIGHTS).exists() || directory.join(INDEX).exists()
}

/// Returns whether there are weights, with every shard that an index names.
pub(crate) fn is_whole(directory: &Path) -> bool {
    directory.join(WEIGHTS).exists()
        || read_index(&directory.join(INDEX))
            .is_ok_and(|shards| shards.keys().all(|shard| directory.join(shard).exists()))
}

/// Reads the tensors of each shard.
fn read_index(index: &Path) -> Result<BTreeMap<String, Vec<String>>, ModelError> {
    let json = read_object(index)?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(ModelError::malformed(index, "it has no weight_map"));
    };
    let mut shards = BTreeMap::<String, Vec<String>>::new();
    for (tensor, shard) in map {
        let Some(shard) = shard.as_str() else {
            return Err(ModelError::malformed(index, "a file name is not text"));
        };
        let mut parts = Path::new(shard).components();
        // A checkpoint is data: it may not name files outside its directory.
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            let reason = format!("{shard:?} is not a name in the directory");
            return Err(ModelError::malformed(index, reason));
        }
        shards.entry(shard.to_owned()).or_default().push(tensor.clone());
    }
    Ok(shards)
}
