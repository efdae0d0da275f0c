//! The models that one thread keeps, each with the KV cache of a sequence.

use std::collections::{BTreeMap, HashMap, VecDeque};
use turnwise_rollout::SessionId;

use crate::{GgufError, GgufModel};

/// The maximal number of cached prefixes that new sessions can start from.
const MAX_TRUNKS: usize = 8;

/// Models by the content of their KV caches, all of the same weights.
///
/// `candle-transformers` cannot truncate a KV cache, so a model is useful for a sequence only if its whole cache is a
/// prefix of the sequence.
#[derive(Debug)]
pub(crate) struct Caches {
    /// The models of sessions that wait for their next request, with the time of the last use.
    sessions: HashMap<SessionId, (u64, GgufModel)>,
    /// Sessions by the time of their last use.
    order: BTreeMap<u64, SessionId>,
    clock: u64,
    /// Prompts of sessions that started from an empty cache, the most recently used last. Members of a group share
    /// theirs.
    trunks: VecDeque<GgufModel>,
    /// Models with an empty cache.
    free: Vec<GgufModel>,
    /// The maximal number of models, including the one that samples; at least 1.
    capacity: usize,
}

impl Caches {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            sessions: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            trunks: VecDeque::new(),
            free: Vec::new(),
            capacity: capacity.max(1),
        }
    }

    /// Forgets all models, because the weights have changed.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }

    /// Returns a model whose cache is a proper prefix of `ids`: the session's, a cached prefix, or an empty one.
    pub(crate) fn take(
        &mut self,
        session: SessionId,
        ids: &[u32],
        prototype: &GgufModel,
    ) -> Result<GgufModel, GgufError> {
        let before = &ids[..ids.len().saturating_sub(1)];
        if let Some(model) = self.remove(session) {
            if before.starts_with(model.ids()) {
                return Ok(model);
            }
            self.recycle(model);
        }
        if let Some(model) = self.fork_of_trunk(before) {
            return Ok(model);
        }
        if let Some(model) = self.free.pop() {
            return Ok(model);
        }
        self.make_room(1);
        prototype.fresh()
    }

    /// Keeps a model that a session may continue from.
    pub(crate) fn put(&mut self, session: SessionId, model: GgufModel) {
        if let Some(before) = self.remove(session) {
            self.recycle(before);
        }
        self.clock += 1;
        self.order.insert(self.clock, session);
        self.sessions.insert(session, (self.clock, model));
    }

    /// Forgets a session.
    pub(crate) fn release(&mut self, session: SessionId) {
        if let Some(model) = self.remove(session) {
            self.recycle(model);
        }
    }

    /// Keeps the memory of a model and clears its cache.
    pub(crate) fn recycle(&mut self, mut model: GgufModel) {
        model.clear();
        self.free.push(model);
    }

    /// Keeps a copy of a model's cache for sessions with the same prefix.
    pub(crate) fn remember(&mut self, model: &GgufModel) {
        // Needs room for the model that samples, this one, and a session or two.
        if self.capacity < 4 || self.trunks.iter().any(|trunk| trunk.ids() == model.ids()) {
            return;
        }
        if self.trunks.len() >= MAX_TRUNKS.min(self.capacity / 4) {
            self.trunks.pop_front();
        }
        // The model itself is not in here, and counts too.
        self.make_room(2);
        self.trunks.extend(model.fork());
    }

    fn fork_of_trunk(&mut self, before: &[u32]) -> Option<GgufModel> {
        let fitting = self.trunks.iter().enumerate();
        let fitting = fitting.filter(|(_, trunk)| before.starts_with(trunk.ids()));
        let (index, _) = fitting.max_by_key(|(_, trunk)| trunk.ids().len())?;
        let trunk = self.trunks.remove(index)?;
        self.make_room(2);
        let model = trunk.fork();
        self.trunks.push_back(trunk);
        model
    }

    fn remove(&mut self, session: SessionId) -> Option<GgufModel> {
        let (time, model) = self.sessions.remove(&session)?;
        self.order.remove(&time);
        Some(model)
    }

    fn len(&self) -> usize {
        self.sessions.len() + self.trunks.len() + self.free.len()
    }

    /// Evicts models until `n_more` fit: those with an empty cache, then the least recently used session, then
    /// prefixes.
    fn make_room(&mut self, n_more: usize) {
        while self.len() + n_more > self.capacity {
            if self.free.pop().is_some() {
                continue;
            }
            if let Some((_, session)) = self.order.pop_first() {
                self.sessions.remove(&session);
            } else if self.trunks.pop_front().is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use turnwise_candle::{Decoder, DecoderConfig};

    use super::*;
    use crate::Quantization;

    fn prototype() -> GgufModel {
        let model = Decoder::random(DecoderConfig::small(32), 1).unwrap();
        GgufModel::new(&model, Quantization::F32).unwrap()
    }

    fn computed(
        caches: &mut Caches,
        session: SessionId,
        ids: &[u32],
        prototype: &GgufModel,
    ) -> usize {
        let mut model = caches.take(session, ids, prototype).unwrap();
        let held = model.ids().len();
        for id in &ids[held..] {
            if model.ids().len() + 1 == ids.len() && held == 0 {
                caches.remember(&model);
            }
            model.push(*id).unwrap();
        }
        caches.put(session, model);
        ids.len() - held
    }

    #[test]
    fn a_session_goes_on_and_a_beginning_is_shared() {
        let (prototype, mut caches) = (prototype(), Caches::new(8));
        assert_eq!(computed(&mut caches, SessionId(1), &[1, 2, 3], &prototype), 3);
        assert_eq!(
            computed(&mut caches, SessionId(2), &[1, 2, 3], &prototype),
            1,
            "of the same prompt"
        );
        assert_eq!(
            computed(&mut caches, SessionId(1), &[1, 2, 3, 4, 5], &prototype),
            2,
            "of its own"
        );
        assert_eq!(
            computed(&mut caches, SessionId(1), &[1, 2, 3, 4, 5], &prototype),
            3,
            "cannot be shortened"
        );
        assert_eq!(
            computed(&mut caches, SessionId(2), &[2, 1], &prototype),
            2,
            "another conversation"
        );
        caches.release(SessionId(1));
        caches.clear();
        assert_eq!(caches.len(), 0);
    }

    #[test]
    fn there_are_never_more_models_than_there_is_room_for() {
        let prototype = prototype();
        for capacity in 1..9 {
            let mut caches = Caches::new(capacity);
            for session in 0..20_u64 {
                let prompt = [session as u32 % 5, 2, 3];
                let mut model = caches.take(SessionId(session), &prompt, &prototype).unwrap();
                assert!(caches.len() < capacity, "{} and the one that draws", caches.len());
                while model.ids().len() < prompt.len() {
                    if model.ids().len() == 2 {
                        caches.remember(&model);
                        assert!(caches.len() < capacity, "{} and the one that draws", caches.len());
                    }
                    model.push(prompt[model.ids().len()]).unwrap();
                }
                caches.put(SessionId(session), model);
                assert!(caches.len() <= capacity, "{} of {capacity}", caches.len());
                if session % 3 == 0 {
                    caches.release(SessionId(session));
                }
            }
        }
    }
}
