//! Demonstrated turns whose first tokens are forced.

use turnwise_environment::Action;
use turnwise_trajectory::TokenId;

use crate::Tokenizer;
use crate::canvas::Canvas;
use crate::chatml::ids_of;
use crate::thinking::{self, Tags};

/// Returns the tokens that a model would sample after the forced tokens `prefill` to take an action. `write` returns
/// the tokens of an action's whole turn.
///
/// A prefill may be the beginning of the turn's text, or its thinking may be: after an open thought the action goes on
/// with its thoughts or closes it, and after a closed one it has no thoughts.
pub(crate) fn after_prefill(
    tokenizer: &Tokenizer,
    prefill: &[TokenId],
    action: &Action,
    write: impl Fn(&Action) -> Vec<TokenId>,
) -> Vec<TokenId> {
    let before = tokenizer.decode(prefill);
    if before.trim().is_empty() {
        return write(action);
    }
    match thinking::last_tags(&before) {
        Some((tags, true)) => after_open(tokenizer, (prefill, &before), tags, write(action)),
        Some((tags, false)) => {
            let silent = write(&Action { reasoning: None, ..action.clone() });
            let at = thinking::end_of_empty(&tokenizer.decode(&silent), tags);
            from(tokenizer, &silent, at, "")
        }
        None => after_text(tokenizer, (prefill, &before), write(action)),
    }
}

/// Continues or closes a thought.
fn after_open(
    tokenizer: &Tokenizer,
    (prefill, before): (&[TokenId], &str),
    tags: Tags,
    turn: Vec<TokenId>,
) -> Vec<TokenId> {
    let text = tokenizer.decode(&turn);
    let begun = text.trim_start();
    let at = text.len() - begun.len();
    let Some(thought) = begun.strip_prefix(tags.open) else {
        let blank = if before.ends_with('\n') { "" } else { "\n" };
        return from(tokenizer, &turn, 0, &format!("{blank}{}\n\n", tags.close));
    };
    if !thought.trim_start().starts_with(tags.close) {
        // A template may write blanks before the tag in history, and none before the turn.
        return if at > 0 && begun.starts_with(before) {
            from(tokenizer, &turn, at + before.len(), "")
        } else {
            after_text(tokenizer, (prefill, before), turn)
        };
    }
    // An empty thought is closed as one without tags is.
    from(tokenizer, &turn, at + text[at..].find(tags.close).unwrap_or(0), "")
}

/// Drops the part of a turn that is forced, if the turn begins with it.
fn after_text(
    tokenizer: &Tokenizer,
    (prefill, before): (&[TokenId], &str),
    turn: Vec<TokenId>,
) -> Vec<TokenId> {
    if turn.starts_with(prefill) {
        return turn[prefill.len()..].to_vec();
    }
    if tokenizer.decode(&turn).starts_with(before) {
        return from(tokenizer, &turn, before.len(), "");
    }
    turn
}

/// Returns a turn from this byte of its text on, after a text of the template.
fn from(tokenizer: &Tokenizer, turn: &[TokenId], at: usize, head: &str) -> Vec<TokenId> {
    let mut canvas = Canvas::new(tokenizer, 1);
    canvas.template(head);
    thinking::keep_from(tokenizer, turn, at, &mut canvas);
    ids_of(&canvas.finish().concat())
}
