//! Sliding windows of attention.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::DecoderConfig;

/// Layers in which a token attends to the latest tokens alone (Beltagy et al., *Longformer*, 2020, section 3.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlidingWindow {
    /// The number of tokens that a token attends to, itself included.
    pub length: usize,
    /// The layers with the window, counted from 0.
    pub layers: Vec<usize>,
}

/// The layers of a family that may have a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowLayers {
    /// None: the family has no window.
    Absent,
    /// All of them, or none.
    All,
    /// Any of them.
    Any,
}

impl WindowLayers {
    /// Returns those of a family, by its name in `config.json`.
    pub(super) fn of(model_type: &str) -> Self {
        match model_type {
            "mistral" | "mixtral" | "phi3" | "qwen3_moe" => Self::All,
            "qwen2" | "qwen3" | "qwen2_moe" | "gemma3_text" | "smollm3" => Self::Any,
            _ => Self::Absent,
        }
    }
}

impl DecoderConfig {
    /// Returns why a model of the family cannot have the window.
    pub(super) fn window_problem(&self) -> Option<String> {
        let SlidingWindow { layers, .. } = self.sliding_window.as_ref()?;
        let (n_layers, model_type) = (self.n_layers, self.architecture.properties().model_type);
        if let Some(layer) = layers.iter().find(|layer| **layer >= n_layers) {
            return Some(format!("layer {layer} has a sliding window, and there are {n_layers}"));
        }
        let has_all = (0..n_layers).all(|layer| layers.contains(&layer));
        match WindowLayers::of(model_type) {
            WindowLayers::Absent => Some(format!("a {model_type} has no sliding window")),
            WindowLayers::All if !has_all => {
                Some(format!("a {model_type} has a sliding window in all of its layers or in none"))
            }
            _ if layers.is_empty() => Some("no layer has the sliding window".to_owned()),
            _ => None,
        }
    }

    /// Returns the sliding window of a layer; `None` when its tokens attend to all tokens before them.
    #[must_use]
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        let window = self.sliding_window.as_ref()?;
        window.layers.contains(&layer).then_some(window.length)
    }

    /// Returns the windows of all layers, each once.
    pub(crate) fn windows(&self) -> Vec<Option<usize>> {
        let windows: BTreeSet<_> = (0..self.n_layers).map(|layer| self.window_of(layer)).collect();
        windows.into_iter().collect()
    }
}
