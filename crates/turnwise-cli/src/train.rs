//! `try`, `train` and `resume`: warm start, evaluation, the loop, evaluation again.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, json};
use turnwise::candle::CandleLearner;
use turnwise::environment::{Random, derive_seed};
use turnwise::rollout::StopSignal;
use turnwise::training::{
    Checkpoints, Demonstration, Learner, Row, RunDirectory, Schedule, SuccessRate, Summary,
    Trainer, Update, evaluate, imitate_step,
};

use crate::arguments::RunArguments;
use crate::config::{self, Config, Loaded};
use crate::failure::Failure;
use crate::interrupt;
use crate::screen::{Plan, Screen, Style};
use crate::session::Session;

/// The built-in run of `turnwise try`.
const TRY: &str = include_str!("try.toml");

pub(crate) async fn try_it(arguments: &RunArguments) -> Result<(), Failure> {
    let loaded =
        config::parse("the built-in settings of `turnwise try`", TRY, &arguments.all_overrides())?;
    Box::pin(start(loaded, arguments, "try")).await
}

pub(crate) async fn train(path: &Path, arguments: &RunArguments) -> Result<(), Failure> {
    let loaded = config::load(path, &arguments.all_overrides())?;
    let name = path
        .file_stem()
        .map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned());
    Box::pin(start(loaded, arguments, &name)).await
}

async fn start(loaded: Loaded, arguments: &RunArguments, name: &str) -> Result<(), Failure> {
    let started = Instant::now();
    let wanted = arguments.run_dir.clone().or_else(|| loaded.config.run.directory.clone());
    let (session, mut learner) = Session::new(loaded.config, None).await?;
    learner.check_gradients().await.map_err(|error| Failure::refused_by(&error))?;
    let directory = RunDirectory::create(&wanted.unwrap_or_else(|| next_directory(name)))?;
    directory.write("config.toml", &loaded.text)?;
    directory.write("run.toml", &session.resolved().map_err(|error| Failure::runtime(&error))?)?;
    let mut run = Run::new(session, directory, arguments.json, started);
    run.directory.write_event("start", Map::new())?;
    run.warm_start(&mut learner).await?;
    run.keep_reference(&mut learner).await?;
    let before = run.evaluate("before").await?;
    let mut trainer = run.session.trainer(learner)?;
    run.remember(before)?;
    run.checkpoint(&mut trainer).await?;
    run.finish(trainer, before).await
}

/// Goes on with a stopped run.
pub(crate) async fn resume(path: &Path, json: bool, steps: Option<u64>) -> Result<(), Failure> {
    let started = Instant::now();
    let directory = RunDirectory::resume(path)?;
    let overrides: Vec<String> =
        steps.map(|steps| format!("run.steps={steps}")).into_iter().collect();
    let Loaded { config, .. } = config::load(&path.join("run.toml"), &overrides)?;
    let checkpoints = directory.checkpoints(config.log.keep_checkpoints);
    let Some(newest) = checkpoints.newest()? else {
        return Err(Failure::refused(format!(
            "{} stopped before its first checkpoint",
            path.display()
        ))
        .help("there is nothing to go on from; start again with another --run-dir"));
    };
    let (session, learner) = reopen(config, path, &newest.directory).await?;
    let mut trainer = session.trainer(learner)?;
    checkpoints.load(&mut trainer).await?;
    let mut run = Run::new(session, directory, json, started);
    for refused in &newest.refused {
        run.screen.note(&format!("! passed over a damaged checkpoint: {refused}"));
    }
    let snapshot = trainer.snapshot().await;
    let partial = snapshot.pool();
    run.screen.note(&format!(
        "going on at step {} of {}: {} suspended episodes continue, {} start anew",
        newest.step,
        run.session.config.run.steps,
        partial.n_continuing(),
        partial.n_restarting()
    ));
    run.directory
        .write_event("resume", Map::from_iter([("step".to_owned(), json!(newest.step))]))?;
    let before = recall(path)?;
    run.finish(trainer, before).await
}

/// The parts of a run that goes on. The checkpoint's weights are loaded later; those that a KL penalty keeps close to
/// have to be there before.
async fn reopen(
    config: Config,
    run: &Path,
    checkpoint: &Path,
) -> Result<(Session, CandleLearner), Failure> {
    let (reference, needs_reference) = (run.join(REFERENCE), config.objective.kl.beta > 0.0);
    if config.model.lora.is_some() {
        // Adapters go on from the model that they were begun on, which the settings name.
        let (session, mut learner) = Session::new(config, None).await?;
        if needs_reference {
            let loaded = learner.load(&reference, learner.version()).await;
            loaded.map_err(|error| Failure::runtime(&error))?;
            learner.keep_reference().await.map_err(|error| Failure::runtime(&error))?;
        }
        return Ok((session, learner));
    }
    if !needs_reference {
        return Session::new(config, Some(checkpoint)).await;
    }
    let (session, learner) = Session::new(config, Some(&reference)).await?;
    learner.keep_reference().await.map_err(|error| Failure::runtime(&error))?;
    Ok((session, learner))
}

/// A run in progress: what it works with, where it writes, what it shows.
struct Run {
    session: Session,
    directory: RunDirectory,
    checkpoints: Checkpoints,
    screen: Screen<std::io::Stdout>,
    stop: StopSignal,
    started: Instant,
}

impl Run {
    fn new(session: Session, directory: RunDirectory, json: bool, started: Instant) -> Self {
        let config = &session.config;
        let plan = Plan {
            header: vec![
                format!(
                    "turnwise {}   log {}",
                    env!("CARGO_PKG_VERSION"),
                    directory.path().display()
                ),
                format!("model   {}", session.model),
                format!("env     {}: {}", session.suite.name(), session.suite.description()),
            ],
            steps: config.run.steps,
        };
        let checkpoints = directory.checkpoints(config.log.keep_checkpoints);
        let screen = Screen::new(std::io::stdout(), Style::detect(json, false), plan);
        let stop = interrupt::listen();
        Self { session, directory, checkpoints, screen, stop, started }
    }

    /// Imitates the expert, so that the policy knows the form and something of the skill.
    async fn warm_start(&mut self, learner: &mut CandleLearner) -> Result<(), Failure> {
        let settings = self.session.config.warm_start.clone();
        if settings.steps == 0 {
            return Ok(());
        }
        let n = (settings.steps as usize * settings.batch_size).min(MAX_DEMONSTRATIONS);
        let demonstrations = self.session.demonstrations(n).await?;
        let schedule = Schedule { learning_rate: settings.learning_rate, ..Schedule::default() };
        let max_grad_norm = self.session.config.train.max_grad_norm;
        let mut random = Random::new(derive_seed(self.session.config.run.seed, BATCHES));
        for step in 0..settings.steps {
            if self.stop.requested() {
                return Err(self.interrupted("before its first checkpoint, and cannot go on"));
            }
            let rows = draw(&demonstrations, settings.batch_size, &mut random);
            let update = Update { learning_rate: schedule.at(step), max_grad_norm };
            let (loss, _) = imitate_step(learner, &rows, update)
                .await
                .map_err(|error| Failure::runtime(&error))?;
            self.screen.phase(&format!(
                "warm start {}/{}   loss {loss:.3}",
                step + 1,
                settings.steps
            ));
        }
        learner.publish().await.map_err(|error| Failure::runtime(&error))?;
        Ok(())
    }

    /// Keeps the weights that a KL penalty keeps close to, here and for a process that goes on with the run.
    async fn keep_reference(&mut self, learner: &mut CandleLearner) -> Result<(), Failure> {
        if !self.session.needs_reference() {
            return Ok(());
        }
        let directory = self.directory.path().join(REFERENCE);
        std::fs::create_dir_all(&directory).map_err(|error| Failure::runtime(&error))?;
        learner.save(&directory).await.map_err(|error| Failure::runtime(&error))?;
        self.session.complete_checkpoint(&directory).map_err(|error| Failure::runtime(&error))?;
        learner.keep_reference().await.map_err(|error| Failure::runtime(&error))
    }

    async fn evaluate(&mut self, when: &str) -> Result<SuccessRate, Failure> {
        self.screen.phase(&format!("evaluating {when} on held-out tasks"));
        let settings = self.session.evaluation_settings();
        let Some(evaluation) = evaluate(&self.session.evaluated(), &settings, &self.stop).await?
        else {
            return Err(self.interrupted("during an evaluation"));
        };
        let success = evaluation.success;
        let n = self.session.config.log.rollouts_per_step;
        let mut lines = Vec::new();
        for trajectory in evaluation.trajectories.iter().take(n) {
            turnwise::trajectory::write_line(&mut lines, trajectory)
                .map_err(|error| Failure::runtime(&error))?;
        }
        self.directory.write(&format!("eval-{when}.jsonl"), &String::from_utf8_lossy(&lines))?;
        self.screen.note(&format!("held-out success {when}: {}", percent(&success)));
        Ok(success)
    }

    /// The loop, the last checkpoint, the last evaluation, the summary.
    async fn finish(
        mut self,
        mut trainer: Trainer<CandleLearner>,
        before: SuccessRate,
    ) -> Result<(), Failure> {
        while trainer.next_step() < self.session.config.run.steps {
            let step = trainer.step(&self.stop).await;
            let report = match step {
                Ok(Some(report)) => report,
                Ok(None) => {
                    self.checkpoint(&mut trainer).await?;
                    return Err(self.interrupted("and can go on"));
                }
                Err(error) => return Err(error.into()),
            };
            self.directory.write_metrics(&report)?;
            let n = self.session.config.log.rollouts_per_step;
            self.directory.write_rollouts(&report, n)?;
            self.screen.step(&report);
            self.after_step(&mut trainer).await?;
        }
        self.checkpoint(&mut trainer).await?;
        let after = self.evaluate("after").await?;
        self.summarise(before, after)
    }

    async fn after_step(&mut self, trainer: &mut Trainer<CandleLearner>) -> Result<(), Failure> {
        let config = &self.session.config;
        let (done, steps) = (trainer.next_step(), config.run.steps);
        let is_due = |every: u64| every > 0 && done % every == 0 && done < steps;
        let (checkpoint, evaluation) =
            (is_due(config.log.checkpoint_every), is_due(config.eval.every));
        if checkpoint {
            self.checkpoint(trainer).await?;
        }
        if evaluation {
            let success = self.evaluate(&format!("step-{done:06}")).await?;
            let details = json!({"step": done, "eval": success});
            self.directory.write_event("eval", details.as_object().cloned().unwrap_or_default())?;
        }
        Ok(())
    }

    async fn checkpoint(&mut self, trainer: &mut Trainer<CandleLearner>) -> Result<(), Failure> {
        let started = Instant::now();
        let session = &self.session;
        let path = self
            .checkpoints
            .save(trainer, |directory| session.complete_checkpoint(directory))
            .await?;
        let details = json!({"step": trainer.next_step(), "path": path, "seconds": started.elapsed().as_secs_f64()});
        self.directory
            .write_event("checkpoint", details.as_object().cloned().unwrap_or_default())?;
        Ok(())
    }

    /// Writes down what a resumed run cannot measure again.
    fn remember(&self, before: SuccessRate) -> Result<(), Failure> {
        let json = serde_json::to_string(&before).map_err(|error| Failure::runtime(&error))?;
        Ok(self.directory.write(BEFORE, &json)?)
    }

    fn summarise(mut self, before: SuccessRate, after: SuccessRate) -> Result<(), Failure> {
        let seconds = self.started.elapsed().as_secs_f64();
        let summary = Summary { eval_before: before, eval_after: after, seconds };
        self.directory.write_summary(&summary)?;
        self.directory.write_event("end", Map::new())?;
        let path = self.directory.path().display().to_string();
        let newest =
            self.checkpoints.newest()?.map_or_else(PathBuf::new, |checkpoint| checkpoint.directory);
        self.screen.finish(&[
            format!(
                "held-out success {} -> {}   in {seconds:.0} s",
                percent(&before),
                percent(&after)
            ),
            format!("log    {path}"),
            format!("next   turnwise eval --model {} --json", newest.display()),
            format!("       turnwise play {}", self.session.suite.name()),
        ]);
        Ok(())
    }

    fn interrupted(&mut self, how: &str) -> Failure {
        self.screen.finish(&[]);
        let path = self.directory.path().display();
        let code = interrupt::exit_code();
        let failure = Failure::new(code, format!("interrupted: the run in {path} stopped {how}"));
        match self.checkpoints.newest() {
            Ok(Some(_)) => failure.help(format!("continue it    turnwise resume {path}")),
            _ => failure.help("start again with another --run-dir"),
        }
    }
}

/// More demonstrations than this are drawn again instead of played.
const MAX_DEMONSTRATIONS: usize = 4096;
/// Label of the seed that demonstrations are drawn with.
const BATCHES: u64 = 5;
const BEFORE: &str = "eval-before.json";
/// Where the weights of the start are, in a run that keeps close to them.
const REFERENCE: &str = "reference";

fn draw(demonstrations: &[Demonstration], n: usize, random: &mut Random) -> Vec<Row> {
    (0..n)
        .map(|_| demonstrations[random.below(demonstrations.len() as u64) as usize].row.clone())
        .collect()
}

fn recall(path: &Path) -> Result<SuccessRate, Failure> {
    let json =
        std::fs::read_to_string(path.join(BEFORE)).map_err(|error| Failure::runtime(&error))?;
    serde_json::from_str(&json).map_err(|error| Failure::runtime(&error))
}

fn percent(rate: &SuccessRate) -> String {
    let SuccessRate { success_rate, ci_low, ci_high, episodes } = rate;
    format!("{success_rate:.3} [{ci_low:.3}, {ci_high:.3}] n={episodes}")
}

/// `runs/NAME-0001`, or the next number that is free.
fn next_directory(name: &str) -> PathBuf {
    let candidate = |number: u16| Path::new("runs").join(format!("{name}-{number:04}"));
    (1..=u16::MAX).map(candidate).find(|path| !path.exists()).unwrap_or_else(|| candidate(u16::MAX))
}
