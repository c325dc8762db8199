//! What other programs reach on this machine, in the same passes: a measure for what Dunlin could
//! reach. Each runs only where it is installed.
//!
//! | room | what is in it |
//! |---|---|
//! | here | which there are, and whether they can run here |
//! | [`memory_copy`] | a copy from memory to memory |
//! | [`iperf3`] | bytes over TCP |
//! | [`perftest`] | `ib_write_bw` and `ib_read_lat` |
//! | [`qemu`] | QEMU moves a guest |
//! | [`monitor`] | speaking with QEMU |

mod iperf3;
mod memory_copy;
mod monitor;
mod perftest;
mod qemu;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use super::matrix::Means;
use super::processes::{installed, version_of};
use super::results::ReferenceRun;
use super::{Interrupted, Stop};
use crate::cli::bench::ReferenceChoice;
use crate::render::amounts::{bytes, counted};

/// How long a server may take to listen.
const LISTEN_MAX: Duration = Duration::from_secs(10);

/// A program and what it does.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    /// The program, and what sets this row apart.
    pub(crate) name: String,
    /// What it does.
    pub(crate) what: String,
    /// The program's version, as it tells.
    pub(crate) version: Option<String>,
    /// Why it can't run here, if so.
    pub(crate) left_out: Option<String>,
    kind: Kind,
}

impl Kind {
    /// The program that has to be installed.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::MemoryCopy => None,
            Self::Iperf3 { .. } => Some("iperf3"),
            Self::WriteBandwidth { .. } => Some("ib_write_bw"),
            Self::ReadLatency => Some("ib_read_lat"),
            Self::QemuTcp { .. } | Self::QemuRdma => Some(qemu::PROGRAM),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    MemoryCopy,
    Iperf3 { streams: u16 },
    WriteBandwidth { pairs: u16 },
    ReadLatency,
    QemuTcp { channels: u16 },
    QemuRdma,
}

/// What a run of a reference needs.
pub(crate) struct Conditions<'a> {
    /// How much is carried, as in the first cell.
    pub(crate) memory_bytes: u64,
    /// The pause's budget, for QEMU.
    pub(crate) max_blackout: Duration,
    /// What this host has.
    pub(crate) means: &'a Means,
    /// The longest that one run may take.
    pub(crate) limit: Duration,
    /// Whether somebody has had enough.
    pub(crate) interrupted: Interrupted<'a>,
}

/// Every reference that was asked for, with as many streams as a cell of the matrix has lanes at
/// most.
pub(crate) fn all(
    asked: &[ReferenceChoice],
    lanes_max: u16,
    memory_bytes: u64,
    means: &Means,
    is_one_host: bool,
) -> Vec<Reference> {
    let mut references = Vec::new();
    let mut add = |name: &str, what: String, kind: Kind, left_out: Option<String>| {
        let elsewhere = (!is_one_host && kind != Kind::MemoryCopy)
            .then(|| "it is measured only where both ends are on this host".to_owned());
        references.push(Reference {
            name: name.to_owned(),
            what,
            version: None,
            left_out: elsewhere.or(left_out),
            kind,
        });
    };
    let lacks = |program: &str, package: &str| {
        (!installed(program)).then(|| format!("{program} is not installed (package {package})"))
    };
    let no_rdma = || {
        means
            .rdma
            .as_ref()
            .err()
            .map(|reason| format!("no RDMA: {reason}"))
    };
    let size = bytes(memory_bytes);
    for choice in asked {
        match choice {
            ReferenceChoice::None => {}
            ReferenceChoice::Memcpy => add(
                "memcpy",
                "from memory to memory, one thread".to_owned(),
                Kind::MemoryCopy,
                None,
            ),
            ReferenceChoice::Iperf3 => {
                let mut counts = vec![1];
                if lanes_max > 1 {
                    counts.push(lanes_max);
                }
                for streams in counts {
                    add(
                        &format!("iperf3 -P {streams}"),
                        format!("{size} over TCP, {}", counted(streams.into(), "stream")),
                        Kind::Iperf3 { streams },
                        lacks("iperf3", "iperf3"),
                    );
                }
            }
            ReferenceChoice::IbWriteBw => add(
                &format!("ib_write_bw -q {lanes_max}"),
                format!(
                    "RDMA writes of 1 MiB, {}",
                    counted(lanes_max.into(), "queue pair")
                ),
                Kind::WriteBandwidth { pairs: lanes_max },
                lacks("ib_write_bw", "perftest").or_else(no_rdma),
            ),
            ReferenceChoice::IbReadLat => add(
                "ib_read_lat",
                "one RDMA read of 4 KiB, there and back".to_owned(),
                Kind::ReadLatency,
                lacks("ib_read_lat", "perftest").or_else(no_rdma),
            ),
            ReferenceChoice::Qemu => {
                let missing = || {
                    lacks(qemu::PROGRAM, "qemu-system-x86").or_else(|| {
                        means
                            .no_kvm
                            .as_ref()
                            .map(|reason| format!("no KVM: {reason}"))
                    })
                };
                add(
                    &format!("qemu multifd {lanes_max}"),
                    format!(
                        "QEMU moves an idle guest of {size} over TCP, {}",
                        counted(lanes_max.into(), "channel")
                    ),
                    Kind::QemuTcp {
                        channels: lanes_max,
                    },
                    missing(),
                );
                add(
                    "qemu rdma",
                    format!("QEMU moves an idle guest of {size} over RDMA"),
                    Kind::QemuRdma,
                    missing().or_else(no_rdma),
                );
            }
        }
    }
    let mut known: Vec<(&str, Option<String>)> = Vec::new();
    for reference in references
        .iter_mut()
        .filter(|reference| reference.left_out.is_none())
    {
        let Some(program) = reference.kind.program() else {
            continue;
        };
        let told = known.iter().find(|(name, _)| *name == program);
        reference.version = match told {
            Some((_, version)) => version.clone(),
            None => {
                let version = version_of(program);
                known.push((program, version.clone()));
                version
            }
        };
    }
    references
}

impl Reference {
    /// Runs it once. A run that fails is a run too, which says why.
    ///
    /// # Errors
    ///
    /// When somebody has had enough.
    pub(crate) fn run(&self, conditions: &Conditions<'_>) -> Result<ReferenceRun, Stop> {
        let outcome = match self.kind {
            Kind::MemoryCopy => memory_copy::run(conditions),
            Kind::Iperf3 { streams } => iperf3::run(conditions, streams),
            Kind::WriteBandwidth { pairs } => perftest::write_bandwidth(conditions, pairs),
            Kind::ReadLatency => perftest::read_latency(conditions),
            Kind::QemuTcp { channels } => qemu::run(conditions, Some(channels)),
            Kind::QemuRdma => qemu::run(conditions, None),
        };
        match outcome {
            Err(Stop::Failed(reason)) => Ok(ReferenceRun {
                reason: Some(reason),
                ..ReferenceRun::default()
            }),
            outcome => outcome,
        }
    }
}

/// A port that nobody listens at.
fn free_port() -> Result<u16, Stop> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    listener
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Stop::failed("a free port", error))
}

/// Whether somebody listens at a TCP port, as /proc says.
fn listens(port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|path| {
        let table = std::fs::read_to_string(path).unwrap_or_default();
        table.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let is_here = fields.next().is_some_and(|local| local.ends_with(&suffix));
            // 0A is LISTEN.
            is_here && fields.nth(1) == Some("0A")
        })
    })
}

fn directory() -> Result<tempfile::TempDir, Stop> {
    tempfile::Builder::new()
        .prefix("dunlin-bench-")
        .tempdir()
        .map_err(|error| Stop::failed("a temporary directory", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_says_so() {
        let means = Means {
            rdma: Err("no device".to_owned()),
            no_kvm: None,
        };
        let asked = [
            ReferenceChoice::None,
            ReferenceChoice::Memcpy,
            ReferenceChoice::Iperf3,
            ReferenceChoice::IbWriteBw,
            ReferenceChoice::IbReadLat,
            ReferenceChoice::Qemu,
        ];
        let here = all(&asked, 4, 1 << 30, &means, true);
        assert_eq!(here.len(), 7);
        assert_eq!(here[0].left_out, None);
        for reference in here.iter().filter(|reference| {
            reference.name.contains("rdma") || reference.name.starts_with("ib_")
        }) {
            let reason = reference.left_out.as_deref().unwrap();
            assert!(
                reason.contains("is not installed") || reason == "no RDMA: no device",
                "{reason}"
            );
        }
        let elsewhere = all(&asked, 4, 1 << 30, &means, false);
        assert_eq!(
            elsewhere
                .iter()
                .filter(|reference| reference.left_out.is_none())
                .count(),
            1
        );
    }

    #[test]
    fn a_listener_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listens(listener.local_addr().unwrap().port()));
        assert!(!listens(0));
        assert_ne!(free_port().unwrap(), 0);
    }
}
