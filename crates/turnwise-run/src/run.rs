//! A run in progress: warm start, evaluation, training steps, checkpoints, and a last evaluation.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Map, Value, json};
use turnwise_environment::{Random, derive_seed};
use turnwise_rollout::{Meter, RolloutError, StopSignal};
use turnwise_training::{
    Checkpoints, Demonstration, Evaluation, EvaluationRecord, Fitting, Learner, Row, RunDirectory,
    RunState, Schedule, StepReport, SuccessRate, Summary, TrainError, Trainer, Update, evaluate,
    imitate_step, save_weights,
};

use crate::before_after::BeforeAfter;
use crate::config::reasons;
use crate::doctor::{self, Attendance, Diagnosis, FAILED, FAULTS, Finding, StepMetrics, Verdict};
use crate::estimate;
use crate::failure::{ExitCode, Failure};
use crate::learner::RunLearner;
use crate::memory::peak_memory;
use crate::observer::{Observer, Plan};
use crate::session::Session;
use crate::text::clock;
use crate::watch::{Watched, watch};

/// The state of a run: its parts, its directory, and its observer.
pub(crate) struct RunLoop<'a> {
    pub session: Session,
    pub directory: RunDirectory,
    pub checkpoints: Checkpoints,
    pub observer: &'a mut dyn Observer,
    stop: StopSignal,
    started: Instant,
    attendance: Attendance,
    /// The number of finished steps.
    n_done: u64,
    /// The step of the checkpoint that equals the trainer's state, if there is one.
    saved: Option<u64>,
}

/// The file with the evaluation before training, for a process that resumes the run.
pub(crate) const BEFORE: &str = "eval-before.json";
/// The file with a held-out episode before and after training, as text.
const BEFORE_AFTER: &str = "before-after.txt";
/// The width of that text.
const TEXT_WIDTH: usize = 100;
/// The directory of the reference policy's weights, in a run with a KL penalty.
pub(crate) const REFERENCE: &str = "reference";
/// The most demonstrations that are played; a longer warm start reuses them.
const MAX_DEMONSTRATIONS: usize = 4096;
/// The label of the seed by which demonstrations are chosen for a step.
const BATCHES: u64 = 5;

impl<'a> RunLoop<'a> {
    pub(crate) fn new(
        session: Session,
        directory: RunDirectory,
        observer: &'a mut dyn Observer,
        stop: StopSignal,
        started: Instant,
    ) -> Self {
        let config = &session.config;
        let version = env!("CARGO_PKG_VERSION");
        let mut header = vec![
            format!("turnwise {version}   log {}", directory.path().display()),
            format!("model   {}", session.model),
            format!("env     {}: {}", session.suite.name(), session.suite.about()),
        ];
        if session.config.model.directory.is_some() {
            header.push(format!("chat    {}", session.chat));
            header.push(format!("steps   {}", reasons(&session.config)));
        }
        header.extend(session.opponents.about.iter().map(|about| format!("seats   {about}")));
        header.extend(session.about_workers());
        header.extend(estimate::header(&session, directory.path()));
        observer.begin(&Plan { header, steps: config.run.steps });
        let checkpoints = directory.checkpoints(config.log.keep_checkpoints);
        let attendance = Attendance::new(session.config.clone());
        Self {
            session,
            directory,
            checkpoints,
            observer,
            stop,
            started,
            attendance,
            n_done: 0,
            saved: None,
        }
    }

    /// Imitates the expert, so that the policy learns the form and some of the skill.
    pub(crate) async fn warm_start(&mut self, learner: &mut RunLearner) -> Result<(), Failure> {
        let settings = self.session.config.warm_start.clone();
        if settings.steps == 0 {
            return Ok(());
        }
        let demonstrations = self.demonstrations().await?;
        let demonstrations = self.fitting(demonstrations)?;
        let schedule = Schedule { learning_rate: settings.learning_rate, ..Schedule::default() };
        let max_grad_norm = self.session.config.train.max_grad_norm;
        let mut random = Random::new(derive_seed(self.session.config.run.seed, BATCHES));
        let started = Instant::now();
        for step in 0..settings.steps {
            if self.stop.requested() {
                return Err(self.interrupted("before its first checkpoint"));
            }
            let rows = draw(&demonstrations, settings.batch_size, &mut random);
            let update = Update { learning_rate: schedule.at(step), max_grad_norm };
            let (loss, _) = imitate_step(learner, &rows, update)
                .await
                .map_err(|error| Failure::runtime(&error))?;
            let (done, steps) = (step + 1, settings.steps);
            let left = started.elapsed().as_secs_f64() / done as f64 * (steps - done) as f64;
            let text = format!("warm start {done}/{steps}   loss {loss:.3}   {} left", clock(left));
            self.observer.phase(&text);
        }
        learner.publish().await.map_err(|error| Failure::runtime(&error))?;
        Ok(())
    }

    async fn demonstrations(&mut self) -> Result<Vec<Demonstration>, Failure> {
        let settings = &self.session.config.warm_start;
        let wanted = (settings.steps as usize).saturating_mul(settings.batch_size);
        let meter = Meter::default();
        let playing = self.session.demonstrations(wanted.min(MAX_DEMONSTRATIONS), &meter);
        let watched =
            Watched { what: "demonstrations of the expert", meters: std::slice::from_ref(&meter) };
        watch(self.observer, watched, &self.stop, playing).await
    }

    /// Leaves out the demonstrations that are longer than a context, and says so.
    fn fitting(&mut self, demonstrations: Vec<Demonstration>) -> Result<Vec<Row>, Failure> {
        let limit = self.session.config.limits.max_context_tokens;
        let Fitting { rows, n_longer, shortest_longer } = Fitting::new(demonstrations, limit);
        if rows.is_empty() {
            let what = format!(
                "none of the expert's {n_longer} demonstrations fits into limits.max_context_tokens = {limit}"
            );
            return Err(Failure::refused(what).help(format!(
                "the shortest takes {shortest_longer} tokens: set limits.max_context_tokens to that or more, or warm_start.steps = 0"
            )));
        }
        if n_longer > 0 {
            let of = n_longer + rows.len();
            self.observer.note(&format!(
                "! the warm start leaves out {n_longer} of {of} demonstrations: they are longer than limits.max_context_tokens = {limit}"
            ));
        }
        Ok(rows)
    }

    /// Keeps the starting weights as the reference policy, in memory and on disk for a process that resumes the run.
    pub(crate) async fn keep_reference(&mut self, learner: &mut RunLearner) -> Result<(), Failure> {
        if !self.session.needs_reference() {
            return Ok(());
        }
        let (session, directory) = (&self.session, self.directory.path().join(REFERENCE));
        let meters = [learner.meter()];
        let saving =
            save_weights(learner, &directory, |directory| session.complete_checkpoint(directory));
        let watched = Watched { what: "keeping the reference policy", meters: &meters };
        watch(self.observer, watched, &self.stop, saving).await?;
        learner.keep_reference().await.map_err(|error| Failure::runtime(&error))
    }

    /// Measures success on held-out tasks; `None` if a stop was requested first.
    async fn evaluate(&mut self, when: &str) -> Result<Option<SuccessRate>, Failure> {
        let evaluation = self.play_held_out(when).await?;
        Ok(evaluation.map(|evaluation| evaluation.success))
    }

    async fn play_held_out(&mut self, when: &str) -> Result<Option<Evaluation>, Failure> {
        let settings = self.session.evaluation_settings();
        let (evaluated, meter) = (self.session.evaluated(), Meter::default());
        let what = format!("evaluating {when} on held-out tasks");
        let watched = Watched { what: &what, meters: std::slice::from_ref(&meter) };
        let playing = evaluate(&evaluated, &settings, &self.stop, &meter);
        let played = watch(self.observer, watched, &self.stop, playing).await;
        let (suite, program) = (&self.session.suite, self.session.config.agent.command.as_deref());
        let named = |error| Failure::from(error).in_environment(suite.name(), program);
        let Some(evaluation) = played.map_err(named)? else { return Ok(None) };
        let success = evaluation.success;
        self.directory.write_evaluation(when, &EvaluationRecord::from(&evaluation))?;
        let n = self.session.config.log.rollouts_per_step;
        let mut lines = Vec::new();
        for trajectory in evaluation.trajectories.iter().take(n) {
            turnwise_trajectory::write_line(&mut lines, trajectory)
                .map_err(|error| Failure::runtime(&error))?;
        }
        self.directory.write(&format!("eval-{when}.jsonl"), &String::from_utf8_lossy(&lines))?;
        self.observer.note(&format!("held-out success {when}: {}", percent(&success)));
        Ok(Some(evaluation))
    }

    /// Measures success before training, which is saved because a resumed run cannot measure it again. Also estimates the
    /// time of a step.
    pub(crate) async fn evaluate_before(
        &mut self,
        learner: &mut RunLearner,
    ) -> Result<SuccessRate, Failure> {
        let started = Instant::now();
        let Some(evaluation) = self.play_held_out("before").await? else {
            return Err(self.interrupted("before its first checkpoint"));
        };
        let seconds = started.elapsed().as_secs_f64();
        let Session { config, shape, .. } = &self.session;
        let played = &evaluation.trajectories;
        for said in estimate::step_time(config, shape, learner, played, seconds).await? {
            self.observer.note(&said);
        }
        Ok(evaluation.success)
    }

    /// Continues from a checkpoint: reads the metrics that earlier processes logged up to it.
    pub(crate) fn goes_on_at(&mut self, step: u64) -> Result<(), Failure> {
        self.saved = Some(step);
        self.n_done = step;
        let mut n_found = 0;
        for row in self.directory.files()?.metrics()? {
            if row["step"].as_u64().is_some_and(|of_row| of_row < step) {
                n_found += 1;
                self.attendance.read(StepMetrics::of_row(&row));
            }
        }
        if n_found < step {
            let (path, lost) = (self.directory.path().display(), step - n_found);
            let text = format!("! {path}/metrics.jsonl lacks {lost} of the {step} steps before");
            self.observer.note(&text);
        }
        Ok(())
    }

    /// Records an error that ends the run, so that whoever reads its files later finds the reason.
    pub(crate) fn ended<T>(&mut self, result: Result<T, Failure>) -> Result<T, Failure> {
        if let Err(failure) = &result
            && failure.code != ExitCode::Interrupted
        {
            let (text, help) = failure.texts();
            let details = json!({"step": self.n_done, "text": text, "help": help});
            // The failure itself is what has to be reported, also where the log cannot be written.
            let _ = self.event(FAILED, &details);
        }
        result
    }

    /// Runs the remaining steps, then writes the last checkpoint, evaluates and summarises.
    pub(crate) async fn finish(
        &mut self,
        mut trainer: Trainer<RunLearner>,
        before: Option<SuccessRate>,
    ) -> Result<Summary, Failure> {
        self.catch_up(&mut trainer).await?;
        while trainer.next_step() < self.session.config.run.steps {
            let meters = trainer.meters();
            let what = format!("step {}", trainer.next_step() + 1);
            let watched = Watched { what: &what, meters: &meters };
            let step = watch(self.observer, watched, &self.stop, trainer.step(&self.stop)).await;
            self.saved = None;
            match step {
                Ok(Some(report)) => self.after_step(&mut trainer, &report).await?,
                Ok(None) => return Err(self.stop_here(&mut trainer).await?),
                Err(error) => return Err(self.give_up(&mut trainer, error).await),
            }
        }
        if self.saved != Some(trainer.next_step()) {
            self.checkpoint(&mut trainer).await?;
        }
        // Workers run episodes of training alone.
        self.session.dismiss_workers().await;
        match self.evaluate("after").await? {
            Some(after) => self.summarise(trainer.next_step(), before, after),
            None => Err(self.interrupted("in its last evaluation, and can go on")),
        }
    }

    /// Makes up for an evaluation that was due when the previous process ended.
    async fn catch_up(&mut self, trainer: &mut Trainer<RunLearner>) -> Result<(), Failure> {
        let done = trainer.next_step();
        let is_this = |event: &Value| event["event"] == "eval" && event["step"] == done;
        if done > 0
            && self.is_due(self.session.config.eval.every, done)
            && !self.directory.events()?.iter().any(is_this)
        {
            self.evaluate_on_the_way(trainer).await?;
        }
        Ok(())
    }

    async fn after_step(
        &mut self,
        trainer: &mut Trainer<RunLearner>,
        report: &StepReport,
    ) -> Result<(), Failure> {
        self.directory.write_metrics(report)?;
        self.directory.write_rollouts(report, self.session.config.log.rollouts_per_step)?;
        self.observer.step(report);
        if !report.faults.is_empty() {
            self.event(FAULTS, &json!({"step": report.step, "faults": report.faults}))?;
        }
        let step = StepMetrics::measured(report.step, report.metrics.clone());
        for finding in self.attendance.read(step.with_faults(report.faults.clone())) {
            self.observer.note(&finding.lines().join("\n"));
            let text = finding.sentence();
            self.event("alarm", &json!({"step": report.step, "rule": finding.rule, "text": text}))?;
        }
        let done = trainer.next_step();
        self.n_done = done;
        if self.is_due(self.session.config.log.checkpoint_every, done) {
            self.checkpoint(trainer).await?;
        }
        if self.is_due(self.session.config.eval.every, done) {
            self.evaluate_on_the_way(trainer).await?;
        }
        Ok(())
    }

    /// Returns whether an event that occurs every `every` steps is due after `done` steps. The end of the run has its
    /// own events.
    fn is_due(&self, every: u64, done: u64) -> bool {
        every > 0 && done.is_multiple_of(every) && done < self.session.config.run.steps
    }

    async fn evaluate_on_the_way(
        &mut self,
        trainer: &mut Trainer<RunLearner>,
    ) -> Result<(), Failure> {
        let done = trainer.next_step();
        match self.evaluate(&format!("step-{done:06}")).await? {
            Some(success) => self.event("eval", &json!({"step": done, "eval": success})),
            None => Err(self.stop_here(trainer).await?),
        }
    }

    pub(crate) async fn checkpoint(
        &mut self,
        trainer: &mut Trainer<RunLearner>,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        let session = &self.session;
        let meters = [trainer.learner().meter(), self.checkpoints.meter()];
        let saving =
            self.checkpoints.save(trainer, |directory| session.complete_checkpoint(directory));
        let watched = Watched { what: "writing a checkpoint", meters: &meters };
        let path = watch(self.observer, watched, &self.stop, saving).await?;
        self.saved = Some(trainer.next_step());
        let seconds = started.elapsed().as_secs_f64();
        let details = json!({"step": trainer.next_step(), "path": path, "seconds": seconds});
        self.event("checkpoint", &details)
    }

    /// Writes a checkpoint and returns the failure that says how to resume.
    async fn stop_here(&mut self, trainer: &mut Trainer<RunLearner>) -> Result<Failure, Failure> {
        if self.saved != Some(trainer.next_step()) {
            self.checkpoint(trainer).await?;
        }
        Ok(self.interrupted("and can go on"))
    }

    /// Returns the failure of a run that cannot continue. If only rollouts failed, first writes a checkpoint, so that
    /// no trained step is lost.
    async fn give_up(&mut self, trainer: &mut Trainer<RunLearner>, error: TrainError) -> Failure {
        let is_whole = matches!(&error, TrainError::Rollout(error)
            if !matches!(error, RolloutError::NotFinite { .. }));
        let program = self.session.config.agent.command.as_deref();
        let failure = Failure::from(error).in_environment(self.session.suite.name(), program);
        self.observer.finish(&[]);
        if is_whole && let Err(unsaved) = self.checkpoint(trainer).await {
            self.observer.note(&format!("! the step was not saved: {unsaved}"));
        }
        failure.also(format!(
            "continue the run    turnwise resume {}",
            self.directory.path().display()
        ))
    }

    fn summarise(
        &mut self,
        step: u64,
        before: Option<SuccessRate>,
        after: SuccessRate,
    ) -> Result<Summary, Failure> {
        let seconds = self.started.elapsed().as_secs_f64();
        let files = self.directory.files()?;
        let diagnosis = doctor::examine(&files, self.session.config.clone(), RunState::Finished);
        let summary = Summary {
            eval_before: before,
            eval_after: after,
            difference: diagnosis.verdict.map(Verdict::change),
            verdict: diagnosis.verdict.map(|verdict| verdict.to_string()),
            seconds,
            peak_bytes: peak_memory(),
            warnings: diagnosis.findings.iter().map(Finding::sentence).collect(),
        };
        self.directory.write_summary(&summary)?;
        if let Some(before_after) = BeforeAfter::of_run(&files) {
            let text = before_after.lines(TEXT_WIDTH).join("\n") + "\n";
            self.directory.write(BEFORE_AFTER, &text)?;
            self.observer.compared(&before_after);
        }
        self.event("end", &json!({"step": step}))?;
        let lines = self.last_lines(&summary, &diagnosis)?;
        self.observer.finish(&lines);
        Ok(summary)
    }

    /// Returns the last lines of the screen: the verdict, the findings, and what to do next.
    fn last_lines(&self, summary: &Summary, diagnosis: &Diagnosis) -> Result<Vec<String>, Failure> {
        let path = self.directory.path().display().to_string();
        let newest =
            self.checkpoints.newest()?.map_or_else(PathBuf::new, |checkpoint| checkpoint.directory);
        let mut lines: Vec<String> = summary.verdict.iter().cloned().collect();
        lines.push(format!(
            "held-out success {} -> {}   in {:.0} s{}",
            summary.eval_before.as_ref().map_or_else(|| "unknown".to_owned(), percent),
            percent(&summary.eval_after),
            summary.seconds,
            summary.peak_bytes.map_or_else(String::new, |peak| format!(
                ", at most {} of memory",
                estimate::size(peak)
            ))
        ));
        lines.extend(diagnosis.findings.iter().flat_map(Finding::lines));
        lines.push(format!("log    {path}"));
        // If a run could not learn, its conversations say more than another evaluation.
        lines.push(if diagnosis.findings.is_empty() {
            format!("next   turnwise eval --model {} --json", newest.display())
        } else {
            format!("next   turnwise show {path}")
        });
        lines.push(format!("       turnwise play {}", self.session.suite.name()));
        Ok(lines)
    }

    fn event(&mut self, name: &str, details: &Value) -> Result<(), Failure> {
        let details: Map<String, Value> = details.as_object().cloned().unwrap_or_default();
        Ok(self.directory.write_event(name, details)?)
    }

    fn interrupted(&mut self, how: &str) -> Failure {
        self.observer.finish(&[]);
        let path = self.directory.path().display();
        let what = format!("interrupted: the run in {path} stopped {how}");
        let failure = Failure::new(ExitCode::Interrupted, what);
        match self.checkpoints.newest() {
            Ok(Some(_)) => failure.help(format!("continue it    turnwise resume {path}")),
            _ => failure.help(begin_again(&path.to_string())),
        }
    }
}

/// Returns the command that starts a run without a checkpoint again.
pub(crate) fn begin_again(path: &str) -> String {
    format!("start it again    turnwise train {path}/run.toml --run-dir {path}")
}

fn draw(rows: &[Row], n: usize, random: &mut Random) -> Vec<Row> {
    (0..n).map(|_| rows[random.below(rows.len() as u64) as usize].clone()).collect()
}

fn percent(rate: &SuccessRate) -> String {
    let SuccessRate { success_rate, ci_low, ci_high, episodes } = rate;
    format!("{success_rate:.3} [{ci_low:.3}, {ci_high:.3}] n={episodes}")
}
