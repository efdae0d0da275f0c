//! The layout of the workspace is what its documents say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// The longest function there may be, in lines. It only ever goes down.
const LONGEST_FUNCTION: usize = 60;

/// A package of the workspace, and what it needs when it is built for others.
#[derive(Clone, Debug)]
struct Package {
    name: String,
    /// `crates`, `envs`, or its own folder's name.
    place: String,
    normal: Vec<String>,
    /// Those of them that are built only when a feature asks for them.
    optional: Vec<String>,
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in a workspace")
}

fn packages() -> Vec<Package> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages.iter().map(package).collect()
}

fn package(package: &Value) -> Package {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let manifest = PathBuf::from(text(&package["manifest_path"]));
    let inside = manifest.strip_prefix(root()).expect("a package of this workspace");
    let place = inside.components().next().expect("a folder");
    let dependencies = package["dependencies"].as_array().expect("dependencies");
    let normal = || dependencies.iter().filter(|dependency| dependency["kind"].is_null());
    let optional = normal().filter(|dependency| dependency["optional"] == true);
    Package {
        name: text(&package["name"]),
        place: place.as_os_str().to_string_lossy().into_owned(),
        normal: normal().map(|dependency| text(&dependency["name"])).collect(),
        optional: optional.map(|dependency| text(&dependency["name"])).collect(),
    }
}

/// What each crate may be built from; all else is forbidden. `None` for a package without a place in the order.
fn allowed(package: &Package) -> Option<&'static [&'static str]> {
    const TRAINING: &[&str] = &["objective", "rollout", "trajectory", "environment"];
    const TRAINED: &[&str] = &["training", "objective", "rollout", "trajectory", "environment"];
    const MODEL: &[&str] =
        &["kernels", "training", "objective", "rollout", "trajectory", "environment"];
    const FACADE: &[&str] = &[
        "cli",
        "run",
        "serve",
        "remote",
        "gguf",
        "candle",
        "chat",
        "training",
        "objective",
        "rollout",
        "trajectory",
        "environment",
    ];
    const COMMAND: &[&str] = &[
        "run",
        "serve",
        "lab",
        "simulation",
        "candle",
        "chat",
        "training",
        "objective",
        "rollout",
        "trajectory",
        "environment",
    ];
    Some(match (package.place.as_str(), package.name.as_str()) {
        ("crates", "turnwise-kernels" | "turnwise-environment") => &[],
        ("crates", "turnwise-objective") => &["kernels"],
        ("envs", _) | ("crates", "turnwise-trajectory") => &["environment"],
        ("crates", "turnwise-rollout") => &["trajectory", "environment", "kernels"],
        ("crates", "turnwise-chat" | "turnwise-serve") => &["rollout", "trajectory", "environment"],
        ("crates", "turnwise-remote") => &["training", "rollout", "trajectory", "environment"],
        ("crates", "turnwise-training") => TRAINING,
        ("crates", "turnwise-candle") => MODEL,
        ("crates", "turnwise-lab" | "turnwise-simulation" | "turnwise-testkit") => TRAINED,
        ("crates", "turnwise-gguf") => &["candle", "training", "rollout", "trajectory"],
        ("crates", "turnwise-run") => &FACADE[2..],
        ("crates", "turnwise-cli") => COMMAND,
        ("crates", "turnwise-python") => &FACADE[1..],
        ("crates", "turnwise") => FACADE,
        _ => return None,
    })
}

/// Everything that is wrong with who depends on whom.
fn misdirected(packages: &[Package]) -> Vec<String> {
    let members: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let environments: BTreeSet<&str> = packages
        .iter()
        .filter(|package| package.place == "envs")
        .map(|package| package.name.as_str())
        .collect();
    let mut wrong = Vec::new();
    for package in packages {
        if matches!(package.place.as_str(), "examples" | "tests") {
            continue;
        }
        let may_use = |dependency: &str| match (package.name.as_str(), allowed(package)) {
            ("turnwise-run", _) if environments.contains(dependency) => true,
            (_, Some(allowed)) => dependency
                .strip_prefix("turnwise-")
                .is_some_and(|dependency| allowed.contains(&dependency)),
            (_, None) => false,
        };
        for dependency in package.normal.iter().filter(|one| members.contains(one.as_str())) {
            if !may_use(dependency) {
                wrong.push(format!("{} must not depend on {dependency}", package.name));
            }
        }
    }
    wrong
}

/// Everything that is wrong with who uses what from outside.
fn leaking(packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in packages {
        for dependency in &package.normal {
            let owners: &[&str] = match dependency.as_str() {
                "candle-core" => &["turnwise-candle", "turnwise-gguf"],
                "candle-transformers" => &["turnwise-gguf"],
                "gemm" | "libc" => &["turnwise-kernels"],
                name if name.starts_with("candle-") => &["turnwise-candle"],
                // Its macros expand to code with `unsafe`, which is pyo3's own; this crate forbids any other.
                "pyo3" => &["turnwise-python"],
                "tokenizers" | "llguidance" => &["turnwise-chat"],
                _ => continue,
            };
            if !owners.contains(&package.name.as_str()) {
                wrong.push(format!("{}: {dependency} belongs to {owners:?}", package.name));
            }
        }
        let needs_second_engine = package.normal.iter().any(|name| name == "turnwise-gguf")
            && !package.optional.iter().any(|name| name == "turnwise-gguf");
        if needs_second_engine {
            wrong.push(format!("{}: turnwise-gguf is for those who ask for it", package.name));
        }
        let is_pure = |name: &&String| match package.name.as_str() {
            "turnwise-objective" => *name == "turnwise-kernels",
            // Loom is there in a build that models threads, and in no other.
            "turnwise-kernels" => package.optional.contains(name) || *name == "loom",
            _ => true,
        };
        let impure: Vec<&String> = package.normal.iter().filter(|name| !is_pure(name)).collect();
        if !impure.is_empty() {
            wrong.push(format!("{} must be pure: {impure:?}", package.name));
        }
    }
    wrong
}

fn misnamed(packages: &[Package]) -> Vec<String> {
    let is_right = |name: &str| name == "turnwise" || name.starts_with("turnwise-");
    // An example stands for a crate of somebody else.
    let ours = packages.iter().filter(|package| package.place != "examples");
    ours.map(|package| package.name.clone()).filter(|name| !is_right(name)).collect()
}

#[test]
fn dependencies_point_where_the_layout_says() {
    assert_eq!(misdirected(&packages()), [""; 0]);
}

#[test]
fn what_comes_from_outside_stays_behind_its_crate() {
    assert_eq!(leaking(&packages()), [""; 0]);
}

#[test]
fn packages_have_the_workspaces_name() {
    assert_eq!(misnamed(&packages()), [""; 0]);
}

/// A graph that is right.
fn right() -> Vec<Package> {
    let package = |place: &str, name: &str, normal: &[&str]| Package {
        name: name.to_owned(),
        place: place.to_owned(),
        normal: normal.iter().map(|name| (*name).to_owned()).collect(),
        optional: ["turnwise-gguf", "gemm"].map(str::to_owned).to_vec(),
    };
    vec![
        package("crates", "turnwise-kernels", &["gemm"]),
        package("crates", "turnwise-objective", &["turnwise-kernels"]),
        package("crates", "turnwise-environment", &["serde"]),
        package("crates", "turnwise-trajectory", &["turnwise-environment"]),
        package("crates", "turnwise-rollout", &["turnwise-trajectory"]),
        package("crates", "turnwise-training", &["turnwise-objective", "turnwise-rollout"]),
        package("crates", "turnwise-candle", &["turnwise-training", "candle-core"]),
        package("crates", "turnwise-gguf", &["turnwise-candle", "candle-transformers"]),
        package("crates", "turnwise-testkit", &["turnwise-training"]),
        package("crates", "turnwise-lab", &["turnwise-training", "turnwise-objective"]),
        package("crates", "turnwise", &["turnwise-candle", "turnwise-gguf"]),
        package("crates", "turnwise-run", &["turnwise-candle", "turnwise-guess"]),
        package("crates", "turnwise-cli", &["turnwise-run", "turnwise-lab"]),
        package("envs", "turnwise-guess", &["turnwise-environment"]),
        package("examples", "turnwise-examples", &["turnwise", "turnwise-testkit"]),
    ]
}

/// The checks themselves: the same graph with one thing wrong.
#[test]
fn a_broken_direction_is_found() {
    let wrong = |packages: &[Package]| {
        [misdirected(packages), leaking(packages), misnamed(packages)].concat()
    };
    assert_eq!(wrong(&right()), [""; 0]);
    let broken = [
        ("turnwise-environment", "turnwise-trajectory"),
        ("turnwise-trajectory", "turnwise-rollout"),
        ("turnwise-rollout", "turnwise-objective"),
        ("turnwise-training", "turnwise-candle"),
        ("turnwise-training", "turnwise-testkit"),
        ("turnwise-testkit", "turnwise-candle"),
        ("turnwise-lab", "turnwise-candle"),
        ("turnwise-lab", "turnwise-testkit"),
        ("turnwise-guess", "turnwise-rollout"),
        ("turnwise-cli", "turnwise-guess"),
        ("turnwise-cli", "turnwise-testkit"),
        ("turnwise-run", "turnwise-cli"),
        ("turnwise-run", "turnwise-lab"),
        ("turnwise", "turnwise-guess"),
        ("turnwise-objective", "rayon"),
        ("turnwise-kernels", "rayon"),
        ("turnwise-environment", "turnwise-kernels"),
        ("turnwise-candle", "turnwise-gguf"),
        ("turnwise-gguf", "turnwise-lab"),
        ("turnwise-training", "candle-core"),
        ("turnwise-candle", "gemm"),
        ("turnwise-candle", "candle-transformers"),
        ("turnwise-rollout", "tokenizers"),
    ];
    for (who, whom) in broken {
        let mut packages = right();
        let package = packages.iter_mut().find(|package| package.name == who).expect("it is there");
        package.normal.push(whom.to_owned());
        assert_eq!(wrong(&packages).len(), 1, "{who} on {whom}");
    }
    let stranger = |name: &str, normal: &[&str]| Package {
        name: name.to_owned(),
        place: "crates".to_owned(),
        normal: normal.iter().map(|name| (*name).to_owned()).collect(),
        optional: Vec::new(),
    };
    let strangers = [stranger("turnwise-new", &["turnwise-environment"]), stranger("other", &[])];
    assert_eq!(wrong(&[right(), strangers.to_vec()].concat()).len(), 2);
}

#[test]
fn a_second_engine_that_everybody_builds_is_found() {
    let package = |optional: &[&str]| Package {
        name: "turnwise".to_owned(),
        place: "crates".to_owned(),
        normal: vec!["turnwise-gguf".to_owned()],
        optional: optional.iter().map(|name| (*name).to_owned()).collect(),
    };
    assert_eq!(leaking(&[package(&["turnwise-gguf"])]), [""; 0]);
    assert_eq!(leaking(&[package(&[])]).len(), 1);
}

/// A source file, by its path within the workspace.
struct Source {
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    for place in ["crates", "envs", "examples", "tests"] {
        collect(&root().join(place), &mut paths);
    }
    paths.sort();
    let source = |path: PathBuf| Source {
        text: fs::read_to_string(&path).expect("sources are text"),
        path: path.strip_prefix(root()).expect("inside").to_string_lossy().replace('\\', "/"),
    };
    paths.into_iter().map(source).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// The lines that are no comments, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Where one of the words stands in code.
fn found<'a>(source: &Source, words: &'a [&'a str]) -> Vec<String> {
    let at = |(number, line): (usize, &str)| {
        let word = words.iter().find(|word| line.contains(**word))?;
        Some(format!("{}:{number} {word}", source.path))
    };
    code(&source.text).filter_map(at).collect()
}

#[test]
fn libraries_do_not_print() {
    let is_library = |source: &&Source| {
        (source.path.starts_with("crates/") || source.path.starts_with("envs/"))
            && source.path.contains("/src/")
            && !source.path.starts_with("crates/turnwise-cli/")
    };
    let words = ["println!(", "print!(", "dbg!(", "todo!("];
    let wrong: Vec<String> =
        sources().iter().filter(is_library).flat_map(|source| found(source, &words)).collect();
    assert_eq!(wrong, [""; 0]);
}

/// Lints forbid it to the crates themselves; this covers macros that they bring into others.
#[test]
fn only_kernels_are_unsafe() {
    let may = ["crates/turnwise-kernels/", "crates/turnwise-gguf/", "tests/it/tidy.rs"];
    let must_not = |source: &&Source| !may.iter().any(|place| source.path.starts_with(place));
    let wrong: Vec<String> =
        sources().iter().filter(must_not).flat_map(|source| found(source, &["unsafe"])).collect();
    assert_eq!(wrong, [""; 0]);
}

/// The lines of a manifest's tables whose names begin so, without comments; tables are told apart by the rest of their names.
fn table_lines(manifest: &str, prefix: &str) -> BTreeSet<String> {
    let (mut lines, mut table) = (BTreeSet::new(), None);
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            table = name.strip_prefix(prefix).map(str::to_owned);
        } else if let (Some(table), false) = (&table, line.is_empty() || line.starts_with('#')) {
            let setting = line.split(" #").next().unwrap_or_default().trim_end();
            lines.insert(format!("{table} {setting}"));
        }
    }
    lines
}

/// A package has the workspace's lints or a table of its own, not both.
#[test]
fn kernels_have_the_lints_of_all_but_the_one_on_unsafe_code() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("a manifest");
    let all = table_lines(&read("Cargo.toml"), "workspace.lints.");
    let own = table_lines(&read("crates/turnwise-kernels/Cargo.toml"), "lints.");
    let differ: Vec<&String> = all.symmetric_difference(&own).collect();
    let expected = [
        "clippy] undocumented_unsafe_blocks = \"warn\"",
        "rust] unexpected_cfgs = { level = \"warn\", check-cfg = [\"cfg(loom)\"] }",
        "rust] unsafe_code = \"forbid\"",
    ];
    assert_eq!(differ, expected);
}

#[test]
fn no_test_is_left_out() {
    let attribute = ["#[", "ignore"].concat();
    let wrong: Vec<String> =
        sources().iter().flat_map(|source| found(source, &[&attribute])).collect();
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn every_file_says_what_it_is_for() {
    let says = |source: &&Source| {
        let is_root = ["lib.rs", "main.rs"].iter().any(|root| source.path.ends_with(root));
        let opens = source.text.starts_with("//!");
        opens || (!is_root && source.text.contains("///"))
    };
    // A module of tests is explained by what it is a module of.
    let is_part_of_a_test = |source: &&Source| {
        let inside = source.path.split_once("/tests/").map(|(_, inside)| inside);
        inside.is_some_and(|inside| inside.contains('/') && !inside.ends_with("main.rs"))
            || source.path.contains("/src/tests")
    };
    let wrong: Vec<String> = sources()
        .iter()
        .filter(|source| !says(source) && !is_part_of_a_test(source))
        .map(|source| source.path.clone())
        .collect();
    assert_eq!(wrong, [""; 0]);
}

/// A file's code without the modules of its tests and without comments.
fn code_without_tests(text: &str) -> String {
    let (mut code, mut lines) = (String::new(), text.lines());
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        if line.trim_start() != "#[cfg(test)]" {
            code.push_str(line);
            code.push('\n');
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let ends = |line: &&str| line.strip_prefix(indent).is_some_and(|rest| rest == "}");
        let opens = |line: &str| line.ends_with('{');
        let item = lines.find(|line| !line.trim_start().starts_with("#["));
        if item.is_some_and(opens) {
            lines.find(ends);
        } else if item.is_some_and(|item| !item.ends_with(';')) {
            // A head of several lines.
            if lines.find(|line| line.ends_with(['{', ';'])).is_some_and(opens) {
                lines.find(ends);
            }
        }
    }
    code
}

/// The first names of the paths in a group of imports, without its outer braces: `a, b::{c, d}` has a and b.
fn first_names(group: &str) -> BTreeSet<&str> {
    let (mut names, mut depth, mut start) = (BTreeSet::new(), 0, 0);
    for (place, letter) in group.char_indices().chain([(group.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.insert(first_name(&group[start..place]));
                start = place + 1;
            }
            _ => {}
        }
        if depth < 0 {
            break;
        }
    }
    names
}

/// The name that a path begins with.
fn first_name(path: &str) -> &str {
    let path = path.trim_start();
    let end = path.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    &path[..end.unwrap_or(path.len())]
}

/// The names behind every `crate::`.
fn names_in_crate(code: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for (place, path) in code.match_indices("crate::") {
        let rest = &code[place + path.len()..];
        // `$crate::` belongs to whoever expands a macro.
        if code[..place].ends_with('$') {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(group) => {
                let end = group.find(';').unwrap_or(group.len());
                names.extend(first_names(&group[..end]));
            }
            None => drop(names.insert(first_name(rest))),
        }
    }
    names
}

/// The modules below a crate's root, by the modules that they import from: `a/b.rs` is a part of module `a`.
fn module_graph(root: &str, files: &[(&str, &str)]) -> BTreeMap<String, BTreeSet<String>> {
    let module = |path: &str| path.split(['/', '.']).next().unwrap_or_default().to_owned();
    let modules: BTreeSet<String> = files.iter().map(|(path, _)| module(path)).collect();
    let root = code_without_tests(root);
    let mut homes: BTreeMap<&str, &str> = BTreeMap::new();
    for line in root.split(';') {
        let Some((_, path)) = line.split_once("use ") else { continue };
        let Some((home, names)) = path.split_once("::") else { continue };
        for name in first_names(names.trim_matches(['{', '}'])) {
            homes.insert(name, home);
        }
    }
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in files {
        let (own, code) = (module(path), code_without_tests(text));
        let homes = names_in_crate(&code)
            .into_iter()
            .map(|name| homes.get(name).copied().unwrap_or(name).to_owned());
        let others = homes.filter(|other| *other != own && modules.contains(other));
        graph.entry(own.clone()).or_default().extend(others);
    }
    graph
}

/// What is left when modules that import from none of the rest are taken away, again and again: those on circles and above.
fn circles(mut graph: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let done: BTreeSet<String> =
            graph.iter().filter(|(_, to)| to.is_empty()).map(|(from, _)| from.clone()).collect();
        if done.is_empty() {
            return graph;
        }
        graph.retain(|from, _| !done.contains(from));
        for to in graph.values_mut() {
            to.retain(|to| !done.contains(to));
        }
    }
}

#[test]
fn imports_within_a_crate_make_no_circle() {
    let sources = sources();
    for name in ["turnwise-candle", "turnwise-kernels"] {
        let folder = format!("crates/{name}/src/");
        let inside = sources
            .iter()
            .filter_map(|source| Some((source.path.strip_prefix(&folder)?, source.text.as_str())));
        let is_root = |(path, _): &(&str, &str)| *path == "lib.rs";
        let (root, files): (Vec<_>, Vec<_>) = inside.partition(is_root);
        let files: Vec<_> =
            files.into_iter().filter(|(path, _)| !path.starts_with("tests")).collect();
        let graph = module_graph(root[0].1, &files);
        assert!(graph.len() > 5 && graph.values().any(|to| !to.is_empty()), "{name} has imports");
        assert_eq!(circles(graph), BTreeMap::new(), "{name}: imports go round");
    }
}

/// The check itself.
#[test]
fn an_import_that_goes_round_is_found() {
    let root = "mod a;\nmod b;\nmod c;\npub use c::{Deep, Thing};\n";
    let a = "use crate::{\n    Thing,\n    b::{self, c},\n};\n";
    let b = "#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n// crate::a\n";
    let c_part = "use super::Deep;\n";
    let of = |c: &str| {
        let files = [("a.rs", a), ("b.rs", b), ("c.rs", c), ("c/part.rs", c_part)];
        circles(module_graph(root, &files)).into_keys().collect::<Vec<_>>()
    };
    assert_eq!(of("use std::fmt;\n"), [""; 0]);
    assert_eq!(of("fn f() { crate::b::g() }\n"), [""; 0]);
    assert_eq!(of("fn f() { crate::a::g() }\n"), ["a", "c"]);
}

/// Name of the type that a line of code defines, and whether it is public. For text as rustfmt leaves it; the associated
/// types of traits are no types of their own.
fn type_name(line: &str) -> Option<(&str, bool)> {
    let item = line.trim_start();
    let is_public = item.starts_with("pub ");
    let (before, after) = item.split_once(' ')?;
    let item = if before.starts_with("pub") { after } else { item };
    let (kind, rest) = item.strip_prefix("unsafe ").unwrap_or(item).split_once(' ')?;
    let is_type = match kind {
        "struct" | "enum" | "trait" | "union" => true,
        "type" => !line.starts_with(' '),
        _ => false,
    };
    let name = first_name(rest);
    (is_type && !name.is_empty()).then_some((name, is_public))
}

/// The names of types that more than one definition has, one of them public, each with the places of all definitions.
fn reused_names(sources: &[(&str, &str)]) -> Vec<String> {
    let mut definitions: BTreeMap<String, (bool, Vec<&str>)> = BTreeMap::new();
    for (path, text) in sources {
        let code = code_without_tests(text);
        for (name, is_public) in code.lines().filter_map(type_name) {
            let (any_is_public, places) = definitions.entry(name.to_owned()).or_default();
            *any_is_public |= is_public;
            places.push(path);
        }
    }
    definitions
        .into_iter()
        .filter(|(_, (any_is_public, places))| *any_is_public && places.len() > 1)
        .map(|(name, (_, places))| format!("{name}: {}", places.join(", ")))
        .collect()
}

#[test]
fn a_public_type_name_has_one_definition() {
    let is_shipped = |source: &&Source| {
        let (place, is_source) = (&source.path, source.path.contains("/src/"));
        is_source
            && (place.starts_with("crates/") || place.starts_with("envs/"))
            && !place.contains("/src/tests/")
            && !place.ends_with("/tests.rs")
    };
    let sources = sources();
    let shipped: Vec<(&str, &str)> = sources
        .iter()
        .filter(is_shipped)
        .map(|source| (source.path.as_str(), source.text.as_str()))
        .collect();
    assert!(shipped.len() > 100, "the sources are found");
    assert_eq!(reused_names(&shipped), [""; 0]);
}

/// The check itself.
#[test]
fn a_type_name_that_is_used_again_is_found() {
    let a = "pub struct One<T>(T);\npub(crate) enum Two {}\nstruct Three;\n#[cfg(test)]\nmod tests {\n    struct One;\n}\n";
    let of = |b: &str| reused_names(&[("a.rs", a), ("b.rs", b)]);
    assert_eq!(of("struct Three;\nenum Two {}\nimpl T for U {\n    type One = u8;\n}\n"), [""; 0]);
    assert_eq!(of("pub trait One: Send {}\n"), ["One: a.rs, b.rs"]);
    assert_eq!(of("fn f() {\n    struct One;\n}\n"), ["One: a.rs, b.rs"]);
    assert_eq!(of("pub type Two = u8;\n"), ["Two: a.rs, b.rs"]);
    assert_eq!(of("pub(super) type One<T> = Vec<T>;\n"), ["One: a.rs, b.rs"]);
}

/// Name, first line and number of lines of each function. For text as rustfmt leaves it.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let ends = |line: &&str| {
            line.strip_prefix(indent).is_some_and(|rest| matches!(rest, "}" | ");")) || {
                line.starts_with(indent)
                    && !line[indent.len()..].starts_with(' ')
                    && line.trim_end().ends_with([';', '}'])
            }
        };
        if let Some(length) = lines[start..].iter().position(ends) {
            functions.push((name, start + 1, length + 1));
        }
    }
    functions
}

fn function_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    let (before, after) = line.split_once("fn ")?;
    let is_modifier = |word: &str| {
        matches!(word, "async" | "const" | "unsafe" | "extern") || word.starts_with("pub")
    };
    let is_head = before.split_whitespace().all(is_modifier) && !line.starts_with("//");
    let name: String =
        after.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
    (is_head && !name.is_empty()).then_some(name)
}

#[test]
fn functions_fit_on_a_screen() {
    let long: Vec<String> = sources()
        .iter()
        .flat_map(|source| {
            let lengths = functions(&source.text);
            lengths.into_iter().filter(|(.., length)| *length > LONGEST_FUNCTION).map(
                |(name, line, length)| format!("{}:{line} {name} has {length} lines", source.path),
            )
        })
        .collect();
    assert_eq!(long, [""; 0]);
}

/// The scanner itself.
#[test]
fn the_length_of_a_function_is_counted_from_head_to_brace() {
    let text = "\
fn one() {}

pub(crate) async fn three(
    a: u8,
) -> u8 {
    a
}

trait T {
    fn declared(&self) -> u8;

    fn four(&self) {
        if true {
        }
    }
}
";
    let lengths: Vec<(String, usize)> =
        functions(text).into_iter().map(|(name, _, length)| (name, length)).collect();
    let expected = [("one", 1), ("three", 5), ("declared", 1), ("four", 4)];
    assert_eq!(lengths, expected.map(|(name, length)| (name.to_owned(), length)));
}
