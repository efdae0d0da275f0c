//! Rows laid out for one forward pass.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::DecoderConfig;
use crate::numbers::numbers;

/// How many tokens a forward pass computes at once.
///
/// The tensor library adds tensors of 65536 numbers or more with a pool of its own whose threads spin while they wait,
/// which on busy processors takes longer than the sums. Small models stay below that, and in the processor's cache. For
/// larger models the products decide, and they want many rows.
pub(crate) fn chunk_tokens(config: &DecoderConfig) -> usize {
    const SPINNING: usize = 1 << 16;
    let DecoderConfig { hidden_size, intermediate_size, n_heads, head_dim, .. } = *config;
    let experts = config.architecture.experts();
    // A token is as many rows as it has experts.
    let gathered = experts.map_or(0, |e| e.n_chosen * hidden_size.max(e.intermediate_size));
    let widest = hidden_size.max(intermediate_size).max(n_heads * head_dim).max(gathered);
    match (SPINNING - 1) / widest {
        tokens @ 128.. => tokens,
        _ => 4096,
    }
}

/// A sequence and the tokens of it whose log-probability is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Sequence<'a> {
    pub(crate) ids: &'a [u32],
    /// Position, from 1, and what its logits are divided by.
    pub(crate) targets: Vec<(usize, f32)>,
}

impl<'a> Sequence<'a> {
    /// Every token that has one before it, at temperature 1.
    pub(crate) fn whole(ids: &'a [u32]) -> Self {
        Self { ids, targets: (1..ids.len()).map(|position| (position, 1.0)).collect() }
    }

    /// What has to be computed: nothing behind the token before the last target matters.
    fn inputs(&self) -> &'a [u32] {
        &self.ids[..self.targets.iter().map(|target| target.0).max().unwrap_or(0)]
    }
}

/// Sequences one after another, without padding: everything but attention works on tokens alone.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// The tokens to compute. `[N]`
    pub(crate) inputs: Tensor,
    /// The position of each in its sequence. `[N]`
    pub(crate) positions: Arc<[u32]>,
    /// Where each sequence starts, and where the last ends. `[sequences + 1]`
    pub(crate) starts: Arc<[usize]>,
    /// Which inputs predict a target. `[M]`
    pub(crate) sources: Tensor,
    /// The targets. `[M]`
    pub(crate) targets: Arc<[u32]>,
    /// What their logits are multiplied by: one over the temperature. `[M]`
    pub(crate) scales: Arc<[f32]>,
    /// How many targets each sequence has. `[sequences]`
    counts: Vec<usize>,
}

impl Batch {
    /// # Panics
    /// When a target's position is not inside its sequence, or 0.
    pub(crate) fn new(sequences: &[Sequence<'_>]) -> candle_core::Result<Self> {
        let (mut inputs, mut positions, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        let (mut sources, mut targets, mut scales) = (Vec::new(), Vec::new(), Vec::new());
        for sequence in sequences {
            let start = inputs.len();
            for (position, temperature) in &sequence.targets {
                sources.push((start + position - 1) as u32);
                targets.push(sequence.ids[*position]);
                scales.push(1.0 / temperature);
            }
            inputs.extend_from_slice(sequence.inputs());
            positions.extend(0..(inputs.len() - start) as u32);
            starts.push(inputs.len());
        }
        let tensor = |ids: Vec<u32>| Tensor::from_vec(ids.clone(), ids.len(), &Device::Cpu);
        Ok(Self {
            inputs: tensor(inputs)?,
            positions: positions.into(),
            starts: starts.into(),
            sources: tensor(sources)?,
            targets: targets.into(),
            scales: scales.into(),
            counts: sequences.iter().map(|sequence| sequence.targets.len()).collect(),
        })
    }

    /// All tokens of sequences of which no token is a target.
    pub(crate) fn inputs_only(sequences: &[&[u32]]) -> candle_core::Result<Self> {
        // A token behind the last makes that one an input.
        let longer: Vec<Vec<u32>> = sequences.iter().map(|ids| [ids, &[0][..]].concat()).collect();
        let sequences: Vec<Sequence<'_>> = longer
            .iter()
            .map(|ids| Sequence { ids, targets: vec![(ids.len() - 1, 1.0)] })
            .collect();
        Self::new(&sequences)
    }

    /// How many tokens are computed.
    pub(crate) fn n_inputs(&self) -> usize {
        self.positions.len()
    }

    /// Cuts rows into groups of at most so many tokens; a longer row is a group of its own.
    pub(crate) fn chunks<R>(
        rows: &[R],
        max_tokens: usize,
        length: impl Fn(&R) -> usize,
    ) -> Vec<&[R]> {
        let (mut chunks, mut start, mut tokens) = (Vec::new(), 0, 0);
        for (index, row) in rows.iter().enumerate() {
            if index > start && tokens + length(row) > max_tokens {
                chunks.push(&rows[start..index]);
                (start, tokens) = (index, 0);
            }
            tokens += length(row);
        }
        if start < rows.len() {
            chunks.push(&rows[start..]);
        }
        chunks
    }

    pub(crate) fn n_targets(&self) -> usize {
        self.targets.len()
    }

    /// A value per target, `[M]`, as one list per sequence.
    pub(crate) fn split(&self, values: &Tensor) -> candle_core::Result<Vec<Vec<f32>>> {
        let values = numbers(values)?;
        let mut rest = &*values;
        let rows = self.counts.iter().map(|count| {
            let (row, after) = rest.split_at(*count);
            rest = after;
            row.to_vec()
        });
        Ok(rows.collect())
    }
}
