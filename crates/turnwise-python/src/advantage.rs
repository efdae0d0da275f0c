//! Advantages and credit, as `turnwise-objective` computes them.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use turnwise_objective::{self as objective, AdvantageError, GroupAdvantage, Std};

fn refused(error: AdvantageError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn std_of(name: &str) -> PyResult<Std> {
    match name {
        "sample" => Ok(Std::Sample),
        "population" => Ok(Std::Population),
        _ => {
            let wrong = format!(
                "std is {name:?}; known are \"sample\" (n − 1, as torch.std) and \"population\" (n, as numpy.std)"
            );
            Err(PyValueError::new_err(wrong))
        }
    }
}

/// Reward minus mean, over the standard deviation.
#[pyfunction]
pub(crate) fn mean_std(rewards: Vec<f64>, std: &str, epsilon: f64) -> PyResult<Vec<f64>> {
    objective::mean_std(&rewards, std_of(std)?, epsilon).map_err(refused)
}

/// Reward minus mean.
#[pyfunction]
pub(crate) fn mean_only(rewards: Vec<f64>) -> PyResult<Vec<f64>> {
    objective::mean_only(&rewards).map_err(refused)
}

/// Reward minus the mean of the others.
#[pyfunction]
pub(crate) fn leave_one_out(rewards: Vec<f64>) -> PyResult<Vec<f64>> {
    objective::leave_one_out(&rewards).map_err(refused)
}

/// Discounted rewards from each turn on.
#[pyfunction]
pub(crate) fn reward_to_go(rewards: Vec<f64>, gamma: f64) -> Vec<f64> {
    objective::reward_to_go(&rewards, gamma)
}

/// The advantage of a trajectory for each of its turns.
#[pyfunction]
pub(crate) fn broadcast(advantages: Vec<f64>, n_turns: Vec<usize>) -> PyResult<Vec<Vec<f64>>> {
    objective::broadcast_outcome(&advantages, &n_turns).map_err(refused)
}

/// Returns minus the group's mean return.
#[pyfunction]
pub(crate) fn minus_mean_return(to_go: Vec<Vec<f64>>) -> PyResult<Vec<Vec<f64>>> {
    objective::minus_mean_return(&to_go).map_err(refused)
}

/// Returns minus the mean return of the others.
#[pyfunction]
pub(crate) fn minus_mean_return_of_others(to_go: Vec<Vec<f64>>) -> PyResult<Vec<Vec<f64>>> {
    objective::minus_mean_return_of_others(&to_go).map_err(refused)
}

/// Returns minus the mean return of the others from the same turn on.
#[pyfunction]
pub(crate) fn minus_mean_return_at_turn(to_go: Vec<Vec<f64>>) -> PyResult<Vec<Vec<f64>>> {
    objective::minus_mean_return_at_turn(&to_go).map_err(refused)
}

/// Returns compared among the turns that began in the same state.
#[pyfunction]
pub(crate) fn anchor_state(
    returns: Vec<Vec<f64>>,
    anchors: Vec<Vec<String>>,
    rule: &str,
) -> PyResult<Vec<Vec<f64>>> {
    let rule = match rule {
        "mean_std" => GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 0.0 },
        "mean_only" => GroupAdvantage::MeanOnly,
        "leave_one_out" => GroupAdvantage::LeaveOneOut,
        _ => {
            let wrong =
                format!("rule is {rule:?}; known are mean_std, mean_only and leave_one_out");
            return Err(PyValueError::new_err(wrong));
        }
    };
    objective::by_anchor_state(&returns, &anchors, rule).map_err(refused)
}

/// The weighted sum of the outcome's and the turns' advantages.
#[pyfunction]
pub(crate) fn mix(
    outcome: Vec<f64>,
    turns: Vec<Vec<f64>>,
    outcome_weight: f64,
    turn_weight: f64,
) -> PyResult<Vec<Vec<f64>>> {
    objective::mix(&outcome, &turns, outcome_weight, turn_weight).map_err(refused)
}

/// The advantage of each turn for each of its tokens.
#[pyfunction]
pub(crate) fn spread_over_tokens(turns: Vec<f64>, n_tokens: Vec<usize>) -> PyResult<Vec<f64>> {
    objective::spread_over_tokens(&turns, &n_tokens).map_err(refused)
}
