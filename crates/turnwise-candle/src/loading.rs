//! Models of every form that can be loaded.

use std::path::Path;

use turnwise_rollout::Meter;

use crate::checkpoint::has_weights;
use crate::{Decoder, GgufFile, ModelError};

impl Decoder {
    /// Reads a model: a directory as [`Self::from_directory`] does, or a GGUF file as [`Self::from_gguf`] does. With a
    /// base, which [`locate_base`](crate::locate_base) finds, `model` is the directory of its adapters, which then
    /// train. `meter` counts the bytes of the weights.
    ///
    /// # Errors
    /// Those of these functions, and of [`Self::with_adapter`].
    pub fn load(model: &Path, base: Option<&Path>, meter: &Meter) -> Result<Self, ModelError> {
        if let Some(base) = base {
            if base.is_dir() && !has_weights(base) {
                let help = format!(
                    "it is an adapter, and its base {} has no weights; name one that has them as model.base",
                    base.display()
                );
                return Err(ModelError::NotFound { model: model.to_owned(), help });
            }
            return Self::load(base, None, meter)?.with_adapter(model);
        }
        if GgufFile::is_named(model) && model.is_file() {
            return Self::from_gguf(model, meter);
        }
        Self::from_directory_metered(model, meter)
    }
}
