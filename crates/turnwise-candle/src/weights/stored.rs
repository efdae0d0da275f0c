//! Packed weights in the form of checkpoints.

use candle_core::{Result, Tensor};
use turnwise_kernels::panels::Panels;
use turnwise_kernels::tile::LANES;

use super::{FeedForwardWeights, LayerWeights, MixtureWeights, MlpWeights, SharedWeights, Weights};
use crate::DecoderConfig;
use crate::checkpoint::Decode;
use crate::numbers::host_numbers;

/// A parameter of packed weights.
#[derive(Clone, Debug)]
pub(crate) enum StoredParameter<'a> {
    Tensor(&'a Tensor),
    Numbers(&'a [f32]),
    /// Some of the biases of a product.
    Bias(&'a [f32], StoredRows),
    /// A matrix, or a stack of them.
    Matrices(Vec<PackedMatrix<'a>>),
}

/// A stored matrix in panels, whose columns are its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedMatrix<'a> {
    panels: &'a Panels,
    rows: StoredRows,
}

/// The columns of panels that are the rows of a stored matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredRows {
    count: usize,
    order: RowOrder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowOrder {
    /// Neighbours, from this column on.
    From(usize),
    /// The even panels.
    Gate,
    /// The odd panels.
    Up,
    /// The even panels, then the odd ones.
    GateThenUp,
}

impl StoredRows {
    fn from(start: usize, count: usize) -> Self {
        Self { count, order: RowOrder::From(start) }
    }

    /// Returns the column of a row.
    fn column(self, row: usize) -> usize {
        let even = |row: usize| row / LANES * 2 * LANES + row % LANES;
        match self.order {
            RowOrder::From(start) => start + row,
            RowOrder::Gate => even(row),
            RowOrder::Up => even(row) + LANES,
            RowOrder::GateThenUp => {
                let half = self.count / 2;
                if row < half { even(row) } else { even(row - half) + LANES }
            }
        }
    }
}

impl PackedMatrix<'_> {
    /// Returns how many numbers it has.
    pub(crate) fn len(&self) -> usize {
        self.rows.count * self.panels.width()
    }

    /// Writes its numbers, as they were rounded.
    pub(crate) fn unpack(&self, target: &mut [f32]) {
        self.unpack_rows(0, target);
    }

    /// Writes some of its rows, from `first` on.
    pub(crate) fn unpack_rows(&self, first: usize, target: &mut [f32]) {
        self.panels.unpack(target, |row| self.rows.column(first + row));
    }
}

impl Decode for PackedMatrix<'_> {
    fn decoded(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.len()];
        self.unpack(&mut numbers);
        numbers
    }
}

impl StoredParameter<'_> {
    /// Returns a copy of its numbers.
    pub(crate) fn numbers(&self) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Tensor(tensor) => host_numbers(tensor)?.to_vec(),
            Self::Numbers(numbers) => numbers.to_vec(),
            Self::Bias(bias, rows) => (0..rows.count).map(|row| bias[rows.column(row)]).collect(),
            Self::Matrices(matrices) => matrices.iter().flat_map(Decode::decoded).collect(),
        })
    }
}

impl Weights {
    /// Returns the numbers of all parameters, in their fixed order.
    #[cfg(test)]
    pub(crate) fn values(&self) -> Vec<Vec<f32>> {
        self.stored().iter().map(|parameter| parameter.numbers().unwrap()).collect()
    }

    /// Returns the parameters in their fixed order.
    pub(crate) fn stored(&self) -> Vec<StoredParameter<'_>> {
        let mut all = vec![StoredParameter::Tensor(&self.embedding)];
        for layer in &self.layers {
            layer.push_stored(&self.config, &mut all);
        }
        all.push(StoredParameter::Numbers(&self.norm));
        if !self.config.tie_word_embeddings {
            push_matrix(&self.head, StoredRows::from(0, self.config.vocab_size), &mut all);
        }
        all
    }
}

/// Appends a matrix, and its biases if there are any.
fn push_matrix<'a>(panels: &'a Panels, rows: StoredRows, stored: &mut Vec<StoredParameter<'a>>) {
    stored.push(StoredParameter::Matrices(vec![PackedMatrix { panels, rows }]));
    stored.extend(panels.bias().map(|bias| StoredParameter::Bias(bias, rows)));
}

impl LayerWeights {
    fn push_stored<'a>(&'a self, config: &DecoderConfig, stored: &mut Vec<StoredParameter<'a>>) {
        let DecoderConfig { hidden_size, n_heads, n_kv_heads, head_dim, .. } = *config;
        let gains = |gains: &'a Option<Vec<f32>>| gains.as_deref().map(StoredParameter::Numbers);
        let (queries, keys) = (n_heads * head_dim, n_kv_heads * head_dim);
        stored.extend(gains(&self.attention_norm));
        let end = queries + 2 * keys;
        let is_joined = config.architecture.properties().is_joined;
        let cuts = if is_joined { vec![0, end] } else { vec![0, queries, queries + keys, end] };
        for pair in cuts.windows(2) {
            push_matrix(&self.qkv, StoredRows::from(pair[0], pair[1] - pair[0]), stored);
        }
        if let Some((query, key)) = &self.head_norms {
            stored.extend([query, key].map(|gains| StoredParameter::Numbers(gains)));
        }
        push_matrix(&self.output, StoredRows::from(0, hidden_size), stored);
        stored.extend(gains(&self.attention_norm_after));
        stored.extend(gains(&self.mlp_norm));
        match &self.feed_forward {
            FeedForwardWeights::Dense(mlp) => {
                mlp.push_stored(hidden_size, config.intermediate_size, stored);
            }
            FeedForwardWeights::Mixture(mixture) => mixture.push_stored(config, stored),
        }
        stored.extend(gains(&self.mlp_norm_after));
    }
}

impl MlpWeights {
    /// Appends gate, up and down as checkpoints have them; the first two have `inner` rows.
    fn push_stored<'a>(
        &'a self,
        hidden_size: usize,
        inner: usize,
        stored: &mut Vec<StoredParameter<'a>>,
    ) {
        let of = |count, order| StoredRows { count, order };
        if self.is_joined {
            push_matrix(&self.gate_up, of(2 * inner, RowOrder::GateThenUp), stored);
        } else {
            push_matrix(&self.gate_up, of(inner, RowOrder::Gate), stored);
            push_matrix(&self.gate_up, of(inner, RowOrder::Up), stored);
        }
        push_matrix(&self.down, StoredRows::from(0, hidden_size), stored);
    }
}

impl MixtureWeights {
    fn push_stored<'a>(&'a self, config: &DecoderConfig, stored: &mut Vec<StoredParameter<'a>>) {
        push_matrix(&self.router, StoredRows::from(0, self.choice.n_experts), stored);
        let inner = config.architecture.experts().map_or(0, |experts| experts.intermediate_size);
        let stack = |of: fn(&'a MlpWeights) -> &'a Panels, rows: StoredRows| {
            let each = self.experts.iter().map(|expert| PackedMatrix { panels: of(expert), rows });
            StoredParameter::Matrices(each.collect())
        };
        let half = |order| stack(|expert| &expert.gate_up, StoredRows { count: inner, order });
        let down = stack(|expert| &expert.down, StoredRows::from(0, config.hidden_size));
        stored.extend([half(RowOrder::Gate), half(RowOrder::Up), down]);
        if let (Some(SharedWeights { mlp, gate }), Some(size)) =
            (&self.shared, config.architecture.shared_size())
        {
            mlp.push_stored(config.hidden_size, size, stored);
            push_matrix(gate, StoredRows::from(0, 1), stored);
        }
    }
}
