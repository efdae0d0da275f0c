use turnwise_trajectory::PolicyVersion;

use crate::DecoderConfig;

/// Keys and values of the first tokens of one sequence.
#[derive(Debug, Default)]
pub(super) struct KvCache {
    /// The tokens they belong to. `[T]`
    pub(super) ids: Vec<u32>,
    pub(super) layers: Vec<LayerKv>,
    /// The oldest weights that wrote any of them; meaningless when there are none.
    pub(super) oldest: PolicyVersion,
    /// The publication whose weights wrote the first of them; meaningless when there are none.
    pub(super) serial: u64,
}

/// Keys and values of a layer. `[T, n_kv_heads * head_dim]` each
#[derive(Debug, Default)]
pub(super) struct LayerKv {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl KvCache {
    pub(super) fn new(config: &DecoderConfig) -> Self {
        let layers = (0..config.n_layers).map(|_| LayerKv::default()).collect();
        Self { layers, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// How many tokens at the start are the same.
    pub(super) fn common(&self, ids: &[u32]) -> usize {
        self.ids.iter().zip(ids).take_while(|(a, b)| a == b).count()
    }

    pub(super) fn truncate(&mut self, tokens: usize) {
        let width = self.layers[0].keys.len() / self.len().max(1);
        for layer in &mut self.layers {
            layer.keys.truncate(tokens * width);
            layer.values.truncate(tokens * width);
        }
        self.ids.truncate(tokens);
    }
}

/// Memory that one token takes.
pub(super) fn bytes_per_token(config: &DecoderConfig) -> u64 {
    let numbers = 2 * config.n_layers * config.n_kv_heads * config.head_dim;
    (numbers * size_of::<f32>()) as u64
}
