//! `turnwise worker`: the episodes of a run on another machine.

use std::io::{self, Write};

use turnwise_run::{Failure, Registry};
use turnwise_serve::{WorkEnd, WorkerReport};

use crate::arguments::WorkerArguments;
use crate::interrupt;

/// Works for a trainer until the process is asked to stop, the run is over, or the trainer is gone.
///
/// # Errors
/// When the trainer cannot be reached, or its environment cannot be made here.
pub(crate) async fn work(registry: &Registry, arguments: &WorkerArguments) -> Result<(), Failure> {
    let WorkerArguments { trainer, token_file, episodes } = arguments;
    let mut out = io::stdout();
    // Whoever started it may not read what it says.
    drop(writeln!(out, "joining {trainer}; Ctrl-C ends it").and_then(|()| out.flush()));
    let (n, stop) = (usize::from(*episodes), interrupt::listen());
    let report = turnwise_run::work(trainer, token_file.as_deref(), n, registry, &stop).await?;
    let WorkerReport { finished, suspended, lost, end } = report;
    let end = match end {
        WorkEnd::Stopped => "stopped",
        WorkEnd::Over => "the run is over",
        WorkEnd::Gone | WorkEnd::Forgotten => "the trainer is gone",
    };
    drop(writeln!(
        out,
        "{end}: {finished} episodes ended here, {suspended} went back, {lost} went on elsewhere"
    ));
    Ok(())
}
