//! Rows laid out for one forward pass: a forest in which no token is computed twice.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// How many distinct tokens a forward pass computes at once: enough rows for the products to run at full speed, and few
/// enough for what a layer reads and writes to stay near the processor.
pub(crate) const CHUNK_TOKENS: usize = 4096;

/// A sequence and the tokens of it whose log-probability is wanted.
#[derive(Clone, Debug)]
pub(crate) struct ScoredSequence<'a> {
    pub(crate) ids: &'a [u32],
    /// Position, from 1, and what its logits are divided by.
    pub(crate) targets: Vec<(usize, f32)>,
    /// The ids that the softmax of a target runs over, by the target's index; all ids where there is no entry.
    pub(crate) kept: Option<&'a BTreeMap<usize, Vec<u32>>>,
}

impl<'a> ScoredSequence<'a> {
    /// Every token that has one before it, at temperature 1.
    pub(crate) fn whole(ids: &'a [u32]) -> Self {
        Self { ids, targets: (1..ids.len()).map(|position| (position, 1.0)).collect(), kept: None }
    }

    /// What has to be computed: nothing behind the token before the last target matters.
    fn inputs(&self) -> &'a [u32] {
        &self.ids[..self.targets.iter().map(|target| target.0).max().unwrap_or(0)]
    }
}

/// Tokens one after another, each of them once: what sequences have in common at their start is computed for all of them
/// together. Everything but attention works on tokens alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackedBatch {
    /// The tokens to compute. `[N]`
    pub(crate) inputs: Vec<u32>,
    /// The position of each in its sequences. `[N]`
    pub(crate) positions: Vec<u32>,
    /// How many sequences each belongs to. `[N]`
    pub(crate) multiplicities: Vec<u32>,
    /// Stretches of tokens with the same past, together all tokens in order.
    pub(crate) spans: Vec<AttentionSpan>,
    pub(crate) predictions: Predictions,
    /// For each sequence the predictions that are its targets, in its order.
    targets: Vec<Vec<u32>>,
}

/// Tokens of which each attends to those before the span and to the span's own up to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttentionSpan {
    /// Tokens before it in its sequences, in order of position.
    pub(crate) before: Vec<Range<usize>>,
    pub(crate) own: Range<usize>,
}

impl AttentionSpan {
    /// How many tokens lie before it.
    pub(crate) fn n_before(&self) -> usize {
        self.before.iter().map(Range::len).sum()
    }
}

/// Which distributions are wanted, and of which tokens in them. A distribution that several targets are drawn from is worked
/// out once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Predictions {
    /// The input behind which each distribution stands. `[R]`
    pub(crate) sources: Vec<u32>,
    /// What its logits are multiplied by: one over the temperature. `[R]`
    pub(crate) scales: Vec<f32>,
    /// Where the targets of each distribution start, and where the last end. `[R + 1]`
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

    /// Which distribution each target is drawn from. `[M]`
    pub(crate) fn rows(&self) -> Vec<u32> {
        let counts = self.starts.windows(2).enumerate();
        counts.flat_map(|(row, pair)| std::iter::repeat_n(row as u32, pair[1] - pair[0])).collect()
    }
}

impl PackedBatch {
    /// # Panics
    /// When a target's position is not inside its sequence, or 0.
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

    /// All tokens of sequences of which no token is a target.
    pub(crate) fn inputs_only(sequences: &[&[u32]]) -> Self {
        // A token behind the last makes that one an input.
        let longer: Vec<Vec<u32>> = sequences.iter().map(|ids| [ids, &[0][..]].concat()).collect();
        let sequences: Vec<ScoredSequence<'_>> = longer
            .iter()
            .map(|ids| ScoredSequence { ids, targets: vec![(ids.len() - 1, 1.0)], kept: None })
            .filter(|sequence| sequence.ids.len() > 1)
            .collect();
        Self { predictions: Predictions::default(), targets: Vec::new(), ..Self::new(&sequences) }
    }

    /// How many tokens are computed.
    pub(crate) fn n_inputs(&self) -> usize {
        self.inputs.len()
    }

    pub(crate) fn n_targets(&self) -> usize {
        self.predictions.tokens.len()
    }

    /// Trees: spans that look at each other's tokens, and at no others.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &[AttentionSpan]> {
        self.spans.chunk_by(|_, next| !next.before.is_empty())
    }

    /// A value per prediction, `[M]`, as one list per sequence.
    pub(crate) fn split(&self, values: &[f32]) -> Vec<Vec<f32>> {
        let of = |targets: &Vec<u32>| targets.iter().map(|t| values[*t as usize]).collect();
        self.targets.iter().map(of).collect()
    }

    /// Sums a value per target, one list per sequence, for each prediction. `[M]`
    pub(crate) fn join(&self, values: &[&[f32]]) -> Vec<f32> {
        let mut joined = vec![0.0; self.n_targets()];
        for (targets, values) in self.targets.iter().zip(values) {
            for (target, value) in targets.iter().zip(*values) {
                joined[*target as usize] += value;
            }
        }
        joined
    }

    /// Parts of a list of sequences, as their indices, of at most so many distinct tokens each; a longer sequence is a part
    /// of its own. Sequences with a common start stand together.
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

/// Where a list of sequences may be cut into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Anywhere: a common start is computed again in every part.
    Anywhere,
    /// Between sequences that have nothing in common; a part may be larger than asked for.
    BetweenTrees,
}

/// Sequences in an order in which each shares its longest common start with its neighbours.
fn sorted(sequences: &[ScoredSequence<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    // Stable: equal sequences stay in the order they came in.
    order.sort_by(|a, b| sequences[*a].inputs().cmp(sequences[*b].inputs()));
    order
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A batch while sequences are added in sorted order.
#[derive(Debug, Default)]
struct Forest {
    batch: PackedBatch,
    last: Vec<u32>,
    /// Where each token of the last sequence is.
    path: Vec<usize>,
}

impl Forest {
    /// Returns where each of the inputs is.
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

/// Numbers as stretches in which each is one more than the one before.
fn ranges(path: &[usize]) -> Vec<Range<usize>> {
    path.chunk_by(|a, b| a + 1 == *b)
        .filter_map(|run| Some(*run.first()?..run.last()? + 1))
        .collect()
}

/// A target.
#[derive(Clone, Copy, Debug)]
struct WantedToken<'a> {
    source: u32,
    scale: f32,
    token: u32,
    kept: Option<&'a [u32]>,
}

/// Gathers targets of the same distribution, and equal ones. Returns for each sequence the places of its targets.
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
