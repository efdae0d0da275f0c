use std::collections::{BTreeMap, BTreeSet};

use turnwise_environment::derive_seed;
use turnwise_trajectory::{GroupId, Identity, PolicyVersion, SampledToken, TokenId, Trajectory};

use crate::{Invariant, Violation};

/// An episode, for all its attempts.
pub(crate) type Member = (GroupId, u32);

pub(crate) fn member_of(identity: &Identity) -> Member {
    (identity.group, identity.member)
}

/// A sampled token, as recorded by the engine.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Drawn {
    token: SampledToken,
    /// The hash of its context.
    context: u64,
}

/// The witness's independent record of the run, to compare with the scheduler's books. A snapshot of the run includes
/// it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness {
    /// The weights of each version, as a number, including those that are not published yet.
    versions: Vec<u64>,
    current: u64,
    gradient: u64,
    /// By sampling seed, the last token sampled at each place.
    drawn: BTreeMap<u64, Vec<Drawn>>,
    pub(crate) dispatched: BTreeSet<Member>,
    pub(crate) trained: BTreeSet<Member>,
    pub(crate) compared: BTreeSet<GroupId>,
}

impl Witness {
    pub(crate) fn new(seed: u64) -> Self {
        Self { versions: vec![seed], current: seed, ..Self::default() }
    }

    pub(crate) fn version(&self) -> PolicyVersion {
        PolicyVersion(self.versions.len() as u32 - 1)
    }

    /// Returns the published weights.
    pub(crate) fn published(&self) -> u64 {
        self.versions[self.versions.len() - 1]
    }

    pub(crate) fn current(&self) -> u64 {
        self.current
    }

    pub(crate) fn add_gradient(&mut self, gradient: u64) {
        self.gradient = derive_seed(self.gradient, gradient);
    }

    pub(crate) fn update(&mut self, applied: bool) {
        if applied {
            self.current = derive_seed(self.current, self.gradient);
        }
        self.gradient = 0;
    }

    pub(crate) fn publish(&mut self) -> PolicyVersion {
        self.versions.push(self.current);
        self.version()
    }

    /// Records a sampled token, and discards the tokens at its place and after.
    pub(crate) fn draw(
        &mut self,
        seed: u64,
        place: u64,
        context: u64,
        token: SampledToken,
    ) -> Result<(), Violation> {
        let drawn = self.drawn.entry(seed).or_default();
        if drawn.len() < place as usize {
            let found = format!("token {place} of a seed that has {}", drawn.len());
            return Err(Violation::new(Invariant::Tokens, found));
        }
        drawn.truncate(place as usize);
        drawn.push(Drawn { token, context });
        Ok(())
    }

    /// Compares a trained trajectory with the sampled tokens, and forgets them.
    pub(crate) fn settle(&mut self, trajectory: &Trajectory) -> Result<(), Violation> {
        let drawn = self.drawn.remove(&trajectory.identity.sampling_seed).unwrap_or_default();
        let mut drawn = drawn.into_iter();
        let Some(leaf) = trajectory.graph.ids().last() else { return Ok(()) };
        let mut context = 0;
        for id in trajectory.graph.path_to(leaf) {
            for span in &trajectory.graph.node(id).spans {
                if let turnwise_trajectory::Span::Sampled(tokens) = span {
                    for token in tokens.iter() {
                        compare(drawn.next(), token, context, trajectory)?;
                        context = extend(context, token.id);
                    }
                } else {
                    let mut ids = Vec::new();
                    span.extend_ids(&mut ids);
                    context = hash_ids(context, &ids);
                }
            }
        }
        Ok(())
    }
}

fn compare(
    drawn: Option<Drawn>,
    token: SampledToken,
    context: u64,
    trajectory: &Trajectory,
) -> Result<(), Violation> {
    let is_same = drawn.is_some_and(|drawn| {
        let before = drawn.token;
        let as_drawn = SampledToken { mask: None, advantage: None, ..token };
        drawn.context == context
            && SampledToken { logprob: before.logprob, ..as_drawn } == before
            && token.logprob.to_bits() == before.logprob.to_bits()
    });
    if is_same {
        return Ok(());
    }
    let (group, member) = member_of(&trajectory.identity);
    let found = format!("group {} member {member}: trained {token:?}, drawn {drawn:?}", group.0);
    Err(Violation::new(Invariant::Tokens, found))
}

/// Returns the hash of a context after one more token.
pub(crate) fn extend(context: u64, id: TokenId) -> u64 {
    derive_seed(context, u64::from(id))
}

pub(crate) fn hash_ids(context: u64, ids: &[TokenId]) -> u64 {
    ids.iter().fold(context, |context, id| extend(context, *id))
}
