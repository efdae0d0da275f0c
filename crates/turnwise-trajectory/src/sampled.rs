use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::runs::Runs;
use crate::{MaskReason, PolicyVersion, SampledToken, SamplingId, TokenId};

/// Consecutive sampled tokens, stored as one column for each field.
///
/// The columns are private and every append writes all of them, so their lengths cannot disagree. Ids and
/// log-probabilities are stored for each token; fields that repeat (versions, sampling settings, masks, advantages) are
/// stored as runs. A token costs 8 bytes plus its share of the runs.
///
/// ```
/// use turnwise_trajectory::{MaskReason, PolicyVersion, SampledToken, SampledTokens};
///
/// let drawn = [(5, 0), (6, 0), (7, 1)];
/// let mut tokens: SampledTokens = drawn
///     .into_iter()
///     .map(|(id, version)| SampledToken::new(id, -0.5, PolicyVersion(version)))
///     .collect();
/// tokens.set_advantage(Some(1.5));
/// tokens.mask_where(MaskReason::Stale, |token| token.version < PolicyVersion(1));
/// assert_eq!(tokens.ids(), [5, 6, 7]);
/// assert_eq!(tokens.iter().filter(SampledToken::trains).count(), 1);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampledTokens {
    ids: Vec<TokenId>,
    logprobs: Vec<f32>,
    versions: Runs<PolicyVersion>,
    kv_versions: Runs<PolicyVersion>,
    sampling: Runs<SamplingId>,
    masks: Runs<Option<MaskReason>>,
    advantages: Runs<Option<Exact>>,
    /// Columns that few spans need; absent columns cost a null pointer.
    optional: Option<Box<Optional>>,
}

/// A float that compares by bits, so that -0 and 0 are different values.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Exact(f32);

impl PartialEq for Exact {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Optional {
    reference_logprobs: Option<Vec<f32>>,
    kept: Option<KeptSets>,
}

/// For each token, the ids it was sampled from; an empty set stands for the whole vocabulary.
#[derive(Clone, Debug, Default, PartialEq)]
struct KeptSets {
    ids: Vec<TokenId>,
    ends: Vec<u32>,
}

impl KeptSets {
    fn push(&mut self, ids: &[TokenId]) {
        self.ids.extend_from_slice(ids);
        self.ends.push(u32::try_from(self.ids.len()).expect("kept sets have fewer than 2^32 ids"));
    }

    fn get(&self, index: usize) -> &[TokenId] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.ids[start as usize..self.ends[index] as usize]
    }
}

impl SampledTokens {
    /// Appends a token, and drops the reference log-probabilities, which are computed for a whole span.
    pub fn push(&mut self, token: SampledToken) {
        self.append(token, &[]);
    }

    /// Appends a token sampled from a truncated distribution, with the ids that the truncation kept.
    ///
    /// # Panics
    /// Panics if the token is not among the kept ids.
    pub fn push_kept(&mut self, token: SampledToken, kept: &[TokenId]) {
        assert!(
            kept.contains(&token.id),
            "the token must be among the ids that the truncation kept"
        );
        self.append(token, kept);
    }

    fn append(&mut self, token: SampledToken, kept: &[TokenId]) {
        let n_before = self.len();
        self.ids.push(token.id);
        self.logprobs.push(token.logprob);
        self.versions.push(token.version, 1);
        self.kv_versions.push(token.kv_version, 1);
        self.sampling.push(token.sampling, 1);
        self.masks.push(token.mask, 1);
        self.advantages.push(token.advantage.map(Exact), 1);
        if !kept.is_empty() || self.optional.is_some() {
            let optional = self.optional.get_or_insert_default();
            optional.reference_logprobs = None;
            if !kept.is_empty() || optional.kept.is_some() {
                let all = || KeptSets { ids: Vec::new(), ends: vec![0; n_before] };
                optional.kept.get_or_insert_with(all).push(kept);
            }
        }
    }

    /// Returns the number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the ids exactly as they were sampled. `[N]`
    #[must_use]
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// Returns the log-probabilities at sampling time, in nats. `[N]`
    #[must_use]
    pub fn logprobs(&self) -> &[f32] {
        &self.logprobs
    }

    /// Iterates over the tokens in order, by value.
    pub fn iter(&self) -> impl Iterator<Item = SampledToken> + '_ {
        let drawn = self.versions.iter().zip(self.kv_versions.iter()).zip(self.sampling.iter());
        let credit = self.masks.iter().zip(self.advantages.iter());
        let columns = self.ids.iter().zip(&self.logprobs).zip(drawn).zip(credit);
        columns.map(|(((id, logprob), ((version, kv_version), sampling)), (mask, advantage))| {
            let advantage = advantage.map(|Exact(advantage)| advantage);
            let (id, logprob) = (*id, *logprob);
            SampledToken { id, logprob, version, kv_version, sampling, mask, advantage }
        })
    }

    /// Returns a token.
    ///
    /// # Panics
    /// Panics if `index` is out of range.
    #[must_use]
    pub fn get(&self, index: usize) -> SampledToken {
        SampledToken {
            id: self.ids[index],
            logprob: self.logprobs[index],
            version: self.versions.get(index),
            kv_version: self.kv_versions.get(index),
            sampling: self.sampling.get(index),
            mask: self.masks.get(index),
            advantage: self.advantages.get(index).map(|Exact(advantage)| advantage),
        }
    }

    /// Iterates over the policy versions in order, each with the length of its run of tokens.
    pub fn versions(&self) -> impl Iterator<Item = (PolicyVersion, usize)> + '_ {
        self.versions.lengths()
    }

    /// Sets the advantage of every token; `None` means not scored.
    pub fn set_advantage(&mut self, advantage: Option<f32>) {
        self.set_advantage_in(0..self.len(), advantage);
    }

    /// Sets the advantage of the tokens of a range.
    ///
    /// # Panics
    /// Panics if the range exceeds the tokens.
    pub fn set_advantage_in(&mut self, range: Range<usize>, advantage: Option<f32>) {
        assert!(range.end <= self.len(), "the range must lie within the tokens");
        self.advantages.set(&range, advantage.map(Exact));
    }

    /// Masks every token for which `is_masked` returns true. A token that is already masked keeps its first reason.
    pub fn mask_where(
        &mut self,
        reason: MaskReason,
        mut is_masked: impl FnMut(&SampledToken) -> bool,
    ) {
        let mask = |token: SampledToken| {
            let is_meant = is_masked(&token);
            token.mask.or(is_meant.then_some(reason))
        };
        self.masks = self.iter().map(mask).collect();
    }

    /// Returns the reference policy's log-probabilities, in nats. `[N]`
    #[must_use]
    pub fn reference_logprobs(&self) -> Option<&[f32]> {
        self.optional.as_ref()?.reference_logprobs.as_deref()
    }

    /// Records the reference policy's log-probabilities.
    ///
    /// # Panics
    /// Panics unless there is one for each token.
    pub fn set_reference_logprobs(&mut self, logprobs: Vec<f32>) {
        assert_eq!(logprobs.len(), self.len(), "there is one log-probability for each token");
        self.optional.get_or_insert_default().reference_logprobs = Some(logprobs);
    }

    /// Returns the ids that truncation kept when the token was sampled, if they were recorded.
    #[must_use]
    pub fn kept(&self, index: usize) -> Option<&[TokenId]> {
        let kept = self.optional.as_ref()?.kept.as_ref()?.get(index);
        (!kept.is_empty()).then_some(kept)
    }

    /// Frees the memory that was reserved for further tokens.
    pub fn shrink_to_fit(&mut self) {
        self.ids.shrink_to_fit();
        self.logprobs.shrink_to_fit();
        self.versions.shrink_to_fit();
        self.kv_versions.shrink_to_fit();
        self.sampling.shrink_to_fit();
        self.masks.shrink_to_fit();
        self.advantages.shrink_to_fit();
    }

    /// Returns the memory used, in bytes: this value and its heap capacity, without the allocator's overhead.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let floats =
            |column: &Option<Vec<f32>>| column.as_ref().map_or(0, |one| 4 * one.capacity());
        let optional = self.optional.as_ref().map_or(0, |optional| {
            let kept = optional.kept.as_ref();
            size_of::<Optional>()
                + floats(&optional.reference_logprobs)
                + kept.map_or(0, |kept| 4 * (kept.ids.capacity() + kept.ends.capacity()))
        });
        size_of::<Self>()
            + 4 * (self.ids.capacity() + self.logprobs.capacity())
            + self.versions.heap_bytes()
            + self.kv_versions.heap_bytes()
            + self.sampling.heap_bytes()
            + self.masks.heap_bytes()
            + self.advantages.heap_bytes()
            + optional
    }
}

impl Extend<SampledToken> for SampledTokens {
    fn extend<I: IntoIterator<Item = SampledToken>>(&mut self, tokens: I) {
        for token in tokens {
            self.push(token);
        }
    }
}

impl FromIterator<SampledToken> for SampledTokens {
    fn from_iter<I: IntoIterator<Item = SampledToken>>(tokens: I) -> Self {
        let mut columns = Self::default();
        columns.extend(tokens);
        columns
    }
}

impl From<Vec<SampledToken>> for SampledTokens {
    fn from(tokens: Vec<SampledToken>) -> Self {
        tokens.into_iter().collect()
    }
}

impl Serialize for SampledTokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let optional = self.optional.as_deref();
        let kept = optional.and_then(|optional| optional.kept.as_ref());
        SampledColumns {
            ids: Cow::Borrowed(&self.ids),
            logprobs: Cow::Borrowed(&self.logprobs),
            versions: self.versions.lengths().collect(),
            kv_versions: self.kv_versions.lengths().collect(),
            sampling: self.sampling.lengths().collect(),
            masks: self.masks.lengths().collect(),
            advantages: self.advantages.lengths().collect(),
            reference_logprobs: optional.and_then(|optional| optional.reference_logprobs.clone()),
            kept: kept.map(|kept| (0..self.len()).map(|index| kept.get(index).to_vec()).collect()),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SampledTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        SampledColumns::deserialize(deserializer)?.checked().map_err(de::Error::custom)
    }
}

/// The form on disk: one column for each field, and runs of value and length where a value repeats.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampledColumns<'a> {
    ids: Cow<'a, [TokenId]>,
    logprobs: Cow<'a, [f32]>,
    versions: Vec<(PolicyVersion, usize)>,
    kv_versions: Vec<(PolicyVersion, usize)>,
    sampling: Vec<(SamplingId, usize)>,
    #[serde(default, skip_serializing_if = "all_none")]
    masks: Vec<(Option<MaskReason>, usize)>,
    #[serde(default, skip_serializing_if = "all_none")]
    advantages: Vec<(Option<Exact>, usize)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference_logprobs: Option<Vec<f32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<Vec<Vec<TokenId>>>,
}

fn all_none<T>(runs: &[(Option<T>, usize)]) -> bool {
    runs.iter().all(|(value, _)| value.is_none())
}

impl SampledColumns<'_> {
    fn checked(self) -> Result<SampledTokens, String> {
        let n = self.ids.len();
        let lengths = [
            ("log-probabilities", Some(self.logprobs.len())),
            ("reference log-probabilities", self.reference_logprobs.as_ref().map(Vec::len)),
            ("kept sets", self.kept.as_ref().map(Vec::len)),
        ];
        for (name, length) in lengths {
            if let Some(length) = length.filter(|length| *length != n) {
                return Err(format!("{n} ids but {length} {name}"));
            }
        }
        let kept = self.kept.map(|sets| kept_sets(&self.ids, &sets)).transpose()?;
        let optional = Optional { reference_logprobs: self.reference_logprobs, kept };
        Ok(SampledTokens {
            versions: Runs::of("versions", self.versions, n)?,
            kv_versions: Runs::of("kv_versions", self.kv_versions, n)?,
            sampling: Runs::of("sampling", self.sampling, n)?,
            masks: Runs::of_optional("masks", self.masks, n)?,
            advantages: Runs::of_optional("advantages", self.advantages, n)?,
            optional: (optional != Optional::default()).then(|| Box::new(optional)),
            ids: self.ids.into_owned(),
            logprobs: self.logprobs.into_owned(),
        })
    }
}

fn kept_sets(ids: &[TokenId], sets: &[Vec<TokenId>]) -> Result<KeptSets, String> {
    let mut kept = KeptSets::default();
    for (place, (id, set)) in ids.iter().zip(sets).enumerate() {
        if !(set.is_empty() || set.contains(id)) {
            return Err(format!("the kept set of token {place} does not hold its id {id}"));
        }
        kept.push(set);
    }
    Ok(kept)
}
