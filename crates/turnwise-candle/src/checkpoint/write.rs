use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::{fs, io};

use safetensors::tensor::{Dtype, View};
use serde_json::{Map, Value};

use super::Precision;
use crate::ModelError;
use crate::layout::{Adapter, Linear};

/// A tensor to write.
#[derive(Clone, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) name: String,
    pub(crate) shape: &'a [usize],
    pub(crate) values: &'a [f32],
    /// What is added to them.
    pub(crate) adapter: Option<Adapter<&'a [f32]>>,
    pub(crate) precision: Precision,
}

/// Turned into bytes only when its turn comes, so that no file is in memory as a whole.
impl View for Piece<'_> {
    fn dtype(&self) -> Dtype {
        self.precision.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let linear = Linear { weight: self.values, bias: None, adapter: self.adapter };
        self.precision.encode(&linear.merged()).into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * self.precision.width()
    }
}

/// Writes tensors into one file, which appears whole or not at all.
pub(crate) fn write_tensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = Piece<'a>>,
) -> Result<(), ModelError> {
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let views = tensors.map(|piece| (piece.name.clone(), piece));
    replace(path, |path| {
        safetensors::serialize_to_file(views, Some(metadata), path).map_err(io::Error::other)
    })
}

/// Writes a JSON object, which appears whole or not at all.
pub(crate) fn write_json(path: &Path, json: &Map<String, Value>) -> Result<(), ModelError> {
    let text = serde_json::to_string_pretty(json).expect("a JSON object can be written");
    replace(path, |path| fs::write(path, text + "\n"))
}

/// Writes beside the old file and renames, so that a crash leaves one or the other.
fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), ModelError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    write(&unfinished)
        .and_then(|()| fs::File::open(&unfinished)?.sync_all())
        .and_then(|()| fs::rename(&unfinished, path))
        .map_err(|error| ModelError::write(path, error))
}
