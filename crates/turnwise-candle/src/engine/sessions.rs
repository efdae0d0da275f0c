use std::collections::{BTreeMap, HashMap};

use super::kv::KvCache;

/// Keys and values of sessions between their turns.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    kept: HashMap<u64, (u64, KvCache)>,
    /// Sessions by when they were used last.
    order: BTreeMap<u64, u64>,
    clock: u64,
    tokens: usize,
}

impl Sessions {
    /// How many tokens are held.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn put(&mut self, session: u64, cache: KvCache) {
        self.take(session);
        self.clock += 1;
        self.tokens += cache.len();
        self.order.insert(self.clock, session);
        self.kept.insert(session, (self.clock, cache));
    }

    pub(super) fn take(&mut self, session: u64) -> Option<KvCache> {
        let (time, cache) = self.kept.remove(&session)?;
        self.order.remove(&time);
        self.tokens -= cache.len();
        Some(cache)
    }

    /// Gives up what was not used for longest until at most `tokens` are held. Returns how many sessions that took.
    pub(super) fn shrink(&mut self, tokens: usize) -> usize {
        let mut evicted = 0;
        while self.tokens > tokens
            && let Some((_, session)) = self.order.first_key_value()
        {
            self.take(*session);
            evicted += 1;
        }
        evicted
    }

    pub(super) fn clear(&mut self) {
        *self = Self { clock: self.clock, ..Self::default() };
    }
}
