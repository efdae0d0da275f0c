//! Resident memory of this process, and its peak.

use std::fs;

use turnwise_run::{ExitCode, Failure};

/// Returns the resident memory, in bytes.
pub(super) fn resident() -> Result<u64, Failure> {
    status("VmRSS:")
}

/// Returns the peak of resident memory since the process started or [`reset_peak`] was called, in bytes.
pub(super) fn peak() -> Result<u64, Failure> {
    status("VmHWM:")
}

/// Resets the peak to the current memory (`proc(5)`, `clear_refs`).
pub(super) fn reset_peak() -> Result<(), Failure> {
    fs::write("/proc/self/clear_refs", "5").map_err(|error| unreadable(&error.to_string()))
}

fn status(key: &str) -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/self/status").map_err(|e| unreadable(&e.to_string()))?;
    kilobytes(&text, key).map(|kilobytes| kilobytes * 1024).ok_or_else(|| unreadable(key))
}

fn kilobytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

fn unreadable(what: &str) -> Failure {
    Failure::new(ExitCode::Runtime, format!("failed to read memory from /proc: {what}"))
        .help("memory is measured on Linux only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_status_is_read_in_kilobytes() {
        let status = "Name:\tturnwise\nVmHWM:\t  2048 kB\nVmRSS:\t    12 kB\n";
        assert_eq!(kilobytes(status, "VmHWM:"), Some(2048));
        assert_eq!(kilobytes(status, "VmRSS:"), Some(12));
        assert_eq!(kilobytes(status, "VmSwap:"), None);
    }
}
