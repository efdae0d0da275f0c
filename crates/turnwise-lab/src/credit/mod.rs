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
//! `OutcomeCredit`, `GspoToken` with one of three credits by turn. `TurnIndexBiasedCredit` compares a turn with the others' same turn in
//! units of that turn's own scatter, so that neither the judge's mood nor its size reaches the lever; its name warns of tasks
//! in which the policy decides when to stop, and here both turns always come. `TurnBaselineCredit` compares the same without
//! dividing, and lets the judge's size into the gradient; `TurnCredit` divides by the scatter of all turns together.

mod experiment;
mod levers;
mod report;
mod vocabulary;

pub use experiment::{Arm, ExperimentError, Run, Settings, run};
pub use levers::{LeverPuller, LeverTask, LeverTasks, Levers};
pub use report::{Comparison, compare, lines};
pub use vocabulary::Vocabulary;
