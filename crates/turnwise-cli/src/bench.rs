//! `turnwise bench`: what this machine does in a second, beside what it could do at best.

mod flops;
mod machine;
mod memory;
mod model;
mod numbers;
mod objective;
mod orchestration;
mod report;
mod rollout;
mod step;
mod train;

use clap::Subcommand;

use turnwise_run::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// A step of full fine-tuning: forward, loss gradient, backward, AdamW
    Train(train::TrainArguments),
    /// Episodes of several turns drawn side by side
    Rollout(rollout::RolloutArguments),
    /// A whole training step: rollouts, GSPO, optimiser, publication
    Step(step::StepArguments),
    /// GSPO-token alone: its value and gradient from log-probabilities
    Objective(objective::ObjectiveArguments),
    /// What a turn costs when the engine costs nothing: processor time, wall time, memory
    Orchestration(orchestration::OrchestrationArguments),
}

/// Measures, and prints.
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
        BenchCommand::Objective(arguments) => {
            machine::with_threads(arguments.threads, || objective::bench(arguments))
        }
        BenchCommand::Orchestration(arguments) => orchestration::bench(arguments),
    }
}
