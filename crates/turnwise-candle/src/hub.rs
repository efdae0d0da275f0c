//! Models by name, from the Hugging Face cache.

#[cfg(feature = "hub")]
mod download;

use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::checkpoint::{ADAPTER_CONFIG, CONFIG, has_weights, is_whole};
use crate::forms::NamedBase;
use crate::{GgufFile, ModelError, forms};

/// Finds a model on this machine: a directory, a GGUF file or a directory with one such file alone, the directory of a
/// PEFT adapter (see [`locate_base`]), or the name of a repository on the Hugging Face Hub (`owner/name`, or
/// `owner/name@revision`) in the cache. With the feature `hub`, a model that is not in the cache is downloaded.
///
/// The cache is that of Hugging Face's own tools: `HF_HUB_CACHE`, `HF_HOME/hub` or `~/.cache/huggingface/hub`.
/// `HF_HUB_OFFLINE=1` forbids downloads.
///
/// # Errors
/// [`ModelError::NotFound`] with advice, also for a directory or a file that holds a model in another format, such as a
/// pickle.
pub fn locate(model: &Path) -> Result<PathBuf, ModelError> {
    let not_found = |help: String| ModelError::NotFound { model: model.to_owned(), help };
    if model.is_dir() {
        if let Some(file) = forms::lone_gguf(model) {
            return Ok(file);
        }
        return match forms::in_directory(model) {
            Some(form) => Err(not_found(form)),
            None => Ok(model.to_owned()),
        };
    }
    if model.is_file() {
        let is_read = GgufFile::is_named(model);
        return if is_read { Ok(model.to_owned()) } else { Err(not_found(forms::of_file(model))) };
    }
    let Some(repository) = Repository::parse(model) else {
        return Err(not_found("the directory does not exist".to_owned()));
    };
    let Some(cache) = cache() else {
        return Err(not_found(format!("set HF_HOME to a directory. {}", repository.help())));
    };
    if let Some(snapshot) = repository.snapshot(&cache) {
        return Ok(snapshot);
    }
    let missing = format!(
        "the directory does not exist, and {} has no complete copy. {}",
        cache.display(),
        repository.help()
    );
    fetch(&repository).map_err(|reason| not_found(format!("{missing}{reason}")))
}

/// Finds the base of a PEFT adapter: `named`, or else a whole model in the adapter's own directory, as in transformers,
/// or else what `base_model_name_or_path` of its `adapter_config.json` names, relative to the working directory or to the
/// adapter's. A repository is taken at the `revision` of that file, as PEFT does. Returns `None` if `model` is no
/// directory of an adapter.
///
/// # Errors
/// [`ModelError::NotFound`] with advice when there is no base, [`ModelError::BadAdapter`] when a base is named for a
/// model that is no adapter, [`ModelError::Malformed`] when `adapter_config.json` is not JSON.
pub fn locate_base(model: &Path, named: Option<&Path>) -> Result<Option<PathBuf>, ModelError> {
    let is_adapter = forms::is_adapter(model);
    let base = match named {
        None if !is_adapter => return Ok(None),
        None if is_whole_model(model) => return Ok(Some(model.to_owned())),
        None => named_base(model)?,
        Some(base) if is_adapter => base.to_owned(),
        Some(base) => {
            return Err(ModelError::BadAdapter(format!(
                "{} is no adapter, and needs no base ({})",
                model.display(),
                base.display()
            )));
        }
    };
    let found = locate(&base).map_err(|error| ModelError::NotFound {
        model: model.to_owned(),
        help: format!(
            "it is an adapter, and its base is not found; name it as model.base. The cause: {error}"
        ),
    })?;
    let is_own = is_whole_model(&found) && is_same(&found, model);
    if forms::is_adapter(&found) && !is_own {
        return Err(ModelError::BadAdapter(format!(
            "its base {} is an adapter itself, or has one beside it; merge that one first",
            found.display()
        )));
    }
    Ok(Some(found))
}

fn is_whole_model(directory: &Path) -> bool {
    directory.join(CONFIG).is_file() && has_weights(directory)
}

/// Returns whether two paths lead to the same directory.
fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Returns the base that an adapter names, for [`locate`].
fn named_base(model: &Path) -> Result<PathBuf, ModelError> {
    let base = forms::base_of_adapter(model)?;
    if base.name.is_empty() {
        let help = format!(
            "it is an adapter, and its {ADAPTER_CONFIG} has no base_model_name_or_path; write the base there, or name it as model.base"
        );
        return Err(ModelError::NotFound { model: model.to_owned(), help });
    }
    Ok(path_of(&base, model))
}

/// Returns the base that an adapter in `directory` names, for [`locate`]. Directories and files have no revisions.
fn path_of(base: &NamedBase, directory: &Path) -> PathBuf {
    let NamedBase { name, revision } = base;
    let beside = directory.join(name);
    if beside.exists() {
        return beside;
    }
    let path = Path::new(name);
    match revision {
        Some(revision) if !path.exists() && !name.contains('@') => {
            PathBuf::from(format!("{name}@{revision}"))
        }
        _ => path.to_owned(),
    }
}

#[cfg(feature = "hub")]
fn fetch(repository: &Repository) -> Result<PathBuf, String> {
    let is_offline = env::var("HF_HUB_OFFLINE").is_ok_and(|value| !matches!(&*value, "" | "0"));
    if is_offline {
        return Err(", or unset HF_HUB_OFFLINE".to_owned());
    }
    download::fetch(repository).map_err(|error| format!(". The download failed: {error}"))
}

#[cfg(not(feature = "hub"))]
fn fetch(_: &Repository) -> Result<PathBuf, String> {
    Err(", or build with the feature `hub`".to_owned())
}

/// A repository of the Hub at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Repository {
    owner: String,
    name: String,
    revision: String,
}

impl Repository {
    fn parse(model: &Path) -> Option<Self> {
        let model = model.to_str()?;
        let (model, revision) = model.split_once('@').unwrap_or((model, "main"));
        let (owner, name) = model.split_once('/')?;
        // A name must not lead out of the cache.
        let is_name = |part: &str| {
            let mut components = Path::new(part).components();
            matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
                && !part.contains(['/', '\\'])
        };
        // A revision may have several parts, as in refs/pr/1.
        let is_right = [owner, name].into_iter().chain(revision.split('/')).all(is_name);
        is_right.then(|| Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// Returns its directory in a cache, if the model is complete.
    fn snapshot(&self, cache: &Path) -> Option<PathBuf> {
        let folder = cache.join(format!("models--{}--{}", self.owner, self.name));
        let commit = fs::read_to_string(folder.join("refs").join(&self.revision));
        let commit = commit.unwrap_or_else(|_| self.revision.clone());
        let snapshot = folder.join("snapshots").join(commit.trim());
        (snapshot.join(CONFIG).exists() && is_whole(&snapshot)).then_some(snapshot)
    }

    fn help(&self) -> String {
        let Self { owner, name, revision } = self;
        let revision =
            if revision == "main" { String::new() } else { format!(" --revision {revision}") };
        format!("Fetch it with `hf download {owner}/{name}{revision}` on a machine with a network")
    }
}

fn cache() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    set("HF_HUB_CACHE")
        .or_else(|| Some(set("HF_HOME")?.join("hub")))
        .or_else(|| Some(home()?.join("huggingface/hub")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills a cache as `hf download` does, with links into a store of files.
    fn fill(cache: &Path, files: &[&str]) -> PathBuf {
        let folder = cache.join("models--small--model");
        let snapshot = folder.join("snapshots/0123abcd");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), "0123abcd").unwrap();
        for file in files {
            let index = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
            fs::write(snapshot.join(file), index).unwrap();
        }
        snapshot
    }

    #[test]
    fn a_whole_copy_in_the_cache_is_found_by_name_and_revision() {
        let cache = tempfile::tempdir().unwrap();
        let find =
            |model: &str| Repository::parse(Path::new(model)).unwrap().snapshot(cache.path());
        assert_eq!(find("small/model"), None);
        let snapshot = fill(cache.path(), &["config.json", "model.safetensors"]);
        for model in ["small/model", "small/model@main", "small/model@0123abcd"] {
            assert_eq!(find(model).as_ref(), Some(&snapshot), "{model}");
        }
        assert_eq!(find("small/model@other"), None);
        assert_eq!(find("small/other"), None);
    }

    #[test]
    fn a_copy_without_all_of_its_shards_is_not_whole() {
        let cache = tempfile::tempdir().unwrap();
        let find = || Repository::parse(Path::new("small/model")).unwrap().snapshot(cache.path());
        let mut files = vec!["config.json", "model.safetensors.index.json", "one.safetensors"];
        fill(cache.path(), &files);
        assert_eq!(find(), None);
        files.push("two.safetensors");
        fill(cache.path(), &files);
        assert!(find().is_some());
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_repositories() {
        let elsewhere =
            ["model", "a/b/c", "../b", "a/..", "/a", "a/", "a/b@../../c", "a/b@c//d", "a/b@", ""];
        for model in elsewhere {
            assert_eq!(Repository::parse(Path::new(model)), None, "{model}");
        }
    }

    #[test]
    fn a_model_that_is_nowhere_says_what_to_do() {
        let failure = locate(Path::new("nobody-we-know/no-such-model@v2"));
        // With the feature, the message also says that the download failed.
        let failure = failure.unwrap_err().to_string();
        let help = "Fetch it with `hf download nobody-we-know/no-such-model --revision v2`";
        assert!(failure.contains(help), "{failure}");
        let failure = locate(Path::new("./nowhere")).unwrap_err().to_string();
        assert!(failure.contains("nowhere"), "{failure}");
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(locate(directory.path()).unwrap(), directory.path());
    }

    /// Writes an adapter with these settings into a new directory.
    fn write_adapter(directory: &Path, settings: &str) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("adapter_config.json"), settings).unwrap();
        fs::write(directory.join("adapter_model.safetensors"), "").unwrap();
    }

    fn write_model(directory: &Path) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("config.json"), "{}").unwrap();
        fs::write(directory.join("model.safetensors"), "").unwrap();
    }

    #[test]
    fn the_base_of_an_adapter_is_found_or_named() {
        let here = tempfile::tempdir().unwrap();
        let (adapter, base) = (here.path().join("adapter"), here.path().join("base"));
        write_model(&base);
        fs::create_dir(&adapter).unwrap();
        assert_eq!(locate_base(&adapter, None).unwrap(), None);
        let adapter_of = |name: &str| {
            write_adapter(&adapter, &format!(r#"{{"base_model_name_or_path": {name}}}"#));
        };
        adapter_of(r#""../base""#);
        assert_eq!(locate_base(&adapter, None).unwrap(), Some(adapter.join("../base")));
        adapter_of(r#""nobody-we-know/no-such-model""#);
        let failure = locate_base(&adapter, None).unwrap_err().to_string();
        assert!(failure.contains("name it as model.base"), "{failure}");
        assert_eq!(locate_base(&adapter, Some(&base)).unwrap(), Some(base.clone()));
        let failure = locate_base(&adapter, Some(&adapter)).unwrap_err().to_string();
        assert!(failure.contains("is an adapter itself"), "{failure}");
        let failure = locate_base(&base, Some(&base)).unwrap_err().to_string();
        assert!(failure.contains("is no adapter"), "{failure}");
        for nothing in ["null", r#""""#] {
            adapter_of(nothing);
            let failure = locate_base(&adapter, None).unwrap_err().to_string();
            assert!(
                failure.contains("adapter_config.json has no base_model_name_or_path"),
                "{failure}"
            );
            assert_eq!(locate_base(&adapter, Some(&base)).unwrap(), Some(base.clone()));
        }
        adapter_of("");
        let failure = locate_base(&adapter, None).unwrap_err().to_string();
        assert!(failure.starts_with("cannot parse ") && failure.contains("adapter_config.json: "));
    }

    #[test]
    fn a_model_beside_an_adapter_is_its_base() {
        let here = tempfile::tempdir().unwrap();
        let [both, base, other] = ["both", "base", "other"].map(|name| here.path().join(name));
        write_model(&both);
        write_model(&base);
        write_adapter(&both, r#"{"base_model_name_or_path": "../base"}"#);
        assert_eq!(locate_base(&both, None).unwrap(), Some(both.clone()));
        assert_eq!(locate_base(&both, Some(&base)).unwrap(), Some(base));
        let again = both.join("../both");
        assert_eq!(locate_base(&both, Some(&again)).unwrap(), Some(again));
        write_adapter(&other, r#"{"base_model_name_or_path": "../both"}"#);
        let failure = locate_base(&other, None).unwrap_err().to_string();
        assert!(failure.contains("merge that one first"), "{failure}");
    }

    #[test]
    fn the_base_of_an_adapter_has_the_revision_that_its_settings_name() {
        let cache = tempfile::tempdir().unwrap();
        let main = fill(cache.path(), &["config.json", "model.safetensors"]);
        let folder = main.ancestors().nth(2).unwrap();
        let other = folder.join("snapshots/4567ef");
        fs::create_dir(&other).unwrap();
        fs::copy(main.join("config.json"), other.join("config.json")).unwrap();
        fs::copy(main.join("model.safetensors"), other.join("model.safetensors")).unwrap();
        fs::create_dir_all(folder.join("refs/refs/pr")).unwrap();
        for name in ["v2", "refs/pr/1"] {
            fs::write(folder.join("refs").join(name), "4567ef").unwrap();
        }
        let adapter = tempfile::tempdir().unwrap();
        let snapshot = |settings: serde_json::Value| {
            write_adapter(adapter.path(), &settings.to_string());
            let path = named_base(adapter.path()).unwrap();
            Repository::parse(&path).and_then(|repository| repository.snapshot(cache.path()))
        };
        let json = |revision| serde_json::json!({"base_model_name_or_path": "small/model", "revision": revision});
        for revision in [None, Some(""), Some("main"), Some("0123abcd")] {
            assert_eq!(snapshot(json(revision)).as_ref(), Some(&main), "{revision:?}");
        }
        for revision in ["v2", "refs/pr/1", "4567ef"] {
            assert_eq!(snapshot(json(Some(revision))).as_ref(), Some(&other), "{revision}");
        }
        for revision in ["v3", "../../small"] {
            assert_eq!(snapshot(json(Some(revision))), None, "{revision}");
        }
        // What the settings name is on the disk, where nothing has a revision.
        fs::create_dir_all(adapter.path().join("small/model")).unwrap();
        let base = NamedBase { name: "small/model".to_owned(), revision: Some("v2".to_owned()) };
        assert_eq!(path_of(&base, adapter.path()), adapter.path().join("small/model"));
    }
}
