//! Tokens as a table: one line each under their message, and totals.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;
use turnwise_trajectory::TokenKind;

use super::shown::{Branch, Shown, ShownMessage};

const KINDS: [TokenKind; 4] =
    [TokenKind::Sampled, TokenKind::Context, TokenKind::Scaffold, TokenKind::Forced];

/// The placeholder for a missing value.
const ABSENT: &str = "-";

/// Formats the whole page. Without sampled tokens, their columns are omitted.
pub(super) fn table(header: &[String], branches: &[Branch], renderer: &str, color: bool) -> String {
    let all: Vec<&Shown> = branches.iter().flat_map(Branch::tokens).collect();
    let has_drawn = all.iter().any(|token| token.kind == TokenKind::Sampled);
    let mut page = String::new();
    for line in header {
        push(&mut page, line);
    }
    for branch in branches {
        if branches.len() > 1 || branch.number > 0 {
            push(&mut page, &title(branch));
        }
        push(&mut page, &heading(has_drawn));
        for message in &branch.messages {
            push(&mut page, &subtitle(message));
            for token in &message.tokens {
                push(&mut page, &painted(token.kind, row(token, has_drawn), color));
            }
        }
    }
    push(&mut page, "");
    footer(&mut page, branches, &all);
    push(&mut page, &format!("renderer  {renderer}"));
    page
}

fn push(page: &mut String, line: &str) {
    page.push_str(line.trim_end());
    page.push('\n');
}

fn title(branch: &Branch) -> String {
    let number = branch.number;
    match branch.parent {
        Some(parent) => {
            format!(
                "\nbranch {number}: its first {} tokens are those of branch {parent}",
                branch.n_shared
            )
        }
        None => format!("\nbranch {number}"),
    }
}

fn subtitle(message: &ShownMessage) -> String {
    let (role, author) = (word(&message.role), word(&message.author));
    let by = if role == author { String::new() } else { format!(", {author}") };
    let turn = message.turn.as_ref().map_or_else(String::new, |turn| format!(", {turn}"));
    format!("── {} {role}{by}{turn}", message.number)
}

fn heading(has_drawn: bool) -> String {
    let drawn = drawn_columns("logprob", "version", "advantage", has_drawn);
    format!("{:>6} {:>7}  {:<8}  {drawn}{:<12}  text", "pos", "id", "kind", "mask")
}

fn drawn_columns(logprob: &str, version: &str, advantage: &str, has_drawn: bool) -> String {
    if has_drawn { format!("{logprob:>9}  {version:<8}  {advantage:>9}  ") } else { String::new() }
}

fn row(token: &Shown, has_drawn: bool) -> String {
    let number =
        |value: Option<f32>| value.map_or_else(|| ABSENT.to_owned(), |value| format!("{value:.4}"));
    let drawn = drawn_columns(
        &number(token.logprob),
        &versions(token),
        &number(token.advantage),
        has_drawn,
    );
    // A trained token needs no reason; the others show theirs.
    let mask = token.mask.as_ref().map_or_else(|| "trains".to_owned(), word);
    // Quoted, so that blanks and control characters are visible and the text stays on its line.
    let text = token.text.as_ref().map_or_else(|| ABSENT.to_owned(), |text| format!("{text:?}"));
    format!(
        "{:>6} {:>7}  {:<8}  {drawn}{mask:<12}  {text}",
        token.position,
        token.id,
        word(&token.kind)
    )
}

/// Formats the version that sampled a token and, if different, the one that wrote the keys that it attended to.
fn versions(token: &Shown) -> String {
    match (token.version, token.kv_version) {
        (Some(version), Some(keys)) if keys != version => format!("{version} kv {keys}"),
        (Some(version), _) => version.to_string(),
        (None, _) => ABSENT.to_owned(),
    }
}

fn footer(page: &mut String, branches: &[Branch], all: &[&Shown]) {
    let mut kinds = format!("tokens    {}", all.len());
    for (index, kind) in KINDS.iter().enumerate() {
        let n = all.iter().filter(|token| token.kind == *kind).count();
        let separator = if index == 0 { ": " } else { ", " };
        write!(kinds, "{separator}{n} {}", word(kind)).expect("a string takes what is written");
    }
    push(page, &kinds);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for mask in all.iter().filter_map(|token| token.mask.as_ref()) {
        *reasons.entry(word(mask)).or_default() += 1;
    }
    let trained = all.iter().filter(|token| token.trains);
    let n_trained = trained.clone().count();
    let n_unscored = trained.filter(|token| token.advantage.is_none()).count();
    let unscored = match n_unscored {
        0 => String::new(),
        n => format!(", {n} of them not scored"),
    };
    let reasons: Vec<String> =
        reasons.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    push(page, &format!("trained   {n_trained}{unscored}"));
    push(page, &format!("masked    {}: {}", all.len() - n_trained, reasons.join(", ")));
    push(page, &format!("branches  {}", branches.len()));
}

/// Returns the `snake_case` name of a unit variant, as in the records.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        other => unreachable!("a unit variant is a string in JSON, not {other:?}"),
    }
}

/// Colours a line by the kind of its token; context has the terminal's own colour.
fn painted(kind: TokenKind, line: String, color: bool) -> String {
    let code = match kind {
        TokenKind::Sampled => "\x1b[32m",
        TokenKind::Scaffold => "\x1b[2m",
        TokenKind::Forced => "\x1b[33m",
        TokenKind::Context => return line,
    };
    if color { format!("{code}{line}\x1b[0m") } else { line }
}
