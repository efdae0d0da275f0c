//! One forward pass over the tokens of a step, on the CPU.

use std::sync::Mutex;

use turnwise_kernels::math;
use turnwise_kernels::panels::{Epilogue, Panels, StridedRows, padded};
use turnwise_kernels::team::{Team, WriteOnceRows};
use turnwise_kernels::vectorized;

use super::attention::{AttentionPlan, Layer, Scratch};
use super::mixture::MixtureMemory;
use super::pages::{PAGE, Page, PageLayout, Pages};
use super::parts::{Clock, PartTimes, StepPart};
use super::tree::PageId;
use crate::dimensions::Heads;
use crate::rope::Rope;
use crate::snapshot::Snapshot;
use crate::weights::{FeedForwardWeights, LayerWeights, MlpWeights, Weights};

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
    plan: AttentionPlan,
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
    experts: MixtureMemory,
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
        let Snapshot::Panels(weights) = weights else {
            return Err("the weights are not packed for the CPU".to_owned());
        };
        step.tables.iter().flatten().for_each(|page| self.pages.provide(*page));
        self.scratch.resize_with(team.size(), Mutex::default);
        let mut clock = parts.start();
        self.plan.make(step, Heads::of(&weights.config));
        self.embed(weights, step);
        clock.lap(StepPart::Embedding);
        for (index, layer) in weights.layers.iter().enumerate() {
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
            plan: AttentionPlan::default(),
            scratch: Vec::new(),
            x: Vec::new(),
            normed: Vec::new(),
            qkv: Vec::new(),
            mixed: Vec::new(),
            inner: Vec::new(),
            experts: MixtureMemory::default(),
            logits: Vec::new(),
        }
    }

    fn embed(&mut self, weights: &Weights, step: &EngineBatch) {
        let d = weights.config.hidden_size;
        self.x.clear();
        for token in &step.tokens {
            self.x.extend_from_slice(&weights.embedding[token.id as usize * d..][..d]);
            self.x.resize(self.x.len().next_multiple_of(padded(d)), 0.0);
        }
    }

    fn attention(
        &mut self,
        team: &mut Team,
        weights: &Weights,
        layer: &LayerWeights,
        step: &EngineBatch,
        index: usize,
        clock: &mut Clock<'_>,
    ) {
        let heads = Heads::of(&weights.config);
        let eps = weights.config.rms_norm_eps as f32;
        let width = padded(weights.config.hidden_size);
        norm_rows(team, &mut self.normed, &self.x, &layer.attention_norm, eps);
        clock.lap(StepPart::Other);
        product(team, &layer.qkv, &self.normed, width, &mut self.qkv, Epilogue::Replace);
        clock.lap(StepPart::Linear);
        self.keep(team, weights, layer, step, index);
        self.attend(team, step, heads, layer.qkv.columns(Epilogue::Replace), index);
        clock.lap(StepPart::Attention);
        product(
            team,
            &layer.output,
            &self.mixed,
            heads.n_heads * heads.head_dim,
            &mut self.x,
            Epilogue::Add,
        );
        clock.lap(StepPart::Linear);
    }

    /// Applies QK-norm and rotary position embedding in place, and writes keys and values into pages.
    fn keep(
        &mut self,
        team: &mut Team,
        weights: &Weights,
        layer: &LayerWeights,
        step: &EngineBatch,
        index: usize,
    ) {
        struct PageRun<'a> {
            tokens: &'a [EngineToken],
            rows: &'a mut [f32],
            page: &'a mut Page,
        }
        let heads = Heads::of(&weights.config);
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
        let eps = weights.config.rms_norm_eps as f32;
        let length = if step.tokens.len() < MIN_TOKENS_PER_THREAD { runs.len() } else { 1 };
        team.chunks(&mut runs, length.max(1), |_, _, runs| {
            for PageRun { tokens, rows, page } in runs {
                for (token, row) in tokens.iter().zip(rows.chunks_exact_mut(stride)) {
                    rotate_heads(&mut row[..q + kv], q, layer, &weights.rope, token.position, eps);
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
        heads: Heads,
        stride: usize,
        index: usize,
    ) {
        let width = heads.n_heads * heads.head_dim;
        self.mixed.resize(step.tokens.len() * width, 0.0);
        let Self { pages, plan, scratch, qkv, mixed, .. } = self;
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
        layer: &LayerWeights,
        clock: &mut Clock<'_>,
    ) {
        let eps = weights.config.rms_norm_eps as f32;
        let width = padded(weights.config.hidden_size);
        norm_rows(team, &mut self.normed, &self.x, &layer.mlp_norm, eps);
        clock.lap(StepPart::Other);
        match &layer.feed_forward {
            FeedForwardWeights::Dense(MlpWeights { gate_up, down }) => {
                product(team, gate_up, &self.normed, width, &mut self.inner, Epilogue::SwiGlu);
                product(
                    team,
                    down,
                    &self.inner,
                    gate_up.columns(Epilogue::SwiGlu),
                    &mut self.x,
                    Epilogue::Add,
                );
            }
            FeedForwardWeights::Mixture(mixture) => {
                let d = weights.config.hidden_size;
                self.experts.add(team, &mut self.x, &self.normed, d, mixture);
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
            let eps = weights.config.rms_norm_eps as f32;
            norm_rows(team, &mut self.normed, &self.x, &weights.norm, eps);
            product(team, &weights.head, &self.normed, width, &mut self.logits, Epilogue::Replace);
        }
        Logits { data: &self.logits[..wanted * stride], stride }
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

fn norm_rows(team: &mut Team, target: &mut Vec<f32>, x: &[f32], gain: &[f32], eps: f32) {
    target.resize(x.len(), 0.0);
    let (width, length) = (padded(gain.len()), MIN_TOKENS_PER_THREAD * padded(gain.len()));
    team.chunks(target, length, |_, index, target| {
        norm_some(target, &x[index * length..][..target.len()], gain, eps, width);
    });
}

vectorized! {
    /// Applies RMSNorm to rows that start `width` apart.
    fn norm_some(target: &mut [f32], x: &[f32], gain: &[f32], eps: f32, width: usize) {
        for (target, x) in target.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            math::rms_norm(&mut target[..gain.len()], &x[..gain.len()], gain, eps);
        }
    }

    /// Applies QK-norm (if the model has it) and rotary position embedding. The first `q` numbers are queries.
    fn rotate_heads(heads: &mut [f32], q: usize, layer: &LayerWeights, rope: &Rope, position: usize, eps: f32) {
        let (cos, sin) = rope.at(position);
        let half = cos.len();
        if let Some((query_norm, key_norm)) = &layer.head_norms {
            let (queries, keys) = heads.split_at_mut(q);
            for (heads, gain) in [(queries, query_norm), (keys, key_norm)] {
                for head in heads.chunks_exact_mut(2 * half) {
                    let factor = math::inverse_rms(head, eps);
                    for (x, gain) in head.iter_mut().zip(gain) {
                        *x = *x * factor * gain;
                    }
                }
            }
        }
        for head in heads.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}
