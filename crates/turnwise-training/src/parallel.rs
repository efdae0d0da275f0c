//! Parallel work on independent items.

use std::sync::{Mutex, PoisonError};
use std::thread;

use turnwise_objective::{Objective, ObjectiveError, Sequence, SequenceLoss};

/// The number of tokens that makes a thread worth its start, which takes some tens of microseconds.
const TOKENS_PER_THREAD: usize = 1 << 16;

/// The number of items that a thread takes at a time: small enough that all threads end together, large enough that
/// taking them is cheap.
const STRETCH: usize = 16;

/// A ratio group to evaluate.
#[derive(Debug)]
pub(crate) struct EvaluationJob<'a> {
    /// The index of the group.
    pub(crate) sequence: usize,
    /// The input of the objective.
    pub(crate) columns: Sequence<'a>,
    /// The factor of the gradient.
    pub(crate) scale: f64,
    /// The destination of the scaled gradient.
    pub(crate) gradient: &'a mut [f64],
    /// The objective's result, not scaled; the default until the group is evaluated.
    pub(crate) outcome: Result<SequenceLoss, ObjectiveError>,
}

impl<'a> EvaluationJob<'a> {
    pub(crate) fn new(
        sequence: usize,
        columns: Sequence<'a>,
        scale: f64,
        gradient: &'a mut [f64],
    ) -> Self {
        Self { sequence, columns, scale, gradient, outcome: Ok(SequenceLoss::default()) }
    }

    fn run(&mut self, objective: &dyn Objective) {
        self.outcome = objective.evaluate_scaled(&self.columns, self.gradient, self.scale);
    }
}

/// Evaluates ratio groups on `n_threads` threads. Each group is evaluated on one thread, so the number of threads
/// changes no bit.
pub(crate) fn evaluate_all(
    objective: &dyn Objective,
    evaluations: &mut [EvaluationJob<'_>],
    n_threads: usize,
) {
    for_each(evaluations, n_threads, |evaluation| evaluation.run(objective));
}

/// Returns the number of threads that an evaluation of `n_tokens` is worth: at most the number of processors.
pub(crate) fn threads_for(n_tokens: usize) -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    (n_tokens / TOKENS_PER_THREAD).clamp(1, processors)
}

/// Applies `work` to each item, on this thread and up to `n_threads` - 1 others.
pub(crate) fn for_each<T: Send>(items: &mut [T], n_threads: usize, work: impl Fn(&mut T) + Sync) {
    let stretches = Mutex::new(items.chunks_mut(STRETCH));
    let next = || stretches.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_through = || {
        while let Some(stretch) = next() {
            stretch.iter_mut().for_each(&work);
        }
    };
    thread::scope(|scope| {
        for _ in 1..n_threads {
            // With fewer threads than requested the result is the same, only later.
            if thread::Builder::new().spawn_scoped(scope, work_through).is_err() {
                break;
            }
        }
        work_through();
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use turnwise_objective::{Advantages, Clip, GspoToken, LengthWeight};
    use turnwise_rollout::uniform_at;

    use super::*;

    const OBJECTIVE: GspoToken =
        GspoToken { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };

    /// Returns gradients, and losses or errors, of sequences of these lengths.
    fn evaluated(
        lengths: &[usize],
        n_threads: usize,
    ) -> (Vec<f64>, Vec<Result<SequenceLoss, ObjectiveError>>) {
        let column = |seed: u64, token: usize| uniform_at(seed, token as u64);
        let n: usize = lengths.iter().sum();
        let behavior: Vec<f64> = (0..n).map(|token| -column(1, token)).collect();
        let logprobs: Vec<f64> =
            (0..n).map(|token| behavior[token] + 0.01 * (column(2, token) - 0.5)).collect();
        let advantages: Vec<f64> = (0..n).map(|token| column(3, token) - 0.5).collect();
        let mut gradient = vec![0.0; n];
        let (mut rest, mut start, mut evaluations) = (gradient.as_mut_slice(), 0, Vec::new());
        for (sequence, length) in lengths.iter().enumerate() {
            let (here, behind) = std::mem::take(&mut rest).split_at_mut(*length);
            let range = start..start + length;
            let credit = Advantages::PerToken(&advantages[range.clone()]);
            let columns = Sequence::new(&logprobs[range.clone()], &behavior[range], credit)
                .expect("equal lengths");
            evaluations.push(EvaluationJob::new(sequence, columns, 0.25, here));
            (rest, start) = (behind, start + length);
        }
        evaluate_all(&OBJECTIVE, &mut evaluations, n_threads);
        let outcomes = evaluations.into_iter().map(|evaluation| evaluation.outcome).collect();
        (gradient, outcomes)
    }

    proptest! {
        #[test]
        fn the_number_of_threads_changes_no_bit(
            lengths in prop::collection::vec(0_usize..40, 0..100),
            n_threads in 2_usize..6,
        ) {
            prop_assert_eq!(evaluated(&lengths, n_threads), evaluated(&lengths, 1));
        }

        #[test]
        fn every_item_is_worked_on_once(n in 0_usize..200, n_threads in 1_usize..6) {
            let mut items = vec![0; n];
            for_each(&mut items, n_threads, |item| *item += 1);
            prop_assert_eq!(items, vec![1; n]);
        }
    }

    #[test]
    fn few_tokens_are_evaluated_where_they_are() {
        assert_eq!(threads_for(0), 1);
        assert_eq!(threads_for(TOKENS_PER_THREAD), 1);
    }
}
