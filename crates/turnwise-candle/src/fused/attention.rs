//! Causal attention over a forest: each token looks at its ancestors and at itself.
//!
//! Queries, keys and values of a token lie side by side: `[N, (n_heads + 2 n_kv_heads) * head_dim]`, the output is
//! `[N, n_heads * head_dim]`. A key head of a tree is laid out for products once, together or span by span; its query heads are
//! computed with it, block by block: scores of a block of queries against all that they may see are held, no more.

use std::cell::RefCell;
use std::iter;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use turnwise_kernels::buffer::{Buffer, BufferPool};
use turnwise_kernels::math;
use turnwise_kernels::matrix::{
    self, Accuracy, Matrix, MatrixMut, PackedSides, Parallelism, Write,
};
use turnwise_kernels::small::{self, LeftFactor, RightFactor};
use turnwise_kernels::tile::LANES;
use turnwise_kernels::vectorized;

use crate::batch::{Batch, Span};
use crate::dimensions::Heads;

/// Tokens whose queries are computed at once.
const BLOCK: usize = 64;

/// Numbers behind a copy that a tile may read and nobody uses.
const BEYOND: usize = 8 * LANES;

/// The most pieces that the queries of a tree are cut in for the backward pass, each with sums of its own. Fixed, so that sums
/// do not depend on the number of threads.
const STRIPS: usize = 8;

/// The fewest blocks of queries in such a piece.
const STRIP_BLOCKS: usize = 4;

/// What products of the backward pass are computed with.
const GRADIENT: Accuracy = Accuracy::Gradient;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Memory for a block, used again by a thread.
#[derive(Debug, Default)]
struct Scratch {
    /// `[group * queries, head_dim]`, padded to whole vectors; so are `mixed`, `dmixed` and `dqueries`.
    queries: Vec<f32>,
    /// Scores, and what becomes of them. `[group * queries, stride]`
    weights: Vec<f32>,
    dscores: Vec<f32>,
    mixed: Vec<f32>,
    dmixed: Vec<f32>,
    dqueries: Vec<f32>,
    /// `[group * queries]`
    log_sums: Vec<f32>,
}

/// The first so many numbers, which may be anything.
fn room(numbers: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if numbers.len() < count {
        numbers.resize(count, 0.0);
    }
    &mut numbers[..count]
}

/// Fills `mixed`, and the logarithm of each query's sum of exponentials for the backward pass. `[N, n_heads]`
pub(crate) fn forward(
    mut mixed: &mut [f32],
    mut log_sums: &mut [f32],
    qkv: &[f32],
    batch: &Batch,
    heads: Heads,
    pool: &Arc<BufferPool>,
) {
    let parts = parts(batch, heads);
    let mixers: Vec<Mixer> =
        parts.par_iter().map(|part| Mixer::of(qkv, part, heads, pool)).collect();
    // Blocks follow each other as the tokens do, so that each can have its own rows.
    let mut work = Vec::new();
    let trees = parts.chunks(heads.n_kv_heads).zip(mixers.chunks(heads.n_kv_heads));
    for (parts, mixers) in trees {
        for block in parts[0].blocks() {
            let n = block.queries.len();
            let (own, rest) =
                mem::take(&mut mixed).split_at_mut(n * heads.n_heads * heads.head_dim);
            let (own_sums, rest_sums) = mem::take(&mut log_sums).split_at_mut(n * heads.n_heads);
            (mixed, log_sums) = (rest, rest_sums);
            work.push((mixers, block, own, own_sums));
        }
    }
    work.into_par_iter().for_each(|(mixers, block, mixed, log_sums)| {
        SCRATCH.with_borrow_mut(|scratch| {
            for mixer in mixers {
                mixer.mix(qkv, &block, heads, scratch, mixed, log_sums);
            }
        });
    });
}

/// What the backward pass reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Above<'a> {
    pub(crate) qkv: &'a [f32],
    pub(crate) mixed: &'a [f32],
    pub(crate) log_sums: &'a [f32],
    /// The gradient by `mixed`.
    pub(crate) dmixed: &'a [f32],
}

/// The gradient by queries, keys and values.
///
/// With `P` the weights and `O = P V`: `dV = P' dO`, and the scores' gradient is `dS = P * (dO V' - rowsum(dO * O))` (Dao et
/// al., *`FlashAttention`*, 2022, appendix B.2). Tokens share their ancestors' keys, so each strip of a tree's queries sums the
/// gradients of keys and values by itself, and the strips' sums are added.
pub(crate) fn backward(
    dqkv: &mut [f32],
    above: &Above<'_>,
    batch: &Batch,
    heads: Heads,
    pool: &Arc<BufferPool>,
) {
    let parts = parts(batch, heads);
    let pullers: Vec<Puller<'_>> =
        parts.par_iter().map(|part| Puller::of(part, above, heads, pool)).collect();
    // All key heads of a tree have its blocks.
    let blocks: Vec<Vec<Block>> =
        parts.chunks(heads.n_kv_heads).map(|of_tree| of_tree[0].blocks().collect()).collect();
    let strips: Vec<(usize, &[Block])> = (0..parts.len())
        .flat_map(|part| strips(&blocks[part / heads.n_kv_heads]).map(move |strip| (part, strip)))
        .collect();
    let pulled: Vec<Pulled> =
        strips.par_iter().map(|(part, blocks)| pullers[*part].pull_strip(blocks, pool)).collect();
    let mut by_part: Vec<&[Pulled]> = Vec::with_capacity(parts.len());
    let mut rest = &pulled[..];
    for same in strips.chunk_by(|(part, _), (next, _)| part == next) {
        let (own, others) = rest.split_at(same.len());
        by_part.push(own);
        rest = others;
    }
    let trees = by_part.chunks(heads.n_kv_heads).zip(parts.chunks(heads.n_kv_heads));
    let of_row: Vec<(&[&[Pulled]], usize)> = trees
        .flat_map(|(pulled, parts)| (0..parts[0].tokens.len()).map(move |row| (pulled, row)))
        .collect();
    let rows = dqkv.par_chunks_exact_mut(heads.width()).zip(&of_row);
    rows.with_min_len(BLOCK).for_each(|(dqkv, (pulled, row))| {
        for (kv_head, strips) in pulled.iter().enumerate() {
            write_row(strips, *row, dqkv, kv_head, heads);
        }
    });
}

/// Puts the gradients of one token in their places.
fn write_row(strips: &[Pulled], row: usize, dqkv: &mut [f32], kv_head: usize, heads: Heads) {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let width = head_dim.next_multiple_of(LANES);
    let group = heads.group();
    let place = |head: usize| head * head_dim..(head + 1) * head_dim;
    for strip in strips {
        if let Some(own) = row.checked_sub(strip.start).filter(|own| *own < strip.count) {
            for index in 0..group {
                let numbers = &strip.dqueries[(index * strip.count + own) * width..][..head_dim];
                dqkv[place(kv_head * group + index)].copy_from_slice(numbers);
            }
        }
    }
    for (head, of) in [
        (n_heads + kv_head, (|strip| &strip.dkeys) as fn(&Pulled) -> &Buffer),
        (n_heads + n_kv_heads + kv_head, |strip| &strip.dvalues),
    ] {
        let sum = &mut dqkv[place(head)];
        sum.fill(0.0);
        // A strip knows nothing of keys behind its last query.
        for strip in strips.iter().filter(|strip| (row + 1) * width <= of(strip).len()) {
            math::add_scaled(sum, 1.0, &of(strip)[row * width..][..head_dim]);
        }
    }
}

/// A key head in a tree.
#[derive(Clone, Debug)]
struct Part<'a> {
    spans: &'a [Span],
    tokens: Range<usize>,
    kv_head: usize,
    /// Whether products with its keys and values are computed by the matrix unit.
    on_unit: bool,
}

impl Part<'_> {
    fn blocks(&self) -> impl Iterator<Item = Block> {
        self.spans.iter().flat_map(move |span| {
            let Range { start, end } = span.own;
            (start..end).step_by(BLOCK).map(move |first| {
                let queries = first..(first + BLOCK).min(end);
                Block { seen: self.stretches(span, queries.end), queries }
            })
        })
    }

    /// What tokens of a span see before `end`.
    fn stretches(&self, span: &Span, end: usize) -> Vec<Stretch> {
        let (mut stretches, mut column) = (Vec::new(), 0);
        let own = span.own.start..end;
        for range in span.before.iter().chain(iter::once(&own)) {
            let mut start = range.start;
            while start < range.end {
                let (span, cut) = self.cut(start..range.end);
                stretches.push(Stretch { span, column, keys: start..cut });
                column += cut - start;
                start = cut;
            }
        }
        stretches
    }

    /// The span that a range begins in, and where to cut the range: where that span ends, if spans are packed one by one.
    fn cut(&self, range: Range<usize>) -> (usize, usize) {
        if !self.on_unit {
            return (0, range.end);
        }
        let span = self.spans.partition_point(|span| span.own.end <= range.start);
        let own = &self.spans[span].own;
        debug_assert_eq!(
            own.start, range.start,
            "what is seen of a span begins with its first token"
        );
        (span, range.end.min(own.end))
    }
}

/// A tree's blocks, those that follow each other together.
fn strips(blocks: &[Block]) -> impl Iterator<Item = &[Block]> {
    blocks.chunks(blocks.len().div_ceil(STRIPS).max(STRIP_BLOCKS))
}

/// The key heads of each tree one after another.
fn parts(batch: &Batch, heads: Heads) -> Vec<Part<'_>> {
    let trees = batch
        .trees()
        .filter_map(|spans| Some((spans, spans.first()?.own.start..spans.last()?.own.end)));
    let of = |(spans, tokens): (_, Range<usize>)| {
        let on_unit = suits_unit(spans, tokens.len(), heads);
        let part = move |kv_head| Part { spans, tokens: tokens.clone(), kv_head, on_unit };
        (0..heads.n_kv_heads).map(part)
    };
    trees.flat_map(of).collect()
}

/// Whether products with a tree's keys and values fill the matrix unit, going by its middling block and span.
fn suits_unit(spans: &[Span], n_tokens: usize, heads: Heads) -> bool {
    const LEAST: usize = 16;
    let n_blocks: usize = spans.iter().map(|span| span.own.len().div_ceil(BLOCK)).sum();
    let rows = n_tokens / n_blocks.max(1);
    let is_finely_cut = rows < LEAST || n_tokens / spans.len().max(1) < LEAST;
    !is_finely_cut && matrix::unit_suits(heads.group() * rows, heads.head_dim, n_tokens)
}

/// Keys that follow each other.
#[derive(Clone, Debug)]
struct Stretch {
    /// Of the tree, where spans are packed one by one.
    span: usize,
    /// Of the first key's scores.
    column: usize,
    keys: Range<usize>,
}

/// Some queries of a span, and what they look at.
#[derive(Clone, Debug)]
struct Block {
    /// In order of position, the queries' own tokens last.
    seen: Vec<Stretch>,
    queries: Range<usize>,
}

impl Block {
    fn n_keys(&self) -> usize {
        self.seen.last().map_or(0, |stretch| stretch.column + stretch.keys.len())
    }

    /// How many numbers rows of scores are apart: an odd number of vectors, because the cache keeps rows apart by their
    /// addresses' middle bits.
    fn stride(&self) -> usize {
        (self.n_keys().div_ceil(LANES) | 1) * LANES
    }

    /// How many keys the first query sees.
    fn first_seen(&self) -> usize {
        self.n_keys() - self.queries.len() + 1
    }
}

/// How keys or values lie as the right side of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// A key is a column: `[head_dim, n]`.
    Across,
    /// A key is a row: `[n, head_dim]`.
    Along,
}

/// A head's keys or values in a tree, laid out for products.
#[derive(Debug)]
struct Laid {
    lie: Lie,
    /// The tree's first token.
    start: usize,
    head_dim: usize,
    accuracy: Accuracy,
    numbers: Numbers,
}

#[derive(Debug)]
enum Numbers {
    /// For vector units: rows that are so many numbers apart, whole vectors.
    Rows(Buffer, usize),
    /// For the matrix unit, span by span.
    Packed(PackedSides),
}

impl Laid {
    /// `head` counts query heads, key heads and value heads through.
    fn new(
        qkv: &[f32],
        part: &Part<'_>,
        heads: Heads,
        head: usize,
        (lie, accuracy): (Lie, Accuracy),
        pool: &Arc<BufferPool>,
    ) -> Self {
        let (stride, head_dim) = (heads.width(), heads.head_dim);
        let numbers = if part.on_unit {
            let side = |span: &Span| {
                let rows = &qkv[span.own.start * stride + head * head_dim..];
                let rows = Matrix::strided(rows, span.own.len(), head_dim, stride);
                if lie == Lie::Across { rows.transposed() } else { rows }
            };
            let sides: Vec<Matrix<'_>> = part.spans.iter().map(side).collect();
            Numbers::Packed(PackedSides::new(&sides, accuracy, Parallelism::Serial))
        } else {
            let copy = Copied { rows: qkv, stride, tokens: part.tokens.clone() };
            match lie {
                Lie::Across => copy.across(head, head_dim, pool),
                Lie::Along => copy.kept(head, head_dim, pool),
            }
        };
        Self { lie, start: part.tokens.start, head_dim, accuracy, numbers }
    }

    /// The product of rows with a stretch; rows of the target are `stride` apart. What is not a number in a key or value may
    /// spread to what sees others of its span.
    fn multiply(
        &self,
        target: &mut [f32],
        stride: usize,
        write: Write,
        left: LeftFactor<'_>,
        stretch: &Stretch,
    ) {
        let columns = match self.lie {
            Lie::Across => stretch.keys.len(),
            Lie::Along => self.head_dim,
        };
        match &self.numbers {
            Numbers::Packed(packed) => {
                let mut target = MatrixMut::strided(target, left.rows, columns, stride);
                let (left, span) = (left.matrix(), stretch.span);
                packed.multiply_first(&mut target, write, left, span, Parallelism::Serial);
            }
            Numbers::Rows(rows, apart) => {
                let first = stretch.keys.start - self.start;
                let data = match self.lie {
                    Lie::Across => &rows[first..],
                    Lie::Along => &rows[first * apart..],
                };
                let right = RightFactor { data, stride: *apart, columns };
                small::multiply(target, stride, write, left, right, self.accuracy);
            }
        }
    }
}

/// The products of rows with all that a block sees. `[rows, head_dim]` times `[head_dim, n]`
fn score(laid: &Laid, block: &Block, rows: &[f32], heads: Heads, scores: &mut [f32]) {
    let left = LeftFactor {
        data: rows,
        stride: heads.head_dim.next_multiple_of(LANES),
        step: 1,
        rows: heads.group() * block.queries.len(),
        terms: heads.head_dim,
    };
    for stretch in &block.seen {
        let scores = &mut scores[stretch.column..];
        laid.multiply(scores, block.stride(), Write::Replace, left, stretch);
    }
}

/// The forward pass of a key head in a tree.
#[derive(Debug)]
struct Mixer {
    kv_head: usize,
    keys: Laid,
    values: Laid,
}

impl Mixer {
    fn of(qkv: &[f32], part: &Part<'_>, heads: Heads, pool: &Arc<BufferPool>) -> Self {
        let Heads { n_heads, n_kv_heads, .. } = heads;
        let laid = |head, lie| Laid::new(qkv, part, heads, head, (lie, Accuracy::Full), pool);
        Self {
            kv_head: part.kv_head,
            keys: laid(n_heads + part.kv_head, Lie::Across),
            values: laid(n_heads + n_kv_heads + part.kv_head, Lie::Along),
        }
    }

    /// Into the rows of the block's tokens. `[queries, n_heads * head_dim]` and `[queries, n_heads]`
    fn mix(
        &self,
        qkv: &[f32],
        block: &Block,
        heads: Heads,
        scratch: &mut Scratch,
        mixed: &mut [f32],
        log_sums: &mut [f32],
    ) {
        let Heads { n_heads, head_dim, .. } = heads;
        let (group, n, stride) = (heads.group(), block.queries.len(), block.stride());
        let queries = queries(&mut scratch.queries, qkv, block, self.kv_head, heads);
        let scores = room(&mut scratch.weights, group * n * stride);
        score(&self.keys, block, queries, heads, scores);
        let sums = room(&mut scratch.log_sums, group * n);
        softmax_rows(scores, stride, block.first_seen(), n, sums);
        for head in 0..group {
            let own = self.kv_head * group + head;
            for (query, log_sum) in sums[head * n..][..n].iter().enumerate() {
                log_sums[query * n_heads + own] = *log_sum;
            }
            let scores = &scores[head * n * stride..];
            let mut write = Write::Replace;
            for stretch in &block.seen {
                let (data, terms) = (&scores[stretch.column..], stretch.keys.len());
                let left = LeftFactor { data, stride, step: 1, rows: n, terms };
                let target = &mut mixed[own * head_dim..];
                self.values.multiply(target, n_heads * head_dim, write, left, stretch);
                write = Write::Add;
            }
        }
    }
}

/// The query heads of a key head, one after another, scaled. `[group * queries, head_dim]`, padded to whole vectors
fn queries<'a>(
    memory: &'a mut Vec<f32>,
    qkv: &[f32],
    block: &Block,
    kv_head: usize,
    heads: Heads,
) -> &'a [f32] {
    let copy = Copied { rows: qkv, stride: heads.width(), tokens: block.queries.clone() };
    heads_of(memory, &copy, kv_head, heads, heads.scale())
}

/// The query heads of a key head, one after another.
fn heads_of<'a>(
    memory: &'a mut Vec<f32>,
    copy: &Copied<'_>,
    kv_head: usize,
    heads: Heads,
    scale: f32,
) -> &'a [f32] {
    let (group, head_dim) = (heads.group(), heads.head_dim);
    let each = copy.tokens.len() * head_dim.next_multiple_of(LANES);
    let joined = room(memory, group * each + BEYOND);
    for (index, joined) in joined.chunks_exact_mut(each).take(group).enumerate() {
        copy.along(kv_head * group + index, head_dim, scale, joined);
    }
    joined
}

/// Some columns of some tokens, to be copied.
#[derive(Clone, Debug)]
struct Copied<'a> {
    rows: &'a [f32],
    stride: usize,
    tokens: Range<usize>,
}

impl Copied<'_> {
    /// A head, token by token, times `scale`. `[n, head_dim]`, padded to whole vectors
    fn along(&self, head: usize, head_dim: usize, scale: f32, copy: &mut [f32]) {
        let rows = &self.rows[self.tokens.start * self.stride + head * head_dim..];
        copy_rows(rows, self.stride, head_dim, scale, copy);
    }

    /// The same in memory of its own.
    fn kept(&self, head: usize, head_dim: usize, pool: &Arc<BufferPool>) -> Numbers {
        let width = head_dim.next_multiple_of(LANES);
        let length = self.tokens.len() * width;
        let mut copy = pool.take(length + BEYOND);
        self.along(head, head_dim, 1.0, &mut copy[..length]);
        Numbers::Rows(copy, width)
    }

    /// A head, column by column. `[head_dim, n]`, padded to whole vectors
    fn across(&self, head: usize, head_dim: usize, pool: &Arc<BufferPool>) -> Numbers {
        let (n, length) = (self.tokens.len(), self.tokens.len().next_multiple_of(LANES));
        let mut copy = pool.take(head_dim * length + BEYOND);
        let rows = &self.rows[self.tokens.start * self.stride + head * head_dim..];
        transpose_rows(rows, self.stride, n, head_dim, &mut copy);
        Numbers::Rows(copy, length)
    }
}

/// Gradients of a key head and its query heads, by some of the queries; rows are padded to whole vectors.
#[derive(Debug)]
struct Pulled {
    /// The first query's row in the tree.
    start: usize,
    /// How many queries there are.
    count: usize,
    /// `[group, count, head_dim]`
    dqueries: Buffer,
    /// Of all rows of the tree up to the last query. `[n, head_dim]`
    dkeys: Buffer,
    /// `[n, head_dim]`
    dvalues: Buffer,
}

/// The backward pass of a key head in a tree.
#[derive(Debug)]
struct Puller<'a> {
    kv_head: usize,
    /// The tree's first token.
    start: usize,
    keys_across: Laid,
    keys_along: Laid,
    values_across: Laid,
    above: &'a Above<'a>,
    heads: Heads,
}

impl<'a> Puller<'a> {
    fn of(part: &Part<'_>, above: &'a Above<'a>, heads: Heads, pool: &Arc<BufferPool>) -> Self {
        let (keys, values) =
            (heads.n_heads + part.kv_head, heads.n_heads + heads.n_kv_heads + part.kv_head);
        let laid = |head, lie| Laid::new(above.qkv, part, heads, head, (lie, GRADIENT), pool);
        Self {
            kv_head: part.kv_head,
            start: part.tokens.start,
            keys_across: laid(keys, Lie::Across),
            keys_along: laid(keys, Lie::Along),
            values_across: laid(values, Lie::Across),
            above,
            heads,
        }
    }

    fn pull_strip(&self, blocks: &[Block], pool: &Arc<BufferPool>) -> Pulled {
        let width = self.heads.head_dim.next_multiple_of(LANES);
        let start = blocks.first().map_or(0, |block| block.queries.start);
        let end = blocks.last().map_or(0, |block| block.queries.end);
        let seen = (end - self.start) * width;
        let mut pulled = Pulled {
            start: start - self.start,
            count: end - start,
            dqueries: pool.take(self.heads.group() * (end - start) * width),
            dkeys: pool.zeros(seen),
            dvalues: pool.zeros(seen),
        };
        SCRATCH.with_borrow_mut(|scratch| {
            for block in blocks {
                self.pull(block, scratch, &mut pulled);
            }
        });
        pulled
    }

    fn pull(&self, block: &Block, scratch: &mut Scratch, pulled: &mut Pulled) {
        let (heads, above, kv_head) = (self.heads, self.above, self.kv_head);
        let Heads { n_heads, head_dim, .. } = heads;
        let (group, n, stride) = (heads.group(), block.queries.len(), block.stride());
        let (rows, width) = (group * n, head_dim.next_multiple_of(LANES));
        let queries = queries(&mut scratch.queries, above.qkv, block, kv_head, heads);
        let weights = room(&mut scratch.weights, rows * stride);
        score(&self.keys_across, block, queries, heads, weights);
        let side = |memory, rows| {
            let copy = Copied { rows, stride: n_heads * head_dim, tokens: block.queries.clone() };
            heads_of(memory, &copy, kv_head, heads, 1.0)
        };
        let mixed = side(&mut scratch.mixed, above.mixed);
        let dmixed = side(&mut scratch.dmixed, above.dmixed);
        let dscores = room(&mut scratch.dscores, rows * stride);
        score(&self.values_across, block, dmixed, heads, dscores);
        let log_sums = room(&mut scratch.log_sums, rows);
        for (row, log_sum) in log_sums.iter_mut().enumerate() {
            let (head, query) = (row / n, row % n);
            let at = (block.queries.start + query) * n_heads + kv_head * group + head;
            *log_sum = above.log_sums[at];
        }
        let sides = Sides { mixed, dmixed, width, log_sums };
        pull_rows(weights, dscores, stride, block.first_seen(), n, sides);
        let products = Products { queries, dmixed, weights, dscores };
        self.multiply(block, products, &mut scratch.dqueries, pulled);
    }

    /// From the weights and the gradient of the scores to those of queries, keys and values.
    fn multiply(
        &self,
        block: &Block,
        products: Products<'_>,
        dqueries: &mut Vec<f32>,
        pulled: &mut Pulled,
    ) {
        let Products { queries, dmixed, weights, dscores } = products;
        let (group, n, stride) = (self.heads.group(), block.queries.len(), block.stride());
        let (rows, start) = (group * n, self.start);
        let width = self.heads.head_dim.next_multiple_of(LANES);
        let dqueries = room(dqueries, rows * width);
        let side = |data| RightFactor { data, stride: width, columns: width };
        let mut write = Write::Replace;
        for stretch in &block.seen {
            let (column, terms) = (stretch.column, stretch.keys.len());
            let across =
                |data| LeftFactor { data, stride: 1, step: stride, rows: terms, terms: rows };
            let place = (stretch.keys.start - start) * width;
            let (weights, dscores) = (&weights[column..], &dscores[column..]);
            let dvalues = &mut pulled.dvalues[place..];
            small::multiply(dvalues, width, Write::Add, across(weights), side(dmixed), GRADIENT);
            // The queries are scaled, as the keys' gradient is.
            let dkeys = &mut pulled.dkeys[place..];
            small::multiply(dkeys, width, Write::Add, across(dscores), side(queries), GRADIENT);
            let left = LeftFactor { data: dscores, stride, step: 1, rows, terms };
            self.keys_along.multiply(dqueries, width, write, left, stretch);
            write = Write::Add;
        }
        let scale = self.heads.scale();
        let first = block.queries.start - start - pulled.start;
        for head in 0..group {
            let to = &mut pulled.dqueries[(head * pulled.count + first) * width..][..n * width];
            let from = &dqueries[head * n * width..][..n * width];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }
}

/// What the last products of a block's backward pass read.
#[derive(Clone, Copy, Debug)]
struct Products<'a> {
    queries: &'a [f32],
    dmixed: &'a [f32],
    weights: &'a [f32],
    dscores: &'a [f32],
}

/// What rows of scores are pulled with. `[rows, width]` and `[rows]`
#[derive(Clone, Copy, Debug)]
struct Sides<'a> {
    mixed: &'a [f32],
    dmixed: &'a [f32],
    width: usize,
    log_sums: &'a [f32],
}

vectorized! {
    /// Rows of `count` numbers that are `stride` apart, times `scale`, each padded to whole vectors.
    fn copy_rows(rows: &[f32], stride: usize, count: usize, scale: f32, copy: &mut [f32]) {
        let width = count.next_multiple_of(LANES);
        for (copy, row) in copy.chunks_exact_mut(width).zip(rows.chunks(stride)) {
            let (copy, beyond) = copy.split_at_mut(count);
            copy.iter_mut().zip(row).for_each(|(copy, number)| *copy = number * scale);
            beyond.fill(0.0);
        }
    }

    /// The columns of `n` such rows, each padded to whole vectors.
    fn transpose_rows(rows: &[f32], stride: usize, n: usize, count: usize, copy: &mut [f32]) {
        let length = n.next_multiple_of(LANES);
        for row in (0..n).step_by(LANES) {
            for column in (0..count).step_by(LANES) {
                // Squares, so that lines of the cache are read and written whole.
                let mut square = [[0.0; LANES]; LANES];
                let width = LANES.min(count - column);
                for (i, row) in (row..n.min(row + LANES)).enumerate() {
                    let numbers = &rows[row * stride + column..][..width];
                    for (square, number) in square.iter_mut().zip(numbers) {
                        square[i] = *number;
                    }
                }
                for (i, square) in square[..width].iter().enumerate() {
                    copy[(column + i) * length + row..][..LANES].copy_from_slice(square);
                }
            }
        }
    }

    /// Softmax of each row over the keys it sees, 0 elsewhere. Of every `n` rows the first sees `seen`, each later one more.
    fn softmax_rows(
        scores: &mut [f32],
        stride: usize,
        seen: usize,
        n: usize,
        log_sums: &mut [f32],
    ) {
        let rows = scores.chunks_exact_mut(stride).zip(log_sums);
        for (i, (row, log_sum)) in rows.enumerate() {
            let (row, unseen) = row.split_at_mut(seen + i % n);
            let highest = math::maximum(row);
            let sum = math::exponentials(row, highest);
            *log_sum = highest + sum.ln();
            let factor = 1.0 / sum;
            for weight in row {
                *weight *= factor;
            }
            unseen.fill(0.0);
        }
    }

    /// Turns scores into weights, and the gradient of the weights into that of the scores.
    fn pull_rows(
        weights: &mut [f32],
        dscores: &mut [f32],
        stride: usize,
        seen: usize,
        n: usize,
        sides: Sides<'_>,
    ) {
        let Sides { mixed, dmixed, width, log_sums } = sides;
        let each = weights.chunks_exact_mut(stride).zip(dscores.chunks_exact_mut(stride));
        for (i, (weights, dscores)) in each.enumerate() {
            let place = i * width..(i + 1) * width;
            let mean = math::dot(&dmixed[place.clone()], &mixed[place]);
            let (weights, unseen) = weights.split_at_mut(seen + i % n);
            let (dscores, unseen_too) = dscores.split_at_mut(seen + i % n);
            for (weight, dscore) in weights.iter_mut().zip(dscores) {
                *weight = math::exp(*weight - log_sums[i]);
                *dscore = *weight * (*dscore - mean);
            }
            unseen.fill(0.0);
            unseen_too.fill(0.0);
        }
    }
}
