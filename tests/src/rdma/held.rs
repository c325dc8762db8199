//! What RDMA holds: memory that is pinned, and the device's queue pairs, registrations and queues.
//! Behind a move, however it ended, nothing of it may be left.
//!
//! The kernel tells the first in `/proc/PID/status` (`VmPin`, `VmLck`), the second through the
//! program `rdma` (iproute2): `rdma resource show qp|mr|cq|cm_id`. Contexts and protection domains
//! are not looked at: librdmacm keeps one of each for every device, for the life of the process.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::program::{Running, is_alive};
use crate::site::Site;

/// How long letting go may take: it happens behind the end of a move, a source in doubt asks once
/// before, for as long as a peer may be silent, and emulated machines are slow.
const LET_GO_TIME_MAX: Duration = Duration::from_secs(60);

/// The kinds of things that a session makes, and the name of their number.
const KINDS: [(&str, &str); 4] = [
    ("qp", "lqpn"),
    ("mr", "mrn"),
    ("cq", "cqn"),
    ("cm_id", "cm-idn"),
];

/// Kibibytes of a process's memory that can't be moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// `VmPin`: for devices.
    pub pinned_kib: u64,
    /// `VmLck`: by `mlock` and the like.
    pub locked_kib: u64,
}

impl Pinned {
    /// What a process has.
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        let both = || {
            Some(Self {
                pinned_kib: field("VmPin:")?,
                locked_kib: field("VmLck:")?,
            })
        };
        both().with_context(|| format!("no VmPin or VmLck of process {pid}: {status}"))
    }
}

/// One thing that a device keeps for somebody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Thing {
    kind: &'static str,
    device: String,
    number: u64,
}

/// What the devices keep for programs, as it was at some moment. Empty where there is no `rdma`.
#[derive(Clone, Debug, Default)]
pub struct Things(BTreeSet<Thing>);

impl Things {
    /// Those that are there now.
    ///
    /// # Errors
    ///
    /// When `rdma` can't tell.
    pub fn now() -> Result<Self> {
        let all = things()?;
        Ok(Self(all.into_iter().map(|(thing, _)| thing).collect()))
    }
}

/// Whether this machine has the program `rdma`; says so if not.
fn has_rdma_program() -> bool {
    let is_there = Command::new("rdma").arg("-V").output().is_ok();
    if !is_there {
        println!("skipped: without the program 'rdma' (iproute2) nobody tells what devices hold");
    }
    is_there
}

/// The things that programs have, and whose they are, where the kernel tells.
fn things() -> Result<Vec<(Thing, Option<u32>)>> {
    if !has_rdma_program() {
        return Ok(Vec::new());
    }
    let domains = show("pd")?;
    let mut all = Vec::new();
    for (kind, number) in KINDS {
        all.extend(programs_things(kind, number, &show(kind)?, &domains));
    }
    Ok(all)
}

/// The entries of a list that are programs' own, each with the thread that made it or else its
/// protection domain: the kernel knows that thread alone, and forgets it when it ends.
fn programs_things(
    kind: &'static str,
    number: &str,
    entries: &[Value],
    domains: &[Value],
) -> Vec<(Thing, Option<u32>)> {
    let device = |entry: &Value| entry["ifname"].as_str().unwrap_or_default().to_owned();
    let thread = |entry: &Value| u32::try_from(entry["pid"].as_u64()?).ok();
    let of_domain = |entry: &Value| {
        let domain = entry["pdn"].as_u64()?;
        let is_its = |other: &&Value| {
            other["pdn"].as_u64() == Some(domain) && device(other) == device(entry)
        };
        domains.iter().find(is_its).and_then(thread)
    };
    // What the kernel made has a name and no process.
    let is_programs = |entry: &&Value| entry["comm"].is_null() || !entry["pid"].is_null();
    let programs = entries.iter().filter(is_programs);
    programs
        .map(|entry| {
            let thing = Thing {
                kind,
                device: device(entry),
                number: entry[number].as_u64().unwrap_or_default(),
            };
            (thing, thread(entry).or_else(|| of_domain(entry)))
        })
        .collect()
}

fn show(kind: &str) -> Result<Vec<Value>> {
    let mut command = Command::new("rdma");
    command.args(["-j", "resource", "show", kind]);
    let output = Running::start(command)?.wait()?.expect_code(0)?;
    if output.stdout.trim().is_empty() {
        return Ok(Vec::new());
    }
    let entries = output.json()?;
    let entries = entries.as_array().cloned();
    entries.with_context(|| format!("'rdma resource show {kind}' says no list"))
}

/// The process that a thread belongs to, while it lives.
fn process_of(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

/// What is still held of these sites' moves: pinned memory of their living processes, and things of
/// theirs or of processes that are gone. What was there `before`, or is another living process's, is
/// nobody's business here.
///
/// # Errors
///
/// When the system does not tell.
pub fn still_held(sites: &[&Site], before: &Things) -> Result<Vec<String>> {
    let ours: BTreeSet<u32> = sites.iter().flat_map(|site| site.processes()).collect();
    let mut held = Vec::new();
    for pid in &ours {
        // It may end at any moment.
        let Ok(pinned) = Pinned::of(*pid) else {
            continue;
        };
        if pinned != Pinned::default() {
            held.push(format!("process {pid} has {pinned:?}"));
        }
    }
    for (thing, thread) in things()? {
        let owner = thread.and_then(process_of);
        let is_anothers = owner.is_some_and(|pid| is_alive(pid) && !ours.contains(&pid));
        if !is_anothers && !before.0.contains(&thing) {
            let whose = owner.map_or("nobody".to_owned(), |pid| format!("process {pid}"));
            held.push(format!(
                "{} {} of {}, of {whose}",
                thing.kind, thing.number, thing.device
            ));
        }
    }
    Ok(held)
}

/// Sees that nothing is held any more, soon. To be called behind each move over RDMA, while what
/// survived it lives.
///
/// # Errors
///
/// What is still held.
pub fn expect_nothing_held(sites: &[&Site], before: &Things) -> Result<()> {
    let end = Instant::now() + LET_GO_TIME_MAX;
    loop {
        let held = still_held(sites, before)?;
        if held.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("still held behind the move: {}", held.join("; "));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As iproute2 6.1 prints them.
    #[test]
    fn the_kernels_own_is_left_out_and_registrations_belong_to_their_domain() {
        let domains = [
            json!({"ifname": "rxe0", "pdn": 0, "comm": "ib_core"}),
            json!({"ifname": "rxe1", "pdn": 2, "pid": 9, "comm": "other"}),
            json!({"ifname": "rxe0", "pdn": 2, "pid": 178, "comm": "dunlin"}),
        ];
        let entries = [
            json!({"ifname": "rxe0", "mrn": 0, "pdn": 0, "comm": "ib_core"}),
            json!({"ifname": "rxe0", "mrn": 3, "pdn": 2}),
            json!({"ifname": "rxe0", "mrn": 4, "pdn": 2, "pid": 231, "comm": "dunlin-1"}),
            json!({"ifname": "rxe0", "mrn": 5, "pdn": 7}),
        ];
        let found = programs_things("mr", "mrn", &entries, &domains);
        let short: Vec<_> = found
            .iter()
            .map(|(thing, of)| (thing.number, *of))
            .collect();
        assert_eq!(short, [(3, Some(178)), (4, Some(231)), (5, None)]);
    }

    #[test]
    fn locked_memory_is_seen() -> Result<()> {
        let before = Pinned::of(std::process::id())?;
        // One page, so that no limit is in the way.
        let page = vec![1_u8; 1 << 13];
        // SAFETY: the range is this vector's; locking changes nothing that it holds.
        let locked = unsafe { libc::mlock(page.as_ptr().cast(), 1 << 12) };
        assert_eq!(locked, 0, "{}", std::io::Error::last_os_error());
        assert!(Pinned::of(std::process::id())?.locked_kib > before.locked_kib);
        Ok(())
    }
}
