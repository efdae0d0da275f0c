//! Scheduling: which tokens are computed in which step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use turnwise_kernels::team::Team;
use turnwise_rollout::{PolicyError, SampleRequest, SessionId};
use turnwise_trajectory::StopReason;

use super::compute::{Compute, EngineBatch, EngineToken};
use super::drafts::DraftIndex;
use super::drawing::{SamplePlace, draw_all};
use super::pages::{PAGE, PageLayout};
use super::parts::{PartTimes, StepPart};
use super::slot::{Drawn, Job, Slot, Undrawn, Waiting};
use super::tensors::{compute_for, suited};
use super::tree::{PageNodeId, Tree};
use super::{Counters, EngineSettings, KvOnUpdate, add};
use crate::published::{Publication, Published};
use crate::{DecoderConfig, ModelError, threads};

/// The most tokens of a step with drafts: so many take hardly longer than one.
const DRAFT_ROWS: usize = 16;

/// A message from the policy's handles to the engine's thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// Answer a request.
    Sample(Job),
    /// Answer a session's request with the tokens sampled so far.
    Interrupt(SessionId),
    /// Forget a session.
    Release(SessionId),
}

/// Owns all pages, and samples for all requests together.
#[derive(Debug)]
pub(crate) struct EngineScheduler {
    settings: EngineSettings,
    config: DecoderConfig,
    published: Published,
    current: Publication,
    waiting: VecDeque<Waiting>,
    /// In order of arrival.
    active: Vec<Slot>,
    tree: Tree,
    compute: Box<dyn Compute>,
    drafts: DraftIndex,
    team: Team,
    page_bytes: u64,
    /// The number of steps.
    step: u64,
    counters: Arc<Counters>,
}

/// Starts the engine's threads; 0 means one per processor.
///
/// # Errors
/// [`ModelError::Settings`] for an implausible number of threads, and [`ModelError::Threads`] when the system refuses
/// one.
fn team(n_threads: usize) -> Result<Team, ModelError> {
    const PURPOSE: &str = "the engine";
    threads::check(n_threads, PURPOSE)?;
    let refused = |error| ModelError::threads(n_threads, PURPOSE, error);
    Team::new(n_threads, "candle-policy").map_err(refused)
}

/// The tokens of a step, and the destinations of their results.
#[derive(Debug, Default)]
struct Planned {
    step: EngineBatch,
    /// The request of each page table.
    slots: Vec<usize>,
    /// Nodes and the number of tokens that each will hold.
    fills: Vec<(PageNodeId, usize)>,
}

impl EngineScheduler {
    /// # Errors
    /// When the engine's threads cannot be started.
    pub(crate) fn new(
        published: Published,
        first: Publication,
        settings: EngineSettings,
        counters: Arc<Counters>,
    ) -> Result<Self, ModelError> {
        let current = suited(first, settings, None);
        let config = current.weights.config().clone();
        let layout = PageLayout::new(&config, current.weights.precision());
        let max_pages = usize::try_from(settings.max_kv_bytes / layout.bytes());
        Ok(Self {
            settings,
            config,
            published,
            waiting: VecDeque::new(),
            active: Vec::new(),
            tree: Tree::new(max_pages.unwrap_or(usize::MAX)),
            compute: compute_for(&current.weights),
            drafts: DraftIndex::default(),
            current,
            team: team(settings.threads)?,
            page_bytes: layout.bytes(),
            step: 0,
            counters,
        })
    }

    /// Serves until every handle is dropped.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            if self.active.is_empty() && self.waiting.is_empty() {
                let Ok(command) = commands.recv() else { return };
                self.take(command);
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    // A request's future borrows its handle, so no request is left.
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.advance();
        }
    }

    /// Does one round: admission, a step, and answers.
    pub(crate) fn advance(&mut self) {
        self.drop_abandoned();
        self.refresh();
        self.admit();
        self.step();
        self.count_kv();
    }

    pub(crate) fn take(&mut self, command: Command) {
        match command {
            Command::Sample(job) => self.waiting.push_back(Waiting::new(job)),
            Command::Interrupt(session) => self.interrupt(session),
            Command::Release(session) => {
                self.tree.release(session);
                for slot in self.active.iter_mut().filter(|slot| slot.session() == session) {
                    slot.keep = false;
                }
                for waiting in self.waiting.iter_mut().filter(|one| one.session() == session) {
                    waiting.keep = false;
                }
                self.count_kv();
            }
        }
    }

    /// Answers with the tokens sampled so far; keys and values stay for the session's next request.
    fn interrupt(&mut self, session: SessionId) {
        let Self { waiting, active, tree, .. } = self;
        let (asked, others) =
            waiting.drain(..).partition(|waiting: &Waiting| waiting.session() == session);
        *waiting = others;
        for waiting in VecDeque::<Waiting>::into_iter(asked) {
            waiting.answer(Ok(StopReason::Interrupted));
        }
        for slot in active.extract_if(.., |slot| slot.session() == session) {
            slot.end(tree, Ok(StopReason::Interrupted));
        }
    }

    fn drop_abandoned(&mut self) {
        self.waiting.retain(|waiting| !waiting.is_abandoned());
        let Self { active, tree, .. } = self;
        for slot in active.extract_if(.., |slot| slot.is_abandoned()) {
            slot.leave(tree);
        }
    }

    /// Switches to the newest weights. Requests that start later do not reuse keys and values of older weights.
    fn refresh(&mut self) {
        if self.published.serial() == self.current.serial {
            return;
        }
        // An engine asked, so each publication has weights.
        let Some(newest) = self.published.newest() else { return };
        self.current = suited(newest, self.settings, Some(&self.current.weights));
        self.tree.renew();
        let keeps = self.settings.kv_on_update == KvOnUpdate::Keep;
        let starts_anew = |slot: &mut Slot| !(keeps && slot.computed(&self.tree) > 0);
        let anew: Vec<Slot> = self.active.extract_if(.., starts_anew).collect();
        let anew: Vec<Waiting> =
            anew.into_iter().map(|slot| slot.give_up(&mut self.tree)).collect();
        anew.into_iter().rev().for_each(|waiting| self.waiting.push_front(waiting));
    }

    /// Starts waiting requests in order of arrival while there is room.
    fn admit(&mut self) {
        while self.active.len() < self.settings.max_batch.max(1)
            && let Some(waiting) = self.waiting.pop_front()
        {
            if let Err(error) = self.check(waiting.request()) {
                waiting.answer(Err(error));
                continue;
            }
            let has_room = self.active.is_empty()
                || Slot::pages_to_start(&waiting, &self.tree) <= self.tree.available();
            let started = if has_room {
                Slot::start(waiting, &mut self.tree, &mut *self.compute)
            } else {
                Err(Box::new(waiting))
            };
            match started {
                Ok(mut slot) => {
                    if self.settings.max_drafts > 0 {
                        let known = slot.computed(&self.tree);
                        self.drafts.learn(&slot.ids, known);
                    }
                    self.active.push(slot);
                }
                Err(waiting) => return self.waiting.push_front(*waiting),
            }
        }
    }

    fn check(&self, request: &SampleRequest) -> Result<(), PolicyError> {
        let refuse = |reason: String| Err(PolicyError::Refused(reason));
        let DecoderConfig { vocab_size, max_positions, .. } = self.config;
        let (prompt, more) = (request.prompt.len(), request.max_tokens);
        if prompt == 0 {
            return refuse("the prompt is empty".to_owned());
        }
        if more == 0 {
            return refuse("max_tokens is 0 and must be at least 1".to_owned());
        }
        if prompt.saturating_add(more) > max_positions {
            return refuse(format!(
                "a prompt of {prompt} and {more} more tokens need more than the model's {max_positions} positions"
            ));
        }
        if let Some(at) = request.prompt.iter().position(|id| *id as usize >= vocab_size) {
            let id = request.prompt[at];
            return refuse(format!(
                "token {id} at position {at} is beyond the vocabulary of {vocab_size}"
            ));
        }
        let (pages, max_pages) = ((prompt + more).div_ceil(PAGE), self.tree.max_pages());
        if pages > max_pages {
            return refuse(format!(
                "{} tokens need {pages} pages of {PAGE}, and max_kv_bytes has room for {max_pages} of {} bytes",
                prompt + more,
                self.page_bytes
            ));
        }
        if request.min_version > self.current.version {
            return refuse(format!(
                "{} is requested, but {} is served",
                request.min_version, self.current.version
            ));
        }
        request.sampling.validate().or_else(refuse)
    }

    /// Computes some tokens of every request and samples for the requests whose last token was among them.
    fn step(&mut self) {
        let mut parts = PartTimes::default();
        let mut clock = parts.start();
        self.step += 1;
        self.make_room();
        let planned = self.plan();
        clock.lap(StepPart::Other);
        let Planned { step, slots, fills } = planned;
        if step.tokens.is_empty() {
            return;
        }
        let Publication { version, weights, .. } = &self.current;
        let logits = match self.compute.run(&mut self.team, weights, &step, &mut parts) {
            Ok(logits) => logits,
            Err(reason) => return self.fail(&reason),
        };
        let mut clock = parts.start();
        for (node, filled) in fills {
            self.tree.fill(node, filled, *version);
        }
        add(&self.counters.steps, 1);
        add(&self.counters.computed, step.tokens.len());

        let wanted = step.tokens.iter().filter(|token| token.wants_logits);
        let places = wanted.map(|token| {
            let slot = slots[token.table];
            SamplePlace { slot, ahead: token.position + 1 - self.active[slot].ids.len() }
        });
        let places: Vec<SamplePlace> = places.collect();
        let vocab_size = self.config.vocab_size;
        let drawn = draw_all(&mut self.team, logits, vocab_size, &places, &self.active);
        self.take_all(&places, drawn);
        self.end_drafts();
        self.finish();
        clock.lap(StepPart::Sampling);
        self.counters.parts.add(parts, places.len() < step.tokens.len());
    }

    /// Hands sampled tokens to their requests, up to the first of each that is not the drafted one.
    fn take_all(&mut self, places: &[SamplePlace], drawn: Vec<Result<Drawn, Undrawn>>) {
        let Publication { version, weights, .. } = &self.current;
        let mut not_finite = None;
        for (SamplePlace { slot, ahead }, drawn) in places.iter().zip(drawn) {
            let slot = &mut self.active[*slot];
            if !slot.wants(*ahead) {
                continue;
            }
            if slot.is_first_draw() {
                add(&self.counters.reused, slot.reused());
            }
            match drawn {
                Ok(drawn) => {
                    slot.take(drawn, *version, &self.tree);
                    if self.settings.max_drafts > 0 {
                        self.drafts.learn(&slot.ids, slot.ids.len() - 1);
                    }
                    add(&self.counters.drawn, 1);
                }
                Err(Undrawn::NothingAllowed) => {
                    let reason = "the constraint allows no token";
                    slot.refuse(PolicyError::Failed(reason.to_owned()));
                }
                Err(Undrawn::NotFinite) => {
                    let reason = not_finite.get_or_insert_with(|| weights.culprit());
                    slot.refuse(PolicyError::NotFinite(format!(
                        "policy version {version}: {reason}"
                    )));
                }
            }
        }
    }

    /// Answers all requests with an error, because a step is missing.
    fn fail(&mut self, reason: &str) {
        for slot in self.active.drain(..) {
            slot.end(&mut self.tree, Err(PolicyError::Failed(reason.to_owned())));
        }
    }

    /// Gives another page to every request whose pages are full. Without a free page, the latest request loses its
    /// pages and waits; the earliest one always makes progress.
    fn make_room(&mut self) {
        let mut index = 0;
        while index < self.active.len() {
            let slot = &mut self.active[index];
            if slot.grow(&mut self.tree) {
                index += 1;
                continue;
            }
            if let Some(slot) = self.active.pop() {
                add(&self.counters.paused, 1);
                self.waiting.push_front(slot.give_up(&mut self.tree));
            }
        }
        let evicted = self.tree.take_given_up();
        add(&self.counters.evicted, evicted);
    }

    /// Plans a step: decoding requests first, one token each, with shared pages side by side; prompts get the rest of
    /// the step in order of arrival.
    fn plan(&mut self) -> Planned {
        let Self { active, tree, compute, .. } = self;
        for slot in active.iter_mut() {
            slot.copy_source(tree, &mut **compute);
        }
        let pending: Vec<usize> = active.iter_mut().map(|slot| slot.pending(tree)).collect();
        let (mut drawing, prompts): (Vec<usize>, Vec<usize>) =
            (0..active.len()).partition(|index| pending[*index] == 1);
        drawing.sort_by(|a, b| active[*a].path.cmp(&active[*b].path));

        // Prompts keep the processor busy without drafts.
        if prompts.is_empty() {
            self.draft(&drawing);
        }
        let mut planned = Planned::default();
        for index in drawing.into_iter().chain(prompts) {
            let room = self.settings.max_step_tokens.saturating_sub(planned.step.tokens.len());
            // At least one token for each decoding request, and at least one in total: every step must make progress.
            let least = usize::from(pending[index] == 1 || planned.step.tokens.is_empty());
            let count = pending[index] + self.active[index].n_drafted();
            self.plan_slot(index, count.min(room.max(least)), &mut planned);
        }
        planned
    }

    /// Drafts tokens for decoding requests, while the step has few tokens.
    fn draft(&mut self, drawing: &[usize]) {
        let mut room = DRAFT_ROWS.saturating_sub(drawing.len());
        for index in drawing {
            let slot = &mut self.active[*index];
            let most = self.settings.max_drafts.min(room).min(slot.room_for_draft());
            let ids = self.drafts.draft(&slot.ids, most);
            room -= ids.len();
            add(&self.counters.drafted, ids.len());
            slot.set_draft(ids);
        }
    }

    /// Forgets the drafts of this step.
    fn end_drafts(&mut self) {
        for slot in &mut self.active {
            let confirmed = slot.end_draft(&mut self.tree);
            add(&self.counters.confirmed, confirmed);
        }
    }

    /// Plans up to `count` tokens of a request, or fewer if another request computes the same page in this step.
    fn plan_slot(&mut self, index: usize, count: usize, planned: &mut Planned) {
        let Self { active, tree, step, .. } = self;
        let slot = &mut active[index];
        if slot.is_waiting_for_source() {
            return;
        }
        let start = slot.computed(tree);
        let first = planned.step.tokens.len();
        let table = planned.step.tables.len();
        for position in start..start + count {
            let (page, row) = (position / PAGE, position % PAGE);
            let node = slot.path[page];
            if position == start || row == 0 {
                if !tree.claim(node, *step) {
                    break;
                }
                planned.fills.push((node, row));
            }
            if row == tree.node(node).ids.len() {
                tree.extend(node, slot.token(position));
            }
            if let Some((_, filled)) = planned.fills.last_mut() {
                *filled = row + 1;
            }
            planned.step.tokens.push(EngineToken {
                table,
                id: slot.token(position),
                position,
                wants_logits: position + 1 >= slot.ids.len(),
            });
        }
        if let Some(last) = planned.step.tokens[first..].last() {
            let nodes = &slot.path[..=last.position / PAGE];
            slot.n_computed += (planned.step.tokens.len() - first).min(slot.ids.len() - start);
            planned.step.tables.push(nodes.iter().map(|node| tree.node(*node).page).collect());
            planned.slots.push(index);
        }
    }

    /// Answers the finished requests.
    fn finish(&mut self) {
        let Self { active, tree, .. } = self;
        let mut index = 0;
        while index < active.len() {
            match active[index].outcome() {
                Some(outcome) => active.remove(index).end(tree, outcome),
                None => index += 1,
            }
        }
    }

    fn count_kv(&self) {
        let (tokens, pages) = (self.tree.tokens() as u64, self.tree.pages() as u64);
        self.counters.count_kv(tokens, pages * self.page_bytes);
    }
}
