//! Advantages from the rewards of one group.
//!
//! Every function takes the rewards of ONE group, the attempts at one task, so that groups cannot
//! mix. Two rules hold for all of them: a group whose rewards are all equal gets exactly 0, and so
//! does a group of one.
//!
//! An advantage that is divided by a standard deviation does not depend on the unit of the rewards
//! if its epsilon is 0: rewards of 1e-300 and of 1e300 train alike. Published formulas add an
//! epsilon of 1e-6 or 1e-4, so that equal rewards do not divide 0 by 0. Here rewards that differ by
//! [`ROUNDING`] or less count as equal, so an epsilon is needed only to reproduce numbers that were
//! computed with one.

use std::error::Error;
use std::fmt;

use crate::sum::sum;

/// The convention for the standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Std {
    /// Divides by n − 1, as `torch.std` does.
    Sample,
    /// Divides by n, as `numpy.std` does.
    Population,
}

impl Std {
    fn divisor(self, n: usize) -> f64 {
        match self {
            Self::Sample => (n - 1) as f64,
            Self::Population => n as f64,
        }
    }
}

/// A rule that maps the rewards of one group to advantages, as a value for settings.
///
/// ```
/// use turnwise_objective::{GroupAdvantage, mean_only};
///
/// let rewards = [1.0, 0.0];
/// assert_eq!(GroupAdvantage::MeanOnly.of(&rewards), mean_only(&rewards));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GroupAdvantage {
    /// [`mean_std`].
    MeanStd {
        /// The convention for the standard deviation.
        std: Std,
        /// The number added to the standard deviation; 0 for advantages that do not depend on the
        /// unit of the rewards.
        epsilon: f64,
    },
    /// [`mean_only`].
    MeanOnly,
    /// [`leave_one_out`].
    LeaveOneOut,
}

impl GroupAdvantage {
    /// Returns the advantages of one group.
    ///
    /// # Errors
    ///
    /// The errors of the named function.
    pub fn of(&self, rewards: &[f64]) -> Result<Vec<f64>, AdvantageError> {
        match *self {
            Self::MeanStd { std, epsilon } => mean_std(rewards, std, epsilon),
            Self::MeanOnly => mean_only(rewards),
            Self::LeaveOneOut => leave_one_out(rewards),
        }
    }
}

/// The reason why advantages cannot be computed.
///
/// ```
/// use turnwise_objective::{AdvantageError, mean_only};
///
/// let error = mean_only(&[1.0, f64::INFINITY]).unwrap_err();
/// assert_eq!(error, AdvantageError::NonFinite { member: 1, turn: None, value: f64::INFINITY });
/// assert_eq!(error.to_string(), "reward of member 1 is inf");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum AdvantageError {
    /// A reward or return is NaN or infinite.
    NonFinite {
        /// The member's position in the group.
        member: usize,
        /// The turn, if rewards are given per turn.
        turn: Option<usize>,
        /// The number.
        value: f64,
    },
    /// The rewards are further apart than f64 can represent.
    Overflow,
    /// An epsilon or a given standard deviation is negative or not finite.
    InvalidScale {
        /// The number.
        value: f64,
    },
    /// Two slices do not describe the same members or turns.
    LengthMismatch {
        /// The name of the slice.
        slice: &'static str,
        /// The expected number of entries.
        expected: usize,
        /// The number of entries.
        actual: usize,
    },
}

impl fmt::Display for AdvantageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NonFinite { member, turn: None, value } => {
                write!(f, "reward of member {member} is {value}")
            }
            Self::NonFinite { member, turn: Some(turn), value } => {
                write!(f, "reward of turn {turn} of member {member} is {value}")
            }
            Self::Overflow => write!(f, "rewards are too far apart for a difference in f64"),
            Self::InvalidScale { value } => {
                write!(f, "epsilon or standard deviation {value} is negative or not finite")
            }
            Self::LengthMismatch { slice, expected, actual } => {
                write!(f, "{slice} has {actual} entries instead of {expected}")
            }
        }
    }
}

impl Error for AdvantageError {}

/// Returns reward minus group mean, divided by the group's standard deviation; shape: one per
/// reward.
///
/// ```text
/// A_i = (r_i − mean r) / (std r + epsilon)          arXiv 2507.18071, eq. 6, which has no epsilon
/// ```
///
/// Rewards that are equal up to [`ROUNDING`] get exactly 0.
///
/// # Errors
///
/// [`AdvantageError::NonFinite`], and [`AdvantageError::InvalidScale`] for `epsilon`.
///
/// ```
/// use turnwise_objective::{Std, mean_std};
///
/// assert_eq!(mean_std(&[2.0, 0.0], Std::Population, 0.0)?, [1.0, -1.0]);
/// assert_eq!(mean_std(&[2e-300, 0.0], Std::Population, 0.0)?, [1.0, -1.0]);
/// assert_eq!(mean_std(&[0.1; 7], Std::Sample, 0.0)?, [0.0; 7]);
/// assert_eq!(mean_std(&[0.1 + 0.2, 0.3], Std::Sample, 0.0)?, [0.0, 0.0]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn mean_std(rewards: &[f64], std: Std, epsilon: f64) -> Result<Vec<f64>, AdvantageError> {
    expect_scale(epsilon)?;
    let mut deviations = match Deviations::of(rewards) {
        // Halved rewards have the same deviations, in units of their standard deviation.
        Err(AdvantageError::Overflow) => return mean_std(&halves(rewards), std, epsilon / 2.0),
        deviations => deviations?,
    };
    if has_zero_variance(rewards) {
        return Ok(vec![0.0; rewards.len()]);
    }
    let scale = deviations.standard_deviation(std) + epsilon / deviations.unit;
    deviations.divide_by(scale);
    Ok(deviations.values)
}

/// Returns reward minus group mean; shape: one per reward, in units of reward.
///
/// ```text
/// A_i = r_i − mean r                                Dr.GRPO, arXiv 2503.20783
/// ```
///
/// The expected policy gradient is (1 − 1/n) times the true one, because each reward is part of its
/// own baseline.
///
/// # Errors
///
/// [`AdvantageError::NonFinite`] and [`AdvantageError::Overflow`].
///
/// ```
/// assert_eq!(turnwise_objective::mean_only(&[1.0, 0.0, 0.5])?, [0.5, -0.5, 0.0]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn mean_only(rewards: &[f64]) -> Result<Vec<f64>, AdvantageError> {
    let mut deviations = Deviations::of(rewards)?;
    deviations.divide_by(1.0 / deviations.unit);
    Ok(deviations.values)
}

/// Returns reward minus the mean of the others' rewards; shape: one per reward, in units of reward.
///
/// ```text
/// A_i = r_i − 1/(n−1) Σ_{j≠i} r_j                   RLOO, arXiv 2402.14740
/// ```
///
/// The expected policy gradient is the true one.
///
/// # Errors
///
/// [`AdvantageError::NonFinite`] and [`AdvantageError::Overflow`].
///
/// ```
/// assert_eq!(turnwise_objective::leave_one_out(&[1.0, 0.0, 0.5])?, [0.75, -0.75, 0.0]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn leave_one_out(rewards: &[f64]) -> Result<Vec<f64>, AdvantageError> {
    let mut deviations = Deviations::of(rewards)?;
    let n = rewards.len() as f64;
    deviations.divide_by((n - 1.0) / n / deviations.unit);
    Ok(deviations.values)
}

/// Returns reward minus group mean, divided by a given standard deviation, such as that of the
/// whole batch.
///
/// ```text
/// A_i = (r_i − mean r) / (std_batch + epsilon)
/// ```
///
/// # Errors
///
/// [`AdvantageError::NonFinite`], [`AdvantageError::Overflow`], and
/// [`AdvantageError::InvalidScale`] for `std` or `epsilon`.
///
/// ```
/// assert_eq!(turnwise_objective::mean_with_std_of(&[1.0, 0.0], 0.25, 0.0)?, [2.0, -2.0]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn mean_with_std_of(
    rewards: &[f64],
    std: f64,
    epsilon: f64,
) -> Result<Vec<f64>, AdvantageError> {
    expect_scale(std)?;
    expect_scale(epsilon)?;
    let mut deviations = Deviations::of(rewards)?;
    deviations.divide_by((std + epsilon) / deviations.unit);
    Ok(deviations.values)
}

/// Returns reward minus the mean of its group, divided by the standard deviation of *all* those
/// differences in the batch: REINFORCE++ with baseline. Shape: as the groups.
///
/// ```text
/// d_gi = r_gi − mean_j r_gj
/// A_gi = d_gi / (std_{gj} d_gj + epsilon)                       arXiv 2501.03262v9, section 3
/// ```
///
/// The paper also subtracts the mean of d, which is 0. A single scale for the batch preserves the
/// relative weight of the groups' gradients, unlike a standard deviation per group. Groups whose
/// rewards are all equal up to [`ROUNDING`] get exactly 0, and count in the standard deviation.
///
/// # Errors
///
/// [`AdvantageError::NonFinite`] with the position in its group, and
/// [`AdvantageError::InvalidScale`] for `epsilon`.
///
/// ```
/// use turnwise_objective::{Std, normalised_over_batch};
///
/// let groups = [vec![1.0, 0.0], vec![5.0, 5.0]];
/// let advantages = normalised_over_batch(&groups, Std::Population, 0.0)?;
/// assert!((advantages[0][0] - f64::sqrt(2.0)).abs() < 1e-15);
/// assert_eq!(advantages[1], [0.0, 0.0]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn normalised_over_batch(
    groups: &[Vec<f64>],
    std: Std,
    epsilon: f64,
) -> Result<Vec<Vec<f64>>, AdvantageError> {
    expect_scale(epsilon)?;
    let centre = |rewards: &Vec<f64>| {
        let centred = mean_only(rewards)?;
        Ok(if has_zero_variance(rewards) { vec![0.0; rewards.len()] } else { centred })
    };
    let centred: Result<Vec<_>, _> = groups.iter().map(centre).collect();
    let mut centred = match centred {
        Err(AdvantageError::Overflow) => {
            let groups: Vec<Vec<f64>> = groups.iter().map(|rewards| halves(rewards)).collect();
            return normalised_over_batch(&groups, std, epsilon / 2.0);
        }
        centred => centred?,
    };
    let scale = standard_deviation(&centred.concat(), std)? + epsilon;
    for value in centred.iter_mut().flatten().filter(|value| **value != 0.0) {
        *value /= scale;
    }
    Ok(centred)
}

/// Returns the standard deviation of `values`, exactly 0 if they are all equal or fewer than two.
///
/// # Errors
///
/// [`AdvantageError::NonFinite`] and [`AdvantageError::Overflow`].
///
/// ```
/// use turnwise_objective::{Std, standard_deviation};
///
/// assert_eq!(standard_deviation(&[1.0, 3.0], Std::Population)?, 1.0);
/// assert_eq!(standard_deviation(&[0.1; 3], Std::Sample)?, 0.0);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn standard_deviation(values: &[f64], std: Std) -> Result<f64, AdvantageError> {
    let deviations = Deviations::of(values)?;
    Ok(deviations.standard_deviation(std) * deviations.unit)
}

/// Rewards that differ by at most this fraction of the largest count as equal: such differences
/// come from the order of additions. The rounding error of a sum of some thousand terms is smaller
/// than that.
pub const ROUNDING: f64 = 1e-12;

/// Returns whether a group has no gradient: its rewards are all equal up to [`ROUNDING`], or it has
/// at most one member.
///
/// ```
/// use turnwise_objective::has_zero_variance;
///
/// assert!(has_zero_variance(&[0.1, 0.1, 0.1]));
/// assert!(has_zero_variance(&[0.1 + 0.2, 0.3]));
/// assert!(!has_zero_variance(&[0.1, 0.1, 0.2]));
/// assert!(!has_zero_variance(&[1e-300, 2e-300]));
/// ```
#[must_use]
pub fn has_zero_variance(rewards: &[f64]) -> bool {
    let Some(first) = rewards.first() else { return true };
    let largest = rewards.iter().fold(0.0_f64, |largest, reward| largest.max(reward.abs()));
    // Halved rewards are compared, because their difference does not overflow.
    let close = |reward: &f64| (reward / 2.0 - first / 2.0).abs() < ROUNDING * (largest / 2.0);
    rewards.iter().all(|reward| reward == first || close(reward))
}

fn halves(rewards: &[f64]) -> Vec<f64> {
    rewards.iter().map(|reward| reward / 2.0).collect()
}

/// r_i − mean r, in units of the largest |r_i − r_0|.
///
/// Differences from the first reward are exactly 0 for equal rewards and do not depend on a common
/// offset; the unit keeps their squares in range.
#[derive(Debug)]
struct Deviations {
    values: Vec<f64>,
    unit: f64,
}

impl Deviations {
    fn of(rewards: &[f64]) -> Result<Self, AdvantageError> {
        if let Some(member) = rewards.iter().position(|reward| !reward.is_finite()) {
            return Err(AdvantageError::NonFinite { member, turn: None, value: rewards[member] });
        }
        let mut values: Vec<f64> = rewards.iter().map(|reward| reward - rewards[0]).collect();
        let unit = values.iter().fold(0.0, |unit: f64, value| unit.max(value.abs()));
        if unit.is_infinite() {
            return Err(AdvantageError::Overflow);
        }
        if unit == 0.0 {
            return Ok(Self { values: vec![0.0; rewards.len()], unit: 1.0 });
        }
        for value in &mut values {
            *value /= unit;
        }
        let mean = sum(values.iter().copied()) / values.len() as f64;
        for value in &mut values {
            *value -= mean;
        }
        Ok(Self { values, unit })
    }

    /// Returns the standard deviation in units of `self.unit`.
    fn standard_deviation(&self, std: Std) -> f64 {
        let squares = sum(self.values.iter().map(|value| value * value));
        // A group of one has no squares, and Std::Sample would divide them by 0.
        if squares == 0.0 { 0.0 } else { (squares / std.divisor(self.values.len())).sqrt() }
    }

    /// Divides by a number that may be 0 if all deviations are 0.
    fn divide_by(&mut self, scale: f64) {
        self.values.iter_mut().filter(|value| **value != 0.0).for_each(|value| *value /= scale);
    }
}

fn expect_scale(value: f64) -> Result<(), AdvantageError> {
    if value >= 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(AdvantageError::InvalidScale { value })
    }
}
