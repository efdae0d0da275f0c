//! The `tokenizers` library behind a boundary: the same ids, but no control token out of plain text.

use std::ops::Range;

use serde::Deserialize;
use tokenizers::models::ModelWrapper;
use tokenizers::tokenizer::normalizer::Range as Slice;
use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Split,
    Token, Tokenizer as Library,
};
use turnwise_trajectory::TokenId;

use crate::added::AddedTokens;

/// A token and its range of bytes in the text; the tokens of one character all have the range of the character.
pub(crate) struct Piece {
    pub(crate) id: TokenId,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

pub(crate) struct Encoder {
    inner: Library,
    added: AddedTokens,
    /// The token for inexpressible text, if it is declared as one.
    unknown: Option<TokenId>,
    opens_with_blank: bool,
    /// A token of plain text, to decode other tokens after it.
    letter: Option<TokenId>,
}

type Failed = tokenizers::Error;

/// Parts of the file that the library does not expose.
#[derive(Deserialize)]
struct File {
    model: FileModel,
}

#[derive(Deserialize)]
struct FileModel {
    unk_id: Option<TokenId>,
}

impl Encoder {
    /// Creates the encoder of a file's text, or returns why it is not supported.
    pub(crate) fn new(json: &str) -> Result<Self, String> {
        // Parsed first, because the library panics on some files that are not JSON.
        let file: File = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let mut inner: Library = json.parse().map_err(|error: Failed| error.to_string())?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        if let ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some()
        {
            let mut model = model.clone();
            model.dropout = None;
            inner.with_model(model);
        }
        let added = AddedTokens::new(inner.get_added_tokens_decoder());
        let named = unknown_token(&inner, file.model.unk_id)
            .filter(|token| token.to_lowercase().contains("unk"));
        let unknown = named.and_then(|token| inner.token_to_id(&token));
        let mut encoder = Self { inner, added, unknown, opens_with_blank: false, letter: None };
        let alone = encoder.ids("a");
        encoder.letter = alone.last().copied();
        encoder.opens_with_blank = !encoder.ids("\na").ends_with(&alone);
        Ok(encoder)
    }

    pub(crate) fn added(&self) -> &AddedTokens {
        &self.added
    }

    pub(crate) fn opens_with_blank(&self) -> bool {
        self.opens_with_blank
    }

    /// Returns the largest id plus one.
    pub(crate) fn n_ids(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    pub(crate) fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token)
    }

    pub(crate) fn token_name(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the decoder's settings; null without a decoder.
    pub(crate) fn decoder(&self) -> serde_json::Value {
        serde_json::to_value(self.inner.get_decoder()).unwrap_or_default()
    }

    /// Returns the text of a token after other text: alone, a leading blank may be lost.
    pub(crate) fn token_text(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(id)?;
        let alone = self.decode(&[id], false);
        let behind = self.letter.and_then(|letter| {
            let text = self.decode(&[letter, id], false);
            text.strip_prefix(&self.decode(&[letter], false)).map(str::to_owned)
        });
        Some(behind.unwrap_or(alone))
    }

    pub(crate) fn decode(&self, ids: &[TokenId], skips_special: bool) -> String {
        self.inner.decode(ids, skips_special).unwrap_or_else(|_| {
            let tokens = ids.iter().filter_map(|id| self.inner.id_to_token(*id));
            tokens.collect::<Vec<_>>().join(" ")
        })
    }

    /// Returns the library's ids.
    pub(crate) fn ids(&self, text: &str) -> Vec<TokenId> {
        if let Ok(encoding) = self.inner.encode_fast(text, false) {
            return encoding.get_ids().to_vec();
        }
        let whole = 0..text.len();
        let pieces = self.guarded(text, std::slice::from_ref(&whole));
        pieces.iter().map(|piece| piece.id).collect()
    }

    pub(crate) fn pieces(&self, text: &str, template: &[Range<usize>]) -> Vec<Piece> {
        let Ok(encoding) = self.inner.encode(text, false) else {
            return self.guarded(text, template);
        };
        let pieces = pieces_of(&encoding);
        let is_misplaced = |piece: &Piece| {
            let said = text.get(piece.start..piece.end).unwrap_or_default();
            let is_unknown = Some(piece.id) == self.unknown
                && self.inner.id_to_token(piece.id).as_deref() != Some(said.trim());
            let (from, to) = (said.len() - said.trim_start().len(), said.trim_end().len());
            let name = piece.start + from..piece.start + to.max(from);
            self.added.is_control(piece.id) && !is_unknown && !is_within(&name, template)
        };
        if pieces.iter().any(is_misplaced) { self.guarded(text, template) } else { pieces }
    }

    /// Returns the ids of a text with names of control tokens that must not become control tokens: such names are
    /// encoded like the words around them.
    fn guarded(&self, text: &str, template: &[Range<usize>]) -> Vec<Piece> {
        let encode = || -> Result<Vec<Piece>, Failed> {
            let mut parts = PreTokenizedString::from(text);
            parts.split(|_, whole| Ok(self.divided(&whole, text, template)))?;
            if let Some(normalizer) = self.inner.get_normalizer() {
                parts.normalize(|part| normalizer.normalize(part))?;
            }
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut parts)?;
            }
            parts.tokenize(|part| Ok(self.spelled(part.get())))?;
            Ok(pieces_of(&parts.into_encoding(None, 0, OffsetType::Byte)?))
        };
        encode().unwrap_or_default()
    }

    /// Splits the text at the added tokens that are allowed at their places.
    fn divided(
        &self,
        whole: &NormalizedString,
        text: &str,
        template: &[Range<usize>],
    ) -> Vec<Split> {
        let mut parts = Vec::new();
        let (mut from, mut at) = (0, 0);
        let part = |range: Range<usize>, id: Option<TokenId>| {
            let part = whole.slice(Slice::Original(range))?;
            let token = id.map(|id| vec![Token::new(id, String::new(), (0, part.get().len()))]);
            Some(Split::from((part, token)))
        };
        while at < text.len() {
            let allows =
                |end: usize, is_control: bool| !is_control || is_within(&(at..end), template);
            let Some(found) = self.added.at(text, at, allows) else {
                at = text.ceil_char_boundary(at + 1);
                continue;
            };
            let end = at + found.text.len();
            let (left, right) = self.added.taken(found.id, &text[from..at], &text[end..]);
            parts.extend(part(from..at - left, None));
            from = end + right;
            parts.extend(part(at - left..from, Some(found.id)));
            at = from;
        }
        parts.extend(part(from..text.len(), None));
        parts
    }

    /// Returns the tokens of a word without control tokens: where the vocabulary would merge to one, characters are
    /// encoded alone, and a character without a token is dropped.
    fn spelled(&self, word: &str) -> Vec<Token> {
        let is_said =
            |token: &Token| !self.added.is_control(token.id) || Some(token.id) == self.unknown;
        let model = self.inner.get_model();
        if let Ok(tokens) = model.tokenize(word)
            && tokens.iter().all(is_said)
        {
            return tokens;
        }
        let mut tokens = Vec::new();
        for (at, c) in word.char_indices() {
            let alone = model.tokenize(c.encode_utf8(&mut [0; 4])).unwrap_or_default();
            tokens.extend(alone.into_iter().filter(is_said).map(|token| Token {
                offsets: (at + token.offsets.0, at + token.offsets.1),
                ..token
            }));
        }
        tokens
    }
}

fn unknown_token(inner: &Library, id: Option<TokenId>) -> Option<String> {
    match inner.get_model() {
        ModelWrapper::BPE(model) => model.get_unk_token().clone(),
        ModelWrapper::WordPiece(model) => Some(model.unk_token.clone()),
        ModelWrapper::WordLevel(model) => Some(model.unk_token.clone()),
        ModelWrapper::Unigram(_) => inner.id_to_token(id?),
    }
}

/// Returns whether the range is inside one of the others.
fn is_within(range: &Range<usize>, others: &[Range<usize>]) -> bool {
    let index = others.partition_point(|other| other.end < range.end);
    others.get(index).is_some_and(|other| other.start <= range.start && range.end <= other.end)
}

fn pieces_of(encoding: &tokenizers::Encoding) -> Vec<Piece> {
    let places = encoding.get_ids().iter().zip(encoding.get_offsets());
    places.map(|(id, (start, end))| Piece { id: *id, start: *start, end: *end }).collect()
}
