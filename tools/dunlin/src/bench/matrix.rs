//! What is measured: the cells of the matrix, and whether they can run here.

use std::net::IpAddr;

use dunlin_vmm::dirty_trace::DirtyTrace;
use dunlin_vmm::machine::MachineKind;
use dunlin_vmm::size::{format_rate, format_size};
use serde::{Deserialize, Serialize};

use crate::cli::bench::{BenchTransport, Matrix, PatternChoice};
use crate::cli::values::{GuestKind, Lanes};
use crate::fabric;
use crate::render::amounts::{bytes, counted};
use crate::supervisor::admission::value_name;

/// The pattern of a guest that does as a trace says.
const REPLAY: &str = "replay";

/// One combination of everything that is varied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cell {
    /// `rdma`, `tcp`, `tcp-writev`, `tcp-lz4`, `tcp-zstd`.
    pub(crate) transport: String,
    /// How many lanes; `None`: the engine chooses.
    pub(crate) lanes: Option<u16>,
    /// The guest's memory.
    pub(crate) memory_bytes: u64,
    /// What it rewrites, in bytes a second; `None`: as much as it can.
    pub(crate) dirty_bytes_per_s: Option<u64>,
    /// `sequential`, `random`; `none` for a guest that writes nothing; `replay` for one that does as
    /// a trace says, at the trace's average rate.
    pub(crate) pattern: String,
    /// How much memory it rewrites over and over.
    pub(crate) hot_bytes: u64,
    /// `kvm`, `process`.
    pub(crate) guest: String,
    /// Its vCPUs.
    pub(crate) vcpus: u32,
}

impl Cell {
    /// What the guest does, as `dunlin run --workload` takes it. Nothing is zero, so that goodput is
    /// of bytes that were carried.
    pub(crate) fn workload(&self) -> String {
        if self.hot_bytes == 0 {
            return "hot=0,zero=0".to_owned();
        }
        if self.is_replay() {
            return "pattern=replay,zero=0".to_owned();
        }
        let rate = self
            .dirty_bytes_per_s
            .map_or_else(|| "max".to_owned(), format_rate);
        format!(
            "pattern={},hot={},rate={rate},zero=0",
            self.pattern,
            format_size(self.hot_bytes)
        )
    }

    /// Whether the guest does as a trace says.
    pub(crate) fn is_replay(&self) -> bool {
        self.pattern == REPLAY
    }

    /// The cell in words.
    pub(crate) fn words(&self) -> String {
        let lanes = self.lanes.map_or_else(
            || "auto lanes".to_owned(),
            |lanes| counted(lanes.into(), "lane"),
        );
        let mut words = format!(
            "{}, {lanes}, {}, {}, {}",
            self.transport,
            bytes(self.memory_bytes),
            self.dirtying(),
            self.guest
        );
        if self.vcpus > 1 {
            words.push_str(&format!(" with {} vCPUs", self.vcpus));
        }
        words
    }

    /// What the guest writes, in words.
    pub(crate) fn dirtying(&self) -> String {
        if self.hot_bytes == 0 {
            return "idle".to_owned();
        }
        if self.is_replay() {
            let rate = self.dirty_bytes_per_s.unwrap_or_default();
            return format!("{}/s replayed", bytes(rate));
        }
        let rate = self
            .dirty_bytes_per_s
            .map_or_else(|| "max".to_owned(), format_rate);
        format!("{rate} {}", self.pattern)
    }
}

/// A cell, and why it can't run here, if so.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The cell.
    pub(crate) cell: Cell,
    /// The reason.
    pub(crate) left_out: Option<String>,
}

/// What this host has for a matrix.
#[derive(Clone, Debug)]
pub(crate) struct Means {
    /// Where lanes over RDMA go on this host, or why there are none.
    pub(crate) rdma: Result<RdmaPlace, String>,
    /// Why there are no KVM guests, if so.
    pub(crate) no_kvm: Option<String>,
}

/// An RDMA device of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RdmaPlace {
    /// Its name.
    pub(crate) device: String,
    /// An address of it.
    pub(crate) address: IpAddr,
}

impl Means {
    /// Looks.
    pub(crate) fn of_this_host() -> Self {
        let rdma = fabric::ports().and_then(|ports| {
            let port = ports.into_iter().next();
            port.map(|port| RdmaPlace {
                device: port.device,
                address: port.address,
            })
            .ok_or_else(|| "no device has a port that is up and an IP address".to_owned())
        });
        Self {
            rdma,
            no_kvm: dunlin_engine::kvm::capabilities()
                .err()
                .map(|error| error.to_string()),
        }
    }
}

/// The cells of a guest that does as a trace says: every transport, every number of lanes.
pub(crate) fn replayed(asked: &Matrix, trace: &DirtyTrace, means: &Means) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for transport in &asked.transports {
        for lanes in &asked.lanes {
            let cell = Cell {
                transport: value_name(transport),
                lanes: lanes.0,
                memory_bytes: trace.memory_bytes(),
                dirty_bytes_per_s: Some(trace.bytes_per_s()),
                pattern: REPLAY.to_owned(),
                hot_bytes: trace.distinct_pages() * 4096,
                guest: MachineKind::Process.name().to_owned(),
                vcpus: asked.vcpus,
            };
            if entries.iter().all(|entry| entry.cell != cell) {
                let left_out = missing(&cell, *transport, means);
                entries.push(Entry { cell, left_out });
            }
        }
    }
    entries
}

/// Every cell that was asked for, in order, each once.
pub(crate) fn entries(asked: &Matrix, means: &Means) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for guest in &asked.guest {
        for memory in &asked.memory {
            for rate in &asked.dirty_rate {
                for pattern in &asked.pattern {
                    for transport in &asked.transports {
                        for lanes in &asked.lanes {
                            let mut cell =
                                cell(*transport, *lanes, *memory, *pattern, rate.0, *guest, means);
                            cell.vcpus = asked.vcpus;
                            if let (Some(hot), true) = (asked.hot, cell.hot_bytes > 0) {
                                cell.hot_bytes = hot;
                            }
                            // A guest that writes nothing has no pattern to vary.
                            if entries.iter().all(|entry| entry.cell != cell) {
                                let left_out = missing(&cell, *transport, means);
                                entries.push(Entry { cell, left_out });
                            }
                        }
                    }
                }
            }
        }
    }
    entries
}

fn cell(
    transport: BenchTransport,
    lanes: Lanes,
    memory_bytes: u64,
    pattern: PatternChoice,
    dirty_bytes_per_s: Option<u64>,
    guest: GuestKind,
    means: &Means,
) -> Cell {
    let kind = match guest {
        GuestKind::Kvm => MachineKind::Kvm,
        GuestKind::Process => MachineKind::Process,
        GuestKind::Auto if means.no_kvm.is_none() => MachineKind::Kvm,
        GuestKind::Auto => MachineKind::Process,
    };
    let is_idle = dirty_bytes_per_s == Some(0);
    Cell {
        transport: value_name(&transport),
        lanes: lanes.0,
        memory_bytes,
        dirty_bytes_per_s,
        pattern: if is_idle {
            "none".to_owned()
        } else {
            value_name(&pattern)
        },
        // A working set that is well below the memory, in whole pages.
        hot_bytes: if is_idle {
            0
        } else {
            memory_bytes / 4 / 4096 * 4096
        },
        guest: kind.name().to_owned(),
        vcpus: 1,
    }
}

fn missing(cell: &Cell, transport: BenchTransport, means: &Means) -> Option<String> {
    if cell.guest == MachineKind::Kvm.name()
        && let Some(reason) = &means.no_kvm
    {
        return Some(format!("no KVM: {reason}"));
    }
    if transport == BenchTransport::Rdma
        && let Err(reason) = &means.rdma
    {
        return Some(format!("no RDMA: {reason}"));
    }
    let compresses = matches!(transport, BenchTransport::TcpLz4 | BenchTransport::TcpZstd);
    if compresses && !cfg!(feature = "compression") {
        return Some("this build has no compression (cargo feature `compression`)".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        matrix: Matrix,
    }

    fn of(line: &str) -> Vec<Entry> {
        let means = Means {
            rdma: Err("no device".to_owned()),
            no_kvm: Some("no /dev/kvm".to_owned()),
        };
        let words = std::iter::once("line").chain(line.split_whitespace());
        entries(&Line::parse_from(words).matrix, &means)
    }

    #[test]
    fn a_matrix_is_every_combination_once() {
        let entries = of(
            "--transports tcp,tcp-lz4 --lanes 1,2,auto --dirty-rate 0,1MiB/s,max --pattern sequential,random",
        );
        // Idle guests have no pattern: 2 transports × 3 lanes × (1 + 2 × 2).
        assert_eq!(entries.len(), 30);
        for entry in &entries {
            assert!(
                entry
                    .cell
                    .workload()
                    .parse::<dunlin_vmm::workload::Workload>()
                    .is_ok(),
                "{entry:?}"
            );
            assert_eq!(entry.cell.guest, "process");
        }
        assert_eq!(of("--lanes 1,1,1 --transports tcp --dirty-rate 0").len(), 1);
    }

    #[test]
    fn what_can_not_run_says_why() {
        let entries = of("--transports rdma,tcp --guest kvm,process --lanes 1 --dirty-rate 0");
        let reasons: Vec<_> = entries
            .iter()
            .map(|entry| entry.left_out.as_deref())
            .collect();
        assert_eq!(
            reasons,
            [
                Some("no KVM: no /dev/kvm"),
                Some("no KVM: no /dev/kvm"),
                Some("no RDMA: no device"),
                None
            ]
        );
    }

    #[test]
    fn a_replay_has_the_recorded_guests_memory() {
        let trace = DirtyTrace {
            regions: vec![(0, 32_768)],
            is_cut: false,
            intervals: vec![dunlin_vmm::dirty_trace::Interval {
                length: std::time::Duration::from_secs(2),
                runs: vec![(4096, 512)],
            }],
        };
        let means = Means {
            rdma: Err("no device".to_owned()),
            no_kvm: None,
        };
        let line = "line --transports rdma,tcp --lanes 1,2";
        let asked = Line::parse_from(line.split(' ')).matrix;
        let entries = replayed(&asked, &trace, &means);
        assert_eq!(entries.len(), 4);
        let cell = &entries[3].cell;
        assert_eq!(
            cell.words(),
            "tcp, 2 lanes, 128 MiB, 1 MiB/s replayed, process"
        );
        assert_eq!(cell.workload(), "pattern=replay,zero=0");
        assert_eq!(cell.hot_bytes, 2 << 20);
        assert!(entries[0].left_out.is_some());
    }

    #[test]
    fn cells_in_words() {
        let words: Vec<String> =
            of("--transports tcp --lanes 1,auto --dirty-rate 0,100MiB/s --hot 8MiB")
                .iter()
                .map(|entry| entry.cell.words())
                .collect();
        assert_eq!(words[0], "tcp, 1 lane, 1 GiB, idle, process");
        assert_eq!(
            words[3],
            "tcp, auto lanes, 1 GiB, 100MiB/s sequential, process"
        );
    }
}
