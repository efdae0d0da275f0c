//! Parsing of a person's input.

use std::io::{self, BufRead};

use serde_json::json;
use turnwise_chat::parse_turn;
use turnwise_environment::{Action, ToolSpec};

/// A parsed line.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Line {
    /// An action for the environment.
    Act(Action),
    /// Undo the last action.
    Undo,
    /// Show the commands.
    Help,
    /// Stop playing.
    Quit,
    /// An unknown command.
    Unknown(String),
    /// An empty line, which is more often a slip than an answer.
    Empty,
    /// The end of the input.
    End,
}

/// Reads the next line.
///
/// # Errors
/// When the input fails.
pub(super) fn read_line(input: &mut impl BufRead, tools: &[ToolSpec]) -> io::Result<Line> {
    let mut bytes = Vec::new();
    if input.read_until(b'\n', &mut bytes)? == 0 {
        return Ok(Line::End);
    }
    // A call in the form that a model writes may have several lines.
    let (open, close) = CALL;
    while contains(&bytes, open) && !contains(&bytes, close) {
        if input.read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
    }
    // A terminal may have any encoding; invalid UTF-8 becomes replacement characters.
    Ok(understood(&String::from_utf8_lossy(&bytes), tools))
}

/// The marks around a call in the form that a model is shown.
const CALL: (&str, &str) = ("<tool_call>", "</tool_call>");

fn contains(bytes: &[u8], mark: &str) -> bool {
    bytes.windows(mark.len()).any(|window| window == mark.as_bytes())
}

fn understood(line: &str, tools: &[ToolSpec]) -> Line {
    let (word, rest) = first_word(line);
    match word {
        "" => Line::Empty,
        "/undo" => Line::Undo,
        "/help" => Line::Help,
        "/quit" => Line::Quit,
        // A person who asks for help should not lose a turn; `/say help` sends the word.
        "help" | "?" if rest.is_empty() => Line::Help,
        "quit" | "exit" if rest.is_empty() => Line::Quit,
        "/say" => Line::Act(Action::text(rest)),
        "/call" if rest.is_empty() => Line::Unknown("/call without a name".to_owned()),
        "/call" => {
            let (name, arguments) = first_word(rest);
            Line::Act(call(name, arguments))
        }
        _ if word.starts_with('/') => Line::Unknown(word.to_owned()),
        _ if tools.iter().any(|tool| tool.name == word) => Line::Act(call(word, rest)),
        _ => Line::Act(parse_turn(line)),
    }
}

/// Splits off the first word, without the blanks around the rest.
fn first_word(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim())
}

/// Writes a call as a model does, and parses it like a model's. Missing arguments are empty.
fn call(name: &str, arguments: &str) -> Action {
    let name = json!(name);
    let arguments = if arguments.is_empty() { "{}" } else { arguments };
    parse_turn(&format!("<tool_call>{{\"name\": {name}, \"arguments\": {arguments}}}</tool_call>"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnwise_environment::{CallAttempt, CallError};

    fn calc() -> ToolSpec {
        ToolSpec { name: "calc".to_owned(), description: String::new(), parameters: json!({}) }
    }

    fn check(line: &str, expected: &Line) {
        assert_eq!(understood(line, &[calc()]), *expected, "{line:?}");
    }

    fn malformed(line: &str) -> CallError {
        let Line::Act(action) = understood(line, &[calc()]) else {
            panic!("{line:?} is an action")
        };
        match &action.calls[..] {
            [CallAttempt::Malformed(call)] => call.error,
            other => panic!("{line:?} is one malformed call, not {other:?}"),
        }
    }

    #[test]
    fn text_is_text() {
        check(" 16\r\n", &Line::Act(Action::text("16")));
        check("calculate {}", &Line::Act(Action::text("calculate {}")));
        check("/say /call calc", &Line::Act(Action::text("/call calc")));
    }

    #[test]
    fn a_tool_is_called_by_its_name() {
        let called = Line::Act(Action::call("calc", json!({"a": 1, "op": "+", "b": 2})));
        check(r#"calc {"a": 1, "op": "+", "b": 2}"#, &called);
        check(r#"/call calc {"a": 1, "op": "+", "b": 2}"#, &called);
        check("calc", &Line::Act(Action::call("calc", json!({}))));
        check("/call no\"such", &Line::Act(Action::call("no\"such", json!({}))));
    }

    #[test]
    fn what_cannot_be_read_is_a_malformed_call() {
        assert_eq!(malformed("calc {\"a\": 1"), CallError::Decode);
        assert_eq!(malformed("calc three"), CallError::Decode);
        assert_eq!(malformed("calc 3"), CallError::InvalidArgs);
    }

    #[test]
    fn commands_are_not_sent() {
        check("/undo", &Line::Undo);
        check("/help me", &Line::Help);
        check("help", &Line::Help);
        check("?\n", &Line::Help);
        check("exit", &Line::Quit);
        check("/say help", &Line::Act(Action::text("help")));
        check("help me", &Line::Act(Action::text("help me")));
        check("/quit", &Line::Quit);
        check("/exit", &Line::Unknown("/exit".to_owned()));
        check("  \n", &Line::Empty);
    }

    #[test]
    fn a_call_in_the_form_of_a_model_may_have_several_lines() {
        let typed =
            "<tool_call>\n{\"name\": \"calc\", \"arguments\": {\"a\": 1}}\n</tool_call>\n16\n";
        let mut input = typed.as_bytes();
        let called = Line::Act(Action::call("calc", json!({"a": 1})));
        assert_eq!(read_line(&mut input, &[calc()]).expect("bytes can be read"), called);
        let next = read_line(&mut input, &[calc()]).expect("bytes can be read");
        assert_eq!(next, Line::Act(Action::text("16")));
        // Without its end it is malformed, as if a model had written it.
        let open = read_line(&mut &b"<tool_call>{\n"[..], &[calc()]).expect("bytes can be read");
        assert!(matches!(open, Line::Act(action) if !action.calls.is_empty()));
    }

    #[test]
    fn the_input_ends() {
        assert_eq!(read_line(&mut &b""[..], &[]).expect("bytes can be read"), Line::End);
        let line = read_line(&mut &b"\xff\n"[..], &[]).expect("bytes can be read");
        assert_eq!(line, Line::Act(Action::text("\u{fffd}")));
    }
}
