use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Resource usage, as the system counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Processor time of the calling thread, on which the measurement runs.
    pub(crate) cpu: Duration,
    /// Resident memory of the process, in bytes.
    pub(crate) resident: u64,
}

/// Reads the usage; `None` without `/proc`.
pub(crate) fn usage() -> Option<Usage> {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let cpu = Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(Usage { cpu, resident: kilobytes * 1024 })
}
