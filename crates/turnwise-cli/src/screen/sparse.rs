//! Rate-limits repeated progress lines when output is not a terminal.

/// One of this many similar texts is printed.
const EVERY: u64 = 10;

/// A filter that passes the first, every tenth and the last of texts that are equal up to their first digit.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    kind: String,
    n: u64,
    /// The newest text, if it was held back.
    held: Option<String>,
}

impl Sparse {
    /// Returns the texts to print after a new text.
    pub(super) fn offer(&mut self, text: &str) -> Vec<String> {
        let kind = text.split(|c: char| c.is_ascii_digit()).next().unwrap_or_default();
        let mut due = Vec::new();
        if kind != self.kind || self.n == 0 {
            due = self.flush();
            kind.clone_into(&mut self.kind);
        }
        self.n += 1;
        if self.n % EVERY == 1 {
            self.held = None;
            due.push(text.to_owned());
        } else {
            self.held = Some(text.to_owned());
        }
        due
    }

    /// Returns the last text if it was held back, because another kind of line follows.
    pub(super) fn flush(&mut self) -> Vec<String> {
        self.n = 0;
        self.held.take().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_every_tenth_and_the_last_are_let_through() {
        let mut sparse = Sparse::default();
        let offered = (1..=25).flat_map(|i| sparse.offer(&format!("warm start {i}/25")));
        assert_eq!(
            offered.collect::<Vec<_>>(),
            ["warm start 1/25", "warm start 11/25", "warm start 21/25"]
        );
        assert_eq!(sparse.offer("evaluating 1/8"), ["warm start 25/25", "evaluating 1/8"]);
        assert!(sparse.flush().is_empty());
        assert_eq!(sparse.offer("evaluating 2/8"), ["evaluating 2/8"]);
    }
}
