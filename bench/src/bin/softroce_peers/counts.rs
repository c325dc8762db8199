//! The machine's own counters: its processors, its RDMA devices, its wire.

use std::fs;

use rustix::param::clock_ticks_per_second;

/// The end of the wire at which the destination is.
pub(crate) const DESTINATION_DEVICE: &str = "v1";

/// How long the machine's processors were busy since it started, together.
pub(crate) fn busy_seconds() -> f64 {
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

/// Bytes that came to the destination's end of the wire, of whatever protocol.
pub(crate) fn arrived_bytes() -> u64 {
    let path = format!("/sys/class/net/{DESTINATION_DEVICE}/statistics/rx_bytes");
    number_in(&path)
}

/// How often the RDMA devices sent again what was not acknowledged in time.
pub(crate) fn retries() -> u64 {
    ["rxe0", "rxe1"]
        .iter()
        .map(|device| {
            format!("/sys/class/infiniband/{device}/ports/1/hw_counters/completer_retry_err")
        })
        .map(|path| number_in(&path))
        .sum()
}

fn number_in(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// The machine in a few words.
pub(crate) fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    format!("Linux {}, {cpus} CPUs: {model}", kernel.trim())
}
