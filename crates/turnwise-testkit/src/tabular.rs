use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest, Sampler, uniform_at};
use turnwise_training::{GradientFn, Learner, LearnerError, Row, Target, Update, Updated};
use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason, TokenId};

/// A model without a network: one row of logits for each context, all zero at first.
///
/// The model is policy and learner in one, exact up to rounding, and learns by plain gradient descent, so that the
/// whole training loop can be tested in milliseconds. Clones share the model.
#[derive(Clone, Debug)]
pub struct TabularModel {
    n_ids: usize,
    shared: Arc<RwLock<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    current: Table,
    gradient: Table,
    published: Table,
    reference: Option<Table>,
    version: PolicyVersion,
}

/// Logits by context.
type Table = BTreeMap<Vec<TokenId>, Vec<f64>>;

impl TabularModel {
    /// Creates a model that samples each of `n_ids` tokens with equal probability.
    #[must_use]
    pub fn new(n_ids: usize) -> Self {
        Self { n_ids, shared: Arc::default() }
    }

    /// Keeps the current weights as the reference policy of [`Learner::reference_logprobs`].
    pub fn keep_reference(&self) {
        let mut shared = self.write();
        shared.reference = Some(shared.current.clone());
    }

    fn read(&self) -> RwLockReadGuard<'_, Shared> {
        self.shared.read().expect("no holder of the lock panics")
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write().expect("no holder of the lock panics")
    }

    fn logits(&self, table: &Table, context: &[TokenId]) -> Vec<f64> {
        table.get(context).cloned().unwrap_or_else(|| vec![0.0; self.n_ids])
    }

    fn logprobs_of(&self, table: &Table, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let one = |(index, row): (usize, &Row)| {
            (0..row.targets.len()).map(|target| self.logprob(table, index, row, target)).collect()
        };
        rows.iter().enumerate().map(one).collect()
    }

    fn logprob(
        &self,
        table: &Table,
        index: usize,
        row: &Row,
        target: usize,
    ) -> Result<f32, LearnerError> {
        let id = row.ids[row.targets[target].position] as usize;
        if id >= self.n_ids {
            let reason = format!("token {id} is beyond the vocabulary of {}", self.n_ids);
            return Err(LearnerError::BadRow { row: index, reason });
        }
        Ok(self.probabilities(table, row, target)[id].ln() as f32)
    }

    /// Returns the distribution that a target was sampled from: over the ids that truncation kept, if the row has them.
    fn probabilities(&self, table: &Table, row: &Row, target: usize) -> Vec<f64> {
        let Target { position, temperature } = row.targets[target];
        let mut logits = self.logits(table, &row.ids[..position]);
        if let Some(kept) = row.kept.get(&target) {
            for (id, logit) in logits.iter_mut().enumerate() {
                if !kept.contains(&(id as TokenId)) {
                    *logit = f64::NEG_INFINITY;
                }
            }
        }
        softmax(&logits, temperature)
    }
}

#[async_trait]
impl Policy for TabularModel {
    fn version(&self) -> PolicyVersion {
        self.read().version
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let mut sampler = Sampler::default();
        let mut context = request.prompt.clone();
        let mut sample = Sample::new("tabular");
        while sample.tokens.len() < request.max_tokens {
            let shared = self.read();
            if shared.version < request.min_version {
                return Err(PolicyError::Refused(format!(
                    "{} is newer than {}",
                    request.min_version, shared.version
                )));
            }
            let logits: Vec<f32> = self
                .logits(&shared.published, &context)
                .iter()
                .map(|logit| *logit as f32)
                .collect();
            let uniform =
                uniform_at(request.seed, request.first_index + sample.tokens.len() as u64);
            let (id, logprob) = sampler.draw(&logits, &request.sampling, uniform);
            sample.push(SampledToken::new(id, logprob, shared.version), sampler.support());
            context.push(id);
            if request.stop.contains(&id) {
                sample.stop = StopReason::EndOfTurn;
                break;
            }
        }
        Ok(sample)
    }
}

#[async_trait]
impl Learner for TabularModel {
    fn version(&self) -> PolicyVersion {
        self.read().version
    }

    async fn check_gradients(&mut self) -> Result<(), LearnerError> {
        Ok(())
    }

    async fn logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        self.logprobs_of(&self.read().current, rows)
    }

    async fn reference_logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let shared = self.read();
        self.logprobs_of(shared.reference.as_ref().ok_or(LearnerError::NoReference)?, rows)
    }

    async fn accumulate(
        &mut self,
        rows: &[Row],
        gradient: &mut GradientFn<'_>,
    ) -> Result<(), LearnerError> {
        let logprobs = self.logprobs_of(&self.read().current, rows)?;
        let coefficients = gradient(&logprobs).map_err(LearnerError::Gradient)?;
        let mut shared = self.write();
        let Shared { current, gradient, .. } = &mut *shared;
        for (row, coefficients) in rows.iter().zip(coefficients) {
            for (number, coefficient) in coefficients.into_iter().enumerate() {
                let target = row.targets[number];
                let context = &row.ids[..target.position];
                let probabilities = self.probabilities(current, row, number);
                let sums =
                    gradient.entry(context.to_vec()).or_insert_with(|| vec![0.0; self.n_ids]);
                let scale = f64::from(coefficient) / f64::from(target.temperature);
                for (id, (sum, probability)) in sums.iter_mut().zip(probabilities).enumerate() {
                    let drawn = f64::from(u8::from(id == row.ids[target.position] as usize));
                    *sum += scale * (drawn - probability);
                }
            }
        }
        Ok(())
    }

    async fn step(&mut self, update: Update) -> Result<Updated, LearnerError> {
        let mut shared = self.write();
        let gradient = std::mem::take(&mut shared.gradient);
        let grad_norm = gradient.values().flatten().map(|value| value * value).sum::<f64>().sqrt();
        if !grad_norm.is_finite() {
            return Ok(Updated { grad_norm, applied: false, not_finite: None });
        }
        let scale = update.learning_rate * (update.max_grad_norm / grad_norm).min(1.0);
        for (context, gradient) in gradient {
            let logits = shared.current.entry(context).or_insert_with(|| vec![0.0; self.n_ids]);
            for (logit, gradient) in logits.iter_mut().zip(gradient) {
                *logit -= scale * gradient;
            }
        }
        Ok(Updated { grad_norm, applied: true, not_finite: None })
    }

    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        let mut shared = self.write();
        shared.published = shared.current.clone();
        shared.version = shared.version.next();
        Ok(shared.version)
    }

    async fn save(&mut self, directory: &Path) -> Result<(), LearnerError> {
        let rows: Vec<Saved> = self
            .read()
            .current
            .iter()
            .map(|(context, logits)| Saved { context: context.clone(), logits: logits.clone() })
            .collect();
        let json = serde_json::to_vec(&rows)
            .map_err(|error| LearnerError::failed("write a table", error))?;
        std::fs::write(directory.join(FILE), json)
            .map_err(|error| LearnerError::failed("write a table", error))
    }

    async fn load(&mut self, directory: &Path, version: PolicyVersion) -> Result<(), LearnerError> {
        let json = std::fs::read(directory.join(FILE))
            .map_err(|error| LearnerError::failed("read a table", error))?;
        let rows: Vec<Saved> = serde_json::from_slice(&json)
            .map_err(|error| LearnerError::failed("read a table", error))?;
        let mut shared = self.write();
        shared.current = rows.into_iter().map(|row| (row.context, row.logits)).collect();
        shared.published = shared.current.clone();
        shared.version = version;
        Ok(())
    }
}

const FILE: &str = "table.json";

#[derive(Serialize, Deserialize)]
struct Saved {
    context: Vec<TokenId>,
    logits: Vec<f64>,
}

fn softmax(logits: &[f64], temperature: f32) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> =
        logits.iter().map(|logit| ((logit - highest) / f64::from(temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}
