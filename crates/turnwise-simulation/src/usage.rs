use std::fs;
use std::time::Duration;

/// What a process has used, as the system counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Time on processors, user and system.
    pub(crate) cpu: Duration,
    /// Resident memory, in bytes.
    pub(crate) resident: u64,
}

/// Reads the usage of this process from `/proc`; `None` where there is none.
///
/// `/proc/self/stat` counts in hundredths of a second on every Linux that is in use (`USER_HZ`, proc(5)); `schedstat` of each
/// thread counts in nanoseconds, and is taken where the kernel has it.
pub(crate) fn usage() -> Option<Usage> {
    let cpu = precise_cpu().or_else(coarse_cpu)?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(Usage { cpu, resident: kilobytes * 1024 })
}

/// The calling thread's: what is measured runs on one.
fn precise_cpu() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}

fn coarse_cpu() -> Option<Duration> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program may hold anything, and ends with the last parenthesis.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}
