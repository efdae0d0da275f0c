//! The columns of a mini-batch, in which the tokens of a ratio group are adjacent.

use std::ops::Range;

use turnwise_objective::{Advantages, ObjectiveError, Sequence};
use turnwise_trajectory::NodeId;

use crate::{Batch, TrainToken};

/// The columns of a mini-batch. Within a ratio group the tokens are in the order of rows and targets for every choice
/// of micro-batches, so that sums over a group do not depend on that choice.
#[derive(Debug)]
pub(crate) struct Columns {
    /// The index at which each ratio group begins, and a last entry with the end of all. `[groups + 1]`
    starts: Vec<usize>,
    /// The index of each target. `[rows][targets]`
    places: Vec<Vec<usize>>,
    /// The log-probabilities, written by [`Columns::set`]. `[tokens]`, like the other columns.
    logprobs: Vec<f64>,
    behavior_logprobs: Vec<f64>,
    advantages: Vec<f64>,
    /// NaN for an unknown value; empty if the objective needs none.
    references: Vec<f64>,
    /// For each ratio group, the number of tokens of each of its turns. `[groups][turns]`
    turns: Vec<Vec<usize>>,
    gradient: Vec<f64>,
}

impl Columns {
    /// Creates the columns of a batch, with those of the reference policy if the objective needs them.
    pub(crate) fn new(batch: &Batch, with_references: bool) -> Self {
        let (starts, places) = layout(batch);
        let n = batch.n_targets();
        let column = |value: &dyn Fn(&TrainToken) -> f64| {
            let mut column = vec![0.0; n];
            let tokens = batch.tokens.iter().flatten();
            for (place, token) in places.iter().flatten().zip(tokens) {
                column[*place] = value(token);
            }
            column
        };
        let reference = |token: &TrainToken| token.reference_logprob.map_or(f64::NAN, f64::from);
        Self {
            logprobs: vec![0.0; n],
            behavior_logprobs: column(&|token| f64::from(token.behavior_logprob)),
            advantages: column(&|token| f64::from(token.advantage)),
            references: if with_references { column(&reference) } else { Vec::new() },
            turns: turns(batch, &starts, &places),
            gradient: vec![0.0; n],
            starts,
            places,
        }
    }

    /// Writes the log-probabilities of a row's targets, in nats.
    pub(crate) fn set<T: Copy + Into<f64>>(&mut self, row: usize, logprobs: &[T]) {
        for (place, logprob) in self.places[row].iter().zip(logprobs) {
            self.logprobs[*place] = (*logprob).into();
        }
    }

    /// Returns the gradient of a row's targets.
    pub(crate) fn gradient(&self, row: usize) -> impl Iterator<Item = f64> + '_ {
        self.places[row].iter().map(|place| self.gradient[*place])
    }

    /// Returns the wanted ratio groups, in order.
    pub(crate) fn groups(
        &mut self,
        is_wanted: impl Fn(usize) -> bool,
    ) -> Vec<RatioGroupColumns<'_>> {
        let mut wanted = Vec::new();
        let mut rest = self.gradient.as_mut_slice();
        for (number, range) in self.starts.windows(2).map(|ends| ends[0]..ends[1]).enumerate() {
            let (gradient, behind) = rest.split_at_mut(range.len());
            rest = behind;
            if is_wanted(number) {
                let of = |column| of_range(column, range.clone());
                wanted.push(RatioGroupColumns {
                    number,
                    logprobs: &self.logprobs[range.clone()],
                    behavior_logprobs: &self.behavior_logprobs[range.clone()],
                    advantages: &self.advantages[range.clone()],
                    references: of(&self.references),
                    turns: &self.turns[number],
                    gradient,
                });
            }
        }
        wanted
    }
}

/// One ratio group.
#[derive(Debug)]
pub(crate) struct RatioGroupColumns<'a> {
    pub(crate) number: usize,
    logprobs: &'a [f64],
    behavior_logprobs: &'a [f64],
    advantages: &'a [f64],
    /// `None` unless all values are known.
    references: Option<&'a [f64]>,
    turns: &'a [usize],
    /// The destination of the gradient.
    pub(crate) gradient: &'a mut [f64],
}

impl<'a> RatioGroupColumns<'a> {
    /// Returns the objective's view of the group.
    pub(crate) fn sequence(&self) -> Result<Sequence<'a>, ObjectiveError> {
        let credit = Advantages::PerToken(self.advantages);
        let sequence =
            Sequence::new(self.logprobs, self.behavior_logprobs, credit)?.with_turns(self.turns)?;
        match self.references {
            Some(references) => sequence.with_reference(references),
            None => Ok(sequence),
        }
    }
}

/// Returns a range of the reference policy's column, if the column exists and the range is fully known.
fn of_range(column: &[f64], range: Range<usize>) -> Option<&[f64]> {
    column.get(range).filter(|column| !column.iter().any(|logprob| logprob.is_nan()))
}

/// Returns the beginnings of the ratio groups, and the index of each row's targets.
fn layout(batch: &Batch) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut starts = vec![0; batch.weights.len() + 1];
    for token in batch.tokens.iter().flatten() {
        starts[token.sequence + 1] += 1;
    }
    for group in 1..starts.len() {
        starts[group] += starts[group - 1];
    }
    let mut next = starts.clone();
    let mut place = |token: &TrainToken| {
        next[token.sequence] += 1;
        next[token.sequence] - 1
    };
    let places = batch.tokens.iter().map(|row| row.iter().map(&mut place).collect()).collect();
    (starts, places)
}

/// Returns for each ratio group the number of tokens of each of its turns.
fn turns(batch: &Batch, starts: &[usize], places: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut turn_of = vec![NodeId(0); batch.n_targets()];
    for (place, token) in places.iter().flatten().zip(batch.tokens.iter().flatten()) {
        turn_of[*place] = token.turn;
    }
    let lengths = |group: &[NodeId]| group.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
    starts.windows(2).map(|ends| lengths(&turn_of[ends[0]..ends[1]])).collect()
}
