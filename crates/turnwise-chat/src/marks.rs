//! Invisible marks in what a template is given, by which its output shows what came from whom.
//!
//! The marks are noncharacters, which Unicode keeps for use inside of programs; text that holds them loses them.

use std::ops::Range;

use serde_json::{Map, Value};

use crate::Tokenizer;

const START: char = '\u{fdd0}';
const END: char = '\u{fdd1}';
/// Stands inside the names of control tokens that somebody spelled, so that they are no longer those names.
const JOINT: char = '\u{fdd2}';
/// After a start comes a character that says whose text it is; this one and the 65,533 after it are for private use.
const FIRST_INDEX: u32 = 0xf_0000;
pub(crate) const MAX_OWNERS: usize = 0xfffe;

/// The text without marks, which it must not bring along.
pub(crate) fn unmarked(text: &str) -> String {
    text.chars().filter(|c| ![START, END, JOINT].contains(c)).collect()
}

/// A text with marks around it, blanks at its ends excepted: those the template may trim. A text of blanks stays as it is.
pub(crate) fn marked(tokenizer: &Tokenizer, owner: usize, text: &str) -> String {
    let text = guarded(tokenizer, text);
    let core = text.trim();
    if core.is_empty() {
        return text;
    }
    let at = text.len() - text.trim_start().len();
    let (before, after) = (&text[..at], &text[at + core.len()..]);
    let index = char::from_u32(FIRST_INDEX + owner as u32).unwrap_or(JOINT);
    format!("{before}{START}{index}{core}{END}{after}")
}

/// The text with a joint in each name of a control token, and at an end that could be part of one.
pub(crate) fn guarded(tokenizer: &Tokenizer, text: &str) -> String {
    let text = unmarked(text);
    let added = tokenizer.added();
    let mut guarded = String::with_capacity(text.len());
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

/// Every string in a value, keys too, as `change` makes it.
pub(crate) fn each_text(value: &Value, change: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(items) => items.iter().map(|item| each_text(item, change)).collect(),
        Value::Object(entries) => {
            let entries =
                entries.iter().map(|(key, value)| (change(key), each_text(value, change)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// What a template wrote, with what the marks say of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    /// Without marks.
    pub(crate) text: String,
    /// Where texts stand that were marked, and whose they are; in the order of their places.
    pub(crate) said: Vec<(Range<usize>, usize)>,
    /// Places that no name of a control token reaches over.
    pub(crate) joints: Vec<usize>,
}

impl Output {
    /// Reads what a template wrote.
    pub(crate) fn read(written: &str) -> Self {
        let mut output = Self { text: String::with_capacity(written.len()), ..Self::default() };
        let mut open: Option<(usize, usize)> = None;
        let mut chars = written.chars();
        while let Some(c) = chars.next() {
            match c {
                START => {
                    output.close(&mut open);
                    let owner = chars.next().and_then(|c| (c as u32).checked_sub(FIRST_INDEX));
                    open = owner.map(|owner| (output.text.len(), owner as usize));
                }
                END => output.close(&mut open),
                JOINT => output.joints.push(output.text.len()),
                c => output.text.push(c),
            }
        }
        output.close(&mut open);
        output
    }

    fn close(&mut self, open: &mut Option<(usize, usize)>) {
        if let Some((start, owner)) = open.take()
            && start < self.text.len()
        {
            self.said.push((start..self.text.len(), owner));
        }
    }

    /// Whether a joint stands between the ends of a range.
    pub(crate) fn has_joint_inside(&self, range: &Range<usize>) -> bool {
        // They are in the order of their places.
        let next = self.joints.partition_point(|joint| *joint <= range.start);
        self.joints.get(next).is_some_and(|joint| *joint < range.end)
    }

    /// Whether marked text holds the whole name of a control token, which then is the template's: a mark was lost.
    pub(crate) fn is_torn(&self, tokenizer: &Tokenizer) -> bool {
        let is_whole = |range: &Range<usize>, at: usize| {
            let found = tokenizer.added().control_at(&self.text[..range.end], at);
            found.is_some_and(|found| !self.has_joint_inside(&(at..at + found.text.len())))
        };
        self.said.iter().any(|(range, _)| {
            self.text[range.clone()].char_indices().any(|(at, _)| is_whole(range, range.start + at))
        })
    }
}
