//! What an arena is made for: what runs the guest, what the move goes over, what can be cut.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::chaos::fault::Phase;
use crate::host;
use crate::rdma::Ends;
use crate::rdma::held::Things;
use crate::rdma::wire::{Wire, renew_devices};

/// A hot set that each round has to do with, and a beat every few milliseconds.
const WORKLOAD: &str = "hot=2MiB,rate=20MiB/s,beat=4ms";

/// The same for machines that emulate their processor.
const WORKLOAD_SLOW: &str = "hot=1MiB,rate=2MiB/s,beat=10ms";

/// What moves go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabric {
    /// TCP: the loopback address, or a link of network namespaces where it is to be cut.
    Tcp,
    /// RDMA, between these addresses.
    Rdma(Ends),
}

impl Fabric {
    /// How long the other side may be silent in a move whose fault is a silence: short, so that runs
    /// are, and long enough for a machine that runs several at a time, or emulates its processor
    /// (there RDMA is seen most).
    pub fn peer_timeout(self) -> Duration {
        match self {
            Self::Tcp => Duration::from_millis(500),
            Self::Rdma(_) => Duration::from_millis(2000),
        }
    }

    /// How long a move may take to get to a phase.
    pub fn phase_time_max(self) -> Duration {
        match self {
            Self::Tcp => Duration::from_secs(15),
            // A busy host was seen to take ten times as long for an emulated machine.
            Self::Rdma(_) => Duration::from_secs(60),
        }
    }

    /// The workload of its guests.
    pub(super) fn workload(self) -> &'static str {
        match self {
            Self::Tcp => WORKLOAD,
            Self::Rdma(_) => WORKLOAD_SLOW,
        }
    }

    /// How receivers listen, and how 'send' is told to go there. A receiver of which RDMA is demanded
    /// would not start while the link is down, and could answer nobody.
    pub(super) fn schemes(self) -> (&'static str, &'static str) {
        match self {
            Self::Tcp => ("tcp", "tcp"),
            Self::Rdma(_) => ("auto", "rdma"),
        }
    }

    /// The local address that moves start from; `None`: the system's choice.
    pub(super) fn bind(self) -> Option<String> {
        match self {
            Self::Tcp => None,
            Self::Rdma(ends) => Some(ends.source.to_string()),
        }
    }

    /// What devices keep for programs by now, where moves use any.
    pub(super) fn things(self) -> Result<Things> {
        match self {
            Self::Tcp => Ok(Things::default()),
            Self::Rdma(_) => Things::now(),
        }
    }
}

/// What can be cut between the sites.
pub(super) enum Link {
    /// Two namespaces, and what is between them.
    Namespaces(host::Link),
    /// The wire between two RDMA devices.
    Wire(Wire),
}

impl Link {
    /// `name` tells those of runs apart that are under way at the same time.
    fn new(fabric: Fabric, name: &str) -> Result<Self> {
        match fabric {
            Fabric::Tcp => Ok(Self::Namespaces(host::Link::new(name)?)),
            Fabric::Rdma(ends) => {
                renew_devices()?;
                let wire = Wire::at(ends.destination)?;
                Ok(Self::Wire(wire.context("there is no wire to cut")?))
            }
        }
    }

    /// Cuts it or mends it.
    pub(super) fn set_up(&self, is_up: bool) -> Result<()> {
        match self {
            Self::Namespaces(link) => link.set_up(is_up),
            Self::Wire(wire) => wire.set_up(is_up),
        }
    }
}

/// What runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestKind {
    /// Threads of the VMM's process.
    Process,
    /// KVM.
    Kvm,
}

impl GuestKind {
    /// Its name, as `dunlin run --guest` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Kvm => "kvm",
        }
    }
}

/// What an arena is made for.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// What the move goes over.
    pub fabric: Fabric,
    /// What runs the guest.
    pub kind: GuestKind,
    /// Where the process that passes a milestone is to stop.
    pub phase: Phase,
    /// Whether there is a link between the sites that can be cut.
    pub has_link: bool,
}

impl Stage {
    /// The link, where there is one.
    pub(super) fn link(&self, name: &str) -> Result<Option<Link>> {
        self.has_link
            .then(|| Link::new(self.fabric, name))
            .transpose()
    }

    /// Where the receiver is to listen.
    pub(super) fn listen(&self, link: Option<&Link>) -> String {
        match (self.fabric, link) {
            (Fabric::Rdma(ends), _) => ends.listen(self.fabric.schemes().0),
            (Fabric::Tcp, Some(Link::Namespaces(link))) => format!("tcp://{}:0", link.addresses[1]),
            (Fabric::Tcp, _) => "tcp://127.0.0.1:0".to_owned(),
        }
    }
}
