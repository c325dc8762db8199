//! What this host has: memory, huge pages, and what its control groups leave of them.

use std::fs;
use std::path::Path;

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

/// Where one version of control groups tells of memory; `cache` is the line of `memory.stat` with
/// the page cache that nobody uses at the moment.
struct GroupFiles {
    root: &'static str,
    limit: &'static str,
    used: &'static str,
    cache: &'static str,
}

const VERSION_2: GroupFiles = GroupFiles {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    cache: "inactive_file",
};

const VERSION_1: GroupFiles = GroupFiles {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: "total_inactive_file",
};

/// What this process's control groups leave, over all their levels; `None`: no limit.
fn control_group_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let (files, path) = memory_group(&groups)?;
    left_in(Path::new(files.root), path, files)
}

/// The group that memory is counted in (cgroups(7): `number:controllers:path`). A host with both
/// versions has the memory controller in the one that names it.
fn memory_group(groups: &str) -> Option<(&'static GroupFiles, &str)> {
    let lines = || groups.lines().map(|line| line.splitn(3, ':'));
    let old = lines().find_map(|mut line| {
        let controllers = line.nth(1)?;
        controllers.split(',').find(|name| *name == "memory")?;
        Some((&VERSION_1, line.next()?))
    });
    old.or_else(|| {
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
        Some((&VERSION_2, path))
    })
}

fn left_in(root: &Path, path: &str, files: &GroupFiles) -> Option<u64> {
    let mut level = root.join(path.trim_start_matches('/'));
    let mut left: Option<u64> = None;
    while level.starts_with(root) {
        let text = |file: &str| fs::read_to_string(level.join(file)).unwrap_or_default();
        let number = |file: &str| text(file).trim().parse::<u64>().ok();
        // "max" is no number: no limit on this level.
        if let (Some(limit), Some(used)) = (number(files.limit), number(files.used)) {
            let stat = text("memory.stat");
            let cache = stat
                .lines()
                .filter_map(|line| line.split_once(' '))
                .find(|(name, _)| *name == files.cache)
                .and_then(|(_, bytes)| bytes.parse::<u64>().ok())
                .unwrap_or(0);
            // The kernel drops such pages before it calls the limit reached.
            let here = limit.saturating_sub(used.saturating_sub(cache));
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

    #[test]
    fn the_tightest_level_counts_without_its_idle_page_cache() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let write = |file: &str, text: &str| fs::write(inner.join(file), text).unwrap();
        assert_eq!(left_in(root.path(), "/a/b", &VERSION_2), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        write("memory.stat", "inactive_anon 5\ninactive_file 300\n");
        assert_eq!(left_in(root.path(), "/a/b", &VERSION_2), None);
        write("memory.max", "1000\n");
        assert_eq!(left_in(root.path(), "/a/b", &VERSION_2), Some(600));
        write("../memory.max", "450\n");
        write("../memory.current", "400\n");
        assert_eq!(left_in(root.path(), "/a/b", &VERSION_2), Some(50));
    }

    #[test]
    fn memory_is_counted_by_the_version_that_has_the_controller() {
        let both = "5:cpu,memory:/old\n1:name=systemd:/x\n0::/new:er\n";
        let (files, path) = memory_group(both).unwrap();
        assert_eq!((files.limit, path), ("memory.limit_in_bytes", "/old"));
        let (files, path) = memory_group("1:cpu:/x\n0::/new:er\n").unwrap();
        assert_eq!((files.limit, path), ("memory.max", "/new:er"));
        assert!(memory_group("").is_none());
    }
}
