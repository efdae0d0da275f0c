//! Errors of a server, which are never the agent's.

use serde_json::Value;
use turnwise_environment::EnvironmentError;

/// The most characters of a server's text that an error repeats.
const SHOWN: usize = 300;

/// Returns the beginning of a text that a server sent, on one line.
pub(super) fn shown(text: &str) -> String {
    let mut chars = text.chars().map(|char| if char.is_control() { ' ' } else { char });
    let mut short: String = chars.by_ref().take(SHOWN).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short.trim().to_owned()
}

/// Takes a field out of a value that may be no object.
pub(super) fn field(value: &mut Value, name: &str) -> Value {
    value.get_mut(name).map(Value::take).unwrap_or_default()
}

/// Creates the error for an answer that the protocol does not have.
pub(super) fn malformed(what: &str, why: impl std::fmt::Display) -> EnvironmentError {
    EnvironmentError::new(format!("the server's answer to {what} is malformed: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_shortened_and_has_no_control_characters() {
        assert_eq!(shown("a\r\n\u{1b}[2Jb"), "a   [2Jb");
        assert_eq!(shown(&"é".repeat(1_000)).chars().count(), SHOWN + 1);
    }
}
