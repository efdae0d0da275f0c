//! Speed of the objective, compared with the time to read and write its memory.

use std::time::Instant;

use serde::Serialize;
use turnwise_objective::{Advantages, Clip, GspoToken, LengthWeight, Metrics, Sequence};
use turnwise_rollout::uniform_at;

use crate::SequenceError;
use crate::parallel::{EvaluationJob, evaluate_all, for_each};

/// The settings of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectiveSpeedSettings {
    /// The number of sequences of the step.
    pub sequences: usize,
    /// The number of tokens of each sequence.
    pub tokens: usize,
    /// The number of threads.
    pub threads: usize,
    /// The number of repetitions.
    pub repetitions: usize,
}

impl Default for ObjectiveSpeedSettings {
    /// Returns 4,096 sequences of 1,024 tokens on two threads, seven times.
    fn default() -> Self {
        Self { sequences: 4096, tokens: 1024, threads: 2, repetitions: 7 }
    }
}

/// The speed of evaluating GSPO-token: its value, the gradient of every token and its statistics.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ObjectiveSpeed {
    /// The number of sequences of the step.
    pub sequences: usize,
    /// The number of tokens of each sequence.
    pub tokens: usize,
    /// The number of threads.
    pub threads: usize,
    /// The wall time of an evaluation, in seconds, for each repetition.
    pub seconds: Vec<f64>,
    /// Tokens per second, by the median of the times.
    pub tokens_per_second: f64,
    /// The bytes that an evaluation has to read (three columns) and to write (one); all are `f64`.
    pub bytes: usize,
    /// The wall time in which the same threads read and write the same memory with two additions per token, for each
    /// repetition.
    pub memory_seconds: Vec<f64>,
    /// Bytes per second of `memory_seconds`, by the median of the times.
    pub memory_bytes_per_second: f64,
    /// The loss, for comparisons with another implementation.
    pub loss: f64,
    /// `Σ |∂loss/∂log π_t|`, also for comparisons.
    pub gradient_size: f64,
}

/// The reason why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum ObjectiveSpeedError {
    /// A setting is 0.
    #[error("cannot measure with these settings: each of them is at least 1")]
    Settings,
    /// The objective refused its input.
    #[error("cannot evaluate the objective")]
    Sequence(#[from] SequenceError),
}

/// Measures GSPO-token with the paper's range as a training step evaluates it, on columns that are in memory.
///
/// The numbers come from [`uniform_at`]: with u₁, u₂, u₃ in 0..1 of seeds 1, 2 and 3 at the token's place in the step,
/// the behaviour log-probability is −4u₁, the log-probability is that plus 0.02(u₂ − ½), and the advantage is 2u₃ − 1.
///
/// # Errors
/// If a setting is 0.
pub fn measure_objective(
    settings: ObjectiveSpeedSettings,
) -> Result<ObjectiveSpeed, ObjectiveSpeedError> {
    let ObjectiveSpeedSettings { sequences, tokens, threads, repetitions } = settings;
    if [sequences, tokens, threads, repetitions].contains(&0) {
        return Err(ObjectiveSpeedError::Settings);
    }
    let columns = SpeedInputs::new(sequences * tokens);
    let mut gradient = vec![0.0; sequences * tokens];
    let bytes = 4 * size_of_val(gradient.as_slice());
    let mut speed =
        ObjectiveSpeed { sequences, tokens, threads, bytes, ..ObjectiveSpeed::default() };
    for _ in 0..repetitions {
        let start = Instant::now();
        columns.add_up(tokens, threads, &mut gradient);
        speed.memory_seconds.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        speed.loss = columns.evaluate(tokens, threads, &mut gradient)?;
        speed.seconds.push(start.elapsed().as_secs_f64());
    }
    speed.gradient_size = gradient.iter().map(|coefficient| coefficient.abs()).sum();
    speed.tokens_per_second = (sequences * tokens) as f64 / median(&speed.seconds);
    speed.memory_bytes_per_second = bytes as f64 / median(&speed.memory_seconds);
    Ok(speed)
}

/// The numbers to evaluate.
struct SpeedInputs {
    logprobs: Vec<f64>,
    behavior_logprobs: Vec<f64>,
    advantages: Vec<f64>,
}

impl SpeedInputs {
    fn new(n: usize) -> Self {
        let uniform = |seed: u64, place: usize| uniform_at(seed, place as u64);
        let behavior_logprobs: Vec<f64> = (0..n).map(|place| -4.0 * uniform(1, place)).collect();
        let drift = |place: usize| 0.02 * (uniform(2, place) - 0.5);
        Self {
            logprobs: (0..n).map(|place| behavior_logprobs[place] + drift(place)).collect(),
            advantages: (0..n).map(|place| 2.0 * uniform(3, place) - 1.0).collect(),
            behavior_logprobs,
        }
    }

    /// Returns the loss, and writes its derivative with respect to each log-probability to `gradient`.
    fn evaluate(
        &self,
        tokens: usize,
        threads: usize,
        gradient: &mut [f64],
    ) -> Result<f64, SequenceError> {
        let objective = GspoToken { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
        let scale = tokens as f64 / gradient.len() as f64;
        let mut evaluations = Vec::with_capacity(gradient.len() / tokens);
        for (sequence, slots) in gradient.chunks_mut(tokens).enumerate() {
            let here = sequence * tokens..(sequence + 1) * tokens;
            let credit = Advantages::PerToken(&self.advantages[here.clone()]);
            let columns =
                Sequence::new(&self.logprobs[here.clone()], &self.behavior_logprobs[here], credit)
                    .map_err(|source| SequenceError { sequence, source })?;
            evaluations.push(EvaluationJob::new(sequence, columns, scale, slots));
        }
        evaluate_all(&objective, &mut evaluations, threads);
        let (mut loss, mut metrics) = (0.0, Metrics::default());
        for EvaluationJob { sequence, outcome, .. } in evaluations {
            let evaluated = outcome.map_err(|source| SequenceError { sequence, source })?;
            loss += evaluated.loss * scale;
            metrics.record(&evaluated);
        }
        Ok(loss)
    }

    /// Writes the sum of the three numbers of each token.
    fn add_up(&self, tokens: usize, threads: usize, sums: &mut [f64]) {
        let mut stretches: Vec<(usize, &mut [f64])> = sums.chunks_mut(tokens).enumerate().collect();
        for_each(&mut stretches, threads, |(stretch, sums)| {
            let here = *stretch * tokens..(*stretch + 1) * tokens;
            let columns = self.logprobs[here.clone()]
                .iter()
                .zip(&self.behavior_logprobs[here.clone()])
                .zip(&self.advantages[here]);
            for (sum, ((a, b), c)) in sums.iter_mut().zip(columns) {
                *sum = a + b + c;
            }
        });
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(threads: usize) -> ObjectiveSpeed {
        measure_objective(ObjectiveSpeedSettings {
            sequences: 40,
            tokens: 50,
            threads,
            repetitions: 3,
        })
        .expect("every setting is at least 1")
    }

    #[test]
    fn what_is_measured_is_one_step_whatever_the_number_of_threads() {
        let (one, three) = (measured(1), measured(3));
        assert_eq!((one.loss, one.gradient_size), (three.loss, three.gradient_size));
        assert!(one.loss != 0.0 && one.gradient_size > 0.0);
        assert_eq!((one.seconds.len(), one.memory_seconds.len()), (3, 3));
        assert_eq!(one.bytes, 40 * 50 * 32);
    }

    #[test]
    fn nothing_is_measured_of_nothing() {
        let nothing = ObjectiveSpeedSettings { tokens: 0, ..ObjectiveSpeedSettings::default() };
        assert!(matches!(measure_objective(nothing), Err(ObjectiveSpeedError::Settings)));
    }

    #[test]
    fn the_middle_of_an_even_number_of_values_is_between_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
