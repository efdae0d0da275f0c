//! Properties of episodes, agents and pools. A test's name is a fact; its comment says which numbered statement of
//! `statements.md` it holds.

mod conversation;
mod endings;
mod engines;
mod pitfalls;
mod replay;
mod rubrics;
mod sampling;
mod support;
mod suspension;
mod versions;
