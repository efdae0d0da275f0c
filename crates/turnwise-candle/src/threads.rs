//! Limits on threads, and the threads that this process shares.

use std::error::Error;
use std::sync::OnceLock;

use rayon::ThreadPoolBuilder;

use crate::ModelError;

/// The most threads of an engine or a learner: a larger number is a mistake, which would cost address space before the
/// system refuses it.
pub(crate) const MAX_THREADS: usize = 1024;

/// Rejects an implausible number of threads.
pub(crate) fn check(count: usize, purpose: &str) -> Result<(), ModelError> {
    if count <= MAX_THREADS {
        return Ok(());
    }
    let reason = format!("{count} threads of {purpose} are more than {MAX_THREADS}");
    Err(ModelError::Settings(reason))
}

/// Starts the shared threads, which compute models outside a learner, unless they run already. Otherwise the first
/// computation starts them, and panics when the system refuses.
///
/// # Errors
/// When the system refuses; later calls return the same error.
pub(crate) fn start_shared() -> Result<(), ModelError> {
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    let refused = REFUSED.get_or_init(|| {
        let error = ThreadPoolBuilder::new().build_global().err()?;
        // An error without a cause means that the threads already run.
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
