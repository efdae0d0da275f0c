use crate::{Action, Observation};

/// A scripted player that speaks messages as an environment does: an expert for demonstrations, a random baseline.
///
/// # Contract
///
/// - The caller calls `act` once for each observation of one episode, in order, and then drops the demonstrator.
/// - Equal seeds and observations give equal actions.
pub trait Demonstrator: Send {
    /// Returns the player's next action.
    fn act(&mut self, observation: &Observation) -> Action;
}
