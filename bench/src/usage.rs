//! Whose processor time and whose memory a run was: its two sides' processes, and the machine's as a
//! whole.
//!
//! A thread looks at `/proc` while a run goes on, so that what ended processes and threads used is
//! known as well. The threads that run a guest are left out everywhere: Dunlin's built-in guest
//! never sleeps, QEMU's sleeps in its firmware, and neither is a cost of the move.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use rustix::param::clock_ticks_per_second;
use serde::Serialize;

use crate::host;

/// How often it is looked. Each look takes about a millisecond of an emulated processor, a tenth of
/// that of a real one.
const INTERVAL: Duration = Duration::from_millis(100);

/// How the threads that run a guest are named: Dunlin's and QEMU's.
const GUEST_THREADS: [&str; 2] = ["vcpu-", "CPU "];

/// Processor time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// In programs.
    pub user_s: f64,
    /// In the kernel for them.
    pub system_s: f64,
}

impl Cpu {
    fn minus(self, other: Self) -> Self {
        Self {
            user_s: (self.user_s - other.user_s).max(0.0),
            system_s: (self.system_s - other.system_s).max(0.0),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            user_s: self.user_s + other.user_s,
            system_s: self.system_s + other.system_s,
        }
    }

    /// Both kinds.
    pub fn total_s(self) -> f64 {
        self.user_s + self.system_s
    }
}

/// What one side's processes held of memory of their own: private memory and files, programs among
/// them. A guest's memory is neither, where it is a memory file, which is mapped as shared memory.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// The most at once, in bytes, at the looks that were taken.
    pub peak_bytes: u64,
    /// By how much private memory grew over what it was at the first look, at most: what a move
    /// takes in processes that were there before it.
    pub growth_bytes: u64,
}

/// What a run used.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// The source's processes.
    pub source: Cpu,
    /// The destination's.
    pub destination: Cpu,
    /// The source's memory beyond the guest's.
    pub source_memory: Memory,
    /// The destination's.
    pub destination_memory: Memory,
    /// All processors of the machine, whatever for.
    pub machine_s: f64,
    /// The middle of the run; `None` when it was too short to have one.
    pub bulk: Option<Bulk>,
}

/// The part of a run in which bytes flow: from the tenth that came first to the one that came last.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bulk {
    /// How long it was.
    pub seconds: f64,
    /// What came over the wire in it.
    pub wire_bytes: u64,
    /// The destination's time in programs, by ticks.
    pub destination_user_s: f64,
    /// The destination's whole time, by the scheduler, which counts nanoseconds: no less than that.
    pub destination_run_s: f64,
}

/// The two sides' threads, as far as they were seen; those that run a guest are left out.
#[derive(Debug)]
pub struct Threads {
    /// The source's.
    pub source: HashSet<u32>,
    /// The destination's.
    pub destination: HashSet<u32>,
}

/// One look.
#[derive(Clone, Copy, Debug, Default)]
struct Look {
    at_s: f64,
    arrived_bytes: u64,
    source: Cpu,
    destination: Cpu,
    source_held: Held,
    destination_held: Held,
    destination_run_s: f64,
    machine_s: f64,
    guest_s: f64,
}

/// What processes hold of memory at one look, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    private: u64,
    files: u64,
}

/// A process and those that it started, as far as they were seen.
struct Tree {
    root: u32,
    processes: HashMap<u32, Cpu>,
    guests: HashMap<u32, Cpu>,
    held: Held,
    /// By thread: what the scheduler says, in nanoseconds.
    run_ns: HashMap<u32, u64>,
}

impl Tree {
    fn new(root: u32) -> Self {
        Self {
            root,
            processes: HashMap::new(),
            guests: HashMap::new(),
            held: Held::default(),
            run_ns: HashMap::new(),
        }
    }

    fn look(&mut self) {
        self.held = Held::default();
        let mut waiting = vec![self.root];
        while let Some(process) = waiting.pop() {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            self.held.private += host::amount_in(&status, "RssAnon").unwrap_or(0);
            self.held.files += host::amount_in(&status, "RssFile").unwrap_or(0);
            if let Some(cpu) = cpu_in(&format!("/proc/{process}/stat")) {
                self.processes.insert(process, cpu);
            }
            let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
                continue;
            };
            for thread in threads.flatten() {
                let Some(id) = thread.file_name().to_str().and_then(|id| id.parse().ok()) else {
                    continue;
                };
                self.look_at_thread(process, id);
                let children = format!("/proc/{process}/task/{id}/children");
                let children = fs::read_to_string(children).unwrap_or_default();
                waiting.extend(
                    children
                        .split_whitespace()
                        .filter_map(|id| id.parse::<u32>().ok()),
                );
            }
        }
    }

    fn look_at_thread(&mut self, process: u32, thread: u32) {
        let directory = format!("/proc/{process}/task/{thread}");
        let name = fs::read_to_string(format!("{directory}/comm")).unwrap_or_default();
        if GUEST_THREADS.iter().any(|prefix| name.starts_with(prefix)) {
            if let Some(cpu) = cpu_in(&format!("{directory}/stat")) {
                self.guests.insert(thread, cpu);
            }
            return;
        }
        let schedule = fs::read_to_string(format!("{directory}/schedstat")).unwrap_or_default();
        if let Some(ns) = schedule
            .split_whitespace()
            .next()
            .and_then(|ns| ns.parse().ok())
        {
            self.run_ns.insert(thread, ns);
        }
    }

    /// All threads that were seen, but for those that run a guest.
    fn threads(&self) -> HashSet<u32> {
        self.run_ns.keys().copied().collect()
    }

    fn guest(&self) -> Cpu {
        self.guests
            .values()
            .fold(Cpu::default(), |sum, cpu| sum.plus(*cpu))
    }

    fn cpu(&self) -> Cpu {
        let all = self
            .processes
            .values()
            .fold(Cpu::default(), |sum, cpu| sum.plus(*cpu));
        all.minus(self.guest())
    }

    fn run_s(&self) -> f64 {
        self.run_ns.values().sum::<u64>() as f64 / 1e9
    }
}

/// What this process has used so far, by ticks.
pub fn own_cpu() -> Cpu {
    cpu_in("/proc/self/stat").unwrap_or_default()
}

/// The processor time in a `stat` file of `/proc`.
fn cpu_in(path: &str) -> Option<Cpu> {
    let text = fs::read_to_string(path).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut seconds = || -> Option<f64> {
        let ticks: u64 = fields.next()?.parse().ok()?;
        Some(ticks as f64 / clock_ticks_per_second() as f64)
    };
    Some(Cpu {
        user_s: seconds()?,
        system_s: seconds()?,
    })
}

/// From when on a run's two sides are counted: from its order, or from their beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Both from the order.
    Order,
    /// The destination from its beginning: what it does to be ready is a part of the move.
    DestinationBirth,
    /// Both from their beginning.
    Birth,
}

/// Looks at a run until it is told that it is over.
pub struct Watch {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<Look>, Threads)>,
    since: Since,
}

impl Watch {
    /// Of the processes that began with these two, and those that they start. `arrivals` gives the
    /// bytes that have come to the destination's
    /// network device; where that is 0 for ever, the run has no middle.
    pub fn start(source: u32, destination: u32, since: Since, arrivals: fn() -> u64) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let mut trees = (Tree::new(source), Tree::new(destination));
        let begun = Instant::now();
        let first = look(&mut trees, begun, arrivals);
        let thread = std::thread::spawn(move || {
            let mut looks = vec![first];
            while !told.load(Ordering::Acquire) {
                std::thread::sleep(INTERVAL);
                looks.push(look(&mut trees, begun, arrivals));
            }
            let threads = Threads {
                source: trees.0.threads(),
                destination: trees.1.threads(),
            };
            (looks, threads)
        });
        Self {
            is_over,
            thread,
            since,
        }
    }

    /// The run is over.
    pub fn end(self) -> anyhow::Result<(Usage, Threads)> {
        self.is_over.store(true, Ordering::Release);
        let ended = self.thread.join();
        let (looks, threads) = ended.map_err(|_| anyhow!("the watching thread died"))?;
        Ok((usage(&looks, self.since), threads))
    }
}

fn look(trees: &mut (Tree, Tree), begun: Instant, arrivals: fn() -> u64) -> Look {
    trees.0.look();
    trees.1.look();
    let (source, destination) = (&trees.0, &trees.1);
    Look {
        at_s: begun.elapsed().as_secs_f64(),
        arrived_bytes: arrivals(),
        source: source.cpu(),
        destination: destination.cpu(),
        source_held: source.held,
        destination_held: destination.held,
        destination_run_s: destination.run_s(),
        machine_s: host::busy_seconds(),
        guest_s: source.guest().plus(destination.guest()).total_s(),
    }
}

fn usage(looks: &[Look], since: Since) -> Usage {
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
        return Usage::default();
    };
    let counted_before = |cpu, counts_all: bool| if counts_all { Cpu::default() } else { cpu };
    let source_before = counted_before(first.source, since == Since::Birth);
    let destination_before = counted_before(first.destination, since != Since::Order);
    let guest_s = last.guest_s - first.guest_s;
    Usage {
        source: last.source.minus(source_before),
        destination: last.destination.minus(destination_before),
        source_memory: memory(looks.iter().map(|look| look.source_held)),
        destination_memory: memory(looks.iter().map(|look| look.destination_held)),
        machine_s: (last.machine_s - first.machine_s - guest_s).max(0.0),
        bulk: bulk(looks, first.arrived_bytes, last.arrived_bytes),
    }
}

fn memory(looks: impl Iterator<Item = Held> + Clone) -> Memory {
    let first = looks.clone().next().unwrap_or_default();
    let most = |of: fn(Held) -> u64| looks.clone().map(of).max().unwrap_or(0);
    Memory {
        peak_bytes: most(|held| held.private + held.files),
        growth_bytes: most(|held| held.private).saturating_sub(first.private),
    }
}

fn bulk(looks: &[Look], first_bytes: u64, last_bytes: u64) -> Option<Bulk> {
    let tenth = last_bytes.saturating_sub(first_bytes) / 10;
    let begin = looks
        .iter()
        .find(|look| look.arrived_bytes >= first_bytes + tenth)?;
    let end = looks
        .iter()
        .rfind(|look| look.arrived_bytes <= last_bytes - tenth)?;
    (tenth > 0 && end.at_s > begin.at_s).then(|| Bulk {
        seconds: end.at_s - begin.at_s,
        wire_bytes: end.arrived_bytes - begin.arrived_bytes,
        destination_user_s: end.destination.minus(begin.destination).user_s,
        destination_run_s: (end.destination_run_s - begin.destination_run_s).max(0.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_used_is_between_its_looks() {
        let look = |number: u32| Look {
            at_s: f64::from(number),
            arrived_bytes: 1000 + 100 * u64::from(number),
            source: Cpu {
                user_s: 5.0 + f64::from(number),
                system_s: 0.0,
            },
            destination: Cpu {
                user_s: 0.5 * f64::from(number),
                system_s: 1.0,
            },
            source_held: Held {
                private: 100 - u64::from(number),
                files: 10,
            },
            destination_held: Held {
                private: 7 * u64::from(number),
                files: 0,
            },
            destination_run_s: 2.0 * f64::from(number),
            machine_s: 3.0 * f64::from(number),
            guest_s: f64::from(number),
        };
        let looks: Vec<Look> = (0..=10).map(look).collect();
        let used = usage(&looks, Since::Order);
        assert_eq!(used.source.user_s, 10.0);
        assert_eq!(used.destination.total_s(), 5.0);
        assert_eq!(used.machine_s, 20.0);
        assert_eq!(usage(&looks, Since::Birth).source.user_s, 15.0);
        let late = usage(&looks, Since::DestinationBirth);
        assert_eq!(late.source.user_s, 10.0);
        assert_eq!(late.destination.total_s(), 6.0);
        let bulk = used.bulk.unwrap();
        assert_eq!((bulk.seconds, bulk.wire_bytes), (8.0, 800));
        assert_eq!(
            (bulk.destination_user_s, bulk.destination_run_s),
            (4.0, 16.0)
        );
        assert!(usage(&looks[..1], Since::Order).bulk.is_none());
        let memories = [used.source_memory, used.destination_memory];
        assert_eq!(memories.map(|memory| memory.peak_bytes), [110, 70]);
        assert_eq!(memories.map(|memory| memory.growth_bytes), [0, 70]);
    }

    #[test]
    fn a_process_is_seen_with_its_threads() {
        let mut tree = Tree::new(std::process::id());
        let begun = Instant::now();
        while tree.run_s() <= 0.0 && begun.elapsed() < Duration::from_secs(10) {
            tree.look();
        }
        assert!(tree.run_s() > 0.0);
        assert!(tree.processes.contains_key(&std::process::id()));
        assert!(tree.held.private > 0 && tree.held.files > 0);
        assert!(cpu_in("/proc/self/stat").is_some());
        assert!(cpu_in("/proc/self/comm").is_none());
    }
}
