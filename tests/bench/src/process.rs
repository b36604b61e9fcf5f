//! What the kernel says of a process.

use std::time::Duration;

use anyhow::{Context, Result};

/// The unit of times in `/proc`, whatever the kernel's own: proc(5).
const TICKS_PER_SECOND: u64 = 100;

/// The processor time that a process has used, of all its threads.
///
/// # Errors
/// When it has ended.
pub fn cpu(process: u32) -> Result<Duration> {
    times(&process.to_string(), 11)
}

/// The processor time that children of this process have used that have ended.
///
/// # Errors
/// Those of reading `/proc`.
pub fn children_cpu() -> Result<Duration> {
    times("self", 13)
}

/// User and system time, the first of them that many fields after the name: 11 for the process's own, 13 for its children's.
fn times(process: &str, first: usize) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name before the last `)` may hold anything.
    let (_, rest) = text.rsplit_once(')').context("a line of /proc/PID/stat")?;
    let ticks = rest.split_whitespace().skip(first).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// A line of a process's `/proc/PID/status` in bytes: `VmRSS` for what it has in memory now, `VmHWM` for the most it had.
///
/// # Errors
/// When it has ended, or there is no such line.
pub fn memory(process: u32, line: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':'));
    let value = value.with_context(|| format!("no {line} in /proc/PID/status"))?;
    let kib = value.trim().strip_suffix("kB").context("an amount in kB")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}
