//! `turnwise bench`: the speed of this machine, compared with its peaks.

mod flops;
mod machine;
mod memory;
mod model;
mod numbers;
mod objective;
mod orchestration;
mod overlap;
mod report;
mod rollout;
mod step;
mod train;

use clap::Subcommand;

use turnwise_run::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure a step of full fine-tuning: forward, loss gradient, backward, AdamW
    Train(train::TrainArguments),
    /// Measure concurrent sampling of episodes with several turns
    Rollout(rollout::RolloutArguments),
    /// Measure a whole training step: rollouts, GSPO, optimiser, publication
    Step(step::StepArguments),
    /// Measure whether rollouts beside training pay, and simulate it on larger machines
    Overlap(overlap::OverlapArguments),
    /// Measure GSPO-token alone: its value and gradient from log-probabilities
    Objective(objective::ObjectiveArguments),
    /// Measure the cost of a turn without the engine: processor time, wall time, memory
    Orchestration(orchestration::OrchestrationArguments),
}

/// Runs a benchmark and prints its results.
pub(crate) fn bench(command: &BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Train(arguments) => {
            machine::with_threads(arguments.threads, || train::bench(arguments))
        }
        BenchCommand::Rollout(arguments) => {
            machine::with_threads(arguments.threads, || rollout::bench(arguments))
        }
        BenchCommand::Step(arguments) => {
            machine::with_threads(arguments.threads, || step::bench(arguments))
        }
        BenchCommand::Overlap(arguments) => {
            machine::with_threads(arguments.step.threads, || overlap::bench(arguments))
        }
        BenchCommand::Objective(arguments) => {
            machine::with_threads(arguments.threads, || objective::bench(arguments))
        }
        BenchCommand::Orchestration(arguments) => orchestration::bench(arguments),
    }
}
