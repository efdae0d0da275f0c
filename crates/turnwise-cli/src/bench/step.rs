//! `turnwise bench step`: one step of GSPO as in a run, from episodes to published weights.

use std::sync::Arc;

use clap::Args;
use serde_json::{Map, json};
use turnwise_candle::{CandleLearner, EngineSettings, PassPart, Shares};
use turnwise_objective::{Clip, GroupAdvantage, Gspo, LengthWeight, Std};
use turnwise_rollout::{ChatAgents, Limits, PoolSettings, StopSignal};
use turnwise_training::{
    Admission, OutcomeCredit, Parts, RolloutMode, Schedule, StepReport, Trainer, TrainerSettings,
    metric,
};

use super::machine::Machine;
use super::memory;
use super::model::{LearnerArguments, ModelArguments};
use super::numbers::{Game, Numbers};
use super::report::{Figure, Report, TimedPart, memory_figures};
use turnwise_run::{ExitCode, Failure};

#[derive(Clone, Debug, Args)]
pub(crate) struct StepArguments {
    /// Print every repetition as one line of JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) model: ModelArguments,
    /// The number of groups in a step, each with its own task
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(super) groups: usize,
    /// The number of episodes in a group
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(super) group: usize,
    /// The number of turns of an episode
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) turns: usize,
    /// The tokens of a task's prompt
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(super) prompt: usize,
    /// The tokens sampled in a turn
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(super) turn_tokens: usize,
    /// The tokens that the environment adds between turns
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(super) observation: usize,
    /// The number of optimiser steps that share the episodes
    #[arg(long, value_name = "N", default_value_t = 1)]
    mini_batches: usize,
    /// The tokens of one forward and backward pass
    #[arg(long, value_name = "N", default_value_t = TrainerSettings::default().micro_batch_tokens)]
    micro_batch_tokens: usize,
    #[command(flatten)]
    learner: LearnerArguments,
    /// The number of measured steps, after one warm-up
    #[arg(long, value_name = "N", default_value_t = 3)]
    repetitions: usize,
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) threads: usize,
}

impl StepArguments {
    /// Describes the work.
    pub(super) fn what(&self) -> String {
        let Self { groups, group, turns, prompt, turn_tokens, observation, .. } = self;
        format!(
            "{groups} groups of {group}, {turns} turns of {turn_tokens} tokens, {observation} between turns, after prompts of {prompt}"
        )
    }

    /// Returns the tokens of a finished episode.
    pub(super) fn length(&self) -> usize {
        self.prompt + self.turns * self.turn_tokens + (self.turns - 1) * self.observation
    }

    fn n_sampled(&self) -> usize {
        self.groups * self.group * self.turns * self.turn_tokens
    }
}

/// The threads of engine and learner, 0 for all, and whether they compute side by side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Division {
    pub(super) engine: usize,
    pub(super) learner: usize,
    pub(super) asynchronous: bool,
}

impl Division {
    const ALL: Self = Self { engine: 0, learner: 0, asynchronous: false };
}

/// Seconds of a step.
pub(super) struct Timed {
    pub(super) step_s: f64,
    pub(super) rollout_s: f64,
    /// The learner's time by kind of work.
    shares: Shares,
}

/// Runs the benchmark and prints its results.
pub(super) fn bench(arguments: &StepArguments) -> Result<(), Failure> {
    let start_bytes = memory::resident()?;
    let measured = seconds(arguments, Division::ALL)?;
    report(arguments, &measured, start_bytes, memory::peak()?).print(arguments.json)
}

/// Measures steps with some division of the threads.
pub(super) fn seconds(
    arguments: &StepArguments,
    division: Division,
) -> Result<Vec<Timed>, Failure> {
    let StepArguments { groups, group: members, turns, prompt, turn_tokens, repetitions, .. } =
        *arguments;
    let (mini_batches, micro) = (arguments.mini_batches, arguments.micro_batch_tokens);
    let positive = [groups, turns, prompt, turn_tokens, repetitions, mini_batches, micro];
    if positive.contains(&0) || members < 2 {
        return Err(Failure::refused(
            "groups, turns, tokens, mini-batches and repetitions are at least 1, and a group has 2 episodes",
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|error| Failure::runtime(&error))?;
    runtime.block_on(measure(arguments, division))
}

fn report(arguments: &StepArguments, measured: &[Timed], start: u64, peak: u64) -> Report {
    let of = |seconds: fn(&Timed) -> f64| measured.iter().map(seconds).collect::<Vec<_>>();
    let (step_s, rollout_s) = (of(|step| step.step_s), of(|step| step.rollout_s));
    let training_s = of(|step| step.step_s - step.rollout_s);
    let sampled = rollout_s.iter().map(|s| arguments.n_sampled() as f64 / s).collect();
    let padded = (arguments.groups * arguments.group * arguments.length()) as f64;
    let trained = training_s.iter().map(|seconds| padded / seconds).collect();
    let mut figures = vec![
        Figure::each("step_s", "a step", "s", 1.0, step_s),
        Figure::each("rollout_s", "of it rollouts", "s", 1.0, rollout_s.clone()),
        Figure::each("training_s", "of it training", "s", 1.0, training_s),
        Figure::each(
            "sampled_tokens_per_s",
            "tokens sampled in rollouts",
            "tokens/s",
            1.0,
            sampled,
        ),
        Figure::each("tokens_per_s", "tokens of padded rows in training", "tokens/s", 1.0, trained),
    ];
    figures.extend(memory_figures(start, peak));
    let part = |name: &str, seconds| TimedPart { name: name.to_owned(), seconds };
    let of_part = |of: PassPart| measured.iter().map(move |step| step.shares.of(of).as_secs_f64());
    let rest = measured
        .iter()
        .map(|step| step.step_s - step.rollout_s - step.shares.total().as_secs_f64());
    let mut parts = vec![part("rollouts", rollout_s)];
    parts.extend(PassPart::ALL.map(|of| part(of.label(), of_part(of).collect())));
    parts.push(part("other", rest.map(|seconds| seconds.max(0.0)).collect()));
    let StepArguments { model, groups, group, turns, prompt, turn_tokens, observation, .. } =
        arguments;
    Report {
        name: "step",
        what: vec![arguments.what(), model.describe()],
        machine: Machine::with(arguments.threads),
        sizes: json!({
            "model": model.sizes(),
            "groups": groups,
            "group": group,
            "turns": turns,
            "prompt": prompt,
            "turn_tokens": turn_tokens,
            "observation": observation,
            "mini_batches": arguments.mini_batches,
        }),
        figures,
        parts,
        more: Map::new(),
    }
}

async fn measure(arguments: &StepArguments, division: Division) -> Result<Vec<Timed>, Failure> {
    let mut trainer = trainer(arguments, division)?;
    let mut measured = Vec::new();
    for repetition in 0..=arguments.repetitions {
        let before = trainer.learner().shares().await.map_err(|error| Failure::runtime(&error))?;
        let report = Box::pin(trainer.step(&StopSignal::never())).await?;
        let report = report.ok_or_else(|| failed("a step was stopped"))?;
        if !division.asynchronous {
            check(arguments, &report)?;
        }
        if repetition == 0 {
            memory::reset_peak()?;
            continue;
        }
        let seconds = |metric| report.metrics.get(metric).unwrap_or(f64::NAN);
        let (step_s, rollout_s) = (seconds(metric::STEP_S), seconds(metric::ROLLOUT_S));
        let shares = trainer
            .learner()
            .shares()
            .await
            .map_err(|error| Failure::runtime(&error))?
            .since(&before);
        measured.push(Timed { step_s, rollout_s, shares });
    }
    Ok(measured)
}

/// Checks that a step sampled and trained the requested number of tokens.
fn check(arguments: &StepArguments, report: &StepReport) -> Result<(), Failure> {
    let trained = report.metrics.get(metric::TRAINED_TOKENS).unwrap_or(0.0);
    if trained == arguments.n_sampled() as f64 {
        return Ok(());
    }
    Err(failed(&format!("{trained} of {} tokens were trained", arguments.n_sampled())))
}

fn failed(what: &str) -> Failure {
    Failure::new(ExitCode::Runtime, what)
}

fn trainer(
    arguments: &StepArguments,
    division: Division,
) -> Result<Trainer<CandleLearner>, Failure> {
    let StepArguments { model, learner, .. } = arguments;
    let learner = learner.learner(model, arguments.length(), division.learner)?;
    let n_episodes = arguments.groups * arguments.group;
    let engine = EngineSettings {
        max_batch: n_episodes,
        weights: arguments.model.engine_weights(),
        threads: division.engine,
        ..EngineSettings::default()
    };
    let policy = learner.policy(engine).map_err(|error| Failure::runtime(&error))?;
    let renderer = Arc::new(Numbers);
    let advantage = GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 0.0 };
    let parts = Parts {
        tasks: Arc::new(games(arguments)),
        agents: Arc::new(ChatAgents::new(renderer)),
        rubric: None,
        policy: Arc::new(policy),
        learner,
        objective: Box::new(Gspo { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean }),
        credit: Box::new(OutcomeCredit { advantage }),
    };
    let mut settings = settings(arguments);
    if division.asynchronous {
        settings.mode = RolloutMode::Asynchronous;
    }
    Ok(Trainer::new(parts, settings))
}

/// Returns a task for each group.
fn games(arguments: &StepArguments) -> Vec<Game> {
    let game = |task| Game {
        task,
        vocab_size: arguments.model.sizes().vocab_size,
        prompt: arguments.prompt,
        observation: arguments.observation,
        turns: arguments.turns,
    };
    (0..arguments.groups as u64).map(game).collect()
}

fn settings(arguments: &StepArguments) -> TrainerSettings {
    let limits = Limits {
        max_turns: arguments.turns,
        max_turn_tokens: arguments.turn_tokens,
        max_sampled_tokens: arguments.turns * arguments.turn_tokens,
        max_context_tokens: arguments.length(),
        ..Limits::default()
    };
    let rollout = PoolSettings {
        group_size: arguments.group,
        max_concurrent: arguments.groups * arguments.group,
        limits,
        ..PoolSettings::default()
    };
    TrainerSettings {
        groups_per_step: arguments.groups,
        rollout,
        // All sampled tokens train, whatever their rewards are.
        admission: Admission { keep_zero_variance: true, ..Admission::default() },
        n_minibatches: arguments.mini_batches,
        micro_batch_tokens: arguments.micro_batch_tokens,
        schedule: Schedule { learning_rate: 1e-6, ..Schedule::default() },
        ..TrainerSettings::default()
    }
}
