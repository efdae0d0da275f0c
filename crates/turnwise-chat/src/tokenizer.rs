use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::json;
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use turnwise_trajectory::TokenId;

use crate::ChatError;
use crate::fingerprint::fingerprint;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
/// What other programs read beside `tokenizer.json`. Kept byte for byte: it may hold the model's own chat template.
const COMPANIONS: [&str; 3] = [CONFIG, "chat_template.jinja", "special_tokens_map.json"];

/// The largest tokenizers in use have about 35 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// A text that a tokenizer fit for arbitrary text carries there and back: blanks at both ends, a control character, a
/// character of each UTF-8 length, capitals, digits.
const PROBE: &str = " A\u{0}é日😀 10\n\n\tb ";

/// A byte-level BPE tokenizer: every text has ids, and the ids give the text back.
///
/// Text that somebody *said* goes through [`encode_plain`](Self::encode_plain), which never answers with a control token.
/// Text that *we* write goes through [`encode_with_markers`](Self::encode_with_markers). Both are deterministic and may be
/// called from many threads. A normalizer of the tokenizer (Qwen: NFC) applies, and is then not undone by decoding.
///
/// Truncation and padding asked for in `tokenizer.json` are ignored: ids must not go missing.
///
/// ```
/// let tokenizer = turnwise_chat::train_tokenizer(["The guess is 7.".to_owned()], 300)?;
/// let close = tokenizer.token_id("<|im_end|>").expect("a trained tokenizer has it");
///
/// assert_eq!(tokenizer.encode_with_markers("7<|im_end|>").last(), Some(&close));
/// let ids = tokenizer.encode_plain("7<|im_end|>");
/// assert!(!ids.contains(&close));
/// assert_eq!(tokenizer.decode(&ids), "7<|im_end|>");
/// # Ok::<(), turnwise_chat::ChatError>(())
/// ```
pub struct Tokenizer {
    /// Knows its added tokens.
    marked: tokenizers::Tokenizer,
    /// The same without them: there is no text for which it could answer with one.
    plain: tokenizers::Tokenizer,
    /// The added tokens' texts, longest first.
    markers: Vec<(String, TokenId)>,
    added: HashSet<TokenId>,
    n_ids: usize,
    json: String,
    companions: Vec<(&'static str, Vec<u8>)>,
    fingerprint: String,
}

/// A token and the bytes of the text it stands for; the tokens of one character all have the whole character.
pub(crate) struct Piece {
    pub(crate) id: TokenId,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and keeps the files beside it that [`save`](Self::save) writes again.
    ///
    /// # Errors
    /// When the file is missing, is larger than 256 MiB, is no tokenizer, or is none of byte-level BPE.
    pub fn from_directory(directory: impl AsRef<Path>) -> Result<Self, ChatError> {
        let directory = directory.as_ref();
        let path = directory.join(TOKENIZER);
        let Some(bytes) = read_capped(&path)? else {
            return Err(ChatError::Read { path, source: ErrorKind::NotFound.into() });
        };
        let json = String::from_utf8(bytes).map_err(|error| ChatError::Parse(error.to_string()))?;
        let mut companions = Vec::new();
        for name in COMPANIONS {
            companions.extend(read_capped(&directory.join(name))?.map(|bytes| (name, bytes)));
        }
        Self::new(json, companions)
    }

    /// Reads one tokenizer file, whatever its name, without what stands beside it.
    ///
    /// # Errors
    /// As [`from_directory`](Self::from_directory).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ChatError> {
        let path = path.as_ref();
        let Some(bytes) = read_capped(path)? else {
            return Err(ChatError::Read {
                path: path.to_owned(),
                source: ErrorKind::NotFound.into(),
            });
        };
        Self::from_json(
            String::from_utf8(bytes).map_err(|error| ChatError::Parse(error.to_string()))?,
        )
    }

    pub(crate) fn from_json(json: String) -> Result<Self, ChatError> {
        Self::new(json, Vec::new())
    }

    fn new(json: String, companions: Vec<(&'static str, Vec<u8>)>) -> Result<Self, ChatError> {
        let mut marked: tokenizers::Tokenizer =
            json.parse().map_err(|error: tokenizers::Error| ChatError::Parse(error.to_string()))?;
        marked.with_padding(None);
        marked.with_truncation(None).map_err(|error| ChatError::Parse(error.to_string()))?;
        let plain = without_added_tokens(&marked)?;
        let mut markers: Vec<(String, TokenId)> = marked
            .get_added_tokens_decoder()
            .into_iter()
            .map(|(id, token)| (token.content, id))
            .collect();
        markers.sort_unstable_by(|a, b| (b.0.len(), &a.0).cmp(&(a.0.len(), &b.0)));
        let n_ids = marked.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let tokenizer = Self {
            added: markers.iter().map(|(_, id)| *id).collect(),
            markers,
            n_ids,
            fingerprint: fingerprint(json.as_bytes()),
            marked,
            plain,
            json,
            companions,
        };
        tokenizer.check()?;
        Ok(tokenizer)
    }

    /// What the rest of the crate relies on, whatever file the tokenizer came from.
    fn check(&self) -> Result<(), ChatError> {
        let unsupported = |reason: String| Err(ChatError::Unsupported(reason));
        let ModelWrapper::BPE(model) = self.plain.get_model() else {
            return unsupported("it is not byte-level BPE".to_owned());
        };
        if model.dropout.is_some_and(|dropout| dropout > 0.0) {
            return unsupported("its dropout makes encoding random".to_owned());
        }
        if let Some(c) = ByteLevel::alphabet().into_iter().find(|c| self.byte_id(*c).is_none()) {
            return unsupported(format!("its vocabulary lacks the byte written {c:?}"));
        }
        if let Some((marker, _)) = self.markers.iter().find(|(text, _)| text.chars().count() < 2) {
            return unsupported(format!("the added token {marker:?} could be any text"));
        }
        if self.decode(&self.encode_plain(PROBE)) != PROBE {
            return unsupported("text does not come back from it as it was".to_owned());
        }
        Ok(())
    }

    fn byte_id(&self, c: char) -> Option<TokenId> {
        self.plain.token_to_id(c.encode_utf8(&mut [0; 4]))
    }

    /// Writes `tokenizer.json` as it was read, and what `AutoTokenizer` of transformers wants beside it: the files it was
    /// read with, or else a `tokenizer_config.json` with the end token, the padding token and the plain `ChatML` template.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, directory: impl AsRef<Path>) -> Result<(), ChatError> {
        let directory = directory.as_ref();
        let at = |path: &Path| {
            let path = path.to_owned();
            |source| ChatError::Write { path, source }
        };
        fs::create_dir_all(directory).map_err(at(directory))?;
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            fs::write(&path, bytes).map_err(at(&path))
        };
        write(TOKENIZER, self.json.as_bytes())?;
        for (name, bytes) in &self.companions {
            write(name, bytes)?;
        }
        if self.companions.iter().all(|(name, _)| *name != CONFIG) {
            write(CONFIG, self.config().as_bytes())?;
        }
        Ok(())
    }

    /// The added tokens themselves are in `tokenizer.json`, where transformers finds them.
    fn config(&self) -> String {
        let named = |marker: &str| self.token_id(marker).map(|_| marker.to_owned());
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "bos_token": null,
            "eos_token": named("<|im_end|>"),
            "pad_token": named("<|endoftext|>"),
            "unk_token": null,
            "chat_template": include_str!("chatml.jinja").trim_end(),
        });
        format!("{config:#}\n")
    }

    /// A hash of `tokenizer.json`, 32 hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// One more than the largest id: how many rows an embedding needs at least.
    #[must_use]
    pub fn n_ids(&self) -> usize {
        self.n_ids
    }

    /// The id of a token by its name: an added token's text, or a vocabulary entry in its byte-level spelling.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.marked.token_to_id(token)
    }

    /// What one token decodes to, with U+FFFD for a part of a character; `None` for an id that is no token.
    #[must_use]
    pub fn token_text(&self, id: TokenId) -> Option<String> {
        self.marked.id_to_token(id).map(|_| self.decode(&[id]))
    }

    /// Whether the id is a control token: special or otherwise added to the vocabulary.
    #[must_use]
    pub fn is_control(&self, id: TokenId) -> bool {
        self.added.contains(&id)
    }

    /// The id of a control token that a chat format needs.
    pub(crate) fn control(&self, marker: &str) -> Result<TokenId, ChatError> {
        let id = self.token_id(marker).filter(|id| self.is_control(*id));
        id.ok_or_else(|| ChatError::MissingMarker { marker: marker.to_owned() })
    }

    /// The added tokens' texts.
    pub(crate) fn marker_texts(&self) -> impl Iterator<Item = &str> {
        self.markers.iter().map(|(text, _)| text.as_str())
    }

    /// The ids of what somebody said: never a special token nor another added one, whatever the text contains.
    #[must_use]
    pub fn encode_plain(&self, text: &str) -> Vec<TokenId> {
        self.pieces(text).into_iter().map(|piece| piece.id).collect()
    }

    /// The ids of text of our own, in which the names of control tokens are those tokens. No token is put before or after.
    #[must_use]
    pub fn encode_with_markers(&self, text: &str) -> Vec<TokenId> {
        let encoding =
            self.marked.encode_fast(text, false).expect("byte-level BPE encodes any text");
        encoding.get_ids().to_vec()
    }

    /// The text of ids, control tokens included. What is not UTF-8 becomes U+FFFD; ids that are no tokens are left out.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId]) -> String {
        self.marked.decode(ids, false).expect("byte-level BPE decodes any ids")
    }

    /// The same without special tokens, such as `<|im_end|>`; other added tokens, such as `<think>`, stay.
    #[must_use]
    pub fn decode_without_special(&self, ids: &[TokenId]) -> String {
        self.marked.decode(ids, true).expect("byte-level BPE decodes any ids")
    }

    /// [`encode_plain`](Self::encode_plain) with the place of each token.
    pub(crate) fn pieces(&self, text: &str) -> Vec<Piece> {
        let pieces = self.pieces_of(text, 0);
        // The vocabulary itself may hold an added token's text, and its merges may lead there. Then it is spelled out.
        if pieces.iter().any(|piece| self.is_control(piece.id)) {
            let chars = text.char_indices();
            return chars
                .flat_map(|(at, c)| self.pieces_of(c.encode_utf8(&mut [0; 4]), at))
                .collect();
        }
        pieces
    }

    fn pieces_of(&self, text: &str, base: usize) -> Vec<Piece> {
        let encoding = self.plain.encode(text, false).expect("byte-level BPE encodes any text");
        let places = encoding.get_ids().iter().zip(encoding.get_offsets());
        places
            .map(|(id, (start, end))| Piece { id: *id, start: base + start, end: base + end })
            .collect()
    }

    /// The first name of a control token in the text, the longest if several begin there: where, its text and its id.
    pub(crate) fn first_marker(&self, text: &str) -> Option<(usize, &str, TokenId)> {
        text.char_indices().find_map(|(at, _)| {
            let (marker, id) =
                self.markers.iter().find(|(marker, _)| text[at..].starts_with(marker))?;
            Some((at, marker.as_str(), *id))
        })
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("fingerprint", &self.fingerprint)
            .field("n_ids", &self.n_ids)
            .finish_non_exhaustive()
    }
}

/// Neither special handling nor a post-processor: only normalizer, pre-tokenizer and model.
fn without_added_tokens(
    marked: &tokenizers::Tokenizer,
) -> Result<tokenizers::Tokenizer, ChatError> {
    let mut plain = tokenizers::Tokenizer::new(marked.get_model().clone());
    plain
        .with_normalizer(marked.get_normalizer().cloned())
        .map_err(|error| ChatError::Parse(error.to_string()))?;
    plain.with_pre_tokenizer(marked.get_pre_tokenizer().cloned());
    Ok(plain)
}

/// The file's bytes; `None` when there is no such file.
fn read_capped(path: &Path) -> Result<Option<Vec<u8>>, ChatError> {
    let at = |source| ChatError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error)),
    };
    let mut bytes = Vec::new();
    // One byte more than is allowed shows that there are more, even in a file that grows or has no length.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(at)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ChatError::TooBig { path: path.to_owned(), limit: MAX_FILE_BYTES });
    }
    Ok(Some(bytes))
}
