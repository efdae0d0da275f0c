use std::ops::Range;

use turnwise_trajectory::{Span, TokenId, TokenKind};

use crate::Tokenizer;

/// Text on its way to spans: written piece by piece, encoded run by run.
///
/// A *run* is what stands between two stretches of drawn tokens. It is encoded in one piece, template and content together,
/// because that is how a model saw its template in training: in Qwen's vocabulary the `}` that ends a tool's answer and the newline
/// that the template adds are one token, and a control token may take the blanks around it. The tokens are dealt out afterwards.
/// One that spans both is content.
pub(crate) struct Canvas<'a> {
    tokenizer: &'a Tokenizer,
    lead: Lead<'a>,
    run: String,
    parts: Vec<OwnedSpan>,
    owner: usize,
    spans: Vec<Vec<Span>>,
}

/// What stands before a run.
#[derive(Clone, Copy)]
enum Lead<'a> {
    /// Nothing: the text begins with it.
    Start,
    /// This control token, which was encoded before.
    Control(&'a str),
    /// Other text, whose tokens are there already.
    Tokens,
}

/// A stretch of the run.
struct OwnedSpan {
    start: usize,
    end: usize,
    owner: usize,
    is_content: bool,
}

/// Stands for text before a run, where the tokenizer would put a blank before a text that stands alone.
const SENTINEL: &str = "\n";

impl<'a> Canvas<'a> {
    /// An empty canvas for `n_owners` lists of spans; what is written goes to the first.
    pub(crate) fn new(tokenizer: &'a Tokenizer, n_owners: usize) -> Self {
        let spans = vec![Vec::new(); n_owners];
        let (run, parts) = (String::new(), Vec::new());
        Self { tokenizer, lead: Lead::Start, run, parts, owner: 0, spans }
    }

    /// The same behind a control token that is there already.
    pub(crate) fn after(tokenizer: &'a Tokenizer, control: &'a str, n_owners: usize) -> Self {
        Self { lead: Lead::Control(control), ..Self::new(tokenizer, n_owners) }
    }

    /// Whose list takes what is written next.
    pub(crate) fn set_owner(&mut self, owner: usize) {
        self.owner = owner;
    }

    /// Writes the template's own text; the names of control tokens in it are those tokens, if they are whole.
    pub(crate) fn template(&mut self, text: &str) {
        self.write(text, false);
    }

    /// Writes what somebody said; no control token comes of it.
    pub(crate) fn content(&mut self, text: &str) {
        self.write(text, true);
    }

    /// Puts down what the policy drew, as it was drawn.
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

    /// The tokens of a run, behind what stands before it.
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
