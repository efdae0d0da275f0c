//! Invisible marks in the input of a template, by which its output shows the owner of each text.
//!
//! The marks are noncharacters, which Unicode reserves for use inside programs; they are removed from text that
//! contains them.

use std::ops::Range;

use serde_json::{Map, Value};

use crate::Tokenizer;

const START: char = '\u{fdd0}';
const END: char = '\u{fdd1}';
/// Splits the names of control tokens in content, so that they are no longer those names.
const JOINT: char = '\u{fdd2}';
/// A start is followed by a character for the text's owner; this one and the 65,533 after it are for private use.
const FIRST_INDEX: u32 = 0xf_0000;
pub(crate) const MAX_OWNERS: usize = 0xfffe;

/// Removes marks from a text.
pub(crate) fn unmarked(text: &str) -> String {
    text.chars().filter(|c| ![START, END, JOINT].contains(c)).collect()
}

/// Puts marks around a text, except blanks at its ends, which the template may trim. A text of blanks does not change.
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

/// Inserts a joint into each name of a control token, and at an end that could be part of one.
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

/// Applies `change` to every string in a value, keys included.
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

/// A template's output, with the content of its marks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    /// The output without marks.
    pub(crate) text: String,
    /// The ranges of marked texts, with their owners, in order.
    pub(crate) said: Vec<(Range<usize>, usize)>,
    /// Places that no name of a control token may cross.
    pub(crate) joints: Vec<usize>,
}

impl Output {
    /// Parses the output of a template.
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

    /// Returns whether a joint is inside a range.
    pub(crate) fn has_joint_inside(&self, range: &Range<usize>) -> bool {
        // The joints are sorted.
        let next = self.joints.partition_point(|joint| *joint <= range.start);
        self.joints.get(next).is_some_and(|joint| *joint < range.end)
    }

    /// Returns whether marked text contains the whole name of a control token, which then is the template's: a mark was
    /// lost.
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
