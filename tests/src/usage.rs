//! What a process has cost so far, read from /proc.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::param::clock_ticks_per_second;

/// CPU time and memory of a process with all its descendants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time, in the kernel's ticks of 10 ms; of ended children too, once they are
    /// waited for.
    pub cpu: Duration,
    /// Resident memory in bytes, `VmRSS`. What processes share is counted for each.
    pub resident: u64,
    /// Resident memory in bytes, with each shared page divided by the number of its users.
    pub proportional: u64,
    /// Highest resident memory of the process itself in bytes, `VmHWM`.
    pub peak: u64,
}

impl Usage {
    /// Of process `pid` and its descendants, now.
    pub fn of(pid: u32) -> Result<Self> {
        let mut total = Self::of_one(pid)?;
        for child in children(pid)? {
            // A child may end while it is looked at: its time then counts as its parent's.
            if let Ok(child) = Self::of(child) {
                total.cpu += child.cpu;
                total.resident += child.resident;
                total.proportional += child.proportional;
            }
        }
        Ok(total)
    }

    fn of_one(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        Ok(Self {
            cpu: own_and_childrens(pid)?.iter().sum(),
            resident: field(&status, "VmRSS:")?,
            proportional: field(&rollup, "Pss:")?,
            peak: field(&status, "VmHWM:")?,
        })
    }
}

/// How often the threads of process `pid` have gone to sleep so far, and so been woken up:
/// `voluntary_ctxt_switches` of proc_pid_status(5).
pub fn wake_ups(pid: u32) -> Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while it is looked at.
        let text = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        total += line.map_or(Ok(0), |count| count.trim().parse::<u64>())?;
    }
    Ok(total)
}

/// CPU time of all children of this process that have ended.
pub fn children_cpu() -> Result<Duration> {
    let [_, children] = own_and_childrens(std::process::id())?;
    Ok(children)
}

/// CPU time of a process, and of its children that have ended.
fn own_and_childrens(pid: u32) -> Result<[Duration; 2]> {
    // proc_pid_stat(5), fields 14 to 17: utime, stime, cutime, cstime.
    let stat = stat(pid)?;
    let mut ticks = stat.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut pair = || -> Result<Duration> {
        let (user, system) = ticks
            .next()
            .zip(ticks.next())
            .context("short /proc/PID/stat")?;
        Ok(Duration::from_millis(
            (user? + system?) * 1000 / clock_ticks_per_second(),
        ))
    };
    Ok([pair()?, pair()?])
}

/// A field in kB, as bytes.
fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no {name} in /proc"))? * 1024)
}

/// `/proc/PID/stat` from field 3 on: the name before may hold anything.
fn stat(pid: u32) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("there is no process {pid}"))?;
    let (_, fields) = text.rsplit_once(") ").context("odd /proc/PID/stat")?;
    Ok(fields.to_owned())
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while it is looked at.
        let text = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|id| id.parse::<u32>().ok()),
        );
    }
    Ok(found)
}
