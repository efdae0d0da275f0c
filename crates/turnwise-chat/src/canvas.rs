use turnwise_trajectory::{Span, TokenId, TokenKind};

use crate::Tokenizer;

/// Text on its way to spans: written piece by piece, encoded run by run.
///
/// A *run* is what stands between two control tokens. It is encoded in one piece, template and content together, because
/// that is how a model saw its template in training: in Qwen's vocabulary the `}` that ends a tool's answer and the newline
/// that the template adds are one token. The tokens are dealt out afterwards. One that spans both is content.
pub(crate) struct Canvas<'a> {
    tokenizer: &'a Tokenizer,
    run: String,
    parts: Vec<Part>,
    owner: usize,
    spans: Vec<Vec<Span>>,
}

/// A stretch of the run.
struct Part {
    start: usize,
    end: usize,
    owner: usize,
    is_content: bool,
}

impl<'a> Canvas<'a> {
    /// An empty canvas for `n_owners` lists of spans; what is written goes to the first.
    pub(crate) fn new(tokenizer: &'a Tokenizer, n_owners: usize) -> Self {
        let spans = vec![Vec::new(); n_owners];
        Self { tokenizer, run: String::new(), parts: Vec::new(), owner: 0, spans }
    }

    /// Whose list takes what is written next.
    pub(crate) fn set_owner(&mut self, owner: usize) {
        self.owner = owner;
    }

    /// Writes the template's own text; the names of control tokens in it are those tokens.
    pub(crate) fn template(&mut self, text: &str) {
        let mut rest = text;
        while let Some((at, marker, id)) = self.tokenizer.first_marker(rest) {
            self.write(&rest[..at], false);
            self.flush();
            self.push(self.owner, TokenKind::Scaffold, id);
            rest = &rest[at + marker.len()..];
        }
        self.write(rest, false);
    }

    /// Writes what somebody said; no control token comes of it.
    pub(crate) fn content(&mut self, text: &str) {
        self.write(text, true);
    }

    /// Puts down what the policy drew, as it was drawn.
    pub(crate) fn verbatim(&mut self, ids: &[TokenId]) {
        self.flush();
        for id in ids {
            self.push(self.owner, TokenKind::Context, *id);
        }
    }

    /// Each owner's spans, without two neighbours of one kind.
    pub(crate) fn finish(mut self) -> Vec<Vec<Span>> {
        self.flush();
        self.spans
    }

    fn write(&mut self, text: &str, is_content: bool) {
        if text.is_empty() {
            return;
        }
        let start = self.run.len();
        self.run.push_str(text);
        self.parts.push(Part { start, end: self.run.len(), owner: self.owner, is_content });
    }

    fn flush(&mut self) {
        let run = std::mem::take(&mut self.run);
        let parts = std::mem::take(&mut self.parts);
        let mut first = 0;
        for piece in self.tokenizer.pieces(&run) {
            while first + 1 < parts.len() && parts[first].end <= piece.start {
                first += 1;
            }
            let mut touched = parts[first..].iter().take_while(|part| part.start < piece.end);
            let is_content = touched.any(|part| part.is_content);
            let kind = if is_content { TokenKind::Context } else { TokenKind::Scaffold };
            self.push(parts[first].owner, kind, piece.id);
        }
    }

    fn push(&mut self, owner: usize, kind: TokenKind, id: TokenId) {
        let spans = &mut self.spans[owner];
        match (spans.last_mut(), kind) {
            (Some(Span::Context(ids)), TokenKind::Context)
            | (Some(Span::Scaffold(ids)), TokenKind::Scaffold) => ids.push(id),
            (_, TokenKind::Context) => spans.push(Span::Context(vec![id])),
            _ => spans.push(Span::Scaffold(vec![id])),
        }
    }
}
