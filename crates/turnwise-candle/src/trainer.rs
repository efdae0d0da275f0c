//! What the learner's thread owns and does.

use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use turnwise_rollout::uniform_at;
use turnwise_training::{LearnerError, Row, Update, Updated};
use turnwise_trajectory::PolicyVersion;

use crate::adamw::AdamWState;
use crate::balance::balance_loss;
use crate::batch::{Batch, Sequence, chunk_tokens};
use crate::followers::{Follower, Followers};
use crate::forward::Forward;
use crate::layout::Network;
use crate::numbers::numbers;
use crate::published::Published;
use crate::{AdamW, Decoder, DecoderConfig, ModelError};

/// The name of the optimiser's file.
const OPTIMIZER: &str = "optimizer.safetensors";

/// A model, its gradient and its optimiser. Not to be moved between threads in mid-call: a backward pass recurses deeply.
#[derive(Debug)]
pub(crate) struct Trainer {
    model: Decoder,
    forward: Forward,
    settings: AdamW,
    /// What the loss of uneven experts is multiplied by.
    balance: f64,
    optimizer: AdamWState,
    /// What was accumulated since the last step, in the order of the parameters.
    gradients: Vec<Vec<f32>>,
    published: Published,
    followers: Followers,
    /// The weights that a penalty keeps close to, when somebody asked for them to be kept.
    reference: Option<Decoder>,
}

/// A forward pass that waits for the gradient of its log-probabilities.
#[derive(Debug)]
pub(crate) struct Pending {
    parts: Vec<Part>,
}

/// Some of the rows.
#[derive(Debug)]
struct Part {
    batch: Batch,
    /// With the graph behind them. `[M]`
    logprobs: Tensor,
    /// The loss of uneven experts, when it is wanted and there are experts.
    balance: Option<Tensor>,
}

impl Trainer {
    pub(crate) fn new(model: Decoder, settings: AdamW) -> Result<Self, ModelError> {
        let forward = model.forward();
        let specs = model.specs();
        let published = Published::new(PolicyVersion(0), model.weights()?);
        Ok(Self {
            optimizer: AdamWState::new(settings, &specs),
            gradients: specs.iter().map(|spec| vec![0.0; spec.len()]).collect(),
            forward,
            settings,
            balance: 0.0,
            model,
            published,
            followers: Followers::default(),
            reference: None,
        })
    }

    /// Adds this multiple of [`balance_loss`] to every call's loss.
    pub(crate) fn with_balance(self, coefficient: f64) -> Self {
        Self { balance: coefficient, ..self }
    }

    #[cfg(test)]
    pub(crate) fn gradients(&self) -> &[Vec<f32>] {
        &self.gradients
    }

    #[cfg(test)]
    pub(crate) fn model(&self) -> &Decoder {
        &self.model
    }

    pub(crate) fn published(&self) -> Published {
        self.published.clone()
    }

    pub(crate) fn check_gradients(&self) -> Result<(), LearnerError> {
        self.check_gradients_in(&self.model.tracked())
    }

    /// The check for weights that are arranged in a network.
    pub(crate) fn check_gradients_in(&self, network: &Network<Tensor>) -> Result<(), LearnerError> {
        let DecoderConfig { vocab_size, max_positions, .. } = *self.model.config();
        #[expect(clippy::cast_sign_loss, reason = "neither factor is negative")]
        let random = |index| (uniform_at(0, index) * vocab_size as f64) as u32;
        let rows: Vec<Vec<u32>> = (0..2_u64)
            .map(|row| (0..max_positions.min(8) as u64).map(|i| random(row * 8 + i)).collect())
            .collect();
        if max_positions < 2 {
            return Err(failed("check gradients", "a model of one position predicts nothing"));
        }
        let sequences: Vec<Sequence<'_>> = rows.iter().map(|ids| Sequence::whole(ids)).collect();
        let pending = self.run(network, &sequences).map_err(in_model)?;
        // Uneven coefficients: with equal ones a gradient can be zero by symmetry.
        let count: usize = pending.parts.iter().map(|part| part.batch.n_targets()).sum();
        let coefficients: Vec<f32> = (0..count).map(|i| 1.0 + i as f32 * 0.1).collect();
        let gradients = self.gradients_of(pending, &coefficients)?;
        let named = || self.model.parameters().iter().map(|p| p.spec.name.as_str()).zip(&gradients);
        let wrong: Vec<_> = named().filter(|(_, g)| g.iter().any(|x| !x.is_finite())).collect();
        if let Some((name, _)) = wrong.first() {
            return Err(failed("check gradients", format!("the gradient of {name} is not finite")));
        }
        for (parameter, _) in named().filter(|(_, g)| g.iter().all(|x| *x == 0.0)) {
            tracing::warn!(parameter, "the gradient is zero everywhere");
        }
        Ok(())
    }

    pub(crate) fn logprobs(&self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        self.logprobs_of(&self.model, rows)
    }

    /// Keeps a copy of the weights as they are now.
    pub(crate) fn keep_reference(&mut self) -> Result<(), LearnerError> {
        let copy = self.model.frozen_copy();
        self.reference = Some(copy.map_err(|error| failed("keep reference weights", error))?);
        Ok(())
    }

    pub(crate) fn reference_logprobs(&self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        self.logprobs_of(self.reference.as_ref().ok_or(LearnerError::NoReference)?, rows)
    }

    fn logprobs_of(&self, model: &Decoder, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let sequences = self.sequences(rows)?;
        let network = model.detached();
        let run = || {
            let mut all = Vec::with_capacity(rows.len());
            for chunk in self.chunks(&sequences) {
                let batch = Batch::new(chunk)?;
                all.extend(batch.split(&self.forward.logprobs(&network, &batch)?)?);
            }
            Ok(all)
        };
        run().map_err(in_model)
    }

    /// The first half of accumulating: log-probabilities, and what their gradient is carried back through.
    pub(crate) fn forward(&self, rows: &[Row]) -> Result<(Vec<Vec<f32>>, Pending), LearnerError> {
        let sequences = self.sequences(rows)?;
        let pending = self.run(&self.model.tracked(), &sequences).map_err(in_model)?;
        let split = pending.parts.iter().map(|part| part.batch.split(&part.logprobs));
        let split: Vec<_> = split.collect::<candle_core::Result<_>>().map_err(in_model)?;
        Ok((split.concat(), pending))
    }

    /// The second half: adds the gradient of `sum(coefficient * logprob)`.
    pub(crate) fn backward(
        &mut self,
        pending: Pending,
        coefficients: &[f32],
    ) -> Result<(), LearnerError> {
        // Summed apart first: a failure half-way must not leave half a gradient.
        let gradients = self.gradients_of(pending, coefficients)?;
        for (sum, gradient) in self.gradients.iter_mut().zip(gradients) {
            crate::math::add_scaled(sum, 1.0, &gradient);
        }
        Ok(())
    }

    pub(crate) fn step(&mut self, update: Update) -> Result<Updated, LearnerError> {
        let Update { learning_rate, max_grad_norm } = update;
        if !(learning_rate.is_finite() && learning_rate >= 0.0) {
            return Err(failed("step", format!("the learning rate is {learning_rate}")));
        }
        if max_grad_norm.is_nan() || max_grad_norm <= 0.0 {
            return Err(failed("step", format!("the largest gradient norm is {max_grad_norm}")));
        }
        let squares = self.gradients.iter().flatten().map(|x| f64::from(*x) * f64::from(*x));
        let grad_norm = squares.sum::<f64>().sqrt();
        let applied = grad_norm.is_finite();
        if applied {
            let scale = if grad_norm > max_grad_norm { max_grad_norm / grad_norm } else { 1.0 };
            self.optimizer
                .step(self.model.parameters(), &self.gradients, scale, learning_rate)
                .map_err(|error| failed("step", error))?;
        } else {
            tracing::warn!(grad_norm, "the gradient is not finite: the step is left out");
        }
        self.clear();
        Ok(Updated { grad_norm, applied })
    }

    pub(crate) fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        let version = self.published.version().next();
        self.publish_as(version)?;
        Ok(version)
    }

    /// Tells a follower of the weights now, and of all that are published later.
    pub(crate) fn follow(&mut self, mut follower: Follower) -> Result<(), LearnerError> {
        let told = follower(self.published.version(), &self.model);
        told.map_err(|error| failed("hand over weights", error))?;
        self.followers.add(follower);
        Ok(())
    }

    pub(crate) fn save(&self, directory: &Path) -> Result<(), LearnerError> {
        let save = || {
            self.model.save_exactly(directory)?;
            self.optimizer.save(&directory.join(OPTIMIZER), &self.model.specs())
        };
        save().map_err(|error| failed(format!("save to {}", directory.display()), error))
    }

    pub(crate) fn load(
        &mut self,
        directory: &Path,
        version: PolicyVersion,
    ) -> Result<(), LearnerError> {
        let action = format!("load from {}", directory.display());
        let read = || {
            let loaded = Decoder::from_directory(directory)?;
            let (theirs, ours) = (loaded.config(), self.model.config());
            if theirs != ours {
                let reason = format!("the model there is {theirs:?}, and this one {ours:?}");
                return Err(ModelError::BadConfig(reason));
            }
            let path = directory.join(OPTIMIZER);
            Ok((loaded.values()?, AdamWState::load(self.settings, &path, &self.model.specs())?))
        };
        // Everything is read before anything is changed.
        let (values, optimizer) = read().map_err(|error| failed(&*action, error))?;
        self.model.set_values(values).map_err(|error| failed(action, error))?;
        self.optimizer = optimizer;
        self.clear();
        self.publish_as(version)
    }

    fn publish_as(&mut self, version: PolicyVersion) -> Result<(), LearnerError> {
        let weights = self.model.weights().map_err(|error| failed("publish weights", error))?;
        let told = self.followers.tell(version, &self.model);
        told.map_err(|error| failed("hand over weights", error))?;
        self.published.publish(version, weights);
        Ok(())
    }

    fn clear(&mut self) {
        self.gradients.iter_mut().for_each(|gradient| gradient.fill(0.0));
    }

    fn chunks<'s, 'a>(&self, sequences: &'s [Sequence<'a>]) -> Vec<&'s [Sequence<'a>]> {
        Batch::chunks(sequences, chunk_tokens(self.model.config()), |sequence| sequence.ids.len())
    }

    fn run(
        &self,
        network: &Network<Tensor>,
        sequences: &[Sequence<'_>],
    ) -> candle_core::Result<Pending> {
        let parts = self.chunks(sequences).into_iter().map(|chunk| {
            let batch = Batch::new(chunk)?;
            let (logprobs, routed) = self.forward.logprobs_and_routes(network, &batch)?;
            let balance = if self.balance == 0.0 { None } else { balance_loss(&routed)? };
            Ok(Part { batch, logprobs, balance })
        });
        Ok(Pending { parts: parts.collect::<candle_core::Result<_>>()? })
    }

    /// The gradient of `sum(coefficient * logprob)` and of the loss of uneven experts with respect to every parameter. Each
    /// part's graph is freed behind it. The loss of a part weighs as much as it has of the tokens.
    fn gradients_of(
        &self,
        pending: Pending,
        mut coefficients: &[f32],
    ) -> Result<Vec<Vec<f32>>, LearnerError> {
        let parameters = self.model.parameters();
        let mut sums: Vec<Vec<f32>> = parameters.iter().map(|p| vec![0.0; p.spec.len()]).collect();
        let tokens = |part: &Part| part.batch.n_inputs() as f64;
        let all: f64 = pending.parts.iter().map(tokens).sum();
        for part in pending.parts {
            let (own, rest) = coefficients.split_at(part.batch.n_targets());
            coefficients = rest;
            if own.is_empty() {
                continue;
            }
            let store = backward(&part, own, self.balance * tokens(&part) / all);
            let store = store.map_err(in_model)?;
            let missing = parameters.iter().filter(|parameter| store.get(&parameter.var).is_none());
            let names: Vec<String> = missing.map(|parameter| parameter.spec.name.clone()).collect();
            if !names.is_empty() {
                return Err(LearnerError::NoGradient { names });
            }
            for (sum, parameter) in sums.iter_mut().zip(parameters) {
                add_gradient(sum, &store, &parameter.var).map_err(in_model)?;
            }
        }
        Ok(sums)
    }

    fn sequences<'a>(&self, rows: &'a [Row]) -> Result<Vec<Sequence<'a>>, LearnerError> {
        let checked = rows.iter().enumerate().map(|(row, content)| {
            check_row(self.model.config(), content)
                .map_err(|reason| LearnerError::BadRow { row, reason })?;
            let targets = content.targets.iter().map(|t| (t.position, t.temperature)).collect();
            Ok(Sequence { ids: &content.ids, targets })
        });
        checked.collect()
    }
}

fn check_row(config: &DecoderConfig, row: &Row) -> Result<(), String> {
    let DecoderConfig { vocab_size, max_positions, .. } = *config;
    let length = row.ids.len();
    if length == 0 {
        return Err("it has no tokens".to_owned());
    }
    if length > max_positions {
        return Err(format!("{length} tokens are more than the model's {max_positions} positions"));
    }
    if let Some(at) = row.ids.iter().position(|id| *id as usize >= vocab_size) {
        let id = row.ids[at];
        return Err(format!(
            "token {id} at position {at} is beyond the vocabulary of {vocab_size}"
        ));
    }
    if let Some(target) = row.kept.keys().next() {
        let position = row.targets.get(*target).map_or(0, |target| target.position);
        return Err(format!(
            "the token at position {position} was drawn from a truncated distribution, over which this model cannot run \
             its softmax; sample with top_p 1, top_k 0 and min_p 0"
        ));
    }
    for target in &row.targets {
        let (position, temperature) = (target.position, target.temperature);
        if position == 0 || position >= length {
            return Err(format!("target position {position} must lie from 1 to below {length}"));
        }
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(format!(
                "temperature {temperature} at position {position} is not positive"
            ));
        }
    }
    Ok(())
}

fn backward(part: &Part, coefficients: &[f32], balance: f64) -> candle_core::Result<GradStore> {
    let coefficients = Tensor::from_slice(coefficients, coefficients.len(), &Device::Cpu)?;
    let loss = (&part.logprobs * coefficients)?.sum_all()?;
    match &part.balance {
        Some(uneven) => (loss + (uneven * balance)?)?.backward(),
        None => loss.backward(),
    }
}

fn add_gradient(sum: &mut [f32], store: &GradStore, parameter: &Tensor) -> candle_core::Result<()> {
    if let Some(gradient) = store.get(parameter) {
        let gradient = gradient.contiguous()?;
        crate::math::add_scaled(sum, 1.0, &numbers(&gradient)?);
    }
    Ok(())
}

fn in_model(error: candle_core::Error) -> LearnerError {
    failed("compute with the model", error)
}

fn failed(
    action: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> LearnerError {
    LearnerError::failed(action, source)
}
