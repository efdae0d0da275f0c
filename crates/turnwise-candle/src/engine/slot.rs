//! A request that is being served.

use std::sync::Arc;

use tokio::sync::oneshot;
use turnwise_rollout::{
    PolicyError, Sample, SampleRequest, SessionId, TokenConstraint, uniform_at,
};
use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason, TokenId};

use super::compute::Compute;
use super::pages::PAGE;
use super::tree::{CopySource, PageNodeId, Tree};

/// The engine's name on every sample.
const ENGINE: &str = "candle";

/// A request and the channel of its answer.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: SampleRequest,
    pub(crate) constraint: Option<Arc<dyn TokenConstraint>>,
    pub(crate) reply: oneshot::Sender<Result<Sample, PolicyError>>,
}

/// A token with its sampling information.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drawn {
    pub(super) id: TokenId,
    pub(super) logprob: f32,
    /// The ids it was sampled from; empty for the whole vocabulary.
    pub(super) kept: Vec<TokenId>,
}

/// The reason that no token can be sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undrawn {
    /// A logit is NaN or infinite.
    NotFinite,
    /// The constraint allows no token.
    NothingAllowed,
}

/// Tokens that are computed behind a request's last one in a step.
#[derive(Debug, Default)]
struct Draft {
    ids: Vec<TokenId>,
    /// The length of the sequence before them.
    start: usize,
    /// How many of them were sampled.
    n_confirmed: usize,
}

/// A request without pages: it has not started, or was paused.
#[derive(Debug)]
pub(super) struct Waiting {
    job: Job,
    sample: Sample,
    /// Whether the session may send another request.
    pub(super) keep: bool,
}

/// A request that holds pages.
#[derive(Debug)]
pub(super) struct Slot {
    job: Job,
    /// The prompt and the sampled tokens.
    pub(super) ids: Vec<TokenId>,
    draft: Draft,
    sample: Sample,
    /// The pages of `ids`; the last is this request's own. The others hold, or will hold, the tokens of their positions.
    pub(super) path: Vec<PageNodeId>,
    /// The number of filled pages at the start.
    settled: usize,
    /// The source of a page's prefix, to be copied once another request has computed it.
    source: Option<(usize, CopySource)>,
    /// Whether the session may send another request.
    pub(super) keep: bool,
    /// Tokens computed since the request started.
    pub(super) n_computed: usize,
    /// The number of tokens when the request started.
    n_started: usize,
    has_drawn: bool,
    /// The reason that sampling failed.
    error: Option<PolicyError>,
}

impl Waiting {
    pub(super) fn new(job: Job) -> Self {
        Self { job, sample: Sample::new(ENGINE), keep: true }
    }

    pub(super) fn request(&self) -> &SampleRequest {
        &self.job.request
    }

    pub(super) fn session(&self) -> SessionId {
        self.job.request.session
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.job.reply.is_closed()
    }

    pub(super) fn answer(self, outcome: Result<StopReason, PolicyError>) {
        let Self { job, sample, .. } = self;
        // The caller may have dropped its future.
        let _ = job.reply.send(outcome.map(|stop| Sample { stop, ..sample }));
    }

    /// Returns the prompt and the sampled tokens.
    fn ids(&self) -> Vec<TokenId> {
        let drawn = self.sample.tokens.iter().map(|token| token.id);
        self.job.request.prompt.iter().copied().chain(drawn).collect()
    }
}

/// Returns the tokens in whole shared pages. The last token is left out: computing it gives its logits.
fn shared(ids: &[TokenId]) -> &[TokenId] {
    &ids[..(ids.len() - 1) / PAGE * PAGE]
}

impl Slot {
    /// Returns the number of unread pages that a request needs to start, plus one to continue.
    pub(super) fn pages_to_start(waiting: &Waiting, tree: &Tree) -> usize {
        let ids = waiting.ids();
        let read = tree.path(shared(&ids)).into_iter().filter(|id| tree.is_read(*id));
        ids.len().div_ceil(PAGE) + 1 - read.count()
    }

    /// Starts a request with existing pages for its prefix and new ones for the rest.
    ///
    /// # Errors
    /// Returns the request when there is no room.
    pub(super) fn start(
        waiting: Waiting,
        tree: &mut Tree,
        compute: &mut dyn Compute,
    ) -> Result<Self, Box<Waiting>> {
        let ids = waiting.ids();
        let mut path = tree.path(shared(&ids));
        tree.read(&path);
        let found = path.len();
        let end = ids.len().min((found + 1) * PAGE);
        let source = tree.source(path.last().copied(), &ids[found * PAGE..end.min(ids.len() - 1)]);
        for page in ids[found * PAGE..].chunks(PAGE) {
            let Some(node) = tree.add(path.last().copied(), page.to_vec()) else {
                tree.leave(&path);
                return Err(Box::new(waiting));
            };
            path.push(node);
        }
        let Waiting { job, sample, keep } = waiting;
        let n_started = ids.len();
        let mut slot = Self {
            job,
            ids,
            draft: Draft::default(),
            sample,
            path,
            settled: 0,
            source: source.map(|source| (found, source)),
            keep,
            n_computed: 0,
            n_started,
            has_drawn: false,
            error: None,
        };
        slot.copy_source(tree, compute);
        Ok(slot)
    }

    pub(super) fn session(&self) -> SessionId {
        self.job.request.session
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.job.reply.is_closed()
    }

    /// Returns the number of tokens from the start whose keys and values are computed.
    pub(super) fn computed(&mut self, tree: &Tree) -> usize {
        while let Some(node) = self.path.get(self.settled) {
            let filled = tree.node(*node).filled;
            if filled < PAGE {
                return self.settled * PAGE + filled;
            }
            self.settled += 1;
        }
        self.settled * PAGE
    }

    pub(super) fn pending(&mut self, tree: &Tree) -> usize {
        self.ids.len() - self.computed(tree)
    }

    pub(super) fn is_waiting_for_source(&self) -> bool {
        self.source.is_some()
    }

    /// Copies a prefix that another request has computed, once it is complete.
    pub(super) fn copy_source(&mut self, tree: &mut Tree, compute: &mut dyn Compute) {
        let Some((page, CopySource { node, tokens })) = self.source else { return };
        let filled = tree.filled(node);
        if filled < tokens && tree.is_read(node) {
            return;
        }
        self.source = None;
        let (tokens, target) = (tokens.min(filled), self.path[page]);
        if tokens > tree.filled(target) && target != node {
            let (from, oldest) = (tree.node(node).page, tree.node(node).oldest);
            compute.copy(from, tree.node(target).page);
            tree.fill(target, tokens, oldest);
        }
    }

    /// Ensures that there is a page for the next token. Returns false when there is no room.
    pub(super) fn grow(&mut self, tree: &mut Tree) -> bool {
        let computed = self.computed(tree);
        if computed < self.path.len() * PAGE {
            return true;
        }
        // An identical page of another request is shared.
        if let Some(last) = self.path.last_mut()
            && let Some(twin) = tree.twin(*last)
        {
            tree.read(&[twin]);
            tree.leave(&[*last]);
            *last = twin;
        }
        let node = tree.add(self.path.last().copied(), Vec::new());
        self.path.extend(node);
        node.is_some()
    }

    /// Returns the random number of the token after the next `ahead` ones.
    pub(super) fn uniform(&self, ahead: usize) -> f64 {
        let request = &self.job.request;
        let index = (self.sample.tokens.len() + ahead) as u64;
        uniform_at(request.seed, request.first_index.wrapping_add(index))
    }

    /// Returns the most drafted tokens that the page and the request have room for.
    pub(super) fn room_for_draft(&self) -> usize {
        // What a constraint allows depends on the tokens before.
        if self.job.constraint.is_some() {
            return 0;
        }
        let wanted = self.job.request.max_tokens - self.sample.tokens.len();
        let rows = self.path.len() * PAGE - self.ids.len();
        rows.min(wanted - 1)
    }

    /// Sets the tokens that are computed behind the last one in this step.
    pub(super) fn set_draft(&mut self, ids: Vec<TokenId>) {
        self.draft = Draft { ids, start: self.ids.len(), n_confirmed: 0 };
    }

    /// Returns the token at a position of the sequence with its draft.
    pub(super) fn token(&self, position: usize) -> TokenId {
        let drafted = |position: usize| self.draft.ids[position - self.ids.len()];
        self.ids.get(position).copied().unwrap_or_else(|| drafted(position))
    }

    /// Returns the number of tokens that are drafted.
    pub(super) fn n_drafted(&self) -> usize {
        self.draft.ids.len()
    }

    /// Returns whether the place behind `ahead` drafted tokens is sampled next: all of them were sampled, too.
    pub(super) fn wants(&self, ahead: usize) -> bool {
        ahead == self.draft.n_confirmed
    }

    /// Forgets the draft, and what was computed for its tokens that were not sampled. Returns how many were.
    pub(super) fn end_draft(&mut self, tree: &mut Tree) -> usize {
        let Draft { ids, start, n_confirmed } = std::mem::take(&mut self.draft);
        if let Some((last, whole)) = self.path.split_last()
            && !ids.is_empty()
        {
            tree.shorten(*last, start + n_confirmed - whole.len() * PAGE);
        }
        n_confirmed
    }

    pub(super) fn request(&self) -> &SampleRequest {
        &self.job.request
    }

    /// Returns the tokens that a constraint allows next; `None` without a constraint.
    pub(super) fn allowed(&self) -> Option<Vec<TokenId>> {
        let drawn: Vec<TokenId> = self.sample.tokens.iter().map(|token| token.id).collect();
        self.job.constraint.as_ref()?.allowed(&drawn)
    }

    pub(super) fn is_first_draw(&self) -> bool {
        !self.has_drawn
    }

    /// Returns the number of tokens that were reused before the first sampled token.
    pub(super) fn reused(&self) -> usize {
        self.n_started.saturating_sub(self.n_computed)
    }

    /// Appends a sampled token.
    pub(super) fn take(&mut self, drawn: Drawn, version: PolicyVersion, tree: &Tree) {
        let Drawn { id, logprob, kept } = drawn;
        self.has_drawn = true;
        let is_last = self.is_last(id);
        if !is_last && self.draft.ids.get(self.draft.n_confirmed) == Some(&id) {
            self.draft.n_confirmed += 1;
        }
        let oldest = self.path.iter().map(|node| tree.node(*node).oldest).min();
        let kv_version = oldest.unwrap_or(version);
        self.ids.push(id);
        let token = SampledToken { kv_version, ..SampledToken::new(id, logprob, version) };
        self.sample.push(token, &kept);
    }

    /// Returns whether a token that is sampled now ends the request.
    fn is_last(&self, id: TokenId) -> bool {
        let SampleRequest { stop, max_tokens, .. } = &self.job.request;
        stop.contains(&id) || self.sample.tokens.len() + 1 == *max_tokens
    }

    /// Makes the next [`Self::outcome`] this error.
    pub(super) fn refuse(&mut self, error: PolicyError) {
        self.error = Some(error);
    }

    /// Returns why the request is finished, if it is.
    pub(super) fn outcome(&mut self) -> Option<Result<StopReason, PolicyError>> {
        if let Some(error) = self.error.take() {
            return Some(Err(error));
        }
        let request = &self.job.request;
        let last = self.sample.tokens.last()?;
        if request.stop.contains(&last.id) {
            return Some(Ok(StopReason::EndOfTurn));
        }
        (self.sample.tokens.len() == request.max_tokens).then_some(Ok(StopReason::MaxTokens))
    }

    /// Releases its pages, and keeps them for the session's next request if `keep`.
    fn put_back(&self, tree: &mut Tree, keep: bool) {
        if keep {
            tree.keep(self.session(), &self.path);
        }
        tree.leave(&self.path);
    }

    /// Ends without an answer.
    pub(super) fn leave(self, tree: &mut Tree) {
        self.put_back(tree, self.keep);
    }

    /// Answers the request and ends it.
    pub(super) fn end(self, tree: &mut Tree, outcome: Result<StopReason, PolicyError>) {
        self.put_back(tree, self.keep && outcome.is_ok());
        self.into_waiting().answer(outcome);
    }

    /// Releases its pages and returns the waiting request.
    pub(super) fn give_up(self, tree: &mut Tree) -> Waiting {
        self.put_back(tree, self.keep);
        self.into_waiting()
    }

    fn into_waiting(self) -> Waiting {
        let Self { job, sample, keep, .. } = self;
        Waiting { job, sample, keep }
    }
}
