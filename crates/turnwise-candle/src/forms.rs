//! Models in unsupported formats, with advice.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::Value;

use crate::ModelError;
use crate::checkpoint::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, WEIGHTS, has_weights, read_object,
};
use crate::error::brief;

/// What to do about a model that is split into several GGUF files.
pub(crate) const JOIN: &str =
    "join them with llama.cpp's `llama-gguf-split --merge FIRST-FILE NEW.gguf`";

/// Explains what a directory contains instead of weights or other files of a model; `None` if it has weights, or
/// nothing known.
pub(crate) fn in_directory(directory: &Path) -> Option<String> {
    let names = match names(directory) {
        Ok(names) => names,
        Err(_) if has_weights(directory) => return None,
        Err(error) => return Some(format!("its files cannot be listed: {error}")),
    };
    if let Some(stand_in) = stand_in(directory, &names) {
        return Some(stand_in);
    }
    if has_weights(directory) || is_adapter(directory) {
        return None;
    }
    let forms =
        [FileKind::Pickle, FileKind::Adapter, FileKind::Gguf, FileKind::Other, FileKind::Weights];
    let has_config = directory.join(CONFIG).exists();
    let found = forms.into_iter().filter(|form| *form != FileKind::Weights || has_config).find_map(
        |form| {
            let name = names.iter().find(|name| FileKind::of(name) == Some(form))?;
            Some(form.explain(name, directory))
        },
    );
    let is_inside = |name: &&String| !has_config && is_adapter(&directory.join(name));
    found.or_else(|| {
        let name = brief(names.iter().find(is_inside)?);
        Some(format!("its directory {name} holds a PEFT adapter; name that one"))
    })
}

/// Returns the GGUF file of a directory that holds no other weights and no second one.
pub(crate) fn lone_gguf(directory: &Path) -> Option<PathBuf> {
    let names = names(directory).ok().filter(|_| !has_weights(directory))?;
    let mut files = names.iter().filter(|name| FileKind::of(name) == Some(FileKind::Gguf));
    let (file, None) = (files.next()?, files.next()) else { return None };
    Some(directory.join(file))
}

/// The base that `adapter_config.json` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamedBase {
    /// A directory, or a name on the Hugging Face Hub; empty if the file names none.
    pub(crate) name: String,
    /// The revision of the repository; `None` for its main one.
    pub(crate) revision: Option<String>,
}

/// Returns whether a directory holds a PEFT adapter, maybe beside a whole model.
pub(crate) fn is_adapter(directory: &Path) -> bool {
    [ADAPTER_CONFIG, ADAPTER_WEIGHTS].iter().all(|name| directory.join(name).is_file())
}

/// Reads the base that an adapter's directory names.
///
/// # Errors
/// When `adapter_config.json` cannot be read, or is no JSON object.
pub(crate) fn base_of_adapter(directory: &Path) -> Result<NamedBase, ModelError> {
    let json = read_object(&directory.join(ADAPTER_CONFIG))?;
    // Names are short; what is longer would fill the screen of an error.
    let text = |key: &str| {
        let text = json.get(key).and_then(Value::as_str).unwrap_or_default();
        (!text.is_empty() && text.len() < 1000).then(|| text.to_owned())
    };
    let name = text("base_model_name_or_path").unwrap_or_default();
    Ok(NamedBase { name, revision: text("revision") })
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(directory)?.filter_map(Result::ok);
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    Ok(names)
}

/// Explains a placeholder of a model file: a dangling link, as an incomplete download leaves, or a pointer of Git LFS.
fn stand_in(directory: &Path, names: &[String]) -> Option<String> {
    let is_one_file = directory.join(WEIGHTS).is_file();
    let is_read = |name: &str| {
        let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
        matches!(
            name,
            CONFIG
                | WEIGHTS
                | "model.safetensors.index.json"
                | "tokenizer.json"
                | "tokenizer_config.json"
        ) || (is_shard && !is_one_file)
    };
    names.iter().filter(|name| is_read(name)).find_map(|name| {
        let (path, shown) = (directory.join(name), brief(name));
        match fs::metadata(&path) {
            Err(error) if path.is_symlink() => {
                let target = fs::read_link(&path).unwrap_or_default();
                Some(format!(
                    "{shown} is a link to {}, which cannot be read ({error}); download the model again",
                    brief(target.display())
                ))
            }
            Ok(file) if file.is_file() && file.len() < 1024 && is_pointer(&path) => Some(format!(
                "{shown} is a pointer of Git LFS, and the file itself is missing; `git lfs pull` downloads it"
            )),
            _ => None,
        }
    })
}

fn is_pointer(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"version https://git-lfs.github.com/"))
}

/// Explains a path to a file where a directory is expected.
pub(crate) fn of_file(path: &Path) -> String {
    let name =
        path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let directory = path.parent().unwrap_or(Path::new("."));
    match FileKind::of(&name) {
        Some(form @ (FileKind::Adapter | FileKind::Pickle | FileKind::Other)) => {
            form.explain(&name, directory)
        }
        _ => "it is a file; name the directory with config.json and model.safetensors".to_owned(),
    }
}

/// The format of a file, according to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileKind {
    /// A PEFT adapter.
    Adapter,
    /// A `PyTorch` pickle.
    Pickle,
    /// A `llama.cpp` file.
    Gguf,
    /// A TensorFlow, Flax or ONNX file.
    Other,
    /// Safetensors with an unknown name.
    Weights,
}

impl FileKind {
    fn of(name: &str) -> Option<Self> {
        let lower = name.to_lowercase();
        let ends = |endings: &[&str]| endings.iter().any(|ending| lower.ends_with(ending));
        if lower.starts_with("adapter_") && ends(&[".json", ".safetensors"]) {
            Some(Self::Adapter)
        } else if ends(&[".gguf"]) {
            Some(Self::Gguf)
        } else if ends(&[".pt", ".pth", ".ckpt", ".pkl"])
            || (ends(&[".bin"]) && lower.contains("model"))
        {
            Some(Self::Pickle)
        } else if ends(&[".h5", ".msgpack", ".onnx", ".npz"]) {
            Some(Self::Other)
        } else if ends(&[".safetensors"]) {
            Some(Self::Weights)
        } else {
            None
        }
    }

    fn explain(self, name: &str, directory: &Path) -> String {
        let (name, from) = (brief(name), directory.display());
        match self {
            Self::Adapter => format!(
                "{name} belongs to a PEFT adapter, of which {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} are needed"
            ),
            Self::Pickle => {
                // transformers looks for the safetensors of an adapter alone.
                let class = if name.starts_with("adapter_") {
                    "peft import AutoPeftModelForCausalLM"
                } else {
                    "transformers import AutoModelForCausalLM"
                };
                format!(
                    "{name} is a pickle, which can run any program when it is loaded, and is therefore never loaded; \
                     python -c \"from {class} as M; M.from_pretrained('{from}').save_pretrained('NEW')\" \
                     writes the supported format"
                )
            }
            Self::Gguf if name.contains("-of-") => {
                format!("{name} is a part of a model that is split into several files; {JOIN}")
            }
            Self::Gguf => format!("there are several GGUF files, such as {name}; name the file"),
            Self::Other => format!(
                "{name} is in the format of another library; only safetensors are supported, which the model's page or transformers may have"
            ),
            Self::Weights => format!(
                "there is {name}, but neither {WEIGHTS} nor model.safetensors.index.json, the index of several files"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and contents of files.
    type Files = &'static [(&'static str, &'static str)];

    const ADAPTER: &str =
        r#"{"peft_type": "LORA", "base_model_name_or_path": "somebody/some-model"}"#;

    fn with(files: &[(&str, &str)]) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        in_directory(directory.path())
    }

    #[test]
    fn a_model_in_another_form_is_named_with_what_to_do() {
        let cases: [(Files, &str, &str); 9] = [
            (&[("pytorch_model.bin", "")], "pytorch_model.bin is a pickle", "save_pretrained"),
            (
                &[("config.json", "{}"), ("pytorch_model-00001-of-00002.bin", "")],
                "never loaded",
                "save_pretrained",
            ),
            (&[("consolidated.00.pth", "")], "consolidated.00.pth is a pickle", "transformers"),
            (&[("a.gguf", ""), ("b.gguf", "")], "several GGUF files", "name the file"),
            (
                &[("a-00001-of-00002.gguf", ""), ("a-00002-of-00002.gguf", "")],
                "a-00001-of-00002.gguf is a part of a model that is split",
                "llama-gguf-split --merge",
            ),
            (&[("adapter_config.json", ADAPTER)], "PEFT adapter", "adapter_model.safetensors"),
            (
                &[("adapter_config.json", ADAPTER), ("adapter_model.bin", "")],
                "adapter_model.bin is a pickle",
                "from peft import AutoPeftModelForCausalLM as M; M.from_pretrained(",
            ),
            (&[("flax_model.msgpack", "")], "another library", "safetensors"),
            (
                &[("config.json", "{}"), ("model-00001-of-00002.safetensors", "")],
                "neither",
                "index.json",
            ),
        ];
        for (files, expected, advice) in cases {
            let said = with(files).unwrap();
            assert!(said.contains(expected) && said.contains(advice), "{said}");
        }
        // Readable weights have precedence.
        let whole: &[(&str, &str)] = &[("model.safetensors", ""), ("pytorch_model.bin", "")];
        assert_eq!(with(whole), None);
        assert_eq!(with(&[("notes.txt", ""), ("training_args.bin", "")]), None);
    }

    #[test]
    fn one_gguf_file_alone_is_the_model_of_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str| fs::write(directory.path().join(name), "").unwrap();
        assert_eq!(lone_gguf(directory.path()), None);
        write("a.Q4_K_M.GGUF");
        write("README.md");
        assert_eq!(lone_gguf(directory.path()), Some(directory.path().join("a.Q4_K_M.GGUF")));
        write("b.gguf");
        assert_eq!(lone_gguf(directory.path()), None);
        fs::remove_file(directory.path().join("b.gguf")).unwrap();
        write("model.safetensors");
        assert_eq!(lone_gguf(directory.path()), None);
    }

    #[test]
    fn an_adapter_names_its_base() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("adapter_config.json", ADAPTER);
        assert!(!is_adapter(directory.path()));
        write("adapter_model.safetensors", "");
        assert!(is_adapter(directory.path()));
        let base = || base_of_adapter(directory.path()).map(|base| base.name);
        assert_eq!(base().unwrap(), "somebody/some-model");
        write("adapter_config.json", &ADAPTER.replace("some-model", &"x".repeat(100_000)));
        assert_eq!(base().unwrap(), "");
        write("adapter_config.json", &ADAPTER[..30]);
        let failure = base().unwrap_err().to_string();
        assert!(failure.contains("adapter_config.json: EOF while parsing"), "{failure}");
        write("model.safetensors", "");
        assert!(is_adapter(directory.path()));
    }

    #[test]
    fn an_adapter_inside_a_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("mine");
        fs::create_dir(&inside).unwrap();
        fs::write(directory.path().join("README.md"), "").unwrap();
        assert_eq!(in_directory(directory.path()), None);
        fs::write(inside.join("adapter_config.json"), ADAPTER).unwrap();
        fs::write(inside.join("adapter_model.safetensors"), "").unwrap();
        let said = in_directory(directory.path()).unwrap();
        assert_eq!(said, "its directory mine holds a PEFT adapter; name that one");
        fs::write(directory.path().join("config.json"), "{}").unwrap();
        assert_eq!(in_directory(directory.path()), None);
    }

    #[test]
    fn a_file_that_only_stands_for_another_is_named() {
        const POINTER: &str =
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        for name in ["model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"] {
            let said = with(&[("config.json", "{}"), (name, POINTER)]).unwrap();
            assert!(said.starts_with(&format!("{name} is a pointer of Git LFS")), "{said}");
        }
        // Files that nothing reads.
        let aside: &[(&str, &str)] = &[
            ("model.safetensors", ""),
            ("model-00001-of-00002.safetensors", POINTER),
            ("consolidated.safetensors", POINTER),
        ];
        assert_eq!(with(aside), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_nowhere_is_named() {
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            for target in ["../../blobs/4d7a", name] {
                let directory = tempfile::tempdir().unwrap();
                std::os::unix::fs::symlink(target, directory.path().join(name)).unwrap();
                let said = in_directory(directory.path()).unwrap();
                let expected = format!("{name} is a link to {target}, which cannot be read (");
                assert!(said.starts_with(&expected), "{said}");
            }
        }
    }

    #[test]
    fn a_file_is_explained_too() {
        assert!(of_file(Path::new("pytorch_model.bin")).contains("pickle"));
        assert!(of_file(Path::new("there/model.safetensors")).contains("name the directory"));
        assert!(of_file(Path::new("there/config.json")).contains("name the directory"));
    }
}
