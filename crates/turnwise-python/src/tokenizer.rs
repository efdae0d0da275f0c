//! Tokenizers.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use turnwise_chat::{ChatError, Tokenizer, train_tokenizer};

use crate::failure::chain;

/// A tokenizer.
#[pyclass(frozen, module = "turnwise._native", name = "Tokenizer")]
pub(crate) struct PythonTokenizer {
    tokenizer: Tokenizer,
}

#[pymethods]
impl PythonTokenizer {
    /// Reads `tokenizer.json` in a directory, or a file of that form.
    #[staticmethod]
    fn read(path: PathBuf) -> PyResult<Self> {
        let read = if path.is_dir() {
            Tokenizer::from_directory(&path)
        } else {
            Tokenizer::from_file(&path)
        };
        read.map(|tokenizer| Self { tokenizer }).map_err(|error| refused(&error))
    }

    /// Trains a byte-level tokenizer.
    #[staticmethod]
    fn train(py: Python<'_>, texts: Vec<String>, n_ids: usize) -> PyResult<Self> {
        let trained = py.detach(|| train_tokenizer(texts, n_ids));
        trained.map(|tokenizer| Self { tokenizer }).map_err(|error| refused(&error))
    }

    /// Writes `tokenizer.json` and the files beside it into an existing directory.
    fn save(&self, directory: PathBuf) -> PyResult<()> {
        self.tokenizer.save(directory).map_err(|error| refused(&error))
    }

    /// The number of ids.
    #[getter]
    fn n_ids(&self) -> usize {
        self.tokenizer.n_ids()
    }

    /// The id of a token.
    fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_id(token)
    }

    /// The ids of a text; with `markers`, control tokens in it are read as such.
    fn encode(&self, text: &str, markers: bool) -> Vec<u32> {
        if markers {
            self.tokenizer.encode_with_markers(text)
        } else {
            self.tokenizer.encode_plain(text)
        }
    }

    /// The text of ids.
    fn decode(&self, ids: Vec<u32>, skip_special: bool) -> String {
        if skip_special {
            self.tokenizer.decode_without_special(&ids)
        } else {
            self.tokenizer.decode(&ids)
        }
    }
}

fn refused(error: &ChatError) -> PyErr {
    PyValueError::new_err(chain(error))
}
