//! Conversion of a library's panics to errors, without messages on the terminal.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` and converts a panic to an error with its message, without printing it.
///
/// The process has one panic hook. It is wrapped once, so that other panics are reported as before.
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static WRAP: Once = Once::new();
    WRAP.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                usual(info);
            }
        }));
    });
    let before = IS_QUIET.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    IS_QUIET.set(before);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        text.unwrap_or("a panic without a message").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::quietly;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        assert_eq!(quietly(|| 7), Ok(7));
        let inner = quietly(|| quietly(|| panic!("no {}", "way")).map(|()| 1));
        assert_eq!(inner, Ok(Err("no way".to_owned())));
        assert_eq!(quietly(|| -> u8 { panic!("plain") }), Err("plain".to_owned()));
    }
}
