//! The time of a training step on machines of other sizes: the real trainer and pool, over an engine and a learner that only
//! take time.

use std::sync::Arc;

use serde::Serialize;
use tokio::time::Instant;
use turnwise_rollout::StopSignal;
use turnwise_training::{RolloutMode, Trainer};

use crate::timed::{Clock, TimedWork};

/// What engine and learner cost on one thread, and how much of it threads share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ComputeCosts {
    /// The bytes of weights that a decoding step reads.
    pub weight_bytes: f64,
    /// The bytes per second that one thread reads.
    pub read_one: f64,
    /// The bytes per second that all threads together read.
    pub read_all: f64,
    /// The seconds of one thread to compute a token in the engine.
    pub engine_token_s: f64,
    /// The seconds of one thread to train on a token.
    pub training_token_s: f64,
    /// The share of training that more threads do not make shorter.
    pub serial: f64,
}

/// The work of a step, and the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OverlapSettings {
    /// The number of groups of a step.
    pub groups: usize,
    /// The number of episodes of a group.
    pub group: usize,
    /// The number of turns of an episode.
    pub turns: usize,
    /// The tokens of a task's prompt.
    pub prompt: usize,
    /// The mean number of tokens of a turn; they are distributed exponentially.
    pub turn_tokens: usize,
    /// The tokens that the environment adds between turns.
    pub observation: usize,
    /// The threads of the engine.
    pub engine_threads: usize,
    /// The threads of the learner.
    pub learner_threads: usize,
    /// Whether rollouts go on during training.
    pub asynchronous: bool,
    /// The number of steps that are averaged, after two that are not.
    pub steps: u64,
    /// The costs on one thread.
    pub costs: ComputeCosts,
}

/// The mean time of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OverlapReport {
    /// The seconds of a step.
    pub step_s: f64,
    /// The share of the time in which the engine computed.
    pub engine_busy: f64,
    /// The share of the time in which the learner computed.
    pub learner_busy: f64,
}

/// Simulates training steps in virtual time.
///
/// # Errors
/// When the trainer fails, for example because the settings have no work in them.
///
/// # Panics
/// When the runtime cannot be created.
pub fn simulate_overlap(settings: OverlapSettings) -> Result<OverlapReport, String> {
    let OverlapSettings { groups, group, turns, turn_tokens, steps, .. } = settings;
    if [groups, turns, turn_tokens, steps as usize].contains(&0) || group < 2 {
        return Err("a step has groups of two episodes, turns and tokens".to_owned());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime on one thread needs nothing that can be missing");
    runtime.block_on(run(settings))
}

async fn run(settings: OverlapSettings) -> Result<OverlapReport, String> {
    let clock = Arc::new(Clock::default());
    let mode =
        if settings.asynchronous { RolloutMode::Asynchronous } else { RolloutMode::Synchronous };
    let work = work(settings);
    let mut trainer = Trainer::new(work.parts(&clock), work.trainer(mode));
    let (mut began, mut before) = (Instant::now(), [0.0; 2]);
    for step in 0..settings.steps + 2 {
        if step == 2 {
            (began, before) = (Instant::now(), clock.busy());
        }
        let report = Box::pin(trainer.step(&StopSignal::never())).await;
        report.map_err(|error| error.to_string())?.ok_or("a step was stopped")?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let [engine, learner] = clock.busy();
    Ok(OverlapReport {
        step_s: seconds / settings.steps as f64,
        engine_busy: (engine - before[0]) / seconds,
        learner_busy: (learner - before[1]) / seconds,
    })
}

/// Returns the seconds of a step's parts on the machine's threads.
fn work(settings: OverlapSettings) -> TimedWork {
    let OverlapSettings { groups, group, turns, prompt, turn_tokens, observation, costs, .. } =
        settings;
    let ComputeCosts { weight_bytes, read_one, read_all, engine_token_s, training_token_s, serial } =
        costs;
    let engine_threads = settings.engine_threads as f64;
    let share = serial + (1.0 - serial) / settings.learner_threads as f64;
    TimedWork {
        groups,
        group,
        turns,
        prompt,
        turn_tokens,
        observation,
        environment_s: 0.0,
        engine_step_s: weight_bytes / (engine_threads * read_one).min(read_all),
        engine_token_s: engine_token_s / engine_threads,
        training_token_s: training_token_s * share,
        publish_s: weight_bytes / read_one * share,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(engine: usize, learner: usize, asynchronous: bool) -> OverlapSettings {
        let costs = ComputeCosts {
            weight_bytes: 1e8,
            read_one: 1e10,
            read_all: 1e11,
            engine_token_s: 1e-3,
            training_token_s: 3e-3,
            serial: 0.0,
        };
        OverlapSettings {
            groups: 4,
            group: 4,
            turns: 3,
            prompt: 50,
            turn_tokens: 20,
            observation: 10,
            engine_threads: engine,
            learner_threads: learner,
            asynchronous,
            steps: 6,
            costs,
        }
    }

    fn simulated(settings: OverlapSettings) -> OverlapReport {
        simulate_overlap(settings).expect("the settings have work")
    }

    #[test]
    fn taking_turns_adds_up_and_twice_the_threads_halve_what_scales() {
        let one = simulated(settings(1, 1, false));
        assert!((one.engine_busy + one.learner_busy - 1.0).abs() < 0.01, "{one:?}");
        let two = simulated(settings(2, 2, false));
        assert!((two.step_s / one.step_s - 0.5).abs() < 5e-3, "{two:?} {one:?}");
        assert_eq!(simulated(settings(2, 2, false)), two);
    }

    /// Without what threads cannot share there is nothing to gain by overlapping; with it there is.
    #[test]
    fn overlap_pays_where_one_side_does_not_scale() {
        let synchronous = simulated(settings(2, 2, false));
        let beside = simulated(settings(1, 1, true));
        assert!(beside.step_s > 0.97 * synchronous.step_s, "{beside:?} {synchronous:?}");

        let bound = |mut settings: OverlapSettings| {
            settings.costs = ComputeCosts {
                read_one: 1e10,
                read_all: 1e10,
                engine_token_s: 1e-5,
                ..settings.costs
            };
            simulated(settings)
        };
        let (synchronous, beside) = (bound(settings(16, 16, false)), bound(settings(2, 14, true)));
        assert!(beside.step_s < 0.9 * synchronous.step_s, "{beside:?} {synchronous:?}");
        assert!(beside.learner_busy < 1.01 && beside.engine_busy < 1.01);
    }

    #[test]
    fn settings_without_work_are_refused() {
        let nothing = OverlapSettings { turns: 0, ..settings(1, 1, false) };
        assert!(simulate_overlap(nothing).is_err());
    }
}
