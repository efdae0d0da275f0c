use std::borrow::Cow;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use safetensors::tensor::{Dtype, View};
use serde_json::{Map, Value};
use turnwise_rollout::Meter;

use super::Precision;
use crate::ModelError;
use crate::finite::{describe, first_not_finite};
use crate::layout::{Adapter, Linear};

/// A tensor to write.
#[derive(Clone, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) name: String,
    pub(crate) shape: &'a [usize],
    pub(crate) values: Values<'a>,
    /// The adapter that is added to the numbers.
    pub(crate) adapter: Option<Adapter<&'a [f32]>>,
    pub(crate) precision: Precision,
}

/// The numbers of a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
    Numbers(&'a [f32]),
    /// Numbers in another form, which are decoded when they are written.
    Encoded(&'a dyn Decode),
}

/// Numbers in a form of their own.
pub(crate) trait Decode: fmt::Debug {
    fn decoded(&self) -> Vec<f32>;
}

/// A tensor that is encoded only when it is written, so that a file is never in memory as a whole.
struct Writing<'a> {
    piece: Piece<'a>,
    /// The problem of the first tensor that cannot be written.
    wrong: &'a RefCell<Option<String>>,
    meter: &'a Meter,
}

impl View for Writing<'_> {
    fn dtype(&self) -> Dtype {
        self.piece.precision.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.piece.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let Piece { values, adapter, precision, .. } = self.piece;
        let values = match values {
            Values::Numbers(values) => Cow::Borrowed(values),
            Values::Encoded(values) => Cow::Owned(values.decoded()),
        };
        let merged = Linear { weight: &*values, bias: None, adapter }.merged();
        if let Some(reason) = self.piece.not_finite(&merged) {
            self.wrong.borrow_mut().get_or_insert(reason);
        }
        self.meter.advance(self.data_len() as u64);
        precision.encode(&merged).into()
    }

    fn data_len(&self) -> usize {
        self.piece.shape.iter().product::<usize>() * self.piece.precision.width()
    }
}

impl Piece<'_> {
    /// Returns which number is NaN or infinite, or becomes so when it is rounded.
    fn not_finite(&self, merged: &[f32]) -> Option<String> {
        let Self { name, shape, precision, .. } = self;
        if let Some(index) = first_not_finite(merged) {
            return Some(describe(name, shape, index, merged[index]));
        }
        if *precision == Precision::Single {
            return None;
        }
        let index = merged.iter().position(|x| !precision.rounded(*x).is_finite())?;
        let (value, dtype) = (merged[index], precision.dtype());
        Some(format!("{name} has {value:e}, which is beyond the range of {dtype:?}"))
    }
}

/// Writes tensors into one file, atomically, and refuses numbers that are NaN or infinite. The bytes advance `meter`.
pub(crate) fn write_tensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = Piece<'a>>,
    meter: &Meter,
) -> Result<(), ModelError> {
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let wrong = RefCell::default();
    let views = tensors.map(|piece| (piece.name.clone(), Writing { piece, wrong: &wrong, meter }));
    replace(path, |unfinished| {
        safetensors::serialize_to_file(views, Some(metadata), unfinished)
            .map_err(|error| ModelError::write(path, error))?;
        let Some(reason) = wrong.take() else { return Ok(()) };
        Err(ModelError::NotFinite { action: format!("write {}", path.display()), reason })
    })
}

/// Writes a JSON object, atomically.
pub(crate) fn write_json(path: &Path, json: &Map<String, Value>) -> Result<(), ModelError> {
    let text = serde_json::to_string_pretty(json).expect("a JSON object can be written");
    replace(path, |unfinished| {
        fs::write(unfinished, text + "\n").map_err(|error| ModelError::write(path, error))
    })
}

/// Writes a file next to the old one and renames it, so that a crash leaves one or the other.
fn replace(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let publish =
        || fs::File::open(&unfinished)?.sync_all().and_then(|()| fs::rename(&unfinished, path));
    let written =
        write(&unfinished).and_then(|()| publish().map_err(|error| ModelError::write(path, error)));
    if written.is_err() {
        // The write error is reported, not the error of the clean-up.
        let _ = fs::remove_file(&unfinished);
    }
    written
}
