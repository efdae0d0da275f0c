//! Checks of an environment's contract.

use pyo3::prelude::*;
use turnwise_environment::check::check_suite;

use crate::interrupt::wait;
use crate::player::Raised;
use crate::suite::suite;

/// Plays sampled tasks and checks that the environment keeps its contract. Returns the name of each check, whether it passed, and
/// what was seen or is wrong.
#[pyfunction]
pub(crate) fn check(
    py: Python<'_>,
    environment: &Bound<'_, PyAny>,
) -> PyResult<Vec<(&'static str, bool, String)>> {
    let raised = Raised::default();
    let suite = suite(environment, &raised)?;
    let checks = wait(py, || check_suite(&suite))?;
    if let Some(error) = raised.take() {
        return Err(error);
    }
    let found = checks.into_iter().map(|check| match check.result {
        Ok(seen) => (check.name, true, seen),
        Err(wrong) => (check.name, false, wrong),
    });
    Ok(found.collect())
}
