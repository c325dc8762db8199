//! What this host has: memory, huge pages, and what its control groups leave of them.

use std::fs;

/// What the host has, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostMemory {
    /// What could be given out without swapping.
    pub(crate) available: u64,
    /// What is in huge pages that nobody reserved.
    pub(crate) huge_free: u64,
}

/// Reads what the host has: `/proc/meminfo` and, within a control group, its limit.
pub(crate) fn host_memory() -> HostMemory {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mut memory = parse_meminfo(&meminfo);
    if let Some(left) = control_group_left() {
        memory.available = memory.available.min(left);
    }
    memory
}

fn parse_meminfo(meminfo: &str) -> HostMemory {
    let value = |name: &str| {
        meminfo
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let huge_pages = value("HugePages_Free").saturating_sub(value("HugePages_Rsvd"));
    HostMemory {
        available: value("MemAvailable").saturating_mul(1024),
        huge_free: huge_pages.saturating_mul(value("Hugepagesize").saturating_mul(1024)),
    }
}

/// What this process's control group (version 2) leaves, over all its levels; `None`: no limit.
fn control_group_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut level = std::path::Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let mut left: Option<u64> = None;
    while level.starts_with("/sys/fs/cgroup") {
        let number = |file: &str| {
            fs::read_to_string(level.join(file))
                .ok()
                .and_then(|text| text.trim().parse::<u64>().ok())
        };
        // "max" is no number: no limit on this level.
        if let (Some(limit), Some(used)) = (number("memory.max"), number("memory.current")) {
            let here = limit.saturating_sub(used);
            left = Some(left.map_or(here, |left| left.min(here)));
        }
        if !level.pop() {
            break;
        }
    }
    left
}

/// How much of its memory a process has taken, in bytes: the proportional share, which counts a
/// page once however often the process maps it. 0 where the kernel does not tell.
pub(crate) fn taken_by(process: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .unwrap_or(0)
        .saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal: 9 kB\nMemAvailable:    2048 kB\nHugePages_Free:  5\nHugePages_Rsvd: 2\nHugepagesize: 2048 kB\n";
        let memory = HostMemory {
            available: 2 << 20,
            huge_free: 6 << 20,
        };
        assert_eq!(parse_meminfo(text), memory);
        assert_eq!(parse_meminfo("nonsense"), HostMemory::default());
        assert!(host_memory().available > 0);
        assert!(taken_by(std::process::id()) > 0);
    }
}
