//! How a server adds up the gradients of tokens, measured when it is connected.

use super::messages::Datum;
use super::remote_model::{AdamStep, RemoteModel};
use super::shifted_row::ShiftedRow;
use crate::fault::ServerFault;

/// What a server divides gradients by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scale {
    /// Whether a sequence's gradient is divided by the number of its predicted tokens.
    divides_by_tokens: bool,
    among: Among,
}

/// What else a gradient is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Among {
    Nothing,
    /// The number of sequences of its request.
    Request,
    /// The number of sequences since the last step.
    Window,
}

/// The reason why a scale is not known.
#[derive(Debug)]
pub(super) enum ScaleError {
    Fault(ServerFault),
    /// The measured numbers fit no rule.
    Unfit(String),
}

impl From<ServerFault> for ScaleError {
    fn from(fault: ServerFault) -> Self {
        Self::Fault(fault)
    }
}

/// The largest relative error of a ratio of norms.
const TOLERANCE: f64 = 0.02;
/// The change of a log-probability that a step of known length should cause, in nats.
const KNOWN_CHANGE: f64 = 0.1;
/// The largest relative error of that change: the log-probability is not quite linear, and servers round.
const CHANGE_TOLERANCE: f64 = 0.3;
/// Ids that every vocabulary has.
const IDS: [u32; 7] = [1, 2, 3, 4, 5, 6, 7];
/// The length of the shorter sequence, which begins the longer.
const N_SHORT: usize = 3;

impl Scale {
    /// Returns the number by which advantages are multiplied, so that the gradients of all tokens add up.
    pub(super) fn factor(self, n_tokens: usize, n_request: usize, n_window: usize) -> f64 {
        let tokens = if self.divides_by_tokens { n_tokens as f64 } else { 1.0 };
        tokens
            * match self.among {
                Among::Nothing => 1.0,
                Among::Request => n_request as f64,
                Among::Window => n_window as f64,
            }
    }

    /// Measures the scale on a model that is not needed afterwards.
    ///
    /// The first token of a sequence has the same gradient whether two or six tokens follow, so norms of gradients show what
    /// they are divided by. One step whose length is known then shows the absolute scale, and its sign.
    pub(super) async fn measure(model: &mut RemoteModel) -> Result<Self, ScaleError> {
        let mut measured = ScaleProbe::new(model).await?;
        let short = measured.norm(&[&[Which::Short]]).await?;
        if !(short.is_finite() && short > 0.0) {
            return Err(ScaleError::Unfit(format!(
                "the gradient of a token has the norm {short}; the model cannot be trained"
            )));
        }
        let long = measured.norm(&[&[Which::Long]]).await? / short;
        let twice = measured.norm(&[&[Which::Short, Which::Short]]).await? / short;
        let apart = measured.norm(&[&[Which::Short], &[Which::Short]]).await? / short;
        let scale = Self::of_ratios(long, twice, apart).ok_or_else(|| {
            ScaleError::Unfit(format!(
                "its gradients are scaled in an unknown way: relative to a sequence of 2 tokens, the same token in 6 has \
                 {long:.4}, two sequences in one request have {twice:.4}, and in two requests {apart:.4}"
            ))
        })?;
        measured.check_length(scale, short).await?;
        Ok(scale)
    }

    /// Returns the rule that fits norms relative to that of the short sequence.
    fn of_ratios(long: f64, twice: f64, apart: f64) -> Option<Self> {
        let is = |ratio: f64, expected: f64| (ratio - expected).abs() <= TOLERANCE * expected;
        let share = (N_SHORT - 1) as f64 / (IDS.len() - 1) as f64;
        let divides_by_tokens = match long {
            ratio if is(ratio, 1.0) => false,
            ratio if is(ratio, share) => true,
            _ => return None,
        };
        let among = match (twice, apart) {
            (twice, apart) if is(twice, 2.0) && is(apart, 2.0) => Among::Nothing,
            (twice, apart) if is(twice, 1.0) && is(apart, 2.0) => Among::Request,
            (twice, apart) if is(twice, 1.0) && is(apart, 1.0) => Among::Window,
            _ => return None,
        };
        Some(Self { divides_by_tokens, among })
    }
}

/// A sequence of the measurement.
#[derive(Clone, Copy, Debug)]
enum Which {
    Short,
    Long,
}

/// The model that is measured.
#[derive(Debug)]
struct ScaleProbe<'a> {
    model: &'a mut RemoteModel,
    short: ShiftedRow,
    long: ShiftedRow,
    /// Log-probabilities of the longer sequence, which begin with those of the shorter.
    logprobs: Vec<f32>,
}

impl<'a> ScaleProbe<'a> {
    async fn new(model: &'a mut RemoteModel) -> Result<Self, ServerFault> {
        let short = ShiftedRow::new(IDS[..N_SHORT].to_vec());
        let long = ShiftedRow::new(IDS.to_vec());
        let logprobs = model.forward(std::slice::from_ref(&long)).await?.remove(0);
        Ok(Self { model, short, long, logprobs })
    }

    /// Returns a sequence in which the first token has the advantage 1, and all others 0.
    fn datum(&self, which: Which) -> Datum {
        let sequence = match which {
            Which::Short => &self.short,
            Which::Long => &self.long,
        };
        let mut advantages = vec![0.0; sequence.len()];
        advantages[0] = 1.0;
        sequence.weighted(&self.logprobs[..sequence.len()], &advantages)
    }

    /// Returns the norm of the gradient of sequences, by request, and leaves the weights as they are.
    async fn norm(&mut self, requests: &[&[Which]]) -> Result<f64, ServerFault> {
        for request in requests {
            let data = request.iter().map(|which| self.datum(*which)).collect();
            self.model.forward_backward(data).await?;
        }
        self.model.optim_step(forgetful(0.0, 1.0)).await
    }

    /// Takes a step of known length, and checks how the log-probability changes.
    async fn check_length(&mut self, scale: Scale, norm: f64) -> Result<(), ScaleError> {
        let factor = scale.factor(N_SHORT - 1, 1, 1);
        // An epsilon beyond every number of the gradient makes Adam's step lr / epsilon times the gradient.
        let epsilon = 1e6 * norm.max(1e-6);
        let learning_rate = KNOWN_CHANGE * epsilon / (norm * norm * factor);
        self.model.forward_backward(vec![self.datum(Which::Short)]).await?;
        self.model.optim_step(forgetful(learning_rate, epsilon)).await?;
        let after = self.model.forward(std::slice::from_ref(&self.long)).await?;
        let change = f64::from(after[0][0]) - f64::from(self.logprobs[0]);
        if (change / KNOWN_CHANGE - 1.0).abs() > CHANGE_TOLERANCE {
            return Err(ScaleError::Unfit(format!(
                "a step that should raise a log-probability by {KNOWN_CHANGE} nats changes it by {change:.4}: the gradient \
                 has an unknown constant factor, or the optimiser is not Adam"
            )));
        }
        Ok(())
    }
}

/// Returns a step without memory of earlier ones.
fn forgetful(learning_rate: f64, epsilon: f64) -> AdamStep {
    AdamStep { learning_rate, beta1: 0.0, beta2: 0.0, epsilon, weight_decay: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_of_norms_show_the_rule() {
        let third = 1.0 / 3.0;
        let factor = |long, twice, apart| {
            Scale::of_ratios(long, twice, apart).map(|scale| scale.factor(5, 2, 8))
        };
        assert_eq!(factor(1.0, 2.0, 2.0), Some(1.0));
        assert_eq!(factor(third, 1.001, 0.999), Some(40.0));
        assert_eq!(factor(third, 1.0, 2.0), Some(10.0));
        assert_eq!(factor(third, 2.0, 2.0), Some(5.0));
        assert_eq!(factor(1.0, 1.0, 1.0), Some(8.0));
        for (long, twice, apart) in
            [(0.5, 2.0, 2.0), (1.0, 1.5, 2.0), (1.0, 2.0, 1.0), (f64::NAN, 2.0, 2.0)]
        {
            assert_eq!(factor(long, twice, apart), None, "{long} {twice} {apart}");
        }
    }
}
