//! Rows packed for one forward pass, as a forest in which every token is computed once.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// The number of distinct tokens in one forward pass: enough rows for products at full speed, and few enough for the
/// data of a layer to stay in caches.
pub(crate) const CHUNK_TOKENS: usize = 4096;

/// A sequence and the tokens whose log-probability is computed.
#[derive(Clone, Debug)]
pub(crate) struct ScoredSequence<'a> {
    pub(crate) ids: &'a [u32],
    /// Position, from 1, and temperature.
    pub(crate) targets: Vec<(usize, f32)>,
    /// The ids that the softmax of a target runs over, by the target's index; all ids where there is no entry.
    pub(crate) kept: Option<&'a BTreeMap<usize, Vec<u32>>>,
}

impl<'a> ScoredSequence<'a> {
    /// Scores every token after the first, at temperature 1.
    pub(crate) fn whole(ids: &'a [u32]) -> Self {
        Self { ids, targets: (1..ids.len()).map(|position| (position, 1.0)).collect(), kept: None }
    }

    /// Returns the tokens to compute: those before the last target.
    fn inputs(&self) -> &'a [u32] {
        &self.ids[..self.targets.iter().map(|target| target.0).max().unwrap_or(0)]
    }
}

/// Packed tokens: a prefix that several sequences share is computed once. Only attention depends on the sequences.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackedBatch {
    /// The tokens to compute. `[N]`
    pub(crate) inputs: Vec<u32>,
    /// The position of each in its sequences. `[N]`
    pub(crate) positions: Vec<u32>,
    /// The number of sequences that each token belongs to. `[N]`
    pub(crate) multiplicities: Vec<u32>,
    /// Runs of tokens with the same prefix; together they are all tokens in order.
    pub(crate) spans: Vec<AttentionSpan>,
    pub(crate) predictions: Predictions,
    /// The predictions that are targets of each sequence, in its order.
    targets: Vec<Vec<u32>>,
}

/// Tokens that attend to the tokens before the span and causally to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttentionSpan {
    /// The tokens before the span, in order of position.
    pub(crate) before: Vec<Range<usize>>,
    pub(crate) own: Range<usize>,
}

impl AttentionSpan {
    /// Returns the number of tokens before the span.
    pub(crate) fn n_before(&self) -> usize {
        self.before.iter().map(Range::len).sum()
    }
}

/// The predicted distributions and their target tokens. A distribution with several targets is computed once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Predictions {
    /// The input that each distribution follows. `[R]`
    pub(crate) sources: Vec<u32>,
    /// The factor of the logits: one over the temperature. `[R]`
    pub(crate) scales: Vec<f32>,
    /// The start of each distribution's targets, and the end of the last. `[R + 1]`
    pub(crate) starts: Vec<usize>,
    /// The targets. `[M]`
    pub(crate) tokens: Vec<u32>,
    /// The ids that the softmax of a distribution runs over, in ascending order, by its row; the whole vocabulary where
    /// there is no entry.
    pub(crate) kept: BTreeMap<usize, Vec<u32>>,
}

impl Predictions {
    pub(crate) fn n_rows(&self) -> usize {
        self.sources.len()
    }

    /// Returns the distribution of each target. `[M]`
    pub(crate) fn rows(&self) -> Vec<u32> {
        let counts = self.starts.windows(2).enumerate();
        counts.flat_map(|(row, pair)| std::iter::repeat_n(row as u32, pair[1] - pair[0])).collect()
    }
}

impl PackedBatch {
    /// # Panics
    /// When a target's position is 0 or outside its sequence.
    pub(crate) fn new(sequences: &[ScoredSequence<'_>]) -> Self {
        let mut forest = Forest::default();
        let mut wanted = Vec::with_capacity(sequences.len());
        wanted.resize(sequences.len(), Vec::new());
        for index in sorted(sequences) {
            let sequence = &sequences[index];
            let path = forest.insert(sequence.inputs());
            wanted[index] = sequence
                .targets
                .iter()
                .enumerate()
                .map(|(target, (position, temperature))| WantedToken {
                    source: path[position - 1] as u32,
                    scale: 1.0 / temperature,
                    token: sequence.ids[*position],
                    kept: sequence.kept.and_then(|kept| kept.get(&target)).map(Vec::as_slice),
                })
                .collect();
        }
        let (predictions, targets) = arrange(&wanted);
        Self { predictions, targets, ..forest.batch }
    }

    /// Packs all tokens of sequences without targets.
    pub(crate) fn inputs_only(sequences: &[&[u32]]) -> Self {
        // A token after the last makes the last one an input.
        let longer: Vec<Vec<u32>> = sequences.iter().map(|ids| [ids, &[0][..]].concat()).collect();
        let sequences: Vec<ScoredSequence<'_>> = longer
            .iter()
            .map(|ids| ScoredSequence { ids, targets: vec![(ids.len() - 1, 1.0)], kept: None })
            .filter(|sequence| sequence.ids.len() > 1)
            .collect();
        Self { predictions: Predictions::default(), targets: Vec::new(), ..Self::new(&sequences) }
    }

    /// Returns the number of tokens to compute.
    pub(crate) fn n_inputs(&self) -> usize {
        self.inputs.len()
    }

    pub(crate) fn n_targets(&self) -> usize {
        self.predictions.tokens.len()
    }

    /// Iterates over trees: spans that share tokens with each other only.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &[AttentionSpan]> {
        self.spans.chunk_by(|_, next| !next.before.is_empty())
    }

    /// Splits a value per prediction, `[M]`, into a list per sequence.
    pub(crate) fn split(&self, values: &[f32]) -> Vec<Vec<f32>> {
        let of = |targets: &Vec<u32>| targets.iter().map(|t| values[*t as usize]).collect();
        self.targets.iter().map(of).collect()
    }

    /// Sums a value per target, given as one list per sequence, for each prediction. `[M]`
    pub(crate) fn join(&self, values: &[&[f32]]) -> Vec<f32> {
        let mut joined = vec![0.0; self.n_targets()];
        for (targets, values) in self.targets.iter().zip(values) {
            for (target, value) in targets.iter().zip(*values) {
                joined[*target as usize] += value;
            }
        }
        joined
    }

    /// Divides sequences into parts with a limited number of distinct tokens and returns their indices; a longer
    /// sequence is a part of its own. Sequences with a common prefix are neighbours.
    pub(crate) fn chunks(
        sequences: &[ScoredSequence<'_>],
        max_tokens: usize,
        cut: Cut,
    ) -> Vec<Vec<usize>> {
        let mut chunks: Vec<Vec<usize>> = Vec::new();
        let (mut tokens, mut last): (usize, &[u32]) = (0, &[]);
        for index in sorted(sequences) {
            let inputs = sequences[index].inputs();
            let shared = common(last, inputs);
            let new = inputs.len() - shared;
            let stays = tokens + new <= max_tokens || (cut == Cut::BetweenTrees && shared > 0);
            match chunks.last_mut() {
                Some(chunk) if stays => {
                    tokens += new;
                    chunk.push(index);
                }
                _ => {
                    tokens = inputs.len();
                    chunks.push(vec![index]);
                }
            }
            last = inputs;
        }
        chunks
    }
}

/// The places at which a list of sequences may be divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Anywhere: every part computes a common prefix again.
    Anywhere,
    /// Between sequences without a common prefix; a part may exceed the limit.
    BetweenTrees,
}

/// Sorts sequences so that each has its longest common prefix with a neighbour.
fn sorted(sequences: &[ScoredSequence<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    // The sort is stable: equal sequences keep their order.
    order.sort_by(|a, b| sequences[*a].inputs().cmp(sequences[*b].inputs()));
    order
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A batch to which sequences are added in sorted order.
#[derive(Debug, Default)]
struct Forest {
    batch: PackedBatch,
    last: Vec<u32>,
    /// The index of each token of the last sequence.
    path: Vec<usize>,
}

impl Forest {
    /// Adds a sequence and returns the index of each input.
    fn insert(&mut self, inputs: &[u32]) -> &[usize] {
        let shared = common(&self.last, inputs);
        let start = self.batch.inputs.len();
        self.path.truncate(shared);
        for index in &self.path {
            self.batch.multiplicities[*index] += 1;
        }
        if shared < inputs.len() {
            let own = start..start + inputs.len() - shared;
            self.batch.spans.push(AttentionSpan { before: ranges(&self.path), own: own.clone() });
            self.path.extend(own);
            self.batch.inputs.extend_from_slice(&inputs[shared..]);
            self.batch.positions.extend(shared as u32..inputs.len() as u32);
            self.batch.multiplicities.resize(self.batch.inputs.len(), 1);
        }
        self.last.clear();
        self.last.extend_from_slice(inputs);
        &self.path
    }
}

/// Groups consecutive numbers into ranges.
fn ranges(path: &[usize]) -> Vec<Range<usize>> {
    path.chunk_by(|a, b| a + 1 == *b)
        .filter_map(|run| Some(*run.first()?..run.last()? + 1))
        .collect()
}

/// A target token of a distribution.
#[derive(Clone, Copy, Debug)]
struct WantedToken<'a> {
    source: u32,
    scale: f32,
    token: u32,
    kept: Option<&'a [u32]>,
}

/// Merges targets of the same distribution, and equal targets. Returns the indices of each sequence's targets.
fn arrange(wanted: &[Vec<WantedToken<'_>>]) -> (Predictions, Vec<Vec<u32>>) {
    let mut rows: HashMap<(u32, u32, Option<&[u32]>), usize> = HashMap::new();
    let mut gathered: Vec<(WantedToken<'_>, Vec<u32>)> = Vec::new();
    let mut found = Vec::with_capacity(wanted.len());
    for sequence in wanted {
        let places = sequence.iter().map(|wanted| {
            let next = gathered.len();
            let row =
                *rows.entry((wanted.source, wanted.scale.to_bits(), wanted.kept)).or_insert(next);
            if row == next {
                gathered.push((*wanted, Vec::new()));
            }
            let tokens = &mut gathered[row].1;
            let place = tokens.iter().position(|token| *token == wanted.token);
            let place = place.unwrap_or(tokens.len());
            if place == tokens.len() {
                tokens.push(wanted.token);
            }
            (row, place)
        });
        found.push(places.collect::<Vec<_>>());
    }
    let mut predictions = Predictions { starts: vec![0], ..Predictions::default() };
    for (row, (wanted, tokens)) in gathered.iter().enumerate() {
        if let Some(kept) = wanted.kept {
            let mut kept = kept.to_vec();
            kept.sort_unstable();
            predictions.kept.insert(row, kept);
        }
        predictions.sources.push(wanted.source);
        predictions.scales.push(wanted.scale);
        predictions.tokens.extend_from_slice(tokens);
        predictions.starts.push(predictions.tokens.len());
    }
    let place = |(row, place): &(usize, usize)| (predictions.starts[*row] + place) as u32;
    let targets = found.iter().map(|places| places.iter().map(place).collect()).collect();
    (predictions, targets)
}
