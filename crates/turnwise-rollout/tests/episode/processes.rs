use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::{env, fs};

use turnwise_environment::{
    Environment, EnvironmentError, LedgerFile, Tool, ToolReply, ToolSpec, Toolbox, async_trait,
};
use turnwise_rollout::{Episode, EpisodeSnapshot};
use turnwise_testkit::{Replayed, Shop};
use turnwise_trajectory::{InfraReason, Trajectory, read_line, write_line};

use crate::support::{ENGINE, Made, agents, block_on, episode, finished, reason, suspended};

/// The variable with the folder in which a process of these tests runs its part.
const FOLDER: &str = "TURNWISE_TEST_FOLDER";

/// A tool that sells by appending to a file, and dies with its process at one of the sales.
struct Book {
    folder: PathBuf,
    /// The number of sales in the book when the process dies, before the last result is delivered.
    dies_after: Option<usize>,
}

#[async_trait]
impl Tool for Book {
    fn spec(&self) -> ToolSpec {
        let parameters = serde_json::json!({"type": "object"});
        ToolSpec { name: "sell".to_owned(), description: String::new(), parameters }
    }

    async fn call(&self, arguments: &serde_json::Value) -> Result<ToolReply, EnvironmentError> {
        let sold = sold(&self.folder) + arguments["item"].as_str().unwrap_or_default();
        fs::write(self.folder.join("sold"), &sold).expect("a folder");
        if self.dies_after == Some(sold.len()) {
            std::process::abort();
        }
        Ok(ToolReply::Result(format!("sale {}", sold.len())))
    }
}

fn sold(folder: &Path) -> String {
    fs::read_to_string(folder.join("sold")).unwrap_or_default()
}

fn tasks(
    folder: &Path,
    dies_after: Option<usize>,
) -> Made<impl Fn() -> Box<dyn Environment> + Send + Sync> {
    let folder = folder.to_owned();
    Made(move || -> Box<dyn Environment> {
        let book = Book { folder: folder.clone(), dies_after };
        Box::new(Replayed(Shop::with_tools(Toolbox::new(vec![Arc::new(book)]), 5)))
    })
}

fn with_ledger(episode: Episode, folder: &Path) -> Episode {
    let ledger = LedgerFile::open(&folder.join("ledger")).expect("a ledger");
    episode.with_ledger(Arc::new(ledger))
}

/// Runs the first half of an episode and writes it to disk.
fn begin(folder: &Path) {
    let tasks = tasks(folder, None);
    let half = block_on(suspended(with_ledger(episode(&tasks, 3), folder), 8)).expect("five turns");
    let bytes = half.snapshot().expect("it is replayed elsewhere").to_bytes();
    fs::write(folder.join("snapshot"), bytes).expect("a folder");
}

/// Runs the rest of the episode from disk.
fn go_on(folder: &Path, dies_after: Option<usize>) -> Trajectory {
    let tasks = tasks(folder, dies_after);
    let bytes = fs::read(folder.join("snapshot")).expect("it was written");
    let snapshot = EpisodeSnapshot::from_bytes(&bytes).expect("as it was written");
    let episode = Episode::restore(snapshot, &tasks, &agents()).expect("it goes on");
    block_on(finished(with_ledger(episode, folder), &ENGINE))
}

/// Runs one test of this binary in a process of its own; returns whether it passed.
fn in_another_process(test: &str, folder: &Path) -> bool {
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command.args(["--exact", &format!("processes::{test}")]).env(FOLDER, folder);
    command.output().expect("it runs").status.success()
}

// One process's part in the tests below; does nothing unless it is asked to.
#[test]
fn part_begin() {
    if let Some(folder) = env::var_os(FOLDER) {
        begin(Path::new(&folder));
    }
}

#[test]
fn part_go_on() {
    if let Some(folder) = env::var_os(FOLDER) {
        let folder = Path::new(&folder);
        let ended = go_on(folder, None);
        let mut file = fs::File::create(folder.join("trajectory")).expect("a folder");
        write_line(&mut file, &ended).expect("a record");
    }
}

#[test]
fn part_die() {
    if let Some(folder) = env::var_os(FOLDER) {
        let folder = Path::new(&folder);
        go_on(folder, Some(sold(folder).len() + 2));
    }
}

// Rollouts 13.5: token for token, with everything between two processes on disk.
#[test]
fn a_snapshot_of_one_process_goes_on_in_another() {
    let (there, here) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    assert!(in_another_process("part_begin", there.path()));
    let n_before = sold(there.path()).len();
    assert!(n_before > 0, "tools were called in the first process");
    assert!(in_another_process("part_go_on", there.path()));
    let whole = block_on(finished(episode(&tasks(here.path(), None), 3), &ENGINE));
    let line = fs::read_to_string(there.path().join("trajectory")).expect("it was written");
    let ended = read_line(line.trim_end()).expect("a record");
    assert_eq!(ended, whole);
    assert!(ended.n_sampled() > 8, "the second process drew tokens too");
    assert_eq!(sold(there.path()), sold(here.path()), "each item once");
}

// Rollouts 13.20: the process dies in a call that is not idempotent.
#[test]
fn a_call_in_which_the_process_died_is_not_made_again() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(in_another_process("part_begin", folder.path()));
    assert!(!in_another_process("part_die", folder.path()), "it dies");
    let sold_at_death = sold(folder.path());
    let ended = go_on(folder.path(), None);
    assert_eq!(reason(&ended), Some(InfraReason::ToolInDoubt));
    assert_eq!(sold(folder.path()), sold_at_death);
}
