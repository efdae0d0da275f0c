//! One forward pass over the tokens of a step in the tensor library's operations, on the device of the weights.
//!
//! It has the same pages as the CPU's implementation, as rows of one tensor per layer. Pages are written in place and
//! gathered by index for each sequence, so that prompts are shared here too. Sequences with one new token attend
//! together, padded to the longest; longer pieces attend alone.

use candle_core::{DType, Device, Result, Tensor};
use turnwise_kernels::team::Team;

use super::compute::{Compute, CpuCompute, EngineBatch, EngineToken, Logits};
use super::pages::{PAGE, PageLayout};
use super::parts::{PartTimes, StepPart};
use super::tree::PageId;
use super::{EngineCompute, EngineSettings};
use crate::architecture::Activation;
use crate::forward;
use crate::layout::{Attending, HeadNorms, Layer, Linear, Mixture};
use crate::ops::Ops;
use crate::plain::{Arithmetic, Rotations, add_gated, attend, gate, mix};
use crate::published::Publication;
use crate::snapshot::{PackedPolicy, Snapshot, TensorWeights};

/// Returns an implementation for weights in this form.
pub(super) fn compute_for(weights: &Snapshot) -> Box<dyn Compute> {
    match weights {
        Snapshot::Panels(PackedPolicy { weights, .. }) => {
            Box::new(CpuCompute::new(PageLayout::new(&weights.config, weights.precision)))
        }
        Snapshot::Tensors(_) => Box::new(TensorCompute::default()),
    }
}

/// Converts a publication to the form of the engine's implementation; returns it unchanged if that fails. Parts that it
/// has in common with an earlier one are taken over.
pub(super) fn suited(
    publication: Publication,
    settings: EngineSettings,
    earlier: Option<&Snapshot>,
) -> Publication {
    let weights = publication.weights.clone();
    let weights = match settings.compute {
        EngineCompute::Auto if matches!(*weights, Snapshot::Tensors(_)) => return publication,
        EngineCompute::Auto | EngineCompute::Buffers => {
            weights.into_panels(settings.weights, earlier)
        }
        EngineCompute::Tensors => weights.into_tensors(),
    };
    match weights {
        Ok(weights) => Publication { weights, ..publication },
        Err(error) => {
            tracing::error!(%error, "the published weights cannot be converted to the engine's form");
            publication
        }
    }
}

/// Pages as tensors.
#[derive(Debug, Default)]
pub(super) struct TensorCompute {
    /// Keys and values of each layer. `[pages * PAGE, n_kv_heads * head_dim]` each
    pools: Vec<[Tensor; 2]>,
    n_pages: usize,
    logits: Vec<f32>,
    /// The reason that pages are invalid.
    broken: Option<String>,
}

impl Compute for TensorCompute {
    fn copy(&mut self, from: PageId, to: PageId) {
        if let Err(error) = self.copy_page(from, to) {
            self.broken = Some(error.to_string());
        }
    }

    fn run(
        &mut self,
        _: &mut Team,
        weights: &Snapshot,
        step: &EngineBatch,
        parts: &mut PartTimes,
    ) -> std::result::Result<Logits<'_>, String> {
        let Snapshot::Tensors(weights) = weights else {
            return Err("the weights are not tensors".to_owned());
        };
        if let Some(reason) = &self.broken {
            return Err(reason.clone());
        }
        let mut clock = parts.start();
        self.logits = self.compute(weights, step).map_err(|error| error.to_string())?;
        // A device runs asynchronously, so its time is not divided further.
        clock.lap(StepPart::Linear);
        Ok(Logits { data: &self.logits, stride: weights.config.vocab_size })
    }
}

impl TensorCompute {
    fn compute(&mut self, weights: &TensorWeights, step: &EngineBatch) -> Result<Vec<f32>> {
        let last = step.tables.iter().flatten().map(|page| page.0).max();
        self.provide(weights, last.map_or(0, |page| page + 1))?;
        let mut serving = Serving::new(weights, step, &self.pools)?;
        let hidden = forward::hidden(&mut serving, &weights.network)?;
        if !step.tokens.iter().any(|token| token.wants_logits) {
            return Ok(Vec::new());
        }
        forward::predict(&mut serving, &weights.network, &hidden)?;
        serving.logits.map_or(Ok(Vec::new()), |logits| logits.flatten_all()?.to_vec1())
    }

    /// Ensures that `n_pages` pages have memory.
    fn provide(&mut self, weights: &TensorWeights, n_pages: usize) -> Result<()> {
        if self.pools.is_empty() {
            let heads = weights.dimensions.heads;
            let shape = (0, heads.n_kv_heads * heads.head_dim);
            let none = || Tensor::zeros(shape, weights.precision.dtype(), weights.device());
            let layers = (0..weights.config.n_layers).map(|_| Ok([none()?, none()?]));
            self.pools = layers.collect::<Result<_>>()?;
        }
        self.grow(n_pages)
    }

    fn grow(&mut self, n_pages: usize) -> Result<()> {
        if n_pages <= self.n_pages {
            return Ok(());
        }
        // Grows by at least half, so that pages are rarely copied.
        let n_pages = n_pages.max(self.n_pages + self.n_pages / 2);
        for pool in self.pools.iter_mut().flatten() {
            let more = ((n_pages - self.n_pages) * PAGE, pool.dim(1)?);
            let more = Tensor::zeros(more, pool.dtype(), pool.device())?;
            *pool = if self.n_pages == 0 { more } else { Tensor::cat(&[&*pool, &more], 0)? };
        }
        self.n_pages = n_pages;
        Ok(())
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<()> {
        self.grow(to.0 + 1)?;
        self.pools.iter().flatten().try_for_each(|pool| {
            let page = pool.narrow(0, from.0 * PAGE, PAGE)?.force_contiguous()?;
            pool.slice_set(&page, 0, to.0 * PAGE)
        })
    }
}

/// Returns the row of a token's keys and values.
fn row_of(step: &EngineBatch, table: usize, position: usize) -> u32 {
    (step.tables[table][position / PAGE].0 * PAGE + position % PAGE) as u32
}

/// Pieces of sequences that attend together.
#[derive(Debug)]
struct AttentionGroup {
    /// The indices of the step's query tokens. `[lists * Q]`
    queries: Tensor,
    /// Rows of pages. `[lists * K]`
    keys: Tensor,
    /// `[lists, 1, Q, K]`
    mask: Tensor,
}

impl AttentionGroup {
    /// Groups pieces of equal length, each with the index of its first token in the step.
    fn new(
        step: &EngineBatch,
        pieces: &[(usize, &[EngineToken])],
        window: Option<usize>,
        device: &Device,
    ) -> Result<Self> {
        let n_queries = pieces.first().map_or(0, |(_, tokens)| tokens.len());
        let first_seen = |token: &EngineToken| {
            window.map_or(0, |window| (token.position + 1).saturating_sub(window))
        };
        let seen = |tokens: &[EngineToken]| match tokens {
            [first, .., last] => first_seen(first)..last.position + 1,
            [token] => first_seen(token)..token.position + 1,
            [] => 0..0,
        };
        let n_keys = pieces.iter().map(|(_, tokens)| seen(tokens).len()).max().unwrap_or(0);
        let (mut queries, mut keys) = (Vec::new(), Vec::new());
        let mut mask = Vec::with_capacity(pieces.len() * n_queries * n_keys);
        for (index, (first, tokens)) in pieces.iter().enumerate() {
            let table = tokens[0].table;
            queries.extend((*first..first + tokens.len()).map(|token| token as u32));
            let seen = seen(tokens);
            keys.extend(seen.clone().map(|position| row_of(step, table, position)));
            // Padding repeats a row, and the mask hides it.
            keys.resize((index + 1) * n_keys, row_of(step, table, seen.start));
            for token in *tokens {
                let own = first_seen(token)..token.position + 1;
                let look = |key| if own.contains(&key) { 0.0 } else { f32::NEG_INFINITY };
                mask.extend((seen.start..seen.start + n_keys).map(look));
            }
        }
        Ok(Self {
            queries: indices(&queries, device)?,
            keys: indices(&keys, device)?,
            mask: Tensor::from_vec(mask, (pieces.len(), 1, n_queries, n_keys), device)?,
        })
    }
}

fn indices(values: &[u32], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), device)
}

/// A step during its pass through the layers.
#[derive(Debug)]
struct Serving<'a> {
    arithmetic: Arithmetic,
    pools: &'a [[Tensor; 2]],
    /// The index of the current layer.
    layer: usize,
    ids: Tensor,
    rotations: Rotations,
    /// The row that each token's keys and values are written to. `[N, n_kv_heads * head_dim]`
    rows: Tensor,
    /// For each sliding window of the model.
    groups: Vec<(Option<usize>, Vec<AttentionGroup>)>,
    /// The place of each token in the groups. `[N]`
    back: Tensor,
    /// The tokens whose logits are needed.
    wanted: Tensor,
    /// `[R, V]`
    logits: Option<Tensor>,
}

impl<'a> Serving<'a> {
    fn new(weights: &TensorWeights, step: &EngineBatch, pools: &'a [[Tensor; 2]]) -> Result<Self> {
        let (device, tokens) = (weights.device(), &step.tokens);
        let heads = weights.dimensions.heads;
        let mut pieces = Vec::new();
        for piece in tokens.chunk_by(|a, b| a.table == b.table) {
            let first = pieces
                .last()
                .map_or(0, |(first, piece): &(usize, &[EngineToken])| first + piece.len());
            pieces.push((first, piece));
        }
        let (single, longer): (Vec<_>, Vec<_>) =
            pieces.into_iter().partition(|(_, piece)| piece.len() == 1);
        let groups = single.chunks(single.len().max(1)).chain(longer.chunks(1));
        let (mut back, mut place) = (vec![0; tokens.len()], 0);
        for pieces in groups.clone() {
            for token in pieces.iter().flat_map(|(first, piece)| *first..first + piece.len()) {
                back[token] = place;
                place += 1;
            }
        }
        let of_window = |window: Option<usize>| {
            let made = groups.clone().map(|some| AttentionGroup::new(step, some, window, device));
            Ok((window, made.collect::<Result<Vec<_>>>()?))
        };
        let windows = weights.dimensions.windows.iter().copied();
        let made = windows.map(of_window).collect::<Result<_>>()?;
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        let positions: Vec<u32> = tokens.iter().map(|token| token.position as u32).collect();
        let rows: Vec<u32> =
            tokens.iter().map(|token| row_of(step, token.table, token.position)).collect();
        let wanted = tokens.iter().enumerate().filter(|(_, token)| token.wants_logits);
        let wanted: Vec<u32> = wanted.map(|(index, _)| index as u32).collect();
        let shape = (rows.len(), heads.n_kv_heads * heads.head_dim);
        Ok(Self {
            arithmetic: Arithmetic::new(&weights.dimensions, weights.precision),
            pools,
            layer: 0,
            ids: indices(&ids, device)?,
            rotations: Rotations::new(&weights.dimensions.ropes, &positions, device)?,
            rows: indices(&rows, device)?.unsqueeze(1)?.broadcast_as(shape)?.contiguous()?,
            groups: made,
            back: indices(&back, device)?,
            wanted: indices(&wanted, device)?,
            logits: None,
        })
    }
}

impl Ops for Serving<'_> {
    type Weight = Tensor;
    type Value = Tensor;

    fn embed(&mut self, table: &Tensor) -> Result<Tensor> {
        table.index_select(&self.ids, 0)?.to_dtype(DType::F32)
    }

    fn norm(&mut self, x: &Tensor, gain: &Tensor) -> Result<Tensor> {
        self.arithmetic.norm(x, gain)
    }

    fn linear(&mut self, x: &Tensor, linears: &[Linear<Tensor>]) -> Result<Tensor> {
        self.arithmetic.linear(x, linears)
    }

    fn add_linear(&mut self, onto: &Tensor, x: &Tensor, linear: &Linear<Tensor>) -> Result<Tensor> {
        onto + self.arithmetic.product(x, linear)?
    }

    fn rotate_heads(
        &mut self,
        qkv: &Tensor,
        norms: Option<&HeadNorms<Tensor>>,
        attending: Attending,
    ) -> Result<Tensor> {
        self.arithmetic.rotate_heads(qkv, norms, self.rotations.of(attending.rope))
    }

    fn attention(&mut self, qkv: &Tensor, attending: Attending) -> Result<Tensor> {
        let [query, key, value] = self.arithmetic.split(qkv)?;
        let query = query.contiguous()?;
        let [keys, values] = &self.pools[self.layer];
        for (pool, rows) in [(keys, key), (values, value)] {
            pool.scatter_set(&self.rows, &rows.to_dtype(pool.dtype())?.contiguous()?, 0)?;
        }
        let groups = self.groups.iter().filter(|(window, _)| *window == attending.window);
        let mixed = groups.flat_map(|(_, groups)| groups).map(|group| {
            let query = query.index_select(&group.queries, 0)?;
            let gathered = |pool: &Tensor| pool.index_select(&group.keys, 0);
            attend(&query, &gathered(keys)?, &gathered(values)?, &group.mask, self.arithmetic)
        });
        Tensor::cat(&mixed.collect::<Result<Vec<_>>>()?, 0)?.index_select(&self.back, 0)
    }

    fn gate(&mut self, gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
        gate(gate_up, activation)
    }

    fn scale(&mut self, x: &Tensor, factor: f32) -> Result<Tensor> {
        x * f64::from(factor)
    }

    fn add(&mut self, onto: &Tensor, x: &Tensor) -> Result<Tensor> {
        onto + x
    }

    fn add_gated(&mut self, onto: &Tensor, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
        add_gated(onto, x, gate)
    }

    fn add_mixture(
        &mut self,
        onto: &Tensor,
        x: &Tensor,
        mixture: &Mixture<Tensor>,
    ) -> Result<Tensor> {
        onto + mix(x, mixture, self.arithmetic.precision)?.0
    }

    fn select(&mut self, x: &Tensor) -> Result<Tensor> {
        x.index_select(&self.wanted, 0)
    }

    fn predict(&mut self, x: &Tensor, head: &Tensor) -> Result<()> {
        self.logits = Some(self.arithmetic.by_rows(x, head)?);
        Ok(())
    }

    fn layer(&mut self, index: usize, layer: &Layer<Tensor>, x: &Tensor) -> Result<Tensor> {
        self.layer = index;
        forward::layer(self, layer, x)
    }
}
