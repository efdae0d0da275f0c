//! GGUF files: a model's configuration, tokenizer and weights in one file.

mod config;
mod kinds;
mod names;
mod rope;
mod tensors;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Content};
use serde_json::{Map, Value};

pub use names::{GgufPlace, gguf_place};

use crate::ModelError;
use crate::error::brief;
use crate::forms::JOIN;

/// A GGUF file with a parsed header.
///
/// ```no_run
/// use turnwise_candle::GgufFile;
///
/// let file = GgufFile::open("SmolLM2-135M-Instruct.Q4_1.gguf".as_ref())?;
/// println!("{}", file.config()?["hidden_size"]);
/// # Ok::<(), turnwise_candle::ModelError>(())
/// ```
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    header: Content,
}

impl GgufFile {
    /// Opens a file and reads its metadata, but no weights.
    ///
    /// # Errors
    /// [`ModelError::Read`] when the file cannot be read, [`ModelError::Malformed`] when it is not GGUF or is damaged,
    /// [`ModelError::Unsupported`] when it is one part of several, or has a tensor of a type that is not read.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(|error| ModelError::read(path, error))?;
        let mut reader = BufReader::new(&file);
        let header = Content::read(&mut reader).map_err(|error| {
            if let Some((tensor, kind)) = kinds::first_unknown(&mut reader) {
                return ModelError::Unsupported(format!(
                    "{} of {} is {kind}; read are {}",
                    brief(tensor),
                    path.display(),
                    kinds::READ
                ));
            }
            ModelError::malformed(path, format!("it is no GGUF file: {}", brief(plain(&error))))
        })?;
        let file = Self { path: path.to_owned(), file, header };
        match file.get("split.count").and_then(|count| count.as_u64()) {
            Some(count) if count > 1 => {
                let number = file.get("split.no").and_then(|number| number.as_u64());
                let number = number.unwrap_or(0).saturating_add(1);
                let path = path.display();
                Err(ModelError::Unsupported(format!(
                    "{path} is part {number} of a model that is split into {count} files; {JOIN}"
                )))
            }
            _ => Ok(file),
        }
    }

    /// Returns whether a path is that of a GGUF file, by its name.
    #[must_use]
    pub fn is_named(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    }

    /// Returns the value of a key, such as `tokenizer.ggml.tokens`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value> {
        self.header.metadata.get(key).map(json)
    }

    /// Returns all keys that begin with `prefix`, with their values.
    #[must_use]
    pub fn with_prefix(&self, prefix: &str) -> Map<String, Value> {
        let own = self.header.metadata.iter().filter(|(key, _)| key.starts_with(prefix));
        own.map(|(key, value)| (key.clone(), json(value))).collect()
    }

    fn malformed(&self, reason: impl Into<String>) -> ModelError {
        ModelError::malformed(&self.path, reason)
    }
}

/// Returns the first line of an error of the tensor library, whose further lines are a backtrace.
fn plain(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Converts a value of the header. Numbers that JSON does not have become null.
fn json(value: &gguf_file::Value) -> Value {
    use gguf_file::Value as Own;
    match value {
        Own::U8(x) => (*x).into(),
        Own::I8(x) => (*x).into(),
        Own::U16(x) => (*x).into(),
        Own::I16(x) => (*x).into(),
        Own::U32(x) => (*x).into(),
        Own::I32(x) => (*x).into(),
        Own::U64(x) => (*x).into(),
        Own::I64(x) => (*x).into(),
        Own::F32(x) => shortest(*x).into(),
        Own::F64(x) => (*x).into(),
        Own::Bool(x) => (*x).into(),
        Own::String(x) => x.as_str().into(),
        Own::Array(all) => all.iter().map(json).collect(),
    }
}

/// Returns the double whose decimal digits are the fewest that determine `x`: 1e-5, and not 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
