//! A whole run in an environment whose messages are longer than the model may read.

use turnwise_environment::{
    Action, Demonstrator, Environment, EnvironmentError, Observation, Random, Step, Suite,
    async_trait,
};
use turnwise_rollout::StopSignal;
use turnwise_testkit::SMALL_MODEL;

use super::{Diagnosis, diagnose};
use crate::config::from_text;
use crate::observer::Observer;
use crate::registry::Registry;
use crate::train::train;

const SETTINGS: &str = r#"
[run]
steps = 3

[environment]
name = "reader"

[warm_start]
steps = 60
batch_size = 8
learning_rate = 1e-2

[rollout]
groups_per_step = 4
group_size = 6

[limits]
max_turns = 2
max_turn_tokens = 6
max_context_tokens = 2048

[objective]
clip_low = 0.05
clip_high = 0.07

[train]
learning_rate = 3e-3
n_minibatches = 2

[eval]
episodes = 128
"#;

/// Shows a price list of 40 lines, and then rewards the right digit.
#[derive(Clone, Debug)]
struct Reader {
    number: u64,
    has_read: bool,
}

#[async_trait]
impl Environment for Reader {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("Say 0 for the list.".into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        if self.has_read {
            let is_right = action.text.trim() == (self.number % 2).to_string();
            return Ok(Step::terminated(f64::from(u8::from(is_right))).solved(is_right));
        }
        self.has_read = true;
        let line = |n: u64| format!("part {n}: {}\n", (37 * n + self.number) % 101);
        Ok(Step::next((0..40).map(line).collect::<String>()))
    }
}

struct EitherDigit(Random);

impl Demonstrator for EitherDigit {
    fn act(&mut self, _observation: &Observation) -> Action {
        Action::text(self.0.below(2).to_string())
    }
}

/// Keeps the last lines of a run.
#[derive(Default)]
struct LastLines(Vec<String>);

impl Observer for LastLines {
    fn finish(&mut self, lines: &[String]) {
        self.0 = lines.to_vec();
    }
}

/// Trains with a limit on messages, and returns the diagnosis and the last lines of the run.
fn trained(limit: usize) -> (Diagnosis, Vec<String>) {
    let readers = (0..40).map(|number| Reader { number, has_read: false });
    let suite = Suite::divided("reader", readers.collect::<Vec<_>>(), 0.5)
        .expert(|seed| EitherDigit(Random::new(seed)));
    let registry = Registry::empty().with(suite);
    let limit = format!("model.max_observation_tokens={limit}");
    let settings = [SMALL_MODEL, SETTINGS].concat();
    let settings =
        from_text("the test", &settings, &[limit], &registry).expect("they are accepted");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run");
    let (mut observer, stop) = (LastLines::default(), StopSignal::never());
    let training = train(settings, "run", Some(path.clone()), &registry, &mut observer, &stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(training).expect("it trains");
    (diagnose(&path).expect("a run"), observer.0)
}

#[test]
fn a_run_whose_model_reads_in_part_says_so_first() {
    let (diagnosis, lines) = trained(64);
    let first = &diagnosis.findings[0];
    assert_eq!(first.rule, "observations_are_shortened", "{:?}", diagnosis.findings);
    assert!(first.problem.contains("100 % ["), "{}", first.problem);
    assert!(first.change.starts_with("model.max_observation_tokens = 128, or"), "{}", first.change);
    assert!(first.examples[0].contains("bytes: part 0: "), "{:?}", first.examples);
    let problem = format!("! {}", first.problem);
    assert!(lines.iter().any(|line| line.contains(&problem)), "{lines:?}");
    let (diagnosis, _) = trained(1024);
    assert!(diagnosis.findings.iter().all(|finding| finding.rule != first.rule));
}
