//! The sizes of a model whose weights are elsewhere.

use std::path::Path;

use crate::config::text_part;
use crate::layout::{Spec, specs};
use crate::{DecoderConfig, ModelError, checkpoint};

impl DecoderConfig {
    /// Reads the sizes of a Hugging Face checkpoint from its `config.json` alone: its weights may be on another machine.
    ///
    /// # Errors
    /// When there is no `config.json`, or it is of a model that is not supported.
    pub fn in_directory(directory: &Path) -> Result<Self, ModelError> {
        let original = text_part(checkpoint::read_config(directory)?)?;
        Self::from_json(&original, None)
    }

    /// Returns the number of weights, without adapters.
    ///
    /// ```
    /// use turnwise_candle::{Decoder, DecoderConfig};
    ///
    /// let config = DecoderConfig::small(320);
    /// assert_eq!(config.n_weights(), Decoder::random(config, 7)?.n_parameters());
    /// # Ok::<(), turnwise_candle::ModelError>(())
    /// ```
    #[must_use]
    pub fn n_weights(&self) -> usize {
        specs(self, None).iter().map(Spec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Decoder, DecoderConfig};

    #[test]
    fn the_sizes_of_a_checkpoint_need_no_weights() {
        let directory = tempfile::tempdir().unwrap();
        let model = Decoder::random(DecoderConfig::small(29), 4).unwrap();
        model.save(directory.path()).unwrap();
        std::fs::remove_file(directory.path().join("model.safetensors")).unwrap();
        assert_eq!(&DecoderConfig::in_directory(directory.path()).unwrap(), model.config());
        assert!(Decoder::from_directory(directory.path()).is_err());
    }
}
