//! The gradient between two steps. It is kept here until the step, because servers that average over all sequences of a step
//! need their number.

use std::ops::Range;

use super::messages::Datum;
use super::remote_model::RemoteModel;
use super::scale::Scale;
use super::shifted_row::ShiftedRow;
use crate::fault::ServerFault;

/// A sequence with the gradient of the loss with respect to each of its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Weighted {
    pub(super) sequence: ShiftedRow,
    pub(super) logprobs: Vec<f32>,
    /// One for each predicted token.
    pub(super) slopes: Vec<f32>,
}

impl Weighted {
    /// Returns the datum whose gradient on the server is that of the loss, times `factor`.
    ///
    /// The loss `-advantage * exp(logprob - given)` has the slope `-advantage` at `given`.
    fn datum(&self, factor: f64) -> Datum {
        let advantage = |slope: &f32| (-f64::from(*slope) * factor) as f32;
        let advantages: Vec<f32> = self.slopes.iter().map(advantage).collect();
        self.sequence.weighted(&self.logprobs, &advantages)
    }

    fn is_zero(&self) -> bool {
        self.slopes.iter().all(|slope| *slope == 0.0)
    }
}

/// All gradients since the last step.
#[derive(Clone, Debug, Default)]
pub(super) struct Window(Vec<Weighted>);

impl Window {
    pub(super) fn push(&mut self, weighted: Weighted) {
        self.0.push(weighted);
    }

    pub(super) fn is_finite(&self) -> bool {
        self.0.iter().flat_map(|one| &one.slopes).all(|slope| slope.is_finite())
    }

    /// Sends the gradient times `factor`. A server needs at least one sequence; others without any gradient stay here.
    pub(super) async fn send(
        &self,
        model: &mut RemoteModel,
        scale: Scale,
        factor: f64,
        max_tokens: usize,
    ) -> Result<(), ServerFault> {
        let mut sent: Vec<&Weighted> = self.0.iter().filter(|one| !one.is_zero()).collect();
        if sent.is_empty() {
            sent.extend(self.0.first());
        }
        let lengths: Vec<usize> = sent.iter().map(|one| one.sequence.len()).collect();
        for range in requests(&lengths, max_tokens) {
            let n = range.len();
            let datum = |one: &&Weighted| {
                one.datum(factor * scale.factor(one.sequence.len(), n, sent.len()))
            };
            model.forward_backward(sent[range].iter().map(datum).collect()).await?;
        }
        Ok(())
    }
}

/// Returns the sequences of each request, of at most so many tokens unless one sequence has more.
pub(super) fn requests(lengths: &[usize], max_tokens: usize) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut n_tokens = 0;
    for (index, length) in lengths.iter().enumerate() {
        match ranges.last_mut() {
            Some(last) if n_tokens + length <= max_tokens => {
                last.end = index + 1;
                n_tokens += length;
            }
            _ => {
                ranges.push(index..index + 1);
                n_tokens = *length;
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_long_as_allowed() {
        assert_eq!(requests(&[3, 4, 5, 20, 1], 8), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(requests(&[], 8), []);
    }
}
