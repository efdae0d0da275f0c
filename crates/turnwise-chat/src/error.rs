use std::fmt;
use std::io;
use std::path::PathBuf;

/// An error of a tokenizer or a chat format. Rendering and parsing themselves do not fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// A file that cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file that is too large.
    #[error("cannot read {}: it has more than {limit} bytes", path.display())]
    TooBig {
        /// The file.
        path: PathBuf,
        /// The largest supported size, in bytes.
        limit: u64,
    },
    /// A file that is not a tokenizer.
    #[error("cannot parse {}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The problem, in one short line.
        reason: String,
    },
    /// A tokenizer that cannot encode and decode every text.
    #[error("cannot use the tokenizer: {0}")]
    Unsupported(String),
    /// A control token that a chat format needs and the tokenizer does not have.
    #[error("cannot find the token {marker:?} among the tokenizer's added tokens")]
    MissingMarker {
        /// The token's text.
        marker: String,
    },
    /// A vocabulary that is too small for the bytes and the control tokens.
    #[error("cannot train a tokenizer with {n_ids} ids: it needs at least {least}")]
    TooFewIds {
        /// The requested number of ids.
        n_ids: usize,
        /// The smallest number of ids.
        least: usize,
    },
    /// A chat template that the caller does not trust.
    #[error(
        "cannot run a chat template: its hash is {hash}, and {trusted:?} is trusted; read it, then trust that hash"
    )]
    Untrusted {
        /// The template's hash.
        hash: String,
        /// The trusted hash.
        trusted: String,
    },
    /// A chat template that cannot be run.
    #[error("cannot read a chat template: {0}")]
    Template(String),
    /// A grammar that cannot be compiled.
    #[error("cannot read the grammar: {0}")]
    Grammar(String),
}

/// Shortens text of a library or of a file to one line of at most 200 characters, without control characters.
pub(crate) fn brief(text: impl fmt::Display) -> String {
    const LONGEST: usize = 200;
    let text = text.to_string();
    let spaced = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c });
    let clean: String = spaced.filter(|c| !c.is_control()).collect();
    let words: Vec<&str> = clean.split(' ').filter(|word| !word.is_empty()).collect();
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}… ({} bytes)", &line[..end], line.len()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::brief;

    #[test]
    fn a_text_is_repeated_in_one_short_line() {
        assert_eq!(brief("a\n\t b\u{1b}[31mc "), "a b[31mc");
        assert_eq!(brief("é".repeat(300)), format!("{}… (600 bytes)", "é".repeat(200)));
    }
}
