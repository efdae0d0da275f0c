use std::ops::Range;

use turnwise_trajectory::{Span, TokenId, TokenKind};

use crate::Tokenizer;

/// Conversion of text to spans: it is written piece by piece and encoded run by run.
///
/// A *run* is the text between two stretches of sampled tokens. It is encoded in one piece, template and content
/// together, because a model saw its template like this in training: in Qwen's vocabulary the `}` that ends a tool's
/// answer and the newline of the template are one token, and a control token may absorb the blanks around it. The
/// tokens are then assigned to the template and the content. A token that spans both is content.
pub(crate) struct Canvas<'a> {
    tokenizer: &'a Tokenizer,
    lead: Lead<'a>,
    run: String,
    parts: Vec<OwnedSpan>,
    owner: usize,
    spans: Vec<Vec<Span>>,
}

/// What precedes a run.
#[derive(Clone, Copy)]
enum Lead<'a> {
    /// Nothing: the run is the start of the text.
    Start,
    /// A control token that is already encoded.
    Control(&'a str),
    /// Other text that is already encoded.
    Tokens,
}

/// A stretch of the run with one owner.
struct OwnedSpan {
    start: usize,
    end: usize,
    owner: usize,
    is_content: bool,
}

/// Stands for the text before a run, for tokenizers that add a blank before a text.
const SENTINEL: &str = "\n";

impl<'a> Canvas<'a> {
    /// Creates an empty canvas with a list of spans for each of `n_owners`; text goes to the first at the start.
    pub(crate) fn new(tokenizer: &'a Tokenizer, n_owners: usize) -> Self {
        let spans = vec![Vec::new(); n_owners];
        let (run, parts) = (String::new(), Vec::new());
        Self { tokenizer, lead: Lead::Start, run, parts, owner: 0, spans }
    }

    /// Creates an empty canvas after a control token that is already encoded.
    pub(crate) fn after(tokenizer: &'a Tokenizer, control: &'a str, n_owners: usize) -> Self {
        Self { lead: Lead::Control(control), ..Self::new(tokenizer, n_owners) }
    }

    /// Selects the owner of the text that is written next.
    pub(crate) fn set_owner(&mut self, owner: usize) {
        self.owner = owner;
    }

    /// Writes the template's own text, in which names of control tokens become those tokens, if they are complete.
    pub(crate) fn template(&mut self, text: &str) {
        self.write(text, false);
    }

    /// Writes content, which never becomes a control token.
    pub(crate) fn content(&mut self, text: &str) {
        self.write(text, true);
    }

    /// Writes sampled tokens unchanged.
    pub(crate) fn verbatim(&mut self, ids: &[TokenId]) {
        if ids.is_empty() {
            return;
        }
        self.flush();
        self.lead = Lead::Tokens;
        for id in ids {
            self.push(self.owner, TokenKind::Context, *id);
        }
    }

    /// Returns each owner's spans, with neighbours of one kind merged.
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
        self.parts.push(OwnedSpan { start, end: self.run.len(), owner: self.owner, is_content });
    }

    fn flush(&mut self) {
        if self.run.is_empty() {
            return;
        }
        let run = std::mem::take(&mut self.run);
        let parts = std::mem::take(&mut self.parts);
        let pieces = self.encode(&run, &parts);
        self.lead = Lead::Tokens;
        let mut first = 0;
        for (piece, id) in pieces {
            while first + 1 < parts.len() && parts[first].end <= piece.start {
                first += 1;
            }
            let mut touched = parts[first..].iter().take_while(|part| part.start < piece.end);
            let is_content = touched.any(|part| part.is_content);
            let kind = if is_content { TokenKind::Context } else { TokenKind::Scaffold };
            self.push(parts[first].owner, kind, id);
        }
    }

    /// Encodes a run after its lead.
    fn encode(&self, run: &str, parts: &[OwnedSpan]) -> Vec<(Range<usize>, TokenId)> {
        let lead = match self.lead {
            Lead::Control(name) => name,
            Lead::Tokens if self.tokenizer.opens_with_blank() => SENTINEL,
            Lead::Start | Lead::Tokens => "",
        };
        let own = parts.iter().filter(|part| !part.is_content);
        let template = |n_lead: usize| -> Vec<Range<usize>> {
            let own = own.clone().map(|part| n_lead + part.start..n_lead + part.end);
            std::iter::once(0..n_lead).chain(own).collect()
        };
        let mut n_lead = lead.len();
        let mut pieces = self.tokenizer.pieces(&format!("{lead}{run}"), &template(n_lead));
        let is_merged = pieces.iter().any(|piece| piece.start < n_lead && n_lead < piece.end);
        if is_merged && matches!(self.lead, Lead::Tokens) {
            n_lead = 0;
            pieces = self.tokenizer.pieces(run, &template(0));
        }
        let behind = pieces.into_iter().filter(|piece| piece.start >= n_lead);
        behind.map(|piece| (piece.start - n_lead..piece.end - n_lead, piece.id)).collect()
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
