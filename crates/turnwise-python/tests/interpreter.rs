//! The tests in Python, with the module that this build made. `.ci/python` names the interpreter, which has `NumPy`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Returns the module, which cargo puts beside the programs of tests.
fn module() -> PathBuf {
    let program = std::env::current_exe().expect("this program has a path");
    let folder = program.parent().expect("it is in a folder");
    let name =
        format!("{}turnwise_python{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    folder.join(name)
}

/// Lays out the package: its Python part, and the module.
fn package() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let package = folder.path().join("turnwise");
    fs::create_dir(&package).expect("it is new");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/turnwise");
    for entry in fs::read_dir(sources).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            fs::copy(&path, package.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    fs::copy(module(), package.join("_native.abi3.so")).expect("cargo built the module");
    folder
}

#[test]
fn the_tests_in_python_pass() {
    let python = std::env::var("TURNWISE_PYTHON").expect("`.ci/python` sets TURNWISE_PYTHON");
    let package = package();
    let run = Command::new(python)
        .args(["-W", "error", "-m", "unittest", "discover", "-s", "tests"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PYTHONPATH", package.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("the interpreter starts");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    assert!(said.contains("\nRan ") && !said.contains("Ran 0 tests"), "{said}");
}
