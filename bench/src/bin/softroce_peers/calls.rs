//! System calls, counted by the kernel's own tracing: each thread's, by name, while it is told to.
//!
//! A tracer like strace stops a thread at each call, which in an emulated machine takes so long that
//! lanes wait where they never did. A histogram in the kernel costs a call some microseconds.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use dunlin_bench::program::output_of;

/// Where the kernel has it.
const TRACING: &str = "/sys/kernel/tracing";

/// Which histogram: of calls, by thread and name. The table has room for some hundred threads.
const HISTOGRAM: &str = "hist:keys=common_pid,id.syscall:size=16384";

/// Calls that look at the clock. They need the kernel only where it does not trust its processors'
/// counter, so they are not counted among the others.
const CLOCK_CALLS: [&str; 3] = ["sys_clock_gettime", "sys_gettimeofday", "sys_time"];

/// Counts from its start on.
pub(crate) struct Counter {
    instance: PathBuf,
}

impl Counter {
    /// Starts to count the calls of all threads of the machine.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let instances = Path::new(TRACING).join("instances");
        if !instances.exists() {
            output_of(Command::new("mount").args(["-t", "tracefs", "tracefs", TRACING]))?;
        }
        let counter = Self {
            instance: instances.join("softroce_peers"),
        };
        if !counter.instance.exists() {
            fs::create_dir(&counter.instance).context("this kernel can't trace")?;
        }
        fs::write(counter.file("trigger"), HISTOGRAM)
            .context("this kernel has no histograms of system calls")?;
        Ok(counter)
    }

    /// Ends the counting: calls by thread and name.
    pub(crate) fn end(self) -> anyhow::Result<Vec<Calls>> {
        let table = fs::read_to_string(self.file("hist"))?;
        Ok(table.lines().filter_map(Calls::read).collect())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.instance
            .join("events/raw_syscalls/sys_enter")
            .join(name)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // What is left costs a little time for each call, and nothing else.
        let _ = fs::write(self.file("trigger"), format!("!{HISTOGRAM}"));
        let _ = fs::remove_dir(&self.instance);
    }
}

/// Calls of one kind that a thread made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Calls {
    thread: u32,
    name: String,
    count: u64,
}

impl Calls {
    /// Reads a line like `{ common_pid: 12, id: sys_write [ 1] } hitcount: 34`.
    fn read(line: &str) -> Option<Self> {
        let (keys, count) = line.split_once('}')?;
        let count = count
            .trim()
            .strip_prefix("hitcount:")?
            .trim()
            .parse()
            .ok()?;
        let (_, keys) = keys.split_once("common_pid:")?;
        let (thread, keys) = keys.split_once(',')?;
        let (_, name) = keys.split_once("id:")?;
        let name = name.split_whitespace().next()?;
        Some(Self {
            thread: thread.trim().parse().ok()?,
            name: name.to_owned(),
            count,
        })
    }
}

/// How many calls one side made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SideCalls {
    pub(crate) calls: u64,
    /// Looks at the clock, which are not among them.
    pub(crate) clock_calls: u64,
    /// The most frequent ones.
    pub(crate) most: Vec<(String, u64)>,
}

impl SideCalls {
    /// Of some threads.
    pub(crate) fn of(all: &[Calls], threads: &HashSet<u32>) -> Self {
        let mut by_name: HashMap<&str, u64> = HashMap::new();
        let mut side = Self::default();
        for calls in all.iter().filter(|calls| threads.contains(&calls.thread)) {
            if CLOCK_CALLS.contains(&calls.name.as_str()) {
                side.clock_calls += calls.count;
            } else {
                side.calls += calls.count;
                *by_name.entry(&calls.name).or_default() += calls.count;
            }
        }
        let mut most: Vec<(&str, u64)> = by_name.into_iter().collect();
        most.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
        most.truncate(4);
        let named =
            |(name, count): (&str, u64)| (name.trim_start_matches("sys_").to_owned(), count);
        side.most = most.into_iter().map(named).collect();
        side
    }
}

impl fmt::Display for SideCalls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.most.iter();
        let most: Vec<String> = most
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        write!(formatter, "{} ({})", self.calls, most.join(", "))
    }
}

/// How many calls both sides made.
#[derive(Clone, Debug)]
pub(crate) struct SystemCalls {
    pub(crate) source: SideCalls,
    pub(crate) destination: SideCalls,
}

impl fmt::Display for SystemCalls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "source {}, destination {}",
            self.source, self.destination
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_read() {
        let table = "\
# event histogram
# trigger info: hist:keys=common_pid,id.syscall:vals=hitcount:sort=hitcount:size=16384 [active]

{ common_pid:        195, id: sys_poll                      [  7] } hitcount:          3
{ common_pid:        195, id: sys_clock_gettime             [228] } hitcount:         40
{ common_pid:        196, id: sys_write                     [  1] } hitcount:        774
{ common_pid:        300, id: sys_write                     [  1] } hitcount:          9

Totals:
    Hits: 826
    Entries: 4
    Dropped: 0
";
        let all: Vec<Calls> = table.lines().filter_map(Calls::read).collect();
        assert_eq!(all.len(), 4);
        let expected = SideCalls {
            calls: 777,
            clock_calls: 40,
            most: vec![("write".to_owned(), 774), ("poll".to_owned(), 3)],
        };
        assert_eq!(SideCalls::of(&all, &HashSet::from([195, 196])), expected);
    }
}
