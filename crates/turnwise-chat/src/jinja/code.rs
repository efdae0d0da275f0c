//! The code inside a template's tags as tokens, so that an operator that the engine lacks becomes a filter.

/// The most operators that are replaced in one tag.
const MAX_OPERATORS: usize = 256;

/// Rewrites the code of every tag of a template.
pub(super) fn rewritten(template: &str, rewrite: impl Fn(&str) -> String) -> String {
    let mut written = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        written.push_str(before);
        let inside = tag.get(2..).unwrap_or_default();
        let bare = inside.trim_start_matches(['-', '+']).trim_start();
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}"),
            Some(b'%') if bare.starts_with("raw") => tag.find("endraw"),
            Some(b'%' | b'{') => {
                let end = tokens(inside).map_or(inside.len(), |(_, end)| end);
                written.push_str(&tag[..2]);
                written.push_str(&rewrite(&inside[..end]));
                rest = &inside[end..];
                continue;
            }
            _ => Some(1),
        };
        let length = length.unwrap_or(tag.len());
        written.push_str(&tag[..length]);
        rest = &tag[length..];
    }
    written.push_str(rest);
    written
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Text,
    Number,
    Open,
    Close,
    Operator,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct CodeToken<'a> {
    pub(super) kind: Kind,
    start: usize,
    pub(super) text: &'a str,
}

impl CodeToken<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }

    /// Returns whether this is the sign that says what a tag does with the white space before it.
    pub(super) fn is_space_control(&self) -> bool {
        self.start == 0 && (self.is("-") || self.is("+"))
    }

    pub(super) fn is(&self, text: &str) -> bool {
        self.kind != Kind::Text && self.text == text
    }
}

/// Returns the tokens up to the end of a tag, and the place of that end; `None` if a text or the tag is not closed.
fn tokens(code: &str) -> Option<(Vec<CodeToken<'_>>, usize)> {
    let mut tokens = Vec::new();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(c) = code[at..].chars().next() {
        let rest = &code[at..];
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let (kind, length) = match c {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '%' | '}' if depth == 0 && (rest.starts_with("%}") || rest.starts_with("}}")) => {
                return Some((tokens, at));
            }
            '\'' | '"' => (Kind::Text, text_length(rest)?),
            '(' | '[' | '{' => (Kind::Open, 1),
            ')' | ']' | '}' => (Kind::Close, 1),
            c if is_word(c) => {
                let kind = if c.is_ascii_digit() { Kind::Number } else { Kind::Name };
                (kind, rest.find(|c| !is_word(c)).unwrap_or(rest.len()))
            }
            _ if rest.starts_with("**") || rest.starts_with("//") => (Kind::Operator, 2),
            c => (Kind::Operator, c.len_utf8()),
        };
        depth = match kind {
            Kind::Open => depth + 1,
            Kind::Close => depth.saturating_sub(1),
            _ => depth,
        };
        tokens.push(CodeToken { kind, start: at, text: &rest[..length] });
        at += length;
    }
    None
}

/// Returns the length of the text literal at the start, quotes included.
fn text_length(code: &str) -> Option<usize> {
    let quote = code.chars().next()?;
    let mut is_escaped = false;
    let end = code.char_indices().skip(1).find(|(_, c)| {
        let is_end = *c == quote && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_end
    });
    end.map(|(at, _)| at + 1)
}

/// An operator with its two sides, as indices of tokens.
pub(super) struct InfixExpression {
    /// The first token of the left side.
    pub(super) left: usize,
    /// The operator.
    pub(super) at: usize,
    /// The index behind the last token of the right side.
    pub(super) right: usize,
}

/// Replaces `left operator right` by `(left)|filter(right)` in the code of a tag, as long as `next` finds an expression.
pub(super) fn replaced(
    code: &str,
    filter: &str,
    next: impl Fn(&[CodeToken<'_>]) -> Option<InfixExpression>,
) -> String {
    let mut code = code.to_owned();
    for _ in 0..MAX_OPERATORS {
        // The end of the tag, which its code lacks.
        let whole = format!("{code}%}}");
        let Some((tokens, _)) = tokens(&whole) else { break };
        let Some(InfixExpression { left, at, right }) = next(&tokens) else { break };
        let (left, operator, right) = (tokens[left].start, tokens[at], tokens[right - 1].end());
        code = format!(
            "{}({})|{filter}({}){}",
            &whole[..left],
            &whole[left..operator.start],
            &whole[operator.end()..right],
            &whole[right..whole.len() - 2],
        );
    }
    code
}

/// Returns the index of the opening bracket of a closing one.
pub(super) fn opening(tokens: &[CodeToken<'_>], close: usize) -> Option<usize> {
    let mut depth = 0_usize;
    (0..=close).rev().find(|at| {
        match tokens[*at].kind {
            Kind::Close => depth += 1,
            Kind::Open => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

/// Returns the index of the closing bracket of an opening one.
pub(super) fn closing(tokens: &[CodeToken<'_>], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    (open..tokens.len()).find(|at| {
        match tokens[*at].kind {
            Kind::Open => depth += 1,
            Kind::Close => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

pub(super) fn is_keyword(name: &str) -> bool {
    ["if", "else", "elif", "in", "not", "and", "or", "is", "for", "set"].contains(&name)
}
