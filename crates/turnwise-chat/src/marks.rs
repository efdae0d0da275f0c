//! Invisible marks in what a template is given, by which its output shows what came from whom.
//!
//! The marks are noncharacters, which Unicode keeps for use inside of programs; text that holds them loses them.

use serde_json::{Map, Value};
use turnwise_rollout::RenderError;
use turnwise_trajectory::{Span, TokenId};

use crate::canvas::Canvas;
use crate::{Tokenizer, thinking};

const START: char = '\u{fdd0}';
const END: char = '\u{fdd1}';
/// Stands inside the names of control tokens that somebody spelled, so that they are no longer those names.
const JOINT: char = '\u{fdd2}';
/// After a start comes a character that says which text it is; this one and the 65,533 after it are for private use.
const FIRST_INDEX: u32 = 0xf_0000;
const MAX_PIECES: usize = 0xfffe;

/// The texts that were given to a template.
pub(crate) struct Marks<'a> {
    tokenizer: &'a Tokenizer,
    pieces: Vec<Piece<'a>>,
}

struct Piece<'a> {
    owner: usize,
    drawn: Option<Drawn<'a>>,
}

/// What stands in the output in place of a text.
#[derive(Clone, Copy)]
pub(crate) enum Drawn<'a> {
    /// These tokens.
    Whole(&'a [TokenId]),
    /// The same without thinking.
    Stripped(&'a [TokenId]),
}

impl<'a> Marks<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, pieces: Vec::new() }
    }

    /// A text with marks around it, blanks at its ends excepted: those the template may trim. A text of blanks stays as it is.
    pub(crate) fn text(&mut self, owner: usize, text: &str) -> Result<String, RenderError> {
        let text = self.guarded(text);
        let core = text.trim();
        if core.is_empty() {
            return Ok(text);
        }
        let at = text.len() - text.trim_start().len();
        let (before, after) = (&text[..at], &text[at + core.len()..]);
        let index = self.piece(owner, None)?;
        Ok(format!("{before}{START}{index}{core}{END}{after}"))
    }

    /// A place for what the policy drew.
    pub(crate) fn drawn(&mut self, owner: usize, drawn: Drawn<'a>) -> Result<String, RenderError> {
        let index = self.piece(owner, Some(drawn))?;
        Ok(format!("{START}{index}drawn{END}"))
    }

    fn piece(&mut self, owner: usize, drawn: Option<Drawn<'a>>) -> Result<char, RenderError> {
        let index = self.pieces.len();
        if index >= MAX_PIECES {
            return Err(RenderError(format!("it has more than {MAX_PIECES} texts")));
        }
        self.pieces.push(Piece { owner, drawn });
        Ok(char::from_u32(FIRST_INDEX + index as u32).expect("the private plane has room"))
    }

    /// Every string in a value, keys too, without names of control tokens.
    pub(crate) fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.guarded(text)),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(entries) => {
                let entries =
                    entries.iter().map(|(key, value)| (self.guarded(key), self.value(value)));
                Value::Object(entries.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    /// The text with a joint in each name of a control token, and at an end that could be part of one.
    pub(crate) fn guarded(&self, text: &str) -> String {
        let text: String = text.chars().filter(|c| ![START, END, JOINT].contains(c)).collect();
        let mut guarded = String::with_capacity(text.len());
        let added = self.tokenizer.added();
        if added.begins_inside(&text) {
            guarded.push(JOINT);
        }
        for (at, c) in text.char_indices() {
            guarded.push(c);
            if added.control_at(&text, at).is_some() {
                guarded.push(JOINT);
            }
        }
        if added.ends_inside(&text) {
            guarded.push(JOINT);
        }
        guarded
    }

    /// The spans of what a template wrote: for each of `n_owners` texts, then for what follows the last. A message has
    /// everything up to the first of `closes` after its text; what comes then leads in to the next.
    pub(crate) fn scan(&self, output: &str, n_owners: usize, closes: &[String]) -> Vec<Vec<Span>> {
        let canvas = Canvas::new(self.tokenizer, n_owners + 1);
        let mut scan =
            Scan { marks: self, canvas, closes, owner: 0, last: n_owners, has_ended: false };
        let mut rest = output;
        while let Some(at) = rest.find([START, JOINT]) {
            scan.template(&rest[..at]);
            let mark = rest[at..].chars().next().unwrap_or(JOINT);
            rest = &rest[at + mark.len_utf8()..];
            if mark == START {
                rest = scan.piece(rest);
            }
        }
        scan.template(rest);
        scan.canvas.finish()
    }
}

/// The output without marks.
pub(crate) fn without_marks(output: &str) -> String {
    let mut kept = String::with_capacity(output.len());
    let mut chars = output.chars();
    while let Some(c) = chars.next() {
        match c {
            START => drop(chars.next()),
            END | JOINT => {}
            c => kept.push(c),
        }
    }
    kept
}

/// Where the template goes on after the first marked text and the close behind it.
pub(crate) fn after_first(output: &str, closes: &[String]) -> Option<usize> {
    let end = output.find(END)?;
    let closing =
        closes.iter().filter_map(|close| Some(end + output[end..].find(close)? + close.len()));
    closing.min()
}

struct Scan<'a> {
    marks: &'a Marks<'a>,
    canvas: Canvas<'a>,
    closes: &'a [String],
    owner: usize,
    last: usize,
    has_ended: bool,
}

impl Scan<'_> {
    fn template(&mut self, text: &str) {
        let end = |close: &String| Some(text.find(close)? + close.len());
        let close = self.closes.iter().filter_map(end).min().filter(|_| self.has_ended);
        let (own, next) = text.split_at(close.unwrap_or(text.len()));
        self.canvas.template(own);
        if close.is_some() {
            self.has_ended = false;
            self.set_owner(self.owner + 1);
        }
        self.canvas.template(next);
    }

    fn set_owner(&mut self, owner: usize) {
        self.owner = owner.min(self.last);
        self.canvas.set_owner(self.owner);
    }

    /// `rest` begins with the index of a text. A template may cut a text: then what is left of it ends with the output.
    fn piece<'t>(&mut self, rest: &'t str) -> &'t str {
        let Some(index) = rest.chars().next() else { return rest };
        let place = (index as u32)
            .checked_sub(FIRST_INDEX)
            .and_then(|at| self.marks.pieces.get(at as usize));
        let Some(piece) = place else { return rest };
        let rest = &rest[index.len_utf8()..];
        let (text, rest) = rest.split_once(END).unwrap_or((rest, ""));
        // A text that stands a second time, or before its turn, stays where it is.
        if piece.owner >= self.owner {
            self.set_owner(piece.owner);
        }
        match piece.drawn {
            Some(Drawn::Whole(ids)) => self.canvas.verbatim(ids),
            Some(Drawn::Stripped(ids)) => {
                thinking::strip(self.marks.tokenizer, ids, &mut self.canvas);
            }
            None => self.canvas.content(&without_marks(text)),
        }
        self.has_ended = true;
        rest
    }
}
