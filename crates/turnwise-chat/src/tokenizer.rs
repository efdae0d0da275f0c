use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::Path;

use serde_json::json;
use turnwise_trajectory::TokenId;

use crate::ChatError;
use crate::added::AddedTokens;
use crate::encoder::{Encoder, Piece};
use crate::error::brief;
use crate::fingerprint::fingerprint;
use crate::quiet::quietly;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
/// Files that other programs read next to `tokenizer.json`. They are kept byte for byte, because they may hold the
/// model's own chat template.
const COMPANIONS: [&str; 3] = [CONFIG, "chat_template.jinja", "special_tokens_map.json"];

/// The largest tokenizers in use have about 35 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// A text that tests a new tokenizer by encoding and decoding: blanks at both ends, a control character, a character of
/// each UTF-8 length, capitals, digits.
const PROBE: &str = " A\u{0}é日😀 10\n\n\tb ";

/// A tokenizer in the format of the `tokenizers` library, with any of its models: byte-level BPE, BPE and Unigram of
/// `SentencePiece` with or without byte fallback, `WordPiece`.
///
/// Content goes through [`encode_plain`](Self::encode_plain), which never returns a control token. Text of a template
/// goes through [`encode_with_markers`](Self::encode_with_markers). Both are deterministic and may be called from many
/// threads.
///
/// The ids are those of the `tokenizers` library, with its changes of text:
///
/// - A normalizer applies (Qwen: NFC; Llama 2: a blank before the text), and decoding does not undo it.
/// - A character that the vocabulary cannot express becomes its bytes (byte fallback), or the model's unknown token.
///   Without either, the character, or each byte of it without a token, is dropped: `SmolLM2` has no token for 21
///   bytes, among them the control characters 4 and 6. An unknown token that is not declared as one (`<|endoftext|>`)
///   is dropped too: text never becomes a control token.
/// - An added token that only abbreviates text is text: one of a single character, and, unless it is special, one of
///   blanks or an HTML tag. All others are control tokens.
///
/// Truncation, padding and dropout in `tokenizer.json` are ignored: ids must not be lost, or change from call to call.
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
    encoder: Encoder,
    n_ids: usize,
    json: String,
    companions: Vec<(&'static str, Vec<u8>)>,
    fingerprint: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and the files next to it that [`save`](Self::save) writes again.
    ///
    /// # Errors
    /// When the file is missing, larger than 256 MiB, or not a tokenizer.
    pub fn from_directory(directory: impl AsRef<Path>) -> Result<Self, ChatError> {
        let directory = directory.as_ref();
        let path = directory.join(TOKENIZER);
        let Some(bytes) = read_capped(&path)? else {
            return Err(ChatError::Read { path, source: ErrorKind::NotFound.into() });
        };
        let json = text_of(&path, bytes)?;
        let mut companions = Vec::new();
        for name in COMPANIONS {
            companions.extend(read_capped(&directory.join(name))?.map(|bytes| (name, bytes)));
        }
        Self::new(&path, json, companions)
    }

    /// Reads one tokenizer file of any name, without the files next to it.
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
        Self::new(path, text_of(path, bytes)?, Vec::new())
    }

    /// Creates a tokenizer from the texts of its files.
    pub(crate) fn with_config(
        path: &Path,
        json: String,
        config: String,
    ) -> Result<Self, ChatError> {
        Self::new(path, json, vec![(CONFIG, config.into_bytes())])
    }

    pub(crate) fn from_json(json: String) -> Result<Self, ChatError> {
        Self::new(Path::new(TOKENIZER), json, Vec::new())
    }

    fn new(
        path: &Path,
        json: String,
        companions: Vec<(&'static str, Vec<u8>)>,
    ) -> Result<Self, ChatError> {
        let refused =
            |reason: String| ChatError::Parse { path: path.to_owned(), reason: brief(reason) };
        let encoder = quietly(|| {
            let encoder = Encoder::new(&json)?;
            encoder.decode(&encoder.ids(PROBE), false);
            Ok(encoder)
        });
        let encoder = encoder
            .unwrap_or_else(|panic| Err(format!("the tokenizers library panics: {panic}")))
            .map_err(refused)?;
        let fingerprint = fingerprint(json.as_bytes());
        Ok(Self { n_ids: encoder.n_ids(), encoder, json, companions, fingerprint })
    }

    /// Writes `tokenizer.json` unchanged, and the files that `AutoTokenizer` of transformers needs: those that it was
    /// read with, or else a `tokenizer_config.json` with the end token, the padding token and the plain `ChatML`
    /// template.
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

    /// Returns the configuration. The added tokens are in `tokenizer.json`, where transformers finds them.
    fn config(&self) -> String {
        let named = |marker: &str| self.token_id(marker).map(|_| marker.to_owned());
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "bos_token": null,
            "eos_token": named("<|im_end|>"),
            "pad_token": named("<|endoftext|>"),
            "unk_token": null,
            "chat_template": include_str!("plain.jinja").trim_end(),
        });
        format!("{config:#}\n")
    }

    /// Returns the text of a file that was read with `tokenizer.json`, or that comes from a GGUF file's metadata.
    #[must_use]
    pub fn companion(&self, name: &str) -> Option<String> {
        let (_, bytes) = self.companions.iter().find(|(own, _)| *own == name)?;
        String::from_utf8(bytes.clone()).ok()
    }

    /// Returns a hash of `tokenizer.json`, 32 hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the largest id plus one: the fewest rows of an embedding.
    #[must_use]
    pub fn n_ids(&self) -> usize {
        self.n_ids
    }

    /// Returns the id of a token by its name: an added token's text, or a vocabulary entry in its own spelling.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.encoder.token_id(token)
    }

    /// Returns the text of a token in the middle of a text, with U+FFFD for a part of a character; `None` for an unused
    /// id.
    #[must_use]
    pub fn token_text(&self, id: TokenId) -> Option<String> {
        self.encoder.token_text(id)
    }

    /// Returns the name of a token: an added token's text, or a vocabulary entry in its own spelling.
    pub(crate) fn token_name(&self, id: TokenId) -> Option<String> {
        self.encoder.token_name(id)
    }

    /// Returns the decoder of `tokenizer.json`; null without one.
    pub(crate) fn decoder(&self) -> serde_json::Value {
        self.encoder.decoder()
    }

    /// Returns whether the id is a control token: an added token that does more than abbreviate text.
    #[must_use]
    pub fn is_control(&self, id: TokenId) -> bool {
        self.added().is_control(id)
    }

    /// Returns the id of a control token that a chat format needs.
    pub(crate) fn control(&self, marker: &str) -> Result<TokenId, ChatError> {
        let id = self.token_id(marker).filter(|id| self.is_control(*id));
        id.ok_or_else(|| ChatError::MissingMarker { marker: marker.to_owned() })
    }

    /// Returns the added tokens, by their texts.
    pub(crate) fn added(&self) -> &AddedTokens {
        self.encoder.added()
    }

    /// Encodes content: never to a control token, whatever the text contains.
    #[must_use]
    pub fn encode_plain(&self, text: &str) -> Vec<TokenId> {
        self.pieces(text, &[]).into_iter().map(|piece| piece.id).collect()
    }

    /// Encodes a template's text, in which the names of control tokens become those tokens. No token is added before or
    /// after it.
    #[must_use]
    pub fn encode_with_markers(&self, text: &str) -> Vec<TokenId> {
        self.encoder.ids(text)
    }

    /// Decodes ids, control tokens included. Invalid UTF-8 becomes U+FFFD; unused ids are dropped.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId]) -> String {
        self.encoder.decode(ids, false)
    }

    /// Decodes ids without special tokens, such as `<|im_end|>`; other added tokens, such as `<think>`, stay.
    #[must_use]
    pub fn decode_without_special(&self, ids: &[TokenId]) -> String {
        self.encoder.decode(ids, true)
    }

    /// Encodes a text and returns each token with its place. Control tokens occur only where their whole name is inside
    /// one of the ranges of `template`, which are sorted and disjoint.
    pub(crate) fn pieces(&self, text: &str, template: &[Range<usize>]) -> Vec<Piece> {
        self.encoder.pieces(text, template)
    }

    /// Returns whether a text alone is encoded differently than after other text (a blank is added before it).
    pub(crate) fn opens_with_blank(&self) -> bool {
        self.encoder.opens_with_blank()
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

fn text_of(path: &Path, bytes: Vec<u8>) -> Result<String, ChatError> {
    let path = path.to_owned();
    String::from_utf8(bytes).map_err(|error| ChatError::Parse { path, reason: brief(error) })
}

/// Reads a file; returns `None` if it does not exist.
fn read_capped(path: &Path) -> Result<Option<Vec<u8>>, ChatError> {
    let at = |source| ChatError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error)),
    };
    let mut bytes = Vec::new();
    // One byte more than allowed shows that the file is too large, even if it grows or has no length.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(at)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ChatError::TooBig { path: path.to_owned(), limit: MAX_FILE_BYTES });
    }
    Ok(Some(bytes))
}
