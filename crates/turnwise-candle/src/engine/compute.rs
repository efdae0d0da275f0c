//! One forward pass over the tokens of a step, on the CPU.

use std::ops::Range;
use std::sync::Mutex;

use turnwise_kernels::math;
use turnwise_kernels::panels::{Epilogue, Panels, StridedRows, padded};
use turnwise_kernels::team::{Team, WriteOnceRows};
use turnwise_kernels::vectorized;

use super::adapted::{AdaptedPanels, AdapterMemory};
use super::attention::{AttentionPlans, Layer, Scratch};
use super::mixture::MixtureMemory;
use super::pages::{PAGE, Page, PageLayout, Pages};
use super::parts::{Clock, PartTimes, StepPart};
use super::tree::PageId;
use crate::dimensions::Dimensions;
use crate::layout::Attending;
use crate::numbers::numbers;
use crate::rope::Rope;
use crate::snapshot::{PackedPolicy, Snapshot};
use crate::weights::{
    FeedForwardWeights, LayerAdapters, LayerWeights, MlpWeights, SharedWeights, Weights,
};

/// With fewer tokens, handing work to other threads costs more than it saves.
pub(super) const MIN_TOKENS_PER_THREAD: usize = 32;

/// A token to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EngineToken {
    /// An index into the page tables.
    pub(super) table: usize,
    pub(super) id: u32,
    pub(super) position: usize,
    /// Whether its logits are needed.
    pub(super) wants_logits: bool,
}

/// The tokens of a step.
#[derive(Debug, Default)]
pub(super) struct EngineBatch {
    /// Tokens of one table are neighbours, in order of position; all earlier tokens of the sequence are in pages
    /// already.
    pub(super) tokens: Vec<EngineToken>,
    /// The pages of each sequence, in order.
    pub(super) tables: Vec<Vec<PageId>>,
}

/// Logits of the tokens that need them, in order: row `i` starts at `i * stride`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Logits<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

/// Holds pages and computes steps. The scheduler decides what is computed and kept; each device has an implementation.
pub(super) trait Compute: std::fmt::Debug + Send {
    /// Copies a page.
    fn copy(&mut self, from: PageId, to: PageId);

    /// Writes the keys and values of the tokens into their pages and returns the logits of the tokens that need them.
    ///
    /// # Errors
    /// When the device fails; the content of pages is then undefined.
    fn run(
        &mut self,
        team: &mut Team,
        weights: &Snapshot,
        step: &EngineBatch,
        parts: &mut PartTimes,
    ) -> Result<Logits<'_>, String>;
}

/// Raw buffers and the CPU's vector units.
#[derive(Debug)]
pub(super) struct CpuCompute {
    pages: Pages,
    plans: AttentionPlans,
    /// One scratch memory for each thread.
    scratch: Vec<Mutex<Scratch>>,
    /// The residual stream. `[N, D]`, rows padded to whole vectors, as all below.
    x: Vec<f32>,
    /// The input of a half layer. `[N, D]`
    normed: Vec<f32>,
    /// `[N, (n_heads + 2 n_kv_heads) * head_dim]`
    qkv: Vec<f32>,
    /// Without padding. `[N, n_heads * head_dim]`
    mixed: Vec<f32>,
    /// `[N, intermediate_size]`
    inner: Vec<f32>,
    /// The output of a half layer that is normed or scaled before it is added. `[N, D]`
    half: Vec<f32>,
    experts: MixtureMemory,
    adapter_memory: AdapterMemory,
    /// `[M, V]`
    logits: Vec<f32>,
}

impl Compute for CpuCompute {
    fn copy(&mut self, from: PageId, to: PageId) {
        self.pages.copy(from, to);
    }

    fn run(
        &mut self,
        team: &mut Team,
        weights: &Snapshot,
        step: &EngineBatch,
        parts: &mut PartTimes,
    ) -> Result<Logits<'_>, String> {
        let Snapshot::Panels(PackedPolicy { weights, adapters, .. }) = weights else {
            return Err("the weights are not packed for the CPU".to_owned());
        };
        let adapters = |layer: usize| adapters.as_ref().map(|adapters| &adapters.layers[layer]);
        step.tables.iter().flatten().for_each(|page| self.pages.provide(*page));
        self.scratch.resize_with(team.size(), Mutex::default);
        let mut clock = parts.start();
        self.plans.make(step, &weights.dimensions);
        self.embed(weights, step).map_err(|error| error.to_string())?;
        clock.lap(StepPart::Embedding);
        for (index, layer) in weights.layers.iter().enumerate() {
            let layer = AdaptedLayer { weights: layer, adapters: adapters(index) };
            self.attention(team, weights, layer, step, index, &mut clock);
            self.feed_forward(team, weights, layer, &mut clock);
        }
        let logits = self.head(team, weights, step);
        clock.lap(StepPart::Head);
        Ok(logits)
    }
}

impl CpuCompute {
    pub(super) fn new(layout: PageLayout) -> Self {
        Self {
            pages: Pages::new(layout),
            plans: AttentionPlans::default(),
            scratch: Vec::new(),
            x: Vec::new(),
            normed: Vec::new(),
            qkv: Vec::new(),
            mixed: Vec::new(),
            inner: Vec::new(),
            half: Vec::new(),
            experts: MixtureMemory::default(),
            adapter_memory: AdapterMemory::default(),
            logits: Vec::new(),
        }
    }

    fn embed(&mut self, weights: &Weights, step: &EngineBatch) -> candle_core::Result<()> {
        let d = weights.config.hidden_size;
        let embedding = numbers(&weights.embedding)?;
        self.x.clear();
        for token in &step.tokens {
            self.x.extend_from_slice(&embedding[token.id as usize * d..][..d]);
            self.x.resize(self.x.len().next_multiple_of(padded(d)), 0.0);
        }
        scale_rows(&mut self.x, weights.embedding_scale);
        Ok(())
    }

    fn attention(
        &mut self,
        team: &mut Team,
        weights: &Weights,
        layer: AdaptedLayer<'_>,
        step: &EngineBatch,
        index: usize,
        clock: &mut Clock<'_>,
    ) {
        let AdaptedLayer { weights: layer, adapters } = layer;
        let dimensions = &weights.dimensions;
        let width = padded(weights.config.hidden_size);
        self.normed(team, dimensions, layer.attention_norm.as_deref());
        clock.lap(StepPart::Other);
        let adapter = adapters.and_then(|adapters| adapters.qkv.as_ref());
        let by = AdaptedPanels { panels: &layer.qkv, adapter };
        let Self { normed, qkv, adapter_memory, .. } = self;
        by.multiply(team, normed, width, qkv, Epilogue::Replace, adapter_memory);
        clock.lap(StepPart::Linear);
        self.keep(team, dimensions, layer, step, index);
        let stride = layer.qkv.columns(Epilogue::Replace);
        self.attend(team, step, dimensions, stride, (index, layer.attending));
        clock.lap(StepPart::Attention);
        let heads = dimensions.heads;
        let Self { x, mixed, half, adapter_memory, .. } = self;
        let adapter = adapters.and_then(|adapters| adapters.output.as_ref());
        let by = AdaptedPanels { panels: &layer.output, adapter };
        let add = AddHalf {
            dimensions,
            norm: layer.attention_norm_after.as_deref(),
            scale: layer.residual_scale,
        };
        let stride = heads.n_heads * heads.head_dim;
        add.run(team, by, (mixed, stride), half, x, adapter_memory);
        clock.lap(StepPart::Linear);
    }

    /// Norms the residual stream, or copies it if there is no norm.
    fn normed(&mut self, team: &mut Team, dimensions: &Dimensions, gain: Option<&[f32]>) {
        match gain {
            Some(gain) => norm_rows(team, &mut self.normed, &self.x, gain, dimensions),
            None => self.normed.clone_from(&self.x),
        }
    }

    /// Applies QK-norm and rotary position embedding in place, and writes keys and values into pages.
    fn keep(
        &mut self,
        team: &mut Team,
        dimensions: &Dimensions,
        layer: &LayerWeights,
        step: &EngineBatch,
        index: usize,
    ) {
        struct PageRun<'a> {
            tokens: &'a [EngineToken],
            rows: &'a mut [f32],
            page: &'a mut Page,
        }
        let heads = dimensions.heads;
        let (q, kv) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
        let stride = layer.qkv.columns(Epilogue::Replace);
        let layout = self.pages.layout();
        let mut pages = self.pages.all_mut();
        let mut rest = &mut self.qkv[..];
        let mut runs = Vec::with_capacity(step.tokens.len());
        for tokens in step.tokens.chunk_by(|a, b| page_of(a) == page_of(b)) {
            let (table, page) = page_of(&tokens[0]);
            let Some(rows) = rest.split_off_mut(..tokens.len() * stride) else { break };
            let page = pages[step.tables[table][page].0].take();
            let page = page.expect("a page is written by one sequence");
            runs.push(PageRun { tokens, rows, page });
        }
        let gains = layer.head_norms.as_ref().map(|(query, key)| {
            [(0..q, dimensions.gains(query)), (q..q + kv, dimensions.gains(key))]
        });
        let rotation = RowRotation {
            head_dim: heads.head_dim,
            norms: gains
                .as_ref()
                .map(|gains| gains.each_ref().map(|(at, gain)| (at.clone(), &**gain))),
            rope: dimensions.ropes.of(layer.attending.rope),
            eps: dimensions.eps as f32,
        };
        let length = if step.tokens.len() < MIN_TOKENS_PER_THREAD { runs.len() } else { 1 };
        team.chunks(&mut runs, length.max(1), |_, _, runs| {
            for PageRun { tokens, rows, page } in runs {
                for (token, row) in tokens.iter().zip(rows.chunks_exact_mut(stride)) {
                    rotate_heads(&mut row[..q + kv], &rotation, token.position);
                    let (keys, values) = row[q..q + 2 * kv].split_at(kv);
                    page.write(layout, index, token.position, keys, values);
                }
            }
        });
    }

    fn attend(
        &mut self,
        team: &mut Team,
        step: &EngineBatch,
        dimensions: &Dimensions,
        stride: usize,
        (index, attending): (usize, Attending),
    ) {
        let heads = dimensions.heads;
        let width = heads.n_heads * heads.head_dim;
        self.mixed.resize(step.tokens.len() * width, 0.0);
        let Self { pages, plans, scratch, qkv, mixed, .. } = self;
        let plan = plans.of(attending.window);
        let layer = Layer { step, pages, heads, index, qkv, stride };
        let target = WriteOnceRows::new(mixed, heads.head_dim);
        // Key heads vary slowest, so that a thread tends to stay with one.
        team.each(plan.len() * heads.n_kv_heads, |member, piece| {
            let (head, group) = (piece / plan.len(), piece % plan.len());
            let mut scratch =
                scratch[member].try_lock().expect("a member does one piece at a time");
            layer.attend(plan, group, head, &mut scratch, |token, head, mixed| {
                target.write(token * heads.n_heads + head, mixed);
            });
        });
    }

    fn feed_forward(
        &mut self,
        team: &mut Team,
        weights: &Weights,
        layer: AdaptedLayer<'_>,
        clock: &mut Clock<'_>,
    ) {
        let AdaptedLayer { weights: layer, adapters } = layer;
        let (d, dimensions) = (weights.config.hidden_size, &weights.dimensions);
        self.normed(team, dimensions, layer.mlp_norm.as_deref());
        clock.lap(StepPart::Other);
        let Self { x, normed, inner, half, experts, adapter_memory, .. } = self;
        match &layer.feed_forward {
            FeedForwardWeights::Dense(MlpWeights { gate, gate_up, down, .. }) => {
                let adapter = adapters.and_then(|adapters| adapters.gate_up.as_ref());
                let by = AdaptedPanels { panels: gate_up, adapter };
                by.multiply(team, normed, padded(d), inner, *gate, adapter_memory);
                let adapter = adapters.and_then(|adapters| adapters.down.as_ref());
                let by = AdaptedPanels { panels: down, adapter };
                let add = AddHalf {
                    dimensions,
                    norm: layer.mlp_norm_after.as_deref(),
                    scale: layer.residual_scale,
                };
                add.run(team, by, (inner, gate_up.columns(*gate)), half, x, adapter_memory);
            }
            FeedForwardWeights::Mixture(mixture) => {
                experts.add(team, x, normed, d, mixture);
                if let Some(shared) = &mixture.shared {
                    add_shared(team, shared, normed, padded(d), [inner, half], x);
                }
            }
        }
        clock.lap(StepPart::Linear);
    }

    fn head(&mut self, team: &mut Team, weights: &Weights, step: &EngineBatch) -> Logits<'_> {
        let (stride, width) =
            (weights.head.columns(Epilogue::Replace), padded(weights.config.hidden_size));
        // The rows of tokens with logits move to the front, over rows that are no longer needed.
        let mut wanted = 0;
        for (index, _) in step.tokens.iter().enumerate().filter(|(_, token)| token.wants_logits) {
            self.x.copy_within(index * width..(index + 1) * width, wanted * width);
            wanted += 1;
        }
        self.x.truncate(wanted * width);
        if wanted > 0 {
            self.normed(team, &weights.dimensions, Some(&weights.norm));
            scale_rows(&mut self.normed, weights.logit_scale);
            product(team, &weights.head, &self.normed, width, &mut self.logits, Epilogue::Replace);
        }
        Logits { data: &self.logits[..wanted * stride], stride }
    }
}

/// A layer, and its adapters if they are not merged.
#[derive(Clone, Copy, Debug)]
struct AdaptedLayer<'a> {
    weights: &'a LayerWeights,
    adapters: Option<&'a LayerAdapters>,
}

/// How the output of half a layer is added to the residual stream.
#[derive(Clone, Copy, Debug)]
struct AddHalf<'a> {
    dimensions: &'a Dimensions,
    /// The norm of the output, if the model has one.
    norm: Option<&'a [f32]>,
    scale: f32,
}

impl AddHalf<'_> {
    /// Multiplies rows that start a stride apart, and adds the product to `x`.
    fn run(
        &self,
        team: &mut Team,
        by: AdaptedPanels<'_>,
        (rows, stride): (&[f32], usize),
        half: &mut Vec<f32>,
        x: &mut Vec<f32>,
        memory: &mut AdapterMemory,
    ) {
        let Self { dimensions, norm, scale } = *self;
        if norm.is_none() && scale == 1.0 {
            return by.multiply(team, rows, stride, x, Epilogue::Add, memory);
        }
        by.multiply(team, rows, stride, half, Epilogue::Replace, memory);
        if let Some(gain) = norm {
            let gain = dimensions.gains(gain);
            let (eps, width) = (dimensions.eps as f32, padded(gain.len()));
            team.chunks(half, MIN_TOKENS_PER_THREAD * width, |_, _, half| {
                norm_in_place(half, &gain, eps, width);
            });
        }
        add_rows(x, half, scale);
    }
}

/// Adds the output of the expert that serves every token, times the sigmoid of its gate. Rows start `width` apart.
fn add_shared(
    team: &mut Team,
    shared: &SharedWeights,
    normed: &[f32],
    width: usize,
    [inner, half]: [&mut Vec<f32>; 2],
    x: &mut [f32],
) {
    let SharedWeights { mlp: MlpWeights { gate, gate_up, down, .. }, gate: weight } = shared;
    product(team, gate_up, normed, width, inner, *gate);
    product(team, down, inner, gate_up.columns(*gate), half, Epilogue::Replace);
    product(team, weight, normed, width, inner, Epilogue::Replace);
    let weights = inner.chunks_exact(weight.columns(Epilogue::Replace));
    for ((x, half), weight) in x.chunks_exact_mut(width).zip(half.chunks_exact(width)).zip(weights)
    {
        add_rows(x, half, 1.0 / (1.0 + math::exp(-weight[0])));
    }
}

/// Returns the page table entry of a token: table and index.
fn page_of(token: &EngineToken) -> (usize, usize) {
    (token.table, token.position / PAGE)
}

/// Multiplies rows that start `stride` apart by a matrix.
pub(super) fn product(
    team: &mut Team,
    by: &Panels,
    rows: &[f32],
    stride: usize,
    target: &mut Vec<f32>,
    then: Epilogue,
) {
    let rows = StridedRows { data: rows, stride, count: rows.len() / stride };
    target.resize(rows.count * by.columns(then), 0.0);
    by.multiply(team, rows, target, then);
}

fn norm_rows(
    team: &mut Team,
    target: &mut Vec<f32>,
    x: &[f32],
    gain: &[f32],
    dimensions: &Dimensions,
) {
    let (gain, eps) = (&*dimensions.gains(gain), dimensions.eps as f32);
    target.resize(x.len(), 0.0);
    let (width, length) = (padded(gain.len()), MIN_TOKENS_PER_THREAD * padded(gain.len()));
    team.chunks(target, length, |_, index, target| {
        norm_some(target, &x[index * length..][..target.len()], gain, eps, width);
    });
}

pub(super) fn scale_rows(x: &mut [f32], factor: f32) {
    if factor != 1.0 {
        scale(x, factor);
    }
}

/// QK-norm and rotary position embedding of a layer.
struct RowRotation<'a> {
    head_dim: usize,
    /// The place of queries and of keys in a row, and the gains of each piece of it that is normed.
    norms: Option<[(Range<usize>, &'a [f32]); 2]>,
    rope: &'a Rope,
    eps: f32,
}

vectorized! {
    /// Applies RMSNorm to rows that start `width` apart.
    fn norm_some(target: &mut [f32], x: &[f32], gain: &[f32], eps: f32, width: usize) {
        for (target, x) in target.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            math::rms_norm(&mut target[..gain.len()], &x[..gain.len()], gain, eps);
        }
    }

    /// Applies RMSNorm in place to rows that start `width` apart.
    fn norm_in_place(x: &mut [f32], gain: &[f32], eps: f32, width: usize) {
        for row in x.chunks_exact_mut(width) {
            norm_row(&mut row[..gain.len()], gain, eps);
        }
    }

    fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }

    fn add_rows(target: &mut [f32], x: &[f32], factor: f32) {
        math::add_scaled(target, factor, x);
    }

    /// Applies QK-norm (if the model has it) and rotary position embedding.
    fn rotate_heads(heads: &mut [f32], rotation: &RowRotation<'_>, position: usize) {
        let RowRotation { head_dim, norms, rope, eps } = rotation;
        let (cos, sin) = rope.at(position);
        for (range, gain) in norms.iter().flatten() {
            for piece in heads[range.clone()].chunks_exact_mut(gain.len()) {
                norm_row(piece, gain, *eps);
            }
        }
        for head in heads.chunks_exact_mut(*head_dim) {
            let (first, second) = head.split_at_mut(cos.len());
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always, reason = "it takes on the width of its caller")]
fn norm_row(x: &mut [f32], gain: &[f32], eps: f32) {
    let factor = math::inverse_rms(x, eps);
    for (x, gain) in x.iter_mut().zip(gain) {
        *x = *x * factor * gain;
    }
}
