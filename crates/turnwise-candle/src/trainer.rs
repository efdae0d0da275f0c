//! The state and the work of the learner's thread.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use turnwise_rollout::{Meter, uniform_at};
use turnwise_training::{LearnerError, Row, Target, Update, Updated};
use turnwise_trajectory::PolicyVersion;

use crate::accumulated::Accumulated;
use crate::adamw::Optimizer;
use crate::batch::{CHUNK_TOKENS, Cut, PackedBatch, ScoredSequence};
use crate::finite::all_finite;
use crate::followers::{Follower, Followers};
use crate::layout::{Network, ParameterRole};
use crate::numbers::host_numbers;
use crate::pass::Pass;
use crate::published::{Publication, Published};
use crate::shares::{PassPart, Shares};
use crate::slots::Slot;
use crate::snapshot::Snapshot;
use crate::tape::{Keep, Loss, Played};
use crate::{AdamW, ComputePrecision, Decoder, DecoderConfig, EngineWeights, ModelError};

/// The name of the optimiser's file.
const OPTIMIZER: &str = "optimizer.safetensors";

/// The directory of adapters inside a checkpoint: next to the weights, transformers would load the adapters only.
const ADAPTER: &str = "adapter";

/// Settings of a learner's computation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearnerSettings {
    /// The weight of the load-balancing loss: each call of [`accumulate`](turnwise_training::Learner::accumulate) adds
    /// the gradient of this times [`Decoder::balance`] over the tokens of its rows. A thousandth is usual
    /// (`router_aux_loss_coef` of published configurations). It has no effect on a model without experts.
    pub balance: f64,
    /// Whether only the input of each layer is kept for the backward pass, which recomputes each layer: a third more
    /// time for the activations of one layer instead of all.
    pub recompute_layers: bool,
    /// The precision of products: bf16 is for a model of [`Kernels::Plain`](crate::Kernels), on a device with fast
    /// bf16.
    pub compute: ComputePrecision,
    /// The number of compute threads; 0 means one per processor.
    pub threads: usize,
}

/// A model, its gradient and its optimiser. It must stay on its thread during a call: the backward pass of
/// [`Kernels::Plain`] recurses deeply.
#[derive(Debug)]
pub(crate) struct LearnerState {
    model: Decoder,
    optimizer_settings: AdamW,
    settings: LearnerSettings,
    optimizer: Optimizer,
    /// Gradients accumulated since the last step.
    gradients: Accumulated,
    published: Published,
    /// Whether the weights changed since the last publication.
    moved: bool,
    followers: Followers,
    /// Frozen reference weights for the KL penalty, if `keep_reference` was called.
    reference: Option<Decoder>,
    shares: Shares,
    /// Progress of a save or a load.
    meter: Meter,
}

/// A forward pass that waits for the gradient of its log-probabilities.
#[derive(Debug)]
pub(crate) struct Pending {
    parts: Vec<Waiting>,
    /// The number of targets of each row.
    counts: Vec<usize>,
}

#[cfg(test)]
impl Pending {
    /// Returns how often each expert of each layer is used.
    pub(crate) fn uses(&self) -> Vec<Vec<f64>> {
        let uses = self.parts.iter().flat_map(|part| part.pass.uses());
        uses.map(|layer| layer.counts.clone()).collect()
    }
}

/// A forward pass over some of the rows.
#[derive(Debug)]
struct Waiting {
    pass: Pass,
    /// The indices of the rows.
    rows: Vec<usize>,
}

impl Waiting {
    /// Returns the number of tokens of its rows.
    fn n_tokens(&self) -> f64 {
        self.pass.batch().multiplicities.iter().map(|times| f64::from(*times)).sum()
    }
}

impl LearnerState {
    pub(crate) fn new(
        model: Decoder,
        optimizer_settings: AdamW,
        settings: LearnerSettings,
    ) -> Result<Self, ModelError> {
        let model = model.with_precision(settings.compute).with_packed_base()?;
        Ok(Self {
            optimizer: Optimizer::new(optimizer_settings, &model)?,
            gradients: Accumulated::of(&model),
            optimizer_settings,
            settings,
            model,
            published: Published::unasked(PolicyVersion(0)),
            moved: false,
            followers: Followers::default(),
            reference: None,
            shares: Shares::default(),
            meter: Meter::default(),
        })
    }

    /// Returns the progress of a save or a load, in bytes.
    pub(crate) fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Returns the time of all calls so far, by kind of work.
    pub(crate) fn shares(&self) -> Shares {
        self.shares
    }

    #[cfg(test)]
    pub(crate) fn gradients(&self) -> Vec<Vec<f32>> {
        self.gradients.to_host(&self.model).unwrap()
    }

    #[cfg(test)]
    pub(crate) fn model(&self) -> &Decoder {
        &self.model
    }

    pub(crate) fn published(&self) -> Published {
        self.published.clone()
    }

    pub(crate) fn check_gradients(&self) -> Result<(), LearnerError> {
        self.meter.begin("passes", 3);
        let checked = self.check_gradients_in(|_| {});
        self.meter.end();
        checked
    }

    /// Checks the gradients of a modified network.
    pub(crate) fn check_gradients_in(
        &self,
        rewire: impl FnOnce(&mut Network<Slot<'_>>),
    ) -> Result<(), LearnerError> {
        let DecoderConfig { vocab_size, max_positions, .. } = *self.model.config();
        #[expect(clippy::cast_sign_loss, reason = "neither factor is negative")]
        let random = |index| (uniform_at(0, index) * vocab_size as f64) as u32;
        let rows: Vec<Vec<u32>> = (0..2_u64)
            .map(|row| (0..max_positions.min(8) as u64).map(|i| random(row * 8 + i)).collect())
            .collect();
        if max_positions < 2 {
            return Err(failed("check gradients", "a model of one position predicts nothing"));
        }
        let sequences: Vec<ScoredSequence<'_>> =
            rows.iter().map(|ids| ScoredSequence::whole(ids)).collect();
        let batch = Arc::new(PackedBatch::new(&sequences));
        // Non-uniform derivatives: with equal ones a gradient can be zero by symmetry.
        let dlogprobs: Vec<f32> = (0..batch.n_targets()).map(|i| 1.0 + i as f32 * 0.1).collect();
        let loss = Loss { dlogprobs: &dlogprobs, ..Loss::default() };
        let mut gradients = self.model.zero_gradients();
        let pass = self.model.pass_in(batch, self.keep(), rewire).map_err(in_model)?;
        self.meter.advance(1);
        let played = self.model.backward(pass, loss, &mut gradients).map_err(in_model)?;
        self.meter.advance(1);
        // The third pass is over the gradients.
        self.check_reached(&played)?;
        let mut named = self.model.parameters().iter().zip(&gradients);
        if let Some((parameter, _)) = named.find(|(_, gradient)| !all_finite(gradient)) {
            return Err(LearnerError::NotFinite {
                action: "check gradients".to_owned(),
                reason: format!("the gradient of {} is not finite", parameter.spec.name),
            });
        }
        let unmoved = self.unmoved(&gradients).map_err(in_model)?;
        if let Some(first) = unmoved.first() {
            let count = unmoved.len();
            tracing::warn!(first, count, "parameters whose gradient is zero everywhere");
        }
        Ok(())
    }

    /// Returns the parameters that would not change. The first matrix of a new adapter is not among them: its gradient
    /// is zero only as long as the second matrix is zero.
    fn unmoved(&self, gradients: &[Vec<f32>]) -> candle_core::Result<Vec<&str>> {
        let is_zero = |x: &[f32]| !x.is_empty() && x.iter().all(|x| *x == 0.0);
        let parameters = self.model.parameters();
        let mut names = Vec::new();
        for (index, parameter) in parameters.iter().enumerate() {
            let is_new = parameter.spec.role == ParameterRole::AdapterDown
                && !is_zero(&gradients[index + 1])
                && is_zero(&host_numbers(parameters[index + 1].var())?);
            if is_zero(&gradients[index]) && !is_new {
                names.push(parameter.spec.name.as_str());
            }
        }
        Ok(names)
    }

    fn check_reached(&self, played: &Played) -> Result<(), LearnerError> {
        let parameters = self.model.parameters().iter().zip(&played.reached);
        let missing = parameters.filter(|(parameter, reached)| parameter.trainable && !**reached);
        let names: Vec<String> =
            missing.map(|(parameter, _)| parameter.spec.name.clone()).collect();
        if names.is_empty() { Ok(()) } else { Err(LearnerError::NoGradient { names }) }
    }

    fn keep(&self) -> Keep {
        if self.settings.recompute_layers { Keep::Layers } else { Keep::Activations }
    }

    pub(crate) fn logprobs(&self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        self.logprobs_of("log-probabilities", &self.model, rows)
    }

    /// Keeps a copy of the current weights.
    pub(crate) fn keep_reference(&mut self) -> Result<(), LearnerError> {
        let copy = self.model.frozen_copy();
        self.reference = Some(copy.map_err(|error| failed("keep reference weights", error))?);
        Ok(())
    }

    pub(crate) fn reference_logprobs(&self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let reference = self.reference.as_ref().ok_or(LearnerError::NoReference)?;
        self.logprobs_of("log-probabilities of the reference policy", reference, rows)
    }

    fn logprobs_of(
        &self,
        what: &str,
        model: &Decoder,
        rows: &[Row],
    ) -> Result<Vec<Vec<f32>>, LearnerError> {
        let parts = self.run(what, model, rows, Keep::Nothing, |_| ());
        Ok(parts?.1)
    }

    /// Computes the first half of accumulation: log-probabilities, and the passes for their gradient.
    pub(crate) fn forward(
        &mut self,
        rows: &[Row],
    ) -> Result<(Vec<Vec<f32>>, Pending), LearnerError> {
        let (parts, logprobs) =
            self.run("log-probabilities", &self.model, rows, self.keep(), |waiting| waiting)?;
        for part in &parts {
            self.shares.add(&part.pass.shares());
        }
        let counts = logprobs.iter().map(Vec::len).collect();
        Ok((logprobs, Pending { parts, counts }))
    }

    /// Computes the second half: adds the gradient of `sum(coefficient * logprob)` and of the load-balancing loss, in
    /// which each part is weighted by its tokens. The activations of a part are freed after its backward pass.
    pub(crate) fn backward(
        &mut self,
        pending: Pending,
        coefficients: &[f32],
    ) -> Result<(), LearnerError> {
        let mut rest = coefficients;
        let by_row: Vec<&[f32]> = pending
            .counts
            .iter()
            .map(|count| {
                let (own, after) = rest.split_at(*count);
                rest = after;
                own
            })
            .collect();
        let before = self.gradients.kept();
        let added = self.add_parts(pending.parts, &by_row).map_err(in_model);
        // A partial gradient must not stay.
        if let (Err(_), Some(before)) = (&added, before) {
            self.gradients = before;
        }
        added
    }

    fn add_parts(&mut self, parts: Vec<Waiting>, by_row: &[&[f32]]) -> candle_core::Result<()> {
        let all: f64 = parts.iter().map(Waiting::n_tokens).sum();
        for part in parts {
            let rows: Vec<&[f32]> = part.rows.iter().map(|row| by_row[*row]).collect();
            let dlogprobs = part.pass.batch().join(&rows);
            let balance = self.settings.balance * part.n_tokens() / all;
            let loss = Loss { dlogprobs: &dlogprobs, dentropies: None, balance };
            let played = self.gradients.add(&self.model, part.pass, loss)?;
            self.shares.add(&played.shares);
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
        let start = Instant::now();
        let grad_norm = self.gradients.norm().map_err(|error| failed("step", error))?;
        let applied = grad_norm.is_finite();
        let mut not_finite = None;
        if applied {
            self.moved = true;
            let scale = if grad_norm > max_grad_norm { max_grad_norm / grad_norm } else { 1.0 };
            self.optimizer
                .step(self.model.parameters(), &self.gradients, scale, learning_rate)
                .map_err(|error| failed_by("step", error))?;
        } else {
            let parameter = self.gradients.first_not_finite(&self.model);
            not_finite = parameter.map_err(|error| failed("step", error))?;
            tracing::warn!(
                grad_norm,
                parameter = not_finite,
                "the gradient is not finite: the step is left out"
            );
        }
        self.clear();
        self.shares.add_since(PassPart::Optimizer, start);
        Ok(Updated { grad_norm, applied, not_finite })
    }

    pub(crate) fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        let version = self.published.version().next();
        self.publish_as(version)?;
        Ok(version)
    }

    /// Returns the newest weights for an engine that asks for them in a form. As long as no engine asked, none are packed; if
    /// the weights changed since the last publication, they are then published as a new version.
    pub(crate) fn offer(&mut self, weights: EngineWeights) -> Result<Publication, LearnerError> {
        let form = self.published.ask(weights);
        let version = match self.published.newest() {
            Some(newest) if self.moved || newest.weights.has_form(form) => return Ok(newest),
            None if self.moved => self.published.version().next(),
            _ => self.published.version(),
        };
        let weights = self.packed(form)?;
        if self.moved {
            self.tell(version)?;
        }
        self.moved = false;
        Ok(self.published.publish(version, weights))
    }

    /// Calls a follower with the current weights, and with all that are published later.
    pub(crate) fn follow(&mut self, mut follower: Follower) -> Result<(), LearnerError> {
        let told = follower(self.published.version(), &self.model);
        told.map_err(|error| failed("hand over weights", error))?;
        self.followers.add(follower);
        Ok(())
    }

    pub(crate) fn save(&self, directory: &Path) -> Result<(), LearnerError> {
        let precision = self.optimizer_settings.moments;
        let bytes = self.model.config().checkpoint_bytes(self.model.lora(), precision);
        let moments = precision.file_bytes(self.model.n_trainable() as u64);
        self.meter
            .begin(Meter::BYTES, if self.optimizer.is_new() { bytes - moments } else { bytes });
        let save = || {
            self.model.save_exactly(directory, &self.meter)?;
            if self.model.lora().is_some() {
                let adapter = directory.join(ADAPTER);
                fs::create_dir_all(&adapter).map_err(|error| ModelError::write(&adapter, error))?;
                self.model.save_adapter(&adapter)?;
            }
            let path = directory.join(OPTIMIZER);
            self.optimizer.save(&path, &self.model.trainable_specs(), &self.meter)
        };
        let saved = save();
        self.meter.end();
        saved.map_err(|error| failed_by(format!("save to {}", directory.display()), error))
    }

    pub(crate) fn load(
        &mut self,
        directory: &Path,
        version: PolicyVersion,
    ) -> Result<(), LearnerError> {
        let action = format!("load from {}", directory.display());
        let read = || {
            let loaded = Decoder::load(directory, None, &self.meter)?;
            let (theirs, ours) = (loaded.config(), self.model.config());
            // Weights do not determine the longest sequence.
            let max_positions = ours.max_positions;
            if (DecoderConfig { max_positions, ..theirs.clone() }) != *ours {
                let reason = format!("the model there is {theirs:?}, and this one {ours:?}");
                return Err(ModelError::BadConfig(reason));
            }
            let path = directory.join(OPTIMIZER);
            let (settings, meter) = (self.optimizer_settings, &self.meter);
            let optimizer = Optimizer::load(settings, &path, &self.model, meter)?;
            let model = match self.model.lora() {
                Some(_) => self.model.with_adapter_of(&directory.join(ADAPTER), &loaded)?,
                None => loaded.moved(self.model.place().clone())?,
            };
            Ok((model, optimizer))
        };
        // Everything is read before anything is changed.
        let read = read();
        self.meter.end();
        let (model, optimizer) = read.map_err(|error| failed_by(action, error))?;
        self.model.take_weights(model);
        self.optimizer = optimizer;
        self.clear();
        self.publish_as(version)
    }

    fn publish_as(&mut self, version: PolicyVersion) -> Result<(), LearnerError> {
        let weights = self.published.wanted().map(|form| self.packed(form)).transpose()?;
        self.tell(version)?;
        self.moved = false;
        match weights {
            Some(weights) => drop(self.published.publish(version, weights)),
            None => self.published.publish_unasked(version),
        }
        Ok(())
    }

    fn packed(&self, form: EngineWeights) -> Result<Snapshot, LearnerError> {
        self.model.snapshot(form).map_err(|error| failed_by("publish weights", error))
    }

    fn tell(&mut self, version: PolicyVersion) -> Result<(), LearnerError> {
        let told = self.followers.tell(version, &self.model);
        told.map_err(|error| failed("hand over weights", error))
    }

    fn clear(&mut self) {
        self.gradients.clear();
    }

    /// Runs passes over some rows at a time and returns the result of `part` for each pass, and the log-probabilities
    /// of all rows. `what` names the rows in errors.
    fn run<P>(
        &self,
        what: &str,
        model: &Decoder,
        rows: &[Row],
        keep: Keep,
        part: impl Fn(Waiting) -> P,
    ) -> Result<(Vec<P>, Vec<Vec<f32>>), LearnerError> {
        let sequences = self.sequences(rows)?;
        let (mut parts, mut logprobs) = (Vec::new(), vec![Vec::new(); rows.len()]);
        // Activations of all parts are kept until the backward pass, so that computing a token in two of them saves
        // nothing.
        let cut = if keep == Keep::Nothing { Cut::Anywhere } else { Cut::BetweenTrees };
        for chunk in PackedBatch::chunks(&sequences, CHUNK_TOKENS, cut) {
            let some: Vec<ScoredSequence<'_>> =
                chunk.iter().map(|i| sequences[*i].clone()).collect();
            let batch = Arc::new(PackedBatch::new(&some));
            if batch.n_targets() == 0 {
                continue;
            }
            let pass = model.pass(batch.clone(), keep).map_err(in_model)?;
            let computed = pass.logprobs().map_err(in_model)?;
            let logprobs_here = model.finite(what, computed);
            let logprobs_here =
                logprobs_here.map_err(|error| failed_by("compute with the model", error))?;
            for (row, list) in chunk.iter().zip(batch.split(&logprobs_here)) {
                logprobs[*row] = list;
            }
            parts.push(part(Waiting { pass, rows: chunk }));
        }
        Ok((parts, logprobs))
    }

    fn sequences<'a>(&self, rows: &'a [Row]) -> Result<Vec<ScoredSequence<'a>>, LearnerError> {
        let checked = rows.iter().enumerate().map(|(row, content)| {
            check_row(self.model.config(), content)
                .map_err(|reason| LearnerError::BadRow { row, reason })?;
            let targets = content.targets.iter().map(|t| (t.position, t.temperature)).collect();
            let kept = Some(&content.kept).filter(|kept| !kept.is_empty());
            Ok(ScoredSequence { ids: &content.ids, targets, kept })
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
    row.kept.iter().try_for_each(|(target, kept)| check_kept(row, *target, kept, vocab_size))
}

/// Checks that the softmax of a target can run over its kept ids.
fn check_kept(row: &Row, target: usize, kept: &[u32], vocab_size: usize) -> Result<(), String> {
    let n_targets = row.targets.len();
    let Some(Target { position, .. }) = row.targets.get(target) else {
        return Err(format!("it has kept ids for target {target} and {n_targets} targets"));
    };
    if let Some(id) = kept.iter().find(|id| **id as usize >= vocab_size) {
        return Err(format!(
            "kept id {id} at position {position} is beyond the vocabulary of {vocab_size}"
        ));
    }
    if !kept.contains(&row.ids[*position]) {
        return Err(format!("the kept ids at position {position} lack the token itself"));
    }
    Ok(())
}

/// Converts an error of the model; numbers that are not finite have an error of their own.
fn failed_by(action: impl Into<String>, error: ModelError) -> LearnerError {
    match error {
        ModelError::NotFinite { action, reason } => LearnerError::NotFinite { action, reason },
        other => failed(action, other),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoraSettings;

    #[test]
    fn a_new_adapter_is_no_reason_to_warn_and_a_dead_one_is() {
        let model = Decoder::random(DecoderConfig::small(29), 4).unwrap();
        let model = model.with_lora(&LoraSettings::default(), 1).unwrap();
        let trainer =
            LearnerState::new(model, AdamW::default(), LearnerSettings::default()).unwrap();
        trainer.check_gradients().unwrap();
        let parameters = trainer.model.parameters();
        // Gradients of a new adapter: zero for A, nonzero for B.
        let gradients = |of_up: f32| -> Vec<Vec<f32>> {
            let of = |parameter: &crate::decoder::Parameter| match parameter.spec.role {
                ParameterRole::AdapterDown => vec![0.0; 2],
                ParameterRole::AdapterUp => vec![of_up; 2],
                _ => Vec::new(),
            };
            parameters.iter().map(of).collect()
        };
        assert!(trainer.unmoved(&gradients(1.0)).unwrap().is_empty());
        let dead = trainer.unmoved(&gradients(0.0)).unwrap();
        assert_eq!(dead.len(), 2 * 14, "{dead:?}");
    }
}
