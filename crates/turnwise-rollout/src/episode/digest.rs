use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

/// Returns the SHA-256 of a value's JSON, as hexadecimal digits.
pub(super) fn digest(value: &impl Serialize) -> String {
    sha256(&serde_json::to_vec(value).expect("plain data is JSON"))
}

/// Returns the SHA-256 of bytes, as 64 hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a string takes what is written");
    }
    text
}
