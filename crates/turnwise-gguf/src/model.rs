use std::path::Path;

use turnwise_candle::Decoder;

use crate::export::gguf_bytes;
use crate::network::{Network, check_finite};
use crate::{GgufError, Quantization};

/// A model read from GGUF, with the KV cache of one sequence.
///
/// Tokens are computed one at a time, so that logits are a function of the preceding tokens and of the weights, to the
/// last bit, and do not depend on the cache.
///
/// ```
/// use turnwise_candle::{Decoder, DecoderConfig};
/// use turnwise_gguf::{GgufModel, Quantization};
///
/// let trained = Decoder::random(DecoderConfig::small(320), 7)?;
/// let mut model = GgufModel::new(&trained, Quantization::F32)?;
/// let ours = trained.score(&[vec![3, 1, 4, 1, 5]])?;
/// for (a, b) in model.score(&[3, 1, 4, 1, 5])?.iter().zip(&ours[0]) {
///     assert!((a - b).abs() < 5e-5);
/// }
/// # Ok::<(), turnwise_gguf::GgufError>(())
/// ```
#[derive(Debug)]
pub struct GgufModel {
    network: Network,
    /// The tokens in the KV cache.
    ids: Vec<u32>,
}

impl GgufModel {
    /// Creates a model from the weights of a trained model, rounded to `quantization`.
    ///
    /// # Errors
    /// [`GgufError::Unsupported`] for a model that the format or the engine does not support.
    pub fn new(model: &Decoder, quantization: Quantization) -> Result<Self, GgufError> {
        // `gguf_bytes` checks the numbers as it writes them.
        let bytes = gguf_bytes(model, quantization)?;
        Ok(Self { network: Network::read(bytes.into())?, ids: Vec::new() })
    }

    /// Reads a file of any program.
    ///
    /// # Errors
    /// [`GgufError::Read`], [`GgufError::Malformed`], or [`GgufError::Unsupported`] for a model that the engine does
    /// not support.
    pub fn from_file(path: &Path) -> Result<Self, GgufError> {
        Self::from_bytes(std::fs::read(path).map_err(|error| GgufError::read(path, error))?)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// Those of [`Self::from_file`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        let bytes = bytes.into();
        check_finite(&bytes)?;
        Ok(Self { network: Network::read(bytes)?, ids: Vec::new() })
    }

    /// Returns the size of the vocabulary.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.network.sizes().vocab_size
    }

    /// Returns the maximal length of a sequence.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.network.sizes().max_positions
    }

    /// Returns the logits of the token after `ids`. Reuses the KV cache of the last call if all of it is a prefix of
    /// `ids`. `[V]`
    ///
    /// # Errors
    /// [`GgufError::BadTokens`] for no tokens, too many, or one beyond the vocabulary.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, GgufError> {
        self.check(ids)?;
        let Some((last, before)) = ids.split_last() else {
            return Err(GgufError::BadTokens("there are none".to_owned()));
        };
        self.go_to(before)?;
        finite(self.push(*last)?)
    }

    /// Like [`Self::logits`], with all tokens in one pass. This is faster for long prompts, differs by rounding, and
    /// keeps no cache.
    ///
    /// # Errors
    /// Those of [`Self::logits`].
    pub fn logits_together(&mut self, ids: &[u32]) -> Result<Vec<f32>, GgufError> {
        self.check(ids)?;
        self.clear();
        let logits = self.network.together(ids);
        self.network.clear();
        logits.and_then(finite)
    }

    /// Returns log-probabilities at temperature 1: entry `t` is that of `ids[t + 1]` given `ids[..=t]`, in nats. Like
    /// [`Decoder::score`].
    ///
    /// # Errors
    /// [`GgufError::BadTokens`] for too many tokens, or one beyond the vocabulary.
    pub fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>, GgufError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.check(ids)?;
        self.clear();
        ids.windows(2)
            .map(|pair| {
                let logprob = log_probability(&self.push(pair[0])?, pair[1]);
                if logprob.is_finite() { Ok(logprob) } else { Err(not_finite()) }
            })
            .collect()
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Returns the same weights with an empty cache, for another sequence.
    pub(crate) fn fresh(&self) -> Result<Self, GgufError> {
        Ok(Self { network: self.network.fresh()?, ids: Vec::new() })
    }

    /// Returns the same weights with a copy of the cache, if it can be copied.
    pub(crate) fn fork(&self) -> Option<Self> {
        Some(Self { network: self.network.fork()?, ids: self.ids.clone() })
    }

    /// Returns the tokens in the KV cache.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(crate) fn clear(&mut self) {
        self.network.clear();
        self.ids.clear();
    }

    /// Computes one more token and returns the logits of the next. `[V]`
    pub(crate) fn push(&mut self, id: u32) -> Result<Vec<f32>, GgufError> {
        let logits = self.network.step(id, self.ids.len());
        match &logits {
            Ok(_) => self.ids.push(id),
            // Some layers may already have the token in their cache, and others not.
            Err(_) => self.clear(),
        }
        logits
    }

    /// Computes the missing tokens of a prefix.
    fn go_to(&mut self, ids: &[u32]) -> Result<(), GgufError> {
        if !ids.starts_with(&self.ids) {
            self.clear();
        }
        ids[self.ids.len()..].iter().try_for_each(|id| self.push(*id).map(drop))
    }

    fn check(&self, ids: &[u32]) -> Result<(), GgufError> {
        check_ids(ids, self.vocab_size(), self.max_positions()).map_err(GgufError::BadTokens)
    }
}

/// Checks that a model of this size can compute these tokens.
pub(crate) fn check_ids(
    ids: &[u32],
    vocab_size: usize,
    max_positions: usize,
) -> Result<(), String> {
    if ids.is_empty() {
        return Err("there are none".to_owned());
    }
    if ids.len() > max_positions {
        return Err(format!(
            "{} tokens are more than the model's {max_positions} positions",
            ids.len()
        ));
    }
    match ids.iter().position(|id| *id as usize >= vocab_size) {
        None => Ok(()),
        Some(at) => {
            let id = ids[at];
            Err(format!("token {id} at position {at} is beyond the vocabulary of {vocab_size}"))
        }
    }
}

fn finite(logits: Vec<f32>) -> Result<Vec<f32>, GgufError> {
    if logits.iter().all(|logit| logit.is_finite()) { Ok(logits) } else { Err(not_finite()) }
}

/// Returns the error for finite weights whose logits overflow.
fn not_finite() -> GgufError {
    GgufError::NotFinite("every weight is finite, but the logits are not".to_owned())
}

/// Returns the log-probability of a token, computed in double precision, at most 0.
fn log_probability(logits: &[f32], id: u32) -> f32 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
    let logprob = f64::from(logits[id as usize] - highest) - sum.ln();
    // NaN stays NaN, which `min` would turn into 0.
    if logprob > 0.0 { 0.0 } else { logprob as f32 }
}
