//! A radix tree of cached token sequences, one node per page.
//!
//! The tokens on the path from the root to a node are those that its keys and values depend on, so that all requests
//! that begin with them can read the page. Every node reachable from the root belongs to the current weights. New
//! weights cut off all nodes ([`Tree::renew`]), which are freed when the last request that reads them ends.
//!
//! A page is kept while a request reads it or a session that used it may return. When pages run out, those that no
//! request reads are evicted, least recently used first and never before their continuations.

use std::collections::{BTreeSet, HashMap};
use turnwise_rollout::SessionId;

use turnwise_trajectory::PolicyVersion;

use super::pages::PAGE;

/// The index of a page in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PageId(pub(super) usize);

/// A node: its index, and how often the index was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PageNodeId {
    index: usize,
    generation: u64,
}

/// A page and its tokens.
#[derive(Debug)]
pub(super) struct PageNode {
    parent: Option<PageNodeId>,
    children: Vec<PageNodeId>,
    /// At most [`PAGE`] tokens; those after `filled` are not computed yet.
    pub(super) ids: Vec<u32>,
    /// The number of computed tokens.
    pub(super) filled: usize,
    pub(super) page: PageId,
    /// The oldest version of weights that wrote to the page; meaningless if `filled` is 0.
    pub(super) oldest: PolicyVersion,
    /// Whether newer weights have arrived since the page was created.
    is_stale: bool,
    /// The number of requests with the page on their path.
    readers: usize,
    /// The number of sessions that may return to it.
    sessions: usize,
    /// The time of its last use.
    used: u64,
    /// The last step that computed some of it.
    claimed: u64,
}

#[derive(Debug, Default)]
struct Place {
    generation: u64,
    node: Option<PageNode>,
}

/// A prefix of a page that can be copied instead of computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CopySource {
    pub(super) node: PageNodeId,
    /// The number of tokens to copy.
    pub(super) tokens: usize,
}

/// The tree of all pages.
#[derive(Debug)]
pub(super) struct Tree {
    places: Vec<Place>,
    vacant: Vec<usize>,
    /// The first pages of sequences under the current weights.
    roots: Vec<PageNodeId>,
    /// Evictable nodes, by time of last use.
    spare: BTreeSet<(u64, PageNodeId)>,
    /// The last path of each session.
    sessions: HashMap<SessionId, Vec<PageNodeId>>,
    free: Vec<PageId>,
    max_pages: usize,
    /// The number of allocated pages, free or not.
    made: usize,
    clock: u64,
    filled: usize,
    /// Tokens evicted since the last query.
    given_up: usize,
}

impl Tree {
    pub(super) fn new(max_pages: usize) -> Self {
        Self {
            places: Vec::new(),
            vacant: Vec::new(),
            roots: Vec::new(),
            spare: BTreeSet::new(),
            sessions: HashMap::new(),
            free: Vec::new(),
            max_pages,
            made: 0,
            clock: 0,
            filled: 0,
            given_up: 0,
        }
    }

    /// # Panics
    /// When the node was freed; nodes that a request reads are not.
    pub(super) fn node(&self, id: PageNodeId) -> &PageNode {
        self.get(id).expect("a node that is read is there")
    }

    fn get(&self, id: PageNodeId) -> Option<&PageNode> {
        let place = self.places.get(id.index).filter(|place| place.generation == id.generation)?;
        place.node.as_ref()
    }

    fn node_mut(&mut self, id: PageNodeId) -> &mut PageNode {
        let place = &mut self.places[id.index];
        assert_eq!(place.generation, id.generation, "a node that is read is there");
        place.node.as_mut().expect("a node that is read is there")
    }

    /// Returns the number of tokens whose keys and values are cached.
    pub(super) fn tokens(&self) -> usize {
        self.filled
    }

    /// Returns the number of pages in use.
    pub(super) fn pages(&self) -> usize {
        self.made - self.free.len()
    }

    /// Returns the largest number of pages.
    pub(super) fn max_pages(&self) -> usize {
        self.max_pages
    }

    /// Returns the number of pages that are free or evictable.
    ///
    /// Every page without readers counts: the pages below it have no readers either.
    pub(super) fn available(&self) -> usize {
        let unread = self.places.iter().filter_map(|place| place.node.as_ref());
        let unread = unread.filter(|node| node.readers == 0).count();
        self.max_pages - self.made + self.free.len() + unread
    }

    /// Returns the tokens evicted since the last call.
    pub(super) fn take_given_up(&mut self) -> usize {
        std::mem::take(&mut self.given_up)
    }

    fn children(&self, parent: Option<PageNodeId>) -> &[PageNodeId] {
        parent.map_or(&self.roots, |parent| &self.node(parent).children)
    }

    /// Returns the longest path of whole pages, computed or planned, for the start of a sequence.
    pub(super) fn path(&self, ids: &[u32]) -> Vec<PageNodeId> {
        let mut path: Vec<PageNodeId> = Vec::new();
        for ids in ids.as_chunks::<PAGE>().0 {
            let children = self.children(path.last().copied());
            let Some(child) = children.iter().find(|child| self.node(**child).ids == ids) else {
                break;
            };
            path.push(*child);
        }
        path
    }

    /// Returns the page after `parent` with the longest common prefix with these tokens.
    pub(super) fn source(&self, parent: Option<PageNodeId>, ids: &[u32]) -> Option<CopySource> {
        let common = |id: &PageNodeId| {
            let node = self.node(*id);
            let tokens = node.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
            // A page that is no longer computed offers only its filled tokens.
            let tokens = if node.readers == 0 { tokens.min(node.filled) } else { tokens };
            CopySource { node: *id, tokens }
        };
        // Among equals, the most complete one means the shortest wait.
        let best = |source: &CopySource| (source.tokens, self.node(source.node).filled);
        let sources = self.children(parent).iter().map(common);
        sources.filter(|source| source.tokens > 0).max_by_key(best)
    }

    /// Returns whether a request still computes it.
    pub(super) fn is_read(&self, id: PageNodeId) -> bool {
        self.get(id).is_some_and(|node| node.readers > 0)
    }

    /// Returns the number of filled tokens of a node, or 0 if it was freed.
    pub(super) fn filled(&self, id: PageNodeId) -> usize {
        self.get(id).map_or(0, |node| node.filled)
    }

    /// Adds a reader to each node.
    pub(super) fn read(&mut self, path: &[PageNodeId]) {
        for id in path {
            self.node_mut(*id).readers += 1;
            self.sort(*id);
        }
    }

    /// Adds a page for tokens after `parent`, with one reader. Returns `None` when there is no room.
    pub(super) fn add(&mut self, parent: Option<PageNodeId>, ids: Vec<u32>) -> Option<PageNodeId> {
        let page = self.take_page()?;
        let is_stale = parent.is_some_and(|parent| self.node(parent).is_stale);
        let node = PageNode {
            parent,
            children: Vec::new(),
            ids,
            filled: 0,
            page,
            oldest: PolicyVersion::default(),
            is_stale,
            readers: 1,
            sessions: 0,
            used: self.clock,
            claimed: 0,
        };
        let index = self.vacant.pop().unwrap_or(self.places.len());
        if index == self.places.len() {
            self.places.push(Place::default());
        }
        let place = &mut self.places[index];
        place.node = Some(node);
        let id = PageNodeId { index, generation: place.generation };
        match parent {
            Some(parent) => {
                self.node_mut(parent).children.push(id);
                self.sort(parent);
            }
            None => self.roots.push(id),
        }
        Some(id)
    }

    fn take_page(&mut self) -> Option<PageId> {
        if self.free.is_empty() && self.made < self.max_pages {
            self.made += 1;
            return Some(PageId(self.made - 1));
        }
        if self.free.is_empty() {
            let (_, id) = *self.spare.first()?;
            self.given_up += self.node(id).filled;
            self.remove(id);
        }
        self.free.pop()
    }

    /// Claims a node for a step, counted from 1; returns true once for each step.
    pub(super) fn claim(&mut self, id: PageNodeId, step: u64) -> bool {
        let node = self.node_mut(id);
        std::mem::replace(&mut node.claimed, step) != step
    }

    /// Records a token that is about to be computed.
    pub(super) fn extend(&mut self, id: PageNodeId, token: u32) {
        self.node_mut(id).ids.push(token);
    }

    /// Records that a node now holds `filled` tokens, the last written by weights of this version.
    pub(super) fn fill(&mut self, id: PageNodeId, filled: usize, version: PolicyVersion) {
        let node = self.node_mut(id);
        node.oldest = if node.filled == 0 { version } else { node.oldest.min(version) };
        let before = std::mem::replace(&mut node.filled, filled);
        self.filled = self.filled + filled - before;
    }

    /// Forgets the tokens of a node beyond the first `count`.
    pub(super) fn shorten(&mut self, id: PageNodeId, count: usize) {
        let node = self.node_mut(id);
        node.ids.truncate(count);
        let kept = node.filled.min(count);
        let before = std::mem::replace(&mut node.filled, kept);
        self.filled = self.filled + kept - before;
    }

    /// Returns a fully computed sibling with the same tokens.
    pub(super) fn twin(&self, id: PageNodeId) -> Option<PageNodeId> {
        let node = self.node(id);
        if node.is_stale && node.parent.is_none() {
            return None;
        }
        let is_twin = |other: &&PageNodeId| {
            let twin = self.node(**other);
            **other != id && twin.filled == PAGE && twin.ids == node.ids
        };
        self.children(node.parent).iter().find(is_twin).copied()
    }

    /// Removes a reader from each node.
    pub(super) fn leave(&mut self, path: &[PageNodeId]) {
        self.clock += 1;
        for id in path.iter().rev() {
            let clock = self.clock;
            let node = self.node_mut(*id);
            node.readers -= 1;
            self.touch(*id, clock);
            self.free_unused(*id);
        }
    }

    /// Records the path of a session, replacing its earlier one.
    pub(super) fn keep(&mut self, session: SessionId, path: &[PageNodeId]) {
        let fresh = path.iter().copied().take_while(|id| !self.node(*id).is_stale);
        let fresh: Vec<PageNodeId> = fresh.collect();
        for id in &fresh {
            self.node_mut(*id).sessions += 1;
        }
        let before = self.sessions.insert(session, fresh);
        self.let_go(&before.unwrap_or_default());
        self.forget_sessions();
    }

    /// Forgets sessions without remaining pages when there are too many.
    fn forget_sessions(&mut self) {
        if self.sessions.len() > 2 * self.places.len() + 64 {
            let mut sessions = std::mem::take(&mut self.sessions);
            sessions.retain(|_, path| path.iter().any(|id| self.get(*id).is_some()));
            self.sessions = sessions;
        }
    }

    /// Forgets a session.
    pub(super) fn release(&mut self, session: SessionId) {
        let path = self.sessions.remove(&session).unwrap_or_default();
        self.let_go(&path);
    }

    fn let_go(&mut self, path: &[PageNodeId]) {
        for id in path.iter().rev() {
            if self.get(*id).is_some() {
                self.node_mut(*id).sessions -= 1;
                self.free_unused(*id);
            }
        }
    }

    /// Cuts off all nodes, because the weights changed.
    pub(super) fn renew(&mut self) {
        self.roots.clear();
        self.sessions.clear();
        let ids: Vec<PageNodeId> =
            (0..self.places.len()).filter_map(|index| self.at(index)).collect();
        for id in &ids {
            let node = self.node_mut(*id);
            (node.is_stale, node.sessions) = (true, 0);
        }
        for id in ids {
            if self.get(id).is_some() {
                self.free_unused(id);
            }
        }
    }

    fn at(&self, index: usize) -> Option<PageNodeId> {
        let Place { generation, node } = &self.places[index];
        node.as_ref().map(|_| PageNodeId { index, generation: *generation })
    }

    /// Frees a node without readers or sessions, and ancestors that only it needed.
    fn free_unused(&mut self, id: PageNodeId) {
        let mut next = Some(id);
        while let Some(id) = next {
            let node = self.node(id);
            next = node.parent;
            let is_unused = node.readers == 0 && node.sessions == 0 && node.children.is_empty();
            if !is_unused {
                return self.sort(id);
            }
            self.remove(id);
        }
    }

    fn remove(&mut self, id: PageNodeId) {
        let place = &mut self.places[id.index];
        place.generation += 1;
        let node = place.node.take().expect("a node that is removed is there");
        self.vacant.push(id.index);
        self.spare.remove(&(node.used, id));
        self.filled -= node.filled;
        self.free.push(node.page);
        match node.parent {
            Some(parent) => {
                self.node_mut(parent).children.retain(|child| *child != id);
                self.sort(parent);
            }
            None => self.roots.retain(|root| *root != id),
        }
    }

    fn touch(&mut self, id: PageNodeId, clock: u64) {
        let node = self.node_mut(id);
        let before = std::mem::replace(&mut node.used, clock);
        self.spare.remove(&(before, id));
        self.sort(id);
    }

    /// Adds a node to the evictable ones, or removes it.
    fn sort(&mut self, id: PageNodeId) {
        let node = self.node(id);
        let entry = (node.used, id);
        if node.readers == 0 && node.children.is_empty() {
            self.spare.insert(entry);
        } else {
            self.spare.remove(&entry);
        }
    }
}
