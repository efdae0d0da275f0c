//! The small files of a model: those in its directory, or what the metadata of a GGUF file says instead.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use turnwise_candle::{GgufFile, locate_base};
use turnwise_chat::Tokenizer;

use crate::failure::Failure;
use crate::session::SETTINGS;

/// The tokenizer's file in a directory.
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// The small files of a model.
#[derive(Debug)]
pub(crate) struct ModelFiles {
    path: PathBuf,
    /// The model that has what an adapter's directory lacks.
    base: Option<Box<ModelFiles>>,
    /// The files that a GGUF file stands for.
    unpacked: Option<Unpacked>,
}

#[derive(Debug)]
struct Unpacked {
    tokenizer: Arc<Tokenizer>,
    files: Vec<(&'static str, String)>,
}

impl ModelFiles {
    /// Opens a model directory or a GGUF file. `base` is the base of an adapter, if the user names it.
    pub(crate) fn open(path: &Path, base: Option<&Path>) -> Result<Self, Failure> {
        let unpacked = if GgufFile::is_named(path) && path.is_file() {
            Some(Unpacked::read(path)?)
        } else {
            None
        };
        let base = match locate_base(path, base) {
            // A whole model beside its adapter has all files itself.
            Ok(Some(base)) if base == path => None,
            Ok(Some(base)) => Some(Box::new(Self::open(&base, None)?)),
            Ok(None) => None,
            // An adapter that has its own tokenizer can be read without its base.
            Err(_) if path.join(TOKENIZER).is_file() => None,
            Err(error) => return Err(Failure::refused_by(&error)),
        };
        Ok(Self { path: path.to_owned(), base, unpacked })
    }

    /// Returns the directory or file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the settings of the run that wrote the model, or else its base.
    pub(super) fn settings(&self) -> Option<PathBuf> {
        let own = self.path.join(SETTINGS);
        if own.is_file() { Some(own) } else { self.base.as_ref()?.settings() }
    }

    /// Returns the text of a file; `None` if the model does not have it.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, Failure> {
        let own = if let Some(Unpacked { files, .. }) = &self.unpacked {
            files.iter().find(|(own, _)| *own == name).map(|(_, text)| text.clone())
        } else {
            read(&self.path.join(name))?
        };
        match (own, &self.base) {
            (None, Some(base)) => base.text(name),
            (own, _) => Ok(own),
        }
    }

    /// Returns the JSON object in a file; an empty one if the model does not have the file.
    pub(super) fn object(&self, name: &str) -> Result<Map<String, Value>, Failure> {
        match self.text(name)? {
            Some(text) => object_of(&text, &self.path.join(name)),
            None => Ok(Map::new()),
        }
    }

    /// Returns the tokenizer; `None` if there is no file that the library reads.
    pub(super) fn tokenizer(&self) -> Result<Option<Arc<Tokenizer>>, Failure> {
        if let Some(Unpacked { tokenizer, .. }) = &self.unpacked {
            return Ok(Some(tokenizer.clone()));
        }
        if self.path.join(TOKENIZER).is_file() {
            let tokenizer = Tokenizer::from_directory(&self.path);
            return tokenizer
                .map(|tokenizer| Some(Arc::new(tokenizer)))
                .map_err(|error| Failure::refused_by(&error));
        }
        self.base.as_ref().map_or(Ok(None), |base| base.tokenizer())
    }
}

impl Unpacked {
    fn read(path: &Path) -> Result<Self, Failure> {
        let file = GgufFile::open(path).map_err(|error| Failure::refused_by(&error))?;
        let architecture = file.get("general.architecture");
        let architecture = architecture.as_ref().and_then(Value::as_str).unwrap_or_default();
        let keys = file.with_prefix("tokenizer.");
        let tokenizer = Tokenizer::from_gguf(path, architecture, &keys)
            .map_err(|error| Failure::refused_by(&error))?;
        let id = |name: &str| keys.get(&format!("tokenizer.ggml.{name}_token_id")).cloned();
        // A turn may end with another token than a text.
        let mut ends: Vec<Value> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
        ends.dedup();
        let mut generation = Map::new();
        generation.extend(id("bos").map(|bos| ("bos_token_id".to_owned(), bos)));
        generation.insert("eos_token_id".to_owned(), Value::Array(ends));
        let config = tokenizer.companion("tokenizer_config.json").unwrap_or_default();
        let files = vec![
            ("generation_config.json", format!("{:#}\n", Value::Object(generation))),
            ("tokenizer_config.json", config),
        ];
        Ok(Self { tokenizer: Arc::new(tokenizer), files })
    }
}

/// Reads the JSON object in a file; returns an empty one if the file does not exist.
pub(super) fn object(path: &Path) -> Result<Map<String, Value>, Failure> {
    read(path)?.map_or_else(|| Ok(Map::new()), |text| object_of(&text, path))
}

fn object_of(text: &str, path: &Path) -> Result<Map<String, Value>, Failure> {
    serde_json::from_str(text)
        .map_err(|error| Failure::refused(format!("{} is no JSON object: {error}", path.display())))
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::refused(format!("cannot read {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gguf").join(name)
    }

    #[test]
    fn a_gguf_file_has_the_tokenizer_that_transformers_reads_from_it() {
        let text = std::fs::read_to_string(fixture("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        for name in ["llama", "sentencepiece"] {
            let files = ModelFiles::open(&fixture(&format!("{name}.gguf")), None).unwrap();
            let tokenizer = files.tokenizer().unwrap().unwrap();
            for row in expected[name].as_array().unwrap() {
                let text = row["text"].as_str().unwrap();
                let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
                assert_eq!(tokenizer.encode_with_markers(text), ids, "{name}: {text:?}");
            }
        }
    }

    #[test]
    fn a_gguf_file_has_a_template_and_the_tokens_that_end_a_turn() {
        let files = ModelFiles::open(&fixture("llama.gguf"), None).unwrap();
        let tokenizer = files.tokenizer().unwrap().unwrap();
        let templates = super::super::files::Templates::of(&files).unwrap().unwrap();
        assert!(templates.usual.contains("<|im_start|>assistant"));
        let ends = super::super::files::ends(&files, &tokenizer).unwrap();
        assert_eq!(ends, ["<|im_end|>", "<|endoftext|>"]);
        let files = ModelFiles::open(&fixture("sentencepiece.gguf"), None).unwrap();
        assert_eq!(super::super::files::Templates::of(&files).unwrap(), None);
    }

    #[test]
    fn a_model_beside_its_adapter_has_the_files_of_both() {
        let both = tempfile::tempdir().unwrap();
        let names = [
            "model.safetensors",
            "config.json",
            "adapter_model.safetensors",
            "adapter_config.json",
        ];
        for name in names {
            std::fs::write(both.path().join(name), r#"{"base_model_name_or_path": "nowhere"}"#)
                .unwrap();
        }
        let files = ModelFiles::open(both.path(), None).unwrap();
        assert!(files.base.is_none() && files.text("config.json").unwrap().is_some());
        let again = both.path().join(".").join("..").join(both.path().file_name().unwrap());
        assert!(
            ModelFiles::open(both.path(), Some(&again)).unwrap().text("nothing").unwrap().is_none()
        );
    }
}
