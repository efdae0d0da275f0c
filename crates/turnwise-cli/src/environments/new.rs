//! `turnwise env new`: creates a crate with a new environment.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use turnwise_run::{ExitCode, Failure, Registry};

/// The source that this program was built from.
const BUILT_FROM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The template is a member of the workspace, so that it is compiled and tested with everything else.
const FILES: [(&str, &str); 5] = [
    ("src/lib.rs", include_str!("../../../../examples/environment/src/lib.rs")),
    ("src/main.rs", include_str!("../../../../examples/environment/src/main.rs")),
    ("tests/environment.rs", include_str!("../../../../examples/environment/tests/environment.rs")),
    ("train.toml", include_str!("../../../../examples/environment/train.toml")),
    ("README.md", include_str!("../../../../examples/environment/README.md")),
];

/// The name of the template, as a package and in code.
const TEMPLATE: [&str; 2] = ["my-environment", "my_environment"];

/// The manifest of this workspace, for its profiles.
const WORKSPACE: &str = include_str!("../../../../Cargo.toml");

/// Words that cannot be names of crates.
const TAKEN: [&str; 42] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "turnwise",
];

/// The source of turnwise for a new crate.
enum CrateSource {
    /// A checkout.
    Path(PathBuf),
    /// A git repository.
    Git(String),
}

/// Writes the crate `name` into a directory of that name in `parent`, and returns the next steps, as lines to print.
///
/// # Errors
/// When the name is invalid for a crate or an environment, the directory exists, there is no source, or a file cannot
/// be written.
pub(super) fn create(
    registry: &Registry,
    parent: &Path,
    name: &str,
    source: Option<&str>,
) -> Result<String, Failure> {
    check_name(registry, name)?;
    let directory = parent.join(name);
    if directory.exists() {
        return Err(Failure::refused(format!("{} exists already", directory.display()))
            .help("choose another name, or remove it"));
    }
    let source = find(source)?;
    let unwritable = |error: io::Error| {
        let what = format!("cannot write {}: {error}", directory.display());
        Failure::new(ExitCode::Runtime, what)
    };
    write(&directory, name, &source).map_err(unwritable)?;
    Ok(told(name, &source))
}

fn check_name(registry: &Registry, name: &str) -> Result<(), Failure> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    let is_fit = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 64
        && name.bytes().all(allowed);
    if !is_fit || TAKEN.contains(&name.replace('-', "_").as_str()) {
        return Err(Failure::refused(format!("`{name}` cannot be the name of a crate")).help(
            "use a name of a-z, 0-9, '-' and '_' that starts with a letter and is not a keyword of Rust, such as  turnwise env new maze",
        ));
    }
    if registry.names().any(|known| known == name) {
        let what = format!("an environment called `{name}` exists already");
        return Err(Failure::refused(what).help("choose another name"));
    }
    Ok(())
}

fn find(source: Option<&str>) -> Result<CrateSource, Failure> {
    let is_checkout = |path: &Path| path.join("crates/turnwise/Cargo.toml").is_file();
    let Some(source) = source else {
        let built_from = fs::canonicalize(BUILT_FROM).ok().filter(|path| is_checkout(path));
        return built_from.map(CrateSource::Path).ok_or_else(|| {
            let what = "the source that this program was built from is not on this machine";
            Failure::refused(what).help("name a checkout or a git address:  --source PATH_OR_URL")
        });
    };
    match fs::canonicalize(source) {
        Ok(path) if is_checkout(&path) => Ok(CrateSource::Path(path)),
        _ if source.contains("://") || source.starts_with("git@") => {
            Ok(CrateSource::Git(source.to_owned()))
        }
        _ => Err(Failure::refused(format!("{source} is not a checkout of turnwise")).help(
            "name a directory with crates/turnwise in it, or a git address such as https://…",
        )),
    }
}

fn write(directory: &Path, name: &str, source: &CrateSource) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let put = |file: &str, content: &str| {
        let path = directory.join(file);
        fs::create_dir_all(path.parent().unwrap_or(directory))?;
        fs::write(path, content)
    };
    for (file, content) in FILES {
        let [package, module] = TEMPLATE;
        let content = content.replace(package, name).replace(module, &name.replace('-', "_"));
        put(file, &content)?;
    }
    put("Cargo.toml", &manifest(name, source))?;
    put(".gitignore", "/target\n/runs\n")?;
    if let CrateSource::Path(path) = source {
        put(".cargo/config.toml", &cargo_settings(path))?;
        // The same versions as in the checkout, so that its build can be reused.
        if let Ok(lock) = fs::read_to_string(path.join("Cargo.lock")) {
            put("Cargo.lock", &lock)?;
        }
    }
    Ok(())
}

fn manifest(name: &str, source: &CrateSource) -> String {
    let of = |package: &str| match source {
        CrateSource::Path(path) => {
            let path = path.join("crates").join(package);
            format!("{{ path = {} }}", quoted(&path.to_string_lossy()))
        }
        CrateSource::Git(url) => format!("{{ git = {} }}", quoted(url)),
    };
    let profiles = WORKSPACE.find("[profile").map_or("", |start| &WORKSPACE[start..]);
    // Cargo warns of packages that are not built, and only another engine needs this one.
    let built = profiles.lines().filter(|line| !line.starts_with("candle-transformers"));
    let profiles = built.collect::<Vec<_>>().join("\n");
    format!(
        "\
[package]
name = \"{name}\"
version = \"0.1.0\"
edition = \"2024\"
publish = false

[dependencies]
schemars = \"1\"
serde = {{ version = \"1\", features = [\"derive\"] }}
serde_json = \"1\"
turnwise = {}

[dev-dependencies]
tokio = {{ version = \"1\", features = [\"macros\", \"rt\"] }}
turnwise-testkit = {}

[workspace] # not a member of one that lies around it

# As turnwise itself is built: in a debug build, too, the numeric crates are optimised.
{profiles}
",
        of("turnwise"),
        of("turnwise-testkit"),
    )
}

fn cargo_settings(source: &Path) -> String {
    let target = quoted(&source.join("target").to_string_lossy());
    format!(
        "\
# Builds beside turnwise itself, so that what was compiled there need not be compiled again. Remove it for a directory of its own.
[build]
target-dir = {target}
"
    )
}

fn quoted(text: &str) -> String {
    toml_edit::Value::from(text).to_string()
}

fn told(name: &str, source: &CrateSource) -> String {
    let from = match source {
        CrateSource::Path(path) => {
            format!(
                "turnwise comes from {}, and it builds into the target directory there",
                path.display()
            )
        }
        CrateSource::Git(url) => format!("turnwise comes from {url}"),
    };
    format!(
        "\
{name}/  an environment with a tool, its tests, and settings that train it
{from}

next   cd {name}
       cargo test
       cargo run --release -- env check {name}
       cargo run --release -- train train.toml
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_written_under_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let registry = Registry::builtin();
        let said = create(&registry, folder.path(), "my-maze", None).expect("it is written");
        assert!(said.contains("next   cd my-maze\n"), "{said}");
        let read = |file: &str| fs::read_to_string(folder.path().join("my-maze").join(file));
        let main = read("src/main.rs").expect("there is one");
        assert!(main.contains("with_options(\"my-maze\", my_maze::suite)"), "{main}");
        for file in ["src/lib.rs", "tests/environment.rs", "train.toml", "README.md"] {
            let text = read(file).expect("it was written");
            assert!(!TEMPLATE.iter().any(|name| text.contains(name)), "{file}");
        }
        let manifest = read("Cargo.toml").expect("there is one");
        let table: toml_edit::DocumentMut = manifest.parse().expect("it is TOML");
        assert_eq!(table["package"]["name"].as_str(), Some("my-maze"));
        assert!(table["profile"]["dev"]["package"]["candle-core"].is_table_like());
        assert!(!manifest.contains("candle-transformers"));
        let path = table["dependencies"]["turnwise"]["path"].as_str().expect("a path");
        assert!(Path::new(path).join("Cargo.toml").is_file());

        let again = create(&registry, folder.path(), "my-maze", None).expect_err("it exists");
        assert_eq!(again.code, ExitCode::Refused);
    }

    #[test]
    fn a_name_that_cannot_be_one_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["", "Maze", "9lives", "a b", "../x", "self", "guess", "match", "maz\u{e9}"] {
            let refused = create(&Registry::builtin(), folder.path(), name, None);
            assert!(refused.is_err(), "{name:?}");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn a_source_is_a_checkout_or_an_address() {
        let folder = tempfile::tempdir().expect("a folder");
        let create = |name, source| create(&Registry::builtin(), folder.path(), name, Some(source));
        assert!(create("maze", "/nowhere").is_err());
        create("maze", "https://example.com/turnwise.git").expect("it is an address");
        let manifest = fs::read_to_string(folder.path().join("maze/Cargo.toml"));
        let manifest = manifest.expect("there is one");
        assert!(manifest.contains("turnwise = { git = \"https://example.com/turnwise.git\" }"));
        assert!(!folder.path().join("maze/.cargo").exists());
    }
}
