//! An experiment: a task of two turns in which the first turn's action alone decides, learnt with credit for the outcome and by turn.
//!
//! A door is named, the agent pulls a lever, and then it writes a report. The lever decides whether the door opens, which is
//! verified and rewarded in the turn that pulled it; success is that and nothing else. The report is scored by a judge that
//! is fickle, as judges of free text are: its score depends on the wording and on the episode's seed, in a way that nothing
//! can learn, and is as often good as bad. No word of the report has an expected effect on anything.
//!
//! Outcome-only GSPO adds the two rewards and gives every token the advantage of the sum. That goes wrong twice: the judge's
//! mood is in the lever's advantage, and the lever's luck is in the advantage of the many tokens of the report. Both have
//! mean zero, so the gradient is right in expectation; both are noise, and noise costs episodes. Credit by turn gives each
//! turn what it earned itself (γ = 0), so that neither happens.
//!
//! Limits of what this shows. γ = 0 is right here because no turn earns a later one's reward; where one does it is a bias
//! (see the problems of [`measure`](crate::measure)). With a judge that is silent ([`Levers::judge`] 0) only the second of
//! the two is left, and costs so little that five seeds do not show it. And the learning rate, one for all arms, is one at
//! which noise rather than the size of a step limits learning; at smaller ones the arms are nearer to each other.
//!
//! All arms of [`run`] have the same start (a short imitation of a player that pulls levers at random, so that form is known
//! and skill is not), tasks, seeds, clip range and optimiser. They differ in credit and, with it, in objective: `Gspo` with
//! `OutcomeCredit`, `GspoToken` with `TurnBaselineCredit` or with `TurnCredit`, which divides by the scatter of all turns.

mod experiment;
mod levers;
mod report;
mod vocabulary;

pub use experiment::{Arm, ExperimentError, Run, Settings, run};
pub use levers::{LeverPuller, LeverTask, LeverTasks, Levers};
pub use report::{Comparison, compare, lines};
pub use vocabulary::Vocabulary;
