//! An experiment: a task of two turns in which only the first turn's action matters, trained with credit for the
//! outcome and by turn.
//!
//! The environment names a door, the agent pulls a lever, and then it writes a report. The lever decides whether the
//! door opens, which is verified and rewarded in the turn that pulled it; success is this alone. The report is scored
//! by a fickle judge, as judges of free text are: its score depends on the wording and on the episode's seed in a way
//! that cannot be learnt, and is as often positive as negative. No word of the report has an expected effect.
//!
//! Outcome-only GSPO adds the two rewards and gives every token the advantage of the sum. This adds noise twice: the
//! judge's score is in the lever's advantage, and the lever's luck is in the advantage of the many tokens of the
//! report. Both have mean zero, so the gradient is right in expectation, but noise costs episodes. Credit by turn gives
//! each turn its own reward only (γ = 0), so neither happens.
//!
//! Limits of the experiment: γ = 0 is right here because no turn earns a later turn's reward; if one did, γ = 0 would
//! be a bias (see the problems of [`measure`](crate::measure)). With a silent judge ([`Levers::judge`] 0) only the
//! second source of noise is left, and costs so little that five seeds do not show it. The learning rate, one for all
//! arms, is one at which noise rather than the step size limits learning; at smaller ones the arms are closer to each
//! other.
//!
//! All arms of [`run`] have the same start (a short imitation of a player that pulls levers at random, so that the
//! model knows the form but not the task), tasks, seeds, clip range and optimiser. They differ in credit and, with it,
//! in objective: `Gspo` with `OutcomeCredit`, `GspoToken` with one of three credits by turn. `TurnIndexBiasedCredit`
//! compares a turn with the same turn of the other episodes in units of that turn's standard deviation, so neither the
//! sign nor the size of the judge's score reaches the lever. It is biased in tasks in which the policy decides when to
//! stop; here both turns always occur. `TurnBaselineCredit` makes the same comparison without dividing, so the size of
//! the judge's score reaches the gradient; `TurnCredit` divides by the standard deviation of all turns together.

mod experiment;
mod levers;
mod report;
mod vocabulary;

pub use experiment::{Arm, ExperimentError, RunResult, Settings, run};
pub use levers::{LeverPuller, LeverTask, LeverTasks, Levers};
pub use report::{Comparison, compare, lines};
pub use vocabulary::Vocabulary;
