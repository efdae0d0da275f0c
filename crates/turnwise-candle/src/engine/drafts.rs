//! Drafts of the next tokens: what followed the same tokens before, in any request.
//!
//! Groups answer the same prompt, and conversations repeat themselves: names, calls of tools, phrases. The tokens of a
//! draft are computed beside a request's last token, because a step of few tokens waits for memory anyway. Each place is
//! then sampled as it would be without a draft, and the samples are kept up to the first that is not the draft's. So
//! neither samples nor log-probabilities depend on drafts.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use turnwise_trajectory::TokenId;

/// The number of tokens that have to agree before a draft.
const CONTEXT: usize = 3;

/// The most contexts that are remembered.
const MOST: usize = 1 << 18;

/// What followed each context.
#[derive(Debug, Default)]
pub(super) struct DraftIndex {
    followers: HashMap<[TokenId; CONTEXT], Follower>,
}

/// The token that followed most often, by the algorithm of Boyer and Moore.
#[derive(Clone, Copy, Debug)]
struct Follower {
    id: TokenId,
    /// By how much it leads the others.
    lead: u8,
}

impl DraftIndex {
    /// Records the tokens of a sequence from a place on.
    pub(super) fn learn(&mut self, ids: &[TokenId], from: usize) {
        let first = from.max(CONTEXT) - CONTEXT;
        for window in ids.get(first..).unwrap_or_default().windows(CONTEXT + 1) {
            if let [context @ .., id] = window
                && let Ok(context) = <[TokenId; CONTEXT]>::try_from(context)
            {
                self.add(context, *id);
            }
        }
    }

    fn add(&mut self, context: [TokenId; CONTEXT], id: TokenId) {
        if self.followers.len() >= MOST {
            self.followers.clear();
        }
        match self.followers.entry(context) {
            Entry::Vacant(entry) => {
                entry.insert(Follower { id, lead: 1 });
            }
            Entry::Occupied(mut entry) => {
                let follower = entry.get_mut();
                if follower.id == id {
                    follower.lead = follower.lead.saturating_add(1);
                } else if follower.lead > 1 {
                    follower.lead -= 1;
                } else {
                    *follower = Follower { id, lead: 1 };
                }
            }
        }
    }

    /// Returns up to `most` tokens that probably follow.
    pub(super) fn draft(&self, ids: &[TokenId], most: usize) -> Vec<TokenId> {
        let mut draft = Vec::new();
        let Some(mut context) = ids.last_chunk::<CONTEXT>().copied() else { return draft };
        while draft.len() < most
            && let Some(follower) = self.followers.get(&context)
        {
            draft.push(follower.id);
            context.rotate_left(1);
            context[CONTEXT - 1] = follower.id;
        }
        draft
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_what_followed_most_often() {
        let mut index = DraftIndex::default();
        index.learn(&[1, 2, 3, 4, 5, 6], 0);
        assert_eq!(index.draft(&[9, 1, 2, 3], 8), [4, 5, 6]);
        assert_eq!(index.draft(&[9, 1, 2, 3], 2), [4, 5]);
        assert_eq!(index.draft(&[1, 2], 8), [] as [TokenId; 0]);
        index.learn(&[1, 2, 3, 4, 5, 6], 5);
        for _ in 0..3 {
            index.learn(&[3, 4, 5, 7], 3);
        }
        assert_eq!(index.draft(&[1, 2, 3], 3), [4, 5, 7]);
    }

    #[test]
    fn tokens_before_the_place_are_not_learned_again() {
        let mut index = DraftIndex::default();
        index.learn(&[1, 2, 3, 4, 5], 4);
        assert_eq!(index.draft(&[1, 2, 3], 1), [] as [TokenId; 0]);
        assert_eq!(index.draft(&[2, 3, 4], 1), [5]);
        index.learn(&[1, 2], 7);
    }
}
