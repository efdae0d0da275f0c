//! How many threads there may be, and those that this process shares.

use std::error::Error;
use std::sync::OnceLock;

use rayon::ThreadPoolBuilder;

use crate::ModelError;

/// The most threads that an engine or a learner starts: beyond that the number is a mistake, which costs address space before
/// the system refuses it.
pub(crate) const MAX_THREADS: usize = 1024;

/// Refuses a number of threads that cannot be meant.
pub(crate) fn check(count: usize, purpose: &str) -> Result<(), ModelError> {
    if count <= MAX_THREADS {
        return Ok(());
    }
    let reason = format!("{count} threads of {purpose} are more than {MAX_THREADS}");
    Err(ModelError::Settings(reason))
}

/// Starts the threads that models outside a learner compute on, unless they run already. Without this the first computation
/// starts them, and panics when the system refuses.
///
/// # Errors
/// When the system refuses; it is not asked again.
pub(crate) fn start_shared() -> Result<(), ModelError> {
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    let refused = REFUSED.get_or_init(|| {
        let error = ThreadPoolBuilder::new().build_global().err()?;
        // An error without a cause says that somebody has started them.
        error.source().map(ToString::to_string)
    });
    match refused {
        None => Ok(()),
        Some(reason) => Err(ModelError::threads(0, "the model", reason.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_threads_that_cannot_be_meant_is_refused() {
        assert!(check(MAX_THREADS, "the engine").is_ok());
        let refused = check(MAX_THREADS + 1, "the engine").unwrap_err().to_string();
        assert!(refused.contains("1025 threads of the engine are more than 1024"), "{refused}");
        start_shared().unwrap();
        start_shared().unwrap();
    }
}
