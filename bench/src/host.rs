//! The machine's own counters.

use std::fs;

use rustix::param::clock_ticks_per_second;

/// How long the machine's processors were busy since it started, together, in seconds.
pub fn busy_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq; what guests take is part of user.
    let busy: u64 = [0, 1, 2, 5, 6]
        .iter()
        .filter_map(|at| fields.get(*at))
        .sum();
    busy as f64 / clock_ticks_per_second() as f64
}

/// The machine in a few words.
pub fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    format!(
        "Linux {}, {cpus} CPUs: {model}, {} GiB",
        kernel.trim(),
        memory_info("MemTotal") >> 30
    )
}

/// How much memory can be had without swapping, in bytes.
pub fn available_bytes() -> u64 {
    memory_info("MemAvailable")
}

fn memory_info(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    amount_in(&text, name).unwrap_or(0)
}

/// An amount in kB, as `/proc` writes them in lines like `VmHWM:   1234 kB`, in bytes.
pub fn amount_in(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Bytes that came to a network device, of whatever protocol; 0 where there is none of that name.
pub fn arrived_bytes(device: &str) -> u64 {
    number_in(&format!("/sys/class/net/{device}/statistics/rx_bytes"))
}

/// The number that is all there is in a file; 0 where there is none.
pub fn number_in(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Whether something listens at a TCP port of this network namespace.
pub fn listens(port: u16) -> bool {
    listens_by(&["/proc/net/tcp", "/proc/net/tcp6"], port)
}

/// The same for the network namespace that a process is in.
pub fn listens_beside(process: u32, port: u16) -> bool {
    let tables = ["tcp", "tcp6"].map(|name| format!("/proc/{process}/net/{name}"));
    listens_by(&[&tables[0], &tables[1]], port)
}

fn listens_by(tables: &[&str], port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    tables.iter().any(|path| {
        let table = fs::read_to_string(path).unwrap_or_default();
        table.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().is_some_and(|local| local.ends_with(&suffix));
            // 0A is LISTEN.
            local && fields.nth(1) == Some("0A")
        })
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn amounts_are_bytes() {
        let text = "VmRSS:\t     12 kB\nRssAnon:\t  3 kB\nThreads:\t1\n";
        assert_eq!(amount_in(text, "RssAnon"), Some(3 << 10));
        assert_eq!(amount_in(text, "Rss"), None);
        assert_eq!(amount_in(text, "Threads"), None);
        assert!(available_bytes() > 0);
    }

    #[test]
    fn a_listener_is_seen() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(port));
        assert!(listens_beside(std::process::id(), port));
        drop(listener);
        assert!(!listens(port));
    }
}
