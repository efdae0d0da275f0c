use crate::{Action, Observation};

/// A scripted player that speaks messages as an environment does: an expert for demonstrations, a random baseline.
///
/// # Contract
///
/// - `act` is called once for each observation, in order, for one episode; then the demonstrator is dropped.
/// - The same seed and observations give the same actions.
pub trait Demonstrator: Send {
    /// What it does next.
    fn act(&mut self, observation: &Observation) -> Action;
}
