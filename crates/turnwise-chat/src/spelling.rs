//! The bytes that each token stands for.

use serde_json::Value;
use turnwise_trajectory::TokenId;

use crate::{ChatError, Tokenizer};

/// The way in which a tokenizer's decoder turns the name of a token into bytes.
#[derive(Clone, Copy)]
enum Spelling {
    /// Each character of the name is one byte (GPT-2).
    Bytes,
    /// `▁` is a blank, and `<0x0A>` a byte (`SentencePiece`).
    Pieces,
}

/// Returns the bytes of each token of text, by id; empty for control tokens, unused ids, and tokens that the decoder
/// spells in another way than their name.
///
/// # Errors
/// When the decoder is neither byte-level nor that of `SentencePiece`: its tokens have no bytes of their own.
pub(crate) fn spellings(tokenizer: &Tokenizer) -> Result<Vec<Vec<u8>>, ChatError> {
    let Some(spelling) = Spelling::of(&tokenizer.decoder()) else {
        let reason = "its decoder does not give each token bytes of its own, which a grammar needs";
        return Err(ChatError::Unsupported(reason.to_owned()));
    };
    let bytes = (0..tokenizer.n_ids() as TokenId).map(|id| {
        let name = tokenizer.token_name(id).filter(|_| !tokenizer.is_control(id))?;
        let bytes = spelling.bytes(&name);
        let text = tokenizer.token_text(id)?;
        (String::from_utf8_lossy(&bytes) == text).then_some(bytes)
    });
    Ok(bytes.map(Option::unwrap_or_default).collect())
}

impl Spelling {
    fn of(decoder: &Value) -> Option<Self> {
        let parts = decoder["decoders"].as_array().map_or(std::slice::from_ref(decoder), |all| all);
        let has = |kind: &str| parts.iter().any(|part| part["type"] == kind);
        let has_blanks = || parts.iter().any(|part| part["pattern"]["String"] == "▁");
        match () {
            () if has("ByteLevel") => Some(Self::Bytes),
            () if has("Metaspace") || has("ByteFallback") || has_blanks() => Some(Self::Pieces),
            () => None,
        }
    }

    fn bytes(self, name: &str) -> Vec<u8> {
        match self {
            Self::Bytes => {
                let bytes: Option<Vec<u8>> = name.chars().map(byte_of).collect();
                bytes.unwrap_or_else(|| name.as_bytes().to_vec())
            }
            Self::Pieces => {
                let byte = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                let byte = byte.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                byte.map_or_else(|| name.replace('▁', " ").into_bytes(), |byte| vec![byte])
            }
        }
    }
}

/// Returns the byte of a character of a byte-level name: printable characters of Latin-1 stand for themselves, and the
/// other bytes, in order, are the characters from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => Some(code as u8).filter(|byte| is_itself(*byte)),
        code => (0..=0xFF).filter(|byte| !is_itself(*byte)).nth((code - 0x100) as usize),
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::byte_of;

    #[test]
    fn every_byte_has_one_character_of_the_alphabet() {
        let mut bytes: Vec<u8> = ByteLevel::alphabet().into_iter().filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!([byte_of('Ġ'), byte_of('Ċ'), byte_of('日')], [Some(b' '), Some(b'\n'), None]);
    }
}
