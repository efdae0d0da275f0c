use std::collections::{BTreeMap, HashMap};

use serde_json::json;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
use turnwise_trajectory::TokenId;

use crate::{ChatError, Tokenizer};

/// The control tokens of a trained tokenizer, and whether each is special (hidden from people).
const MARKERS: [(&str, bool); 9] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<think>", false),
    ("</think>", false),
    ("<tool_response>", false),
    ("</tool_response>", false),
];

/// The fewest ids a trained tokenizer has: 256 bytes and 9 control tokens.
pub const MIN_IDS: usize = 256 + MARKERS.len();

/// Trains a byte-level BPE tokenizer with at most `n_ids` ids; fewer if the texts have no more pairs to merge.
///
/// For new models. The ids are the 256 bytes, then the merges, then the control tokens of `ChatML`, tool calls and
/// thinking. A run of digits is a word of its own: a frequent number often becomes one token, which a small model can
/// copy, and has the same tokens everywhere. Decoding restores any text. The same texts in any order give the same
/// bytes of `tokenizer.json`, on every machine. Names of control tokens in the texts are skipped.
///
/// Time is linear in the text, and in `n_ids` times the distinct words.
///
/// ```
/// let texts = || ["three plus five".to_owned(), "three plus one".to_owned()];
/// let tokenizer = turnwise_chat::train_tokenizer(texts(), 280)?;
/// assert!(tokenizer.encode_plain("three plus").len() < "three plus".len());
/// assert_eq!(tokenizer.fingerprint(), turnwise_chat::train_tokenizer(texts(), 280)?.fingerprint());
/// # Ok::<(), turnwise_chat::ChatError>(())
/// ```
///
/// # Errors
/// When `n_ids` is less than [`MIN_IDS`].
pub fn train_tokenizer(
    texts: impl IntoIterator<Item = String>,
    n_ids: usize,
) -> Result<Tokenizer, ChatError> {
    let n_merges =
        n_ids.checked_sub(MIN_IDS).ok_or(ChatError::TooFewIds { n_ids, least: MIN_IDS })?;
    let split = pre_tokenizer();
    let mut vocabulary = BpeVocabulary::of_bytes();
    let mut words = count_words(texts, &split, &vocabulary);
    let merges = learn_merges(&mut words, &mut vocabulary, n_merges);
    Tokenizer::from_json(to_json(&split, &vocabulary, &merges))
}

fn pre_tokenizer() -> PreTokenizerWrapper {
    let bytes = ByteLevel::default().add_prefix_space(false);
    Sequence::new(vec![Digits::new(false).into(), bytes.into()]).into()
}

/// The tokens' byte-level spellings; the index is the id.
struct BpeVocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, TokenId>,
}

impl BpeVocabulary {
    fn of_bytes() -> Self {
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let mut vocabulary = Self { tokens: Vec::new(), ids: HashMap::new() };
        for byte in alphabet {
            vocabulary.id_of(byte.to_string());
        }
        vocabulary
    }

    /// Returns the token's id, creating it if needed: two merges may spell the same token.
    fn id_of(&mut self, token: String) -> TokenId {
        let next = self.tokens.len() as TokenId;
        *self.ids.entry(token).or_insert_with_key(|token| {
            self.tokens.push(token.clone());
            next
        })
    }
}

/// A distinct word as token ids, and its number of occurrences.
struct Word {
    ids: Vec<TokenId>,
    count: u64,
}

fn count_words(
    texts: impl IntoIterator<Item = String>,
    split: &PreTokenizerWrapper,
    vocabulary: &BpeVocabulary,
) -> Vec<Word> {
    // Sorted, so that the result does not depend on the order of the texts or on hashes.
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        for part in without_markers(&text) {
            let mut part = PreTokenizedString::from(part);
            split.pre_tokenize(&mut part).expect("fixed pre-tokenizers split any text");
            for (word, ..) in part.get_splits(OffsetReferential::Original, OffsetType::None) {
                *counts.entry(word.to_owned()).or_default() += 1;
            }
        }
    }
    let ids = |word: &str| word.chars().map(|byte| vocabulary.ids[&byte.to_string()]).collect();
    counts.into_iter().map(|(word, count)| Word { ids: ids(&word), count }).collect()
}

fn without_markers(text: &str) -> Vec<&str> {
    MARKERS.iter().fold(vec![text], |parts, (marker, _)| {
        parts.into_iter().flat_map(|part| part.split(marker)).collect()
    })
}

type Pair = (TokenId, TokenId);

/// Merges the most frequent pair repeatedly; of equally frequent pairs, the one with the smaller ids. Stops when no
/// pair occurs twice: a merge seen once would memorise the text.
fn learn_merges(
    words: &mut [Word],
    vocabulary: &mut BpeVocabulary,
    n_merges: usize,
) -> Vec<(String, String)> {
    let mut counts: HashMap<Pair, u64> = HashMap::new();
    for word in &*words {
        pairs(&word.ids).for_each(|pair| *counts.entry(pair).or_default() += word.count);
    }
    let limit = vocabulary.tokens.len() + n_merges;
    let mut merges = Vec::new();
    while vocabulary.tokens.len() < limit {
        let frequent = counts.iter().filter(|(_, count)| **count > 1);
        let Some((&pair, _)) =
            frequent.max_by_key(|(pair, count)| (**count, std::cmp::Reverse(**pair)))
        else {
            break;
        };
        let [left, right] = [pair.0, pair.1].map(|id| vocabulary.tokens[id as usize].clone());
        let id = vocabulary.id_of(format!("{left}{right}"));
        merges.push((left, right));
        for word in words.iter_mut().filter(|word| pairs(&word.ids).any(|other| other == pair)) {
            for pair in pairs(&word.ids) {
                *counts.get_mut(&pair).expect("every pair was counted") -= word.count;
            }
            merge(&mut word.ids, pair, id);
            pairs(&word.ids).for_each(|pair| *counts.entry(pair).or_default() += word.count);
        }
        counts.retain(|_, count| *count > 0);
    }
    merges
}

fn pairs(ids: &[TokenId]) -> impl Iterator<Item = Pair> {
    ids.windows(2).map(|pair| (pair[0], pair[1]))
}

fn merge(ids: &mut Vec<TokenId>, pair: Pair, merged: TokenId) {
    let mut kept = Vec::with_capacity(ids.len());
    let mut rest = ids.as_slice();
    while let [first, after @ ..] = rest {
        if let [second, after @ ..] = after
            && (*first, *second) == pair
        {
            kept.push(merged);
            rest = after;
        } else {
            kept.push(*first);
            rest = after;
        }
    }
    *ids = kept;
}

fn to_json(
    split: &PreTokenizerWrapper,
    vocabulary: &BpeVocabulary,
    merges: &[(String, String)],
) -> String {
    let n_plain = vocabulary.tokens.len();
    let added: Vec<_> = MARKERS
        .iter()
        .enumerate()
        .map(|(index, (content, special))| {
            json!({
                "id": n_plain + index, "content": content, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let draft = json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": split,
        "decoder": ByteLevel::default().add_prefix_space(false),
        "model": {"type": "BPE", "vocab": vocabulary.ids, "merges": merges},
    });
    // Written by the tokenizers crate, which orders keys and ids in its own fixed way.
    let tokenizer: tokenizers::Tokenizer =
        draft.to_string().parse().expect("the draft is a tokenizer");
    tokenizer.to_string(true).expect("a tokenizer can be written")
}
