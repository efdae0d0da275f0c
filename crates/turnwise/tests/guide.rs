//! What the guide says is so: its settings are accepted, its metrics exist, and the book and the documentation have the same pages.

use tokio::runtime::Builder;
use turnwise::Registry;
use turnwise::environment::Suite;
use turnwise::run::config::from_text;
use turnwise::training::metric;
use turnwise_serve::{
    EnvironmentServer, Protocol, ServerSettings, VerifiersServer, VerifiersSettings,
};
use turnwise_testkit::{AlphabetRenderer, Echo};

const PAGES: [(&str, &str); 12] = [
    ("environment.md", include_str!("../docs/guide/src/environment.md")),
    ("real_model.md", include_str!("../docs/guide/src/real_model.md")),
    ("agent_program.md", include_str!("../docs/guide/src/agent_program.md")),
    ("python.md", include_str!("../docs/guide/src/python.md")),
    ("remote_engine.md", include_str!("../docs/guide/src/remote_engine.md")),
    ("workers.md", include_str!("../docs/guide/src/workers.md")),
    ("remote_trainer.md", include_str!("../docs/guide/src/remote_trainer.md")),
    ("servers.md", include_str!("../docs/guide/src/servers.md")),
    ("credit.md", include_str!("../docs/guide/src/credit.md")),
    ("rollouts.md", include_str!("../docs/guide/src/rollouts.md")),
    ("own_objective.md", include_str!("../docs/guide/src/own_objective.md")),
    ("own_engine.md", include_str!("../docs/guide/src/own_engine.md")),
];

/// The content of the blocks of a page that begin with this line.
fn blocks<'a>(page: &'a str, fence: &str) -> Vec<&'a str> {
    let begin = format!("```{fence}\n");
    let parts = page.split(&begin).skip(1);
    parts.map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

#[test]
fn the_settings_of_the_guide_are_accepted() {
    let maze = Suite::divided("maze", (1..9).map(|n| Echo::new(n, true)).collect::<Vec<_>>(), 0.5);
    let registry = Registry::builtin().with(maze.clone());
    // The servers of which the guide speaks: an environment that is one is asked at once.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let settings = ServerSettings::new(Protocol::OpenEnv);
    let server = EnvironmentServer::bind(settings, maze.clone());
    let server = runtime.block_on(server).expect("a free port");
    let renderer = std::sync::Arc::new(AlphabetRenderer::new("ab"));
    let player = VerifiersServer::bind(VerifiersSettings::default(), maze, renderer);
    let player = runtime.block_on(player).expect("a free port");
    let tasks = concat!(env!("CARGO_TARGET_TMPDIR"), "/tasks.jsonl");
    std::fs::write(tasks, "{\"idx\": 0}\n{\"idx\": 1}\n").expect("a file can be written");
    let mut n_blocks = 0;
    for (name, page) in PAGES {
        for block in blocks(page, "toml") {
            n_blocks += 1;
            let is_server = ["openenv", "verifiers"]
                .iter()
                .any(|name| block.contains(&format!("name = \"{name}\"")));
            let here = block
                .replace("http://127.0.0.1:8000", &server.url())
                .replace("tcp://127.0.0.1:5000", &player.url())
                .replace("tasks.jsonl", tasks);
            let block = if is_server { &here } else { block };
            if let Err(failure) = from_text(name, block, &[], &registry) {
                panic!("{failure}\n{block}");
            }
        }
    }
    assert!(n_blocks >= 8, "{n_blocks} blocks were found");
}

/// A page that is in the book and not here, or the other way round, would be missing for some readers.
#[test]
fn the_book_has_the_same_pages() {
    let summary = include_str!("../docs/guide/src/SUMMARY.md");
    let linked: Vec<&str> =
        summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert_eq!(linked, PAGES.map(|(name, _)| name));
}

/// Every metric in the table of the first page exists.
#[test]
fn the_metrics_of_the_guide_exist() {
    let (_, page) = PAGES[0];
    let columns = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('|').nth(2));
    let names: Vec<&str> = columns
        .filter_map(|column| column.split('`').nth(1))
        .filter(|name| name.contains('/'))
        .collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        assert!(metric::ALL.iter().any(|metric| metric.name == name), "{name}");
    }
}
