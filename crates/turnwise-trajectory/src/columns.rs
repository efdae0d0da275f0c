//! Sampled tokens on disk: one column a field, and runs where a value repeats.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{MaskReason, PolicyVersion, SampledToken, SamplingId, TokenId};

/// A value and how many tokens in a row have it.
type Runs<T> = Vec<(T, usize)>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Columns {
    ids: Vec<TokenId>,
    logprobs: Vec<f32>,
    versions: Runs<PolicyVersion>,
    kv_versions: Runs<PolicyVersion>,
    sampling: Runs<SamplingId>,
    #[serde(default, skip_serializing_if = "all_none")]
    masks: Runs<Option<MaskReason>>,
    #[serde(default, skip_serializing_if = "all_none")]
    advantages: Runs<Option<Exact>>,
}

/// A number that equals another only where all its bits do, so that -0 survives beside 0.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
struct Exact(f32);

impl PartialEq for Exact {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

fn all_none<T>(runs: &Runs<Option<T>>) -> bool {
    runs.iter().all(|(value, _)| value.is_none())
}

pub(crate) fn serialize<S: Serializer>(
    tokens: &[SampledToken],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    Columns {
        ids: tokens.iter().map(|token| token.id).collect(),
        logprobs: tokens.iter().map(|token| token.logprob).collect(),
        versions: runs(tokens.iter().map(|token| token.version)),
        kv_versions: runs(tokens.iter().map(|token| token.kv_version)),
        sampling: runs(tokens.iter().map(|token| token.sampling)),
        masks: runs(tokens.iter().map(|token| token.mask)),
        advantages: runs(tokens.iter().map(|token| token.advantage.map(Exact))),
    }
    .serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<SampledToken>, D::Error> {
    let columns = Columns::deserialize(deserializer)?;
    let n = columns.ids.len();
    if columns.logprobs.len() != n {
        return Err(de::Error::custom(format!(
            "{n} ids but {} log-probabilities",
            columns.logprobs.len()
        )));
    }
    let versions = expand("versions", columns.versions, n).map_err(de::Error::custom)?;
    let kv_versions = expand("kv_versions", columns.kv_versions, n).map_err(de::Error::custom)?;
    let sampling = expand("sampling", columns.sampling, n).map_err(de::Error::custom)?;
    let masks = expand_or_none("masks", columns.masks, n).map_err(de::Error::custom)?;
    let advantages =
        expand_or_none("advantages", columns.advantages, n).map_err(de::Error::custom)?;
    Ok((0..n)
        .map(|t| SampledToken {
            id: columns.ids[t],
            logprob: columns.logprobs[t],
            version: versions[t],
            kv_version: kv_versions[t],
            sampling: sampling[t],
            mask: masks[t],
            advantage: advantages[t].map(|Exact(advantage)| advantage),
        })
        .collect())
}

fn runs<T: PartialEq>(values: impl Iterator<Item = T>) -> Runs<T> {
    let mut runs: Runs<T> = Vec::new();
    for value in values {
        match runs.last_mut() {
            Some((last, length)) if *last == value => *length += 1,
            _ => runs.push((value, 1)),
        }
    }
    runs
}

fn expand<T: Copy>(name: &str, runs: Runs<T>, n: usize) -> Result<Vec<T>, String> {
    // Checked before anything is allocated: a length in a file is not to be trusted.
    let total = runs.iter().try_fold(0_usize, |total, (_, length)| total.checked_add(*length));
    if total != Some(n) {
        return Err(format!("the runs of {name} do not cover {n} tokens"));
    }
    Ok(runs.into_iter().flat_map(|(value, length)| std::iter::repeat_n(value, length)).collect())
}

fn expand_or_none<T: Copy>(
    name: &str,
    runs: Runs<Option<T>>,
    n: usize,
) -> Result<Vec<Option<T>>, String> {
    if runs.is_empty() { Ok(vec![None; n]) } else { expand(name, runs, n) }
}
