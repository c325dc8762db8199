//! The checks. Where a thing can be tried without harm it is tried; the rest is read from `/proc`
//! and `/sys`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use dunlin_engine::dirty::{DirtyBitmap, DirtySource};
use dunlin_engine::kvm::{Capabilities, capabilities};
use dunlin_engine::layout::Backing;
use dunlin_engine::pin_budget::{PinBudget, locked_bytes_max};
use dunlin_engine::process::ProcessMemoryTracker;
use dunlin_transports::lane::SourceEndpoint as _;
use dunlin_transports::memory::MemoryMap;
use dunlin_transports::tcp::{Options, SourceEndpoint};
use dunlin_vmm::memory::{allocate, comes_in_huge_pages, pc_layout};
use rustix::process::{Resource, getrlimit};

use super::{Finding, State};
use crate::fabric;
use crate::render::amounts::{bytes, count, counted};
use crate::supervisor::host::host_memory;

/// The name of the check for KVM.
pub(super) const KVM: &str = "kvm";

/// The name of the check for tracking a process's own memory.
pub(super) const PROCESS_TRACKING: &str = "process tracking";

/// Below this much free memory hardly a guest fits.
const MEMORY_USEFUL_BYTES: u64 = 1 << 30;

/// A TCP send buffer below this can't fill a 100 Gbit/s link with 0.3 ms round trips
/// (100e9 / 8 × 0.0003 = 3.75 MB), and the kernel's own default is 4 MiB.
const SEND_BUFFER_USEFUL_BYTES: u64 = 4 << 20;

/// Every finding, in the order in which they are shown.
pub(super) fn all() -> Vec<Finding> {
    let mut findings = vec![kernel(), processors(), memory()];
    findings.extend(kvm());
    findings.extend([
        process_tracking(),
        io_uring(),
        send_buffers(),
        huge_pages(),
        transparent_huge_pages(),
        locked_memory(),
        rdma(),
    ]);
    findings
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

fn kernel() -> Finding {
    let system = rustix::system::uname();
    let found = format!(
        "Linux {}, {}",
        system.release().to_string_lossy(),
        system.machine().to_string_lossy()
    );
    if system.machine().to_bytes() == b"x86_64" {
        return Finding::new("kernel", State::Ok, found);
    }
    Finding::new("kernel", State::Limited, found)
        .meaning("guests on KVM are made for x86_64; process guests run")
}

fn processors() -> Finding {
    let usable = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let nodes = fs::read_dir("/sys/devices/system/node").map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                let number = name.to_str().and_then(|name| name.strip_prefix("node"));
                number.is_some_and(|number| number.parse::<u32>().is_ok())
            })
            .count() as u64
    });
    let found = format!(
        "{} usable, {}",
        counted(usable, "CPU"),
        counted(nodes.max(1), "NUMA node")
    );
    if usable > 1 {
        return Finding::new("processors", State::Ok, found);
    }
    Finding::new("processors", State::Limited, found)
        .meaning("lanes and vCPUs share one CPU: a move slows the guest down")
}

fn memory() -> Finding {
    let free = host_memory().available;
    let found = format!("{} free for guests", bytes(free));
    if free >= MEMORY_USEFUL_BYTES {
        return Finding::new("memory", State::Ok, found);
    }
    Finding::new("memory", State::Limited, found)
        .meaning("'dunlin receive' refuses guests that need more")
}

fn kvm() -> Vec<Finding> {
    match capabilities() {
        Ok(capabilities) => vec![
            Finding::new(
                KVM,
                State::Ok,
                format!(
                    "API {}, up to {}, {} memory slots",
                    capabilities.api_version,
                    counted(capabilities.vcpus_max as u64, "vCPU"),
                    count(capabilities.memory_slots_max as u64)
                ),
            ),
            dirty_bitmap(&capabilities),
            dirty_ring(&capabilities),
            guest_clock(&capabilities),
        ],
        Err(error) => {
            let missing = Finding::new(KVM, State::Missing, error.to_string())
                .meaning("only process guests run here");
            vec![if Path::new("/dev/kvm").exists() {
                missing.remedy("usermod -aG kvm $USER   (then log in again)")
            } else {
                missing.remedy("modprobe kvm_intel || modprobe kvm_amd   (and see that the firmware has virtualisation on)")
            }]
        }
    }
}

fn dirty_bitmap(capabilities: &Capabilities) -> Finding {
    const NAME: &str = "kvm dirty bitmap";
    if !capabilities.manual_protect {
        return Finding::new(NAME, State::Limited, "without manual protect")
            .meaning("each collection protects the whole guest at once; the dirty ring is used where there is one (Linux 5.2 has manual protect)");
    }
    if !capabilities.log_initially_set {
        return Finding::new(NAME, State::Limited, "manual protect, not initially set")
            .meaning("the begin of a move protects the whole guest at once (Linux 5.7 does not)");
    }
    Finding::new(NAME, State::Ok, "manual protect, initially set")
}

fn dirty_ring(capabilities: &Capabilities) -> Finding {
    const NAME: &str = "kvm dirty ring";
    if capabilities.ring_bytes_max == 0 {
        return Finding::new(NAME, State::Limited, "none")
            .meaning("--dirty-tracking ring can't be used (Linux 5.11 has it)");
    }
    let found = format!(
        "up to {} for each vCPU",
        bytes(u64::from(capabilities.ring_bytes_max))
    );
    Finding::new(NAME, State::Ok, found)
}

fn guest_clock(capabilities: &Capabilities) -> Finding {
    const NAME: &str = "kvm guest clock";
    if !capabilities.clock_with_realtime {
        return Finding::new(NAME, State::Limited, "read without the real time")
            .meaning("kvmclock is advanced by this host's own measure of the pause (Linux 5.16 reads both at once)");
    }
    if !capabilities.tsc_control {
        return Finding::new(NAME, State::Limited, "TSC frequency can't be scaled")
            .meaning("guests come only from hosts with the same TSC frequency");
    }
    Finding::new(
        NAME,
        State::Ok,
        "read with the real time; TSC can be scaled",
    )
}

/// Tracks some pages of this process for a moment.
fn process_tracking() -> Finding {
    /// Enough for the system area of a guest; never touched.
    const BYTES: u64 = 16 << 20;
    let tried = || -> Result<(), String> {
        let layout = pc_layout(BYTES, Backing::Memfd).map_err(|error| error.to_string())?;
        let memory = allocate(layout).map_err(|error| error.to_string())?;
        let mut collected = DirtyBitmap::new(memory.layout().page_span());
        let tracker = ProcessMemoryTracker::new(memory);
        tracker.start().map_err(|error| error.to_string())?;
        let outcome = tracker.collect(&mut collected);
        tracker.stop().map_err(|error| error.to_string())?;
        outcome.map_err(|error| error.to_string())
    };
    match tried() {
        Ok(()) => Finding::new(
            PROCESS_TRACKING,
            State::Ok,
            "userfaultfd write-protect and PAGEMAP_SCAN work",
        ),
        Err(reason) => Finding::new(PROCESS_TRACKING, State::Missing, reason)
            .meaning("process guests can't be moved; KVM guests need it not (Linux 6.7 has it)")
            .remedy("sysctl vm.unprivileged_userfaultfd=1"),
    }
}

/// Asks the transport itself what it would do.
fn io_uring() -> Finding {
    const NAME: &str = "io_uring";
    let Ok(nothing) = MemoryMap::new(Vec::new()) else {
        return Finding::new(NAME, State::Limited, "not tried").meaning("lanes may use writev");
    };
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mechanism = SourceEndpoint::new(nowhere, nothing, Options::default()).mechanism();
    if mechanism == "io_uring" {
        return Finding::new(NAME, State::Ok, "lanes over TCP use it");
    }
    let finding = Finding::new(NAME, State::Limited, mechanism)
        .meaning("lanes over TCP make more system calls, and cost more CPU");
    match read("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("1" | "2") => finding.remedy("sysctl kernel.io_uring_disabled=0"),
        _ => finding,
    }
}

fn send_buffers() -> Finding {
    const NAME: &str = "tcp buffers";
    let largest = |file: &str| {
        read(format!("/proc/sys/net/ipv4/{file}"))
            .and_then(|text| text.split_whitespace().nth(2)?.parse::<u64>().ok())
    };
    let (Some(send), Some(receive)) = (largest("tcp_wmem"), largest("tcp_rmem")) else {
        return Finding::new(NAME, State::Limited, "not told by this kernel")
            .meaning("a long or fast link may stay partly idle");
    };
    let found = format!("grow to {} out, {} in", bytes(send), bytes(receive));
    if send.min(receive) >= SEND_BUFFER_USEFUL_BYTES {
        return Finding::new(NAME, State::Ok, found);
    }
    Finding::new(NAME, State::Limited, found)
        .meaning("a long or fast link may stay partly idle; more lanes help too")
        .remedy("sysctl net.ipv4.tcp_wmem='4096 16384 16777216' net.ipv4.tcp_rmem='4096 131072 16777216'")
}

fn huge_pages() -> Finding {
    const NAME: &str = "huge pages";
    let free = host_memory().huge_free;
    if free > 0 {
        return Finding::new(NAME, State::Ok, format!("{} free", bytes(free)));
    }
    Finding::new(NAME, State::Limited, "none free")
        .meaning("--memory-backing hugetlb can't be used; memfd and anon can")
        .remedy("sysctl vm.nr_hugepages=2048   (4 GiB of 2 MiB pages)")
}

fn transparent_huge_pages() -> Finding {
    const NAME: &str = "transparent huge";
    let chosen = |file: &str| {
        let text = read(format!("/sys/kernel/mm/transparent_hugepage/{file}"))?;
        let (_, behind) = text.split_once('[')?;
        behind.split_once(']').map(|(chosen, _)| chosen.to_owned())
    };
    let Some(anonymous) = chosen("enabled") else {
        return Finding::new(NAME, State::Limited, "none in this kernel")
            .meaning("fresh memory costs more to touch: an arriving guest takes longer");
    };
    let shared = chosen("shmem_enabled").unwrap_or_else(|| "never".to_owned());
    let found = format!("anon: {anonymous}, memfd: {shared}");
    if anonymous == "never" {
        return Finding::new(NAME, State::Limited, found)
            .meaning("fresh memory costs more to touch: an arriving guest takes longer")
            .remedy("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    }
    if !comes_in_huge_pages(Backing::Memfd) {
        return Finding::new(NAME, State::Limited, found)
            .meaning("guests arrive more slowly in a memfd: it is touched in small pages")
            .remedy("echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled   (or receive with CAP_SYS_ADMIN)");
    }
    Finding::new(NAME, State::Ok, found)
}

fn locked_memory() -> Finding {
    const NAME: &str = "locked memory";
    let found = match getrlimit(Resource::Memlock).current {
        None => "no limit".to_owned(),
        Some(limit) => format!("limit {}", bytes(limit)),
    };
    let auto = PinBudget::Auto.window_bytes(u64::MAX);
    let pinned = |window| format!("RDMA pins at most {} of a guest at once", bytes(window));
    match (locked_bytes_max(), auto) {
        (None, Ok(window)) => Finding::new(NAME, State::Ok, format!("{found}; {}", pinned(window))),
        (_, auto) => Finding::new(NAME, State::Limited, found)
            .meaning(match auto {
                Ok(window) => format!("{} (--pin-budget auto)", pinned(window)),
                Err(_) => "too little for RDMA: guests move over TCP".to_owned(),
            })
            .remedy("ulimit -l unlimited   (or LimitMEMLOCK=infinity in a unit)"),
    }
}

/// Asks the transport itself: the libraries, the devices, their ports.
fn rdma() -> Finding {
    const NAME: &str = "rdma";
    const WITHOUT: &str = "guests move over TCP";
    let devices = rdma_devices();
    match (fabric::ports(), devices.is_empty()) {
        (Ok(ports), _) if !ports.is_empty() => {
            let words: Vec<&str> = ports.iter().map(|port| port.words.as_str()).collect();
            Finding::new(NAME, State::Ok, words.join("; "))
        }
        (Ok(_), true) => Finding::new(NAME, State::Missing, "no device").meaning(WITHOUT),
        (Ok(_), false) => Finding::new(NAME, State::Limited, devices.join(", "))
            .meaning(format!("no port is up and has an IP address: {WITHOUT}"))
            .remedy("rdma link   (and give the network device an address: ip address add …)"),
        // What helps is in the words; without a device it helps nothing.
        (Err(reason), is_empty) => {
            let (state, found) = match is_empty {
                true => (State::Missing, "no device".to_owned()),
                false => (State::Limited, devices.join(", ")),
            };
            let finding = Finding::new(NAME, state, found).meaning(format!("{WITHOUT}: {reason}"));
            match is_empty {
                true => finding,
                false => finding.remedy("apt-get install libibverbs1 librdmacm1 ibverbs-providers"),
            }
        }
    }
}

/// The kernel's RDMA devices, with the state and the link of each port.
fn rdma_devices() -> Vec<String> {
    let folder = Path::new("/sys/class/infiniband");
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names
    };
    let device = |name: String| {
        let ports = folder.join(&name).join("ports");
        let port = |number: String| {
            let attribute = |what: &str| read(ports.join(&number).join(what)).unwrap_or_default();
            // The state is told as in '4: ACTIVE'.
            let state = attribute("state");
            let state = state.rsplit(": ").next().unwrap_or_default().to_owned();
            format!("port {number} {state}, {}", attribute("link_layer"))
        };
        let ports: Vec<String> = names(&ports).into_iter().map(port).collect();
        format!("{name} ({})", ports.join("; "))
    };
    names(folder).into_iter().map(device).collect()
}
